//! What a step consists of on each rank.

/// A line of a step, as `helix-engine`'s `layer.rs` and `rank.rs` run them one after the other; by
/// their names predictions stand beside measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the lines'")]
pub enum Line {
    Embedding,
    AttentionNorm,
    Qkv,
    QkvGather,
    RopeAppend,
    Attention,
    AllToAll,
    Merge,
    OutProjection,
    OutAllReduce,
    FfnNorm,
    Router,
    FfnUp,
    FfnDown,
    FfnAllReduce,
    Head,
    LogitsGather,
}

impl Line {
    /// All lines, in the order of a step.
    pub const ALL: [Line; 17] = [
        Line::Embedding,
        Line::AttentionNorm,
        Line::Qkv,
        Line::QkvGather,
        Line::RopeAppend,
        Line::Attention,
        Line::AllToAll,
        Line::Merge,
        Line::OutProjection,
        Line::OutAllReduce,
        Line::FfnNorm,
        Line::Router,
        Line::FfnUp,
        Line::FfnDown,
        Line::FfnAllReduce,
        Line::Head,
        Line::LogitsGather,
    ];

    /// The name that reports print.
    pub fn name(self) -> &'static str {
        match self {
            Line::Embedding => "embedding",
            Line::AttentionNorm => "attention norm",
            Line::Qkv => "qkv",
            Line::QkvGather => "qkv gather",
            Line::RopeAppend => "rope, append",
            Line::Attention => "partial attention",
            Line::AllToAll => "all-to-all",
            Line::Merge => "merge",
            Line::OutProjection => "out-projection",
            Line::OutAllReduce => "all-reduce (out)",
            Line::FfnNorm => "ffn norm",
            Line::Router => "router",
            Line::FfnUp => "ffn gate, up",
            Line::FfnDown => "ffn down",
            Line::FfnAllReduce => "all-reduce (ffn)",
            Line::Head => "lm head",
            Line::LogitsGather => "gather logits",
        }
    }
}
