//! Why a layout was refused, with the numbers and what would do.

use crate::{Degrees, Nearest, Strategy};

/// Why a layout was refused. Messages name the numbers and the nearest legal choices.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LayoutError {
    /// A size of the model is zero or absurd.
    #[error("the model's {name} is {value}; a layout needs 1 to {max}")]
    Shape {
        /// The size in words.
        name: &'static str,
        /// Its value.
        value: usize,
        /// The largest legal value.
        max: usize,
    },
    /// Query heads do not fall into equal groups, one per KV head.
    #[error(
        "the model's {q_heads} query heads do not divide among its {kv_heads} KV heads; \
         is its head count right?"
    )]
    HeadGroups {
        /// Query heads.
        q_heads: usize,
        /// KV heads.
        kv_heads: usize,
    },
    /// A latent that is not what MLA stores.
    #[error(
        "the model's latent attention has {kv_heads} KV heads of {head_dim}; it stores one latent \
         of {kv_lora} with its {rope} rotary elements per token: 1 head of {width}",
        width = kv_lora + rope
    )]
    Latent {
        /// KV heads.
        kv_heads: usize,
        /// Head size.
        head_dim: usize,
        /// Width of the latent.
        kv_lora: usize,
        /// Rotary elements beside it.
        rope: usize,
    },
    /// A degree of zero.
    #[error("{degrees}: every degree is at least 1")]
    ZeroDegree {
        /// What was asked for.
        degrees: Degrees,
    },
    /// No ranks.
    #[error("0 ranks: a layout has 1 to {max}")]
    NoRanks {
        /// The most ranks a layout may have.
        max: usize,
    },
    /// More ranks than any layout may have.
    #[error("{what} is more than a layout may have: {max} ranks")]
    TooManyRanks {
        /// What was asked for.
        what: String,
        /// The most ranks a layout may have.
        max: usize,
    },
    /// A block of no positions, or of too many.
    #[error("KV block of {kv_block} positions: choose 1 to {max}; 16 is the default")]
    KvBlock {
        /// What was asked for.
        kv_block: usize,
        /// The largest legal block.
        max: usize,
    },
    /// More slices of heads than KV heads, in a strategy that duplicates none.
    #[error(
        "tpa={tpa} is more than the model's {kv_heads} KV heads, and {strategy} duplicates none: \
         nearest legal layouts of {ranks} ranks: {nearest}; \
         or --strategy tp, which duplicates KV heads"
    )]
    KvHeads {
        /// Slices asked for.
        tpa: usize,
        /// KV heads of the model.
        kv_heads: usize,
        /// Ranks asked for.
        ranks: usize,
        /// The strategy.
        strategy: Strategy,
        /// What would do.
        nearest: Nearest,
    },
    /// Attention groups in a strategy whose sequences belong to all ranks.
    #[error(
        "dp={dp} gives each of {dp} groups of ranks sequences of its own, and under {strategy} \
         every rank serves every sequence: use dp=1; nearest legal: {nearest}; \
         or --strategy dp-ep"
    )]
    DataParallel {
        /// Groups asked for.
        dp: usize,
        /// The strategy.
        strategy: Strategy,
        /// What would do.
        nearest: Nearest,
    },
    /// Attention and FFN do not run on the ranks that the strategy says.
    #[error(
        "{degrees} is {attention} ranks in attention and {ffn} in the FFN; {strategy} needs \
         {rule}: nearest legal: {nearest}",
        attention = degrees.attention_ranks(),
        ffn = degrees.ffn_ranks()
    )]
    Grid {
        /// What was asked for.
        degrees: Degrees,
        /// The strategy.
        strategy: Strategy,
        /// What it needs.
        rule: &'static str,
        /// What would do.
        nearest: Nearest,
    },
    /// Experts of a model that has none.
    #[error("ep={ep} spreads experts, and this model is dense: use ep=1; nearest legal: {nearest}")]
    Dense {
        /// Expert groups asked for.
        ep: usize,
        /// What would do.
        nearest: Nearest,
    },
    /// Degrees that make another number of ranks than was asked for.
    #[error(
        "{degrees} is a layout of {found} ranks, not of {ranks}: ask for {found}, or leave degrees \
         out to have them chosen",
        found = degrees.attention_ranks()
    )]
    RankCount {
        /// What was asked for.
        degrees: Degrees,
        /// Ranks asked for.
        ranks: usize,
    },
}
