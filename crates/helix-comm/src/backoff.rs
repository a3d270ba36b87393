//! How to wait for another thread: spin while it is likely to be running, then give the core away.

use std::time::{Duration, Instant};

/// Spins this many times before the first yield: about 20 us, longer than most lines of a layer
/// differ between threads, far shorter than a scheduler's time slice.
const SPINS: u32 = 1 << 11;
/// Yields this many times before the first sleep.
const YIELDS: u32 = 1 << 12;
const SLEEP: Duration = Duration::from_micros(50);

/// One wait, from its first check to its end.
pub(crate) struct Backoff {
    tries: u32,
    spins: u32,
    since: Option<Instant>,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self::with_spins(SPINS)
    }

    /// A wait whose tries are dear: so many before the first yield.
    pub(crate) fn with_spins(spins: u32) -> Self {
        Self { tries: 0, spins, since: None }
    }

    /// Waits a little; longer the more often it was called. Never holds a core for long, so that a
    /// foreign process on it costs its share and no more.
    pub(crate) fn wait(&mut self) {
        self.tries = self.tries.saturating_add(1);
        if self.tries < self.spins {
            std::hint::spin_loop();
        } else if self.tries < self.spins + YIELDS {
            std::thread::yield_now();
        } else {
            std::thread::sleep(SLEEP);
        }
    }

    /// Whether the caller should rather park: spinning and yielding have not helped.
    pub(crate) fn is_tired(&self) -> bool {
        self.tries >= self.spins + YIELDS
    }

    /// Time since the wait left its spinning phase; zero while it spins, which costs no clock read.
    pub(crate) fn elapsed(&mut self) -> Duration {
        if self.tries < self.spins {
            return Duration::ZERO;
        }
        self.since.get_or_insert_with(Instant::now).elapsed()
    }
}
