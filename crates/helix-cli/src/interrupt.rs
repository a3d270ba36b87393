//! Ctrl-C: the first ends what is being done in good order, the next one the program.

use crate::failure::{Failure, Outcome};
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::{process, thread};

/// Nothing to stop: Ctrl-C ends the program.
const IDLE: u8 = 0;
/// Text is being generated.
const BUSY: u8 = 1;
/// Text was being generated, and Ctrl-C came.
const STOP: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// The status of a program that Ctrl-C ended, as shells have it.
const STATUS: i32 = 130;
/// That of one that SIGTERM ended.
const TERMINATED: i32 = 143;

/// Handles Ctrl-C from here on.
pub fn install() -> Outcome {
    handle(|| {
        if STATE.compare_exchange(BUSY, STOP, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            process::exit(STATUS);
        }
    })
}

/// From here on the first Ctrl-C, or the system's wish that the program ends (SIGTERM), only does
/// `first`.
pub fn install_with(first: impl FnOnce() + Send + 'static) -> Outcome {
    let first = Arc::new(Mutex::new(Some(first)));
    let again = move |status: i32| match first.lock().map(|mut first| first.take()) {
        Ok(Some(first)) => first(),
        _ => process::exit(status),
    };
    let on_ctrl_c = again.clone();
    handle(move || on_ctrl_c(STATUS))?;
    let wrong = |error| Failure::running(format!("cannot handle signals: {error}"));
    let mut signals = Signals::new([SIGTERM]).map_err(wrong)?;
    let thread = thread::Builder::new().name("helix-signals".into());
    let spawned = thread.spawn(move || signals.forever().for_each(|_| again(TERMINATED)));
    spawned.map(|_| ()).map_err(wrong)
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
