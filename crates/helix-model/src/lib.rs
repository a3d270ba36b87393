//! From files on disk to what one rank holds.
//!
//! [`Model::open`] maps a GGUF file (all its parts), checks everything that the rest of the
//! program relies on and refuses what Helix would run wrongly; [`RankWeights::load`] then reads
//! the bytes of one rank's shards and no others. [`synthetic`] makes seeded models for tests and
//! benches.
//!
//! Sources for formats: ggml's `docs/gguf.md` (container), `ggml-common.h` (weight blocks) and
//! llama.cpp's `llama-arch.cpp` (key and tensor names).
#![deny(unsafe_code)]

mod chat;
pub mod config;
mod error;
pub mod gguf;
mod mmap;
mod model;
pub mod synthetic;
mod tensor;
mod tokenizer;
mod weights;

pub use chat::*;
pub use config::{Arch, Config, Rope, RopeStyle};
pub use error::ModelError;
pub use gguf::{Array, Gguf, Value};
pub use model::Model;
pub use tensor::Tensor;
pub use tokenizer::*;
pub use weights::{LayerWeights, RankWeights, SharedShards, rank_bytes};
