//! Predicts what a layout costs on a machine, and never runs a model.
//!
//! A model and a machine are data; the costs of each line of `helix-engine/src/layer.rs` are
//! formulas here.
#![forbid(unsafe_code)]

pub mod machine;

pub use machine::{Machine, MachineError};
