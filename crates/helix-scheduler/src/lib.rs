//! Which tokens run next: a pure state machine, without a clock, threads or I/O.

#![forbid(unsafe_code)]

mod step;

pub use step::{Run, Step, Wanted};
