//! Predicts what a layout costs on a machine, and never runs a model.
//!
//! A model and a machine are data; the costs of each line of `helix-engine/src/layer.rs` are
//! formulas here.
#![forbid(unsafe_code)]

mod format;
pub mod machine;
mod model;
mod share;

pub use format::{Format, FormatError, Formats};
pub use machine::{Machine, MachineError};
pub use model::{Model, ModelError, Window};
pub use share::Share;
