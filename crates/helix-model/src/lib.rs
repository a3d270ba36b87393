//! From files on disk to what one rank holds.
//!
//! [`Model::open`] maps a GGUF file (all its parts) or the safetensors of a Hugging Face
//! directory, checks everything that the rest of the program relies on and refuses what Helix
//! would run wrongly; [`RankWeights::load`] then reads the bytes of one rank's shards and no
//! others. [`synthetic`] makes seeded models for tests and
//! benches.
//!
//! Sources for formats: ggml's `docs/gguf.md` (container), `ggml-common.h` (weight blocks) and
//! llama.cpp's `llama-arch.cpp` (key and tensor names); transformers' `configuration_*.py` and
//! `modeling_*.py`, and the safetensors README.
#![deny(unsafe_code)]

mod arch;
mod chat;
pub mod config;
mod error;
pub mod gguf;
mod huggingface;
mod mmap;
mod model;
mod source;
pub mod synthetic;
mod tensor;
mod tokenizer;
mod weights;

pub use arch::Arch;
pub use chat::*;
pub use config::{Config, Rope, RopeStyle};
pub use error::ModelError;
pub use gguf::{Array, Gguf, Value};
pub use huggingface::Directory;
pub use model::{Model, digest};
pub use tensor::Tensor;
pub use tokenizer::*;
pub use weights::{
    AttentionWeights, DenseWeights, ExpertWeights, FfnWeights, HeadsWeights, HeldIn, Holdings,
    LatentWeights, LayerWeights, MoeWeights, RankWeights, SharedShards, rank_bytes,
};
