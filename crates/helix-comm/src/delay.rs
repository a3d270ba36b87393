//! Links between ranks of one process, as slow as those between hosts.

use std::time::{Duration, Instant};

/// What a slow link adds to each message.
///
/// A message of `n` bytes leaves its sender behind all that left it before, which takes
/// `n / bytes_per_s`, and is there `latency` later: its receiver can't read it before. Nobody
/// computes for a link: a rank that waits sleeps, and one that computes loses nothing to messages
/// on their way. Receivers have no queue of their own, and a group's links are no other group's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delay {
    /// From when all of a message has left to when it is there.
    pub latency: Duration,
    /// Bytes per second that leave a member; infinite where a message's length does not matter.
    pub bytes_per_s: f64,
}

/// The end of a wait is not slept through: the system wakes sleepers late by as much.
const AWAKE: Duration = Duration::from_micros(80);

impl Delay {
    /// When a message of so many bytes has left that is ready to `at`.
    pub(crate) fn left(&self, at: Instant, bytes: usize) -> Instant {
        at + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s)
    }
}

/// Waits until `time`: asleep, then giving way to other threads.
pub(crate) fn wait_until(time: Instant) {
    loop {
        let left = time.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        match left.checked_sub(AWAKE) {
            Some(asleep) if !asleep.is_zero() => std::thread::sleep(asleep),
            _ => std::thread::yield_now(),
        }
    }
}
