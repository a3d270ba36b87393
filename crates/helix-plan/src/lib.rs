//! Predicts what a layout costs on a machine, and never runs a model.
//!
//! A model and a machine are data; the costs of each line of `helix-engine/src/layer.rs` are
//! formulas here.
#![forbid(unsafe_code)]

pub mod costs;
mod experts;
mod format;
mod line;
mod load;
pub mod machine;
mod model;
pub mod network;
pub mod pipeline;
mod share;

pub use costs::Costs;
pub use experts::Popularity;
pub use format::{Format, FormatError, Formats};
pub use line::Line;
pub use load::{Load, Routing, Sight};
pub use machine::{Machine, MachineError};
pub use model::{Model, ModelError, Window};
pub use share::Share;
