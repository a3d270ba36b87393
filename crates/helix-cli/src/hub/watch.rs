//! A download from a server that falls silent is given up. Its client would wait for ever: some of
//! its requests are made without any limit of time.

use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Until it is known what to download.
    pub answer: Duration,
    /// From then on, between bytes.
    pub bytes: Duration,
}

/// A server was silent for longer than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    answered: bool,
    limit: Duration,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Silence { answered, limit } = self;
        let what = if *answered { "has sent nothing" } else { "has not answered" };
        write!(f, "{what} for {} s", limit.as_secs_f64())
    }
}

/// When a download last heard of its server.
pub struct Watch {
    limits: Limits,
    last: Mutex<Last>,
}

struct Last {
    at: Instant,
    answered: bool,
    given_up: bool,
}

impl Watch {
    /// The server has answered, or sent more. A download that has been given up ends here: its thread
    /// sleeps until the process is over, as nothing else can stop it.
    pub fn heard(&self) {
        let mut last = self.last();
        while last.given_up {
            drop(last);
            thread::park();
            last = self.last();
        }
        *last = Last { at: Instant::now(), answered: true, given_up: false };
    }

    /// How long the server may still be silent, or that it was so for too long, which gives the
    /// download up.
    fn patience(&self) -> Result<Duration, Silence> {
        let mut last = self.last();
        let Last { at, answered, .. } = *last;
        let limit = if answered { self.limits.bytes } else { self.limits.answer };
        let left = limit.saturating_sub(at.elapsed());
        last.given_up = left.is_zero();
        if last.given_up { Err(Silence { answered, limit }) } else { Ok(left) }
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `download` returns, which runs in a thread of its own and says when it hears something.
pub fn watched<T: Send + 'static>(
    limits: Limits,
    download: impl FnOnce(&Arc<Watch>) -> T + Send + 'static,
) -> Result<T, Silence> {
    let last = Last { at: Instant::now(), answered: false, given_up: false };
    let watch = Arc::new(Watch { limits, last: Mutex::new(last) });
    let (done, result) = mpsc::channel();
    let own = Arc::clone(&watch);
    let thread = thread::spawn(move || {
        // Nobody waits for the result of a download that has been given up.
        let _ = done.send(download(&own));
    });
    loop {
        match result.recv_timeout(watch.patience()?) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => unreachable!("a download ends with its result"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { answer: Duration::from_millis(60), bytes: Duration::from_millis(200) };

    #[test]
    fn each_sign_of_life_starts_the_clock_again() {
        let found = watched(LIMITS, |watch| {
            for _ in 0..8 {
                watch.heard();
                thread::sleep(LIMITS.bytes / 4);
            }
            7
        });
        assert_eq!(found, Ok(7));
    }

    #[test]
    fn silence_is_told_before_and_after_the_answer() {
        let never = |_: &Arc<Watch>| loop {
            thread::park();
        };
        let start = Instant::now();
        let silence: Silence = watched::<()>(LIMITS, never).unwrap_err();
        assert!(start.elapsed() >= LIMITS.answer);
        assert_eq!(silence.to_string(), "has not answered for 0.06 s");
        let silence = watched::<()>(LIMITS, move |watch| {
            watch.heard();
            never(watch)
        });
        assert_eq!(silence.unwrap_err().to_string(), "has sent nothing for 0.2 s");
    }

    #[test]
    fn what_was_given_up_does_not_go_on() {
        let (more, went_on) = mpsc::channel();
        let silence = watched(LIMITS, move |watch| {
            thread::sleep(LIMITS.answer * 2);
            watch.heard();
            more.send(()).unwrap();
        });
        assert!(silence.is_err());
        assert_eq!(went_on.recv_timeout(LIMITS.answer * 4), Err(RecvTimeoutError::Timeout));
    }
}
