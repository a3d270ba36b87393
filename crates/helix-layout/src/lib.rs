//! The arithmetic of sharding: which rank holds which head, position, column and row.
//!
//! Helix runs every layer over the same `N` ranks in two shapes: attention as `kvp x tpa` (shards
//! of the KV sequence x slices of heads), the FFN as `tpf x ep` (columns x experts). A [`Layout`]
//! is the proof that the degrees fit the model: whoever holds one may ask it what each rank holds
//! and never needs to check again. Rank order, KV ownership and every shard's range are computed
//! here and nowhere else.
//!
//! ```
//! use helix_layout::{Layout, LayoutSpec, ModelShape, Rank, Strategy};
//!
//! let shape = ModelShape {
//!     layers: 30, hidden: 576, q_heads: 9, kv_heads: 3, head_dim: 64, value_dim: 64,
//!     ffn: 1536, vocab: 49152, out_block: 32, ffn_block: 32, mla: None, moe: None,
//! };
//! let layout = Layout::new(&shape, LayoutSpec::new(Strategy::Helix, 2, 1))?;
//! assert_eq!(layout.kv_heads(Rank(1)), 0..3); // both ranks store every KV head, ...
//! assert_eq!(layout.owned_before(1, 100), 48); // ... of their own blocks of positions only
//! assert_eq!(layout.out_heads(Rank(1)), 5..9);
//! # Ok::<(), helix_layout::LayoutError>(())
//! ```
//!
//! Source of the method: Helix Parallelism, arXiv 2507.07120.

#![forbid(unsafe_code)]

mod blocks;
mod degrees;
mod error;
mod heads;
mod layout;
mod nearest;
pub mod pieces;
mod preference;
mod reads;
mod shape;
mod split;

pub use blocks::Blocks;
pub use degrees::{Degrees, LayoutSpec, ParseError, PartialDegrees, QkvMode, Strategy};
pub use error::LayoutError;
pub use layout::{AttentionCoord, FfnCoord, Layout, Rank};
pub use nearest::Nearest;
pub use preference::Preference;
pub use reads::Reads;
pub use shape::{MlaShape, ModelShape, MoeShape};
pub use split::split;

/// The most ranks a layout may have.
pub const MAX_RANKS: usize = 1024;

/// The most positions a KV block may hold.
pub const MAX_KV_BLOCK: usize = 1 << 16;

/// Positions per KV block unless asked otherwise; the paper's choice.
pub const DEFAULT_KV_BLOCK: usize = 16;

/// Rows of a weight matrix that are never parted: what the kernels compute at a time.
pub const ROW_GRANULE: usize = 16;
