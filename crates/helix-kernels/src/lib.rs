//! Numbers in, numbers out: the arithmetic of a decoder, as pure functions over slices.
//!
//! * [`formats`]: weights as they lie on disk, to and from `f32`;
//! * [`Matrix`], [`Activations`], [`matmul`]: weights repacked for SIMD, times a batch of tokens;
//! * [`attention`] and [`kv`]: partial attention over paged keys and values, and its merge;
//! * [`elementwise`]: norms, rotary embedding, activations;
//! * [`router`]: which experts a token goes to;
//! * [`columns`]: how threads share one output without locks;
//! * [`probe`]: this machine's read bandwidth, the roof of a decode step.
//!
//! Every kernel gives the same bits on every instruction set, for any tile and batch: see
//! [`matmul`] and [`attention`] for the order of their sums.
#![deny(unsafe_code)]

mod activations;
mod arch;
pub mod attention;
pub mod columns;
pub mod elementwise;
pub mod formats;
pub mod isa;
pub mod kv;
mod lse;
mod matrix;
pub mod probe;
pub mod router;

pub use activations::{ActivationRows, Activations, Forms, SharedFill, TokenWriter};
pub use arch::memory::{Buffer, OutOfMemory};
pub use columns::{Columns, SharedColumns, SharedRows};
pub use formats::{Format, dequantize, quantize, quantize_e4m3, quantize_searched};
pub use isa::{Isa, cpu};
pub use lse::Lse;
pub use matrix::{Matrix, PackError, Precision, Scales, Weights, matmul, matmul_from};
