//! Ctrl-C: the first ends what is being generated, the next one the program.

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
    let handler = || {
        if STATE.compare_exchange(BUSY, STOP, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            process::exit(STATUS);
        }
    };
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
