//! Which tokens run next: a pure state machine, without a clock, threads or I/O.
//!
//! Requests wait in a bounded queue until a slot and enough KV for all they may ever store are
//! free, first come first served. Each step then runs one token of every sequence that decodes,
//! and fills what room is left with pieces of prompts, oldest first.
//!
//! ```
//! use helix_scheduler::{Finish, Limits, Request, Scheduler, Step, Wanted};
//!
//! let mut scheduler = Scheduler::new(Limits {
//!     max_sequences: 4, max_step_tokens: 16, max_context: 64, kv_tokens: 256,
//!     kv_granule: 16, max_waiting: 8,
//! })?;
//! scheduler.submit(Request { prompt: vec![1, 2, 3], max_new_tokens: 2 })?;
//!
//! let mut step = Step::default();
//! let mut finished = Vec::new();
//! while scheduler.next_step(&mut step) {
//!     // An engine would run the step here, and a sampler turn rows of logits into tokens.
//!     for run in step.runs.iter().filter(|run| run.logits == Wanted::Last) {
//!         let committed = scheduler.commit(run.slot, 7, false).expect("nothing was cancelled");
//!         finished.extend(committed.finished);
//!     }
//! }
//! assert_eq!(finished, [Finish::Length]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod limits;
mod line;
mod request;
mod scheduler;
mod step;

pub use limits::{Limits, LimitsError};
pub use line::Line;
pub use request::{Finish, Refusal, Request, SequenceId};
pub use scheduler::{Cancelled, Committed, Scheduler};
pub use step::{Run, Step, Wanted};
