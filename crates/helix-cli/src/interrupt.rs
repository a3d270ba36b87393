//! Ctrl-C: the first ends what is being done in good order, the next one the program.

use crate::failure::{Failure, Outcome};
use std::process;
use std::sync::atomic::{AtomicU8, Ordering};

/// Nothing to stop: Ctrl-C ends the program.
const IDLE: u8 = 0;
/// Text is being generated.
const BUSY: u8 = 1;
/// Text was being generated, and Ctrl-C came.
const STOP: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// The status of a program that Ctrl-C ended, as shells have it.
const STATUS: i32 = 130;

/// Handles Ctrl-C from here on.
pub fn install() -> Outcome {
    handle(|| {
        if STATE.compare_exchange(BUSY, STOP, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            process::exit(STATUS);
        }
    })
}

/// From here on the first Ctrl-C only does `first`.
pub fn install_with(first: impl FnOnce() + Send + 'static) -> Outcome {
    let mut first = Some(first);
    handle(move || match first.take() {
        Some(first) => first(),
        None => process::exit(STATUS),
    })
}

fn handle(handler: impl FnMut() + Send + 'static) -> Outcome {
    ctrlc::set_handler(handler)
        .map_err(|error| Failure::running(format!("cannot handle Ctrl-C: {error}")))
}

/// While it lives, the first Ctrl-C only asks to stop.
#[derive(Debug)]
pub struct Busy(());

impl Busy {
    /// Begins something that can be stopped.
    pub fn begin() -> Busy {
        STATE.store(BUSY, Ordering::SeqCst);
        Busy(())
    }

    /// Whether Ctrl-C came.
    pub fn is_stopped(&self) -> bool {
        STATE.load(Ordering::SeqCst) == STOP
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        STATE.store(IDLE, Ordering::SeqCst);
    }
}
