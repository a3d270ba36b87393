//! The lines of a step, as `helix-engine`'s `layer.rs` and `rank.rs` run them.

use serde::{Serialize, Serializer};

/// A line of a step. Names are the engine's, so that predictions stand beside measurements.
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
    /// From one pipeline stage to the next; the engine has none.
    StageSend,
}

impl Line {
    /// All lines, in the order of a step.
    pub const ALL: [Line; 18] = [
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
        Line::StageSend,
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
            Line::StageSend => "stage to stage",
        }
    }
}

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
