//! Runs a model over a Helix layout, in one process or one for each rank.
//!
//! [`Engine::step`] takes tokens of any number of sequences and gives logits. Inside, every rank
//! runs the same lines: `rank.rs` from tokens to logits, `layer.rs` one layer, `attention.rs` the
//! part between its projections. Decode, chunked prefill and verification of drafts are the same
//! step with other numbers of query tokens.
#![forbid(unsafe_code)]

mod attention;
mod batch;
mod clocks;
mod comms;
mod counters;
mod engine;
mod error;
mod exchange;
mod ffn;
mod follow;
mod hopb;
mod kv;
mod lanes;
mod latent;
mod layer;
mod local;
mod moe;
mod options;
mod pieces;
pub mod probe;
mod projection;
mod protocol;
mod qkv;
mod rank;
mod residual;
pub mod sampler;
mod slices;
mod trace;
mod tuner;
mod values;

pub use clocks::round_trips;
pub use counters::{Line, RankCounters};
pub use engine::Engine;
pub use error::EngineError;
pub use follow::{dismiss, follow};
pub use hopb::MAX_PIECES;
pub use options::{EngineOptions, FfnReduce, HopB, MlaUp};
pub use slices::MAX_SLICES;
pub use trace::{RankTrace, Span};
