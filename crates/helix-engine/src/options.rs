//! What an engine is sized for.

use helix_comm::Delay;
use helix_kernels::Precision;
use helix_kernels::kv::KvType;
use std::time::Duration;

/// Everything that the engine allocates follows from these; after start-up it allocates nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineOptions {
    /// Threads in each rank's team.
    pub threads_per_rank: usize,
    /// Whether activations are quantised against quantised weights.
    pub precision: Precision,
    /// Element type of the KV cache.
    pub kv_type: KvType,
    /// Positions of the longest sequence.
    pub max_context: usize,
    /// Sequences alive at a time.
    pub max_sequences: usize,
    /// Tokens in the largest step: the size of a prefill chunk.
    pub max_step_tokens: usize,
    /// Rows of logits that a step may ask for.
    pub max_logits: usize,
    /// How far before the start of its furthest run a sequence may be truncated, where sliding
    /// windows have passed what it would see there.
    pub rewind: usize,
    /// When latent attention turns latents to values.
    pub mla_up: MlaUp,
    /// How the FFN's results come together.
    pub ffn_reduce: FfnReduce,
    /// Whether attention's outputs are exchanged piece by piece.
    pub hopb: HopB,
    /// Slices that the sums of the out-projection and of dense FFNs over ranks are cut into, from 1
    /// to 16: one is in flight while the next ones are computed. Changes no bits.
    pub reduce_slices: usize,
    /// Links between ranks of one process that are slower than its memory.
    pub delay: Option<Delay>,
    /// How much of the latest past is kept for [`Engine::trace`](crate::Engine::trace): so many
    /// lines of each rank, and as many collectives of each of its groups.
    pub trace: usize,
    /// How long a rank waits for another before it gives up.
    pub deadline: Duration,
    /// Whether each thread is bound to a processor.
    pub pin: bool,
}

/// When latent attention's up-projection W_UV is applied: before the all-to-all, on a shard's
/// partial outputs, or after the merge, on the heads that a rank keeps. Both are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MlaUp {
    /// A message has a value per head: a quarter of the bytes for DeepSeek. Every rank reads the
    /// matrices of all its query heads.
    Before,
    /// A message has a latent per head. A rank reads the matrices of the heads that it keeps.
    After,
    /// After: between threads of one process bytes sent cost less than bytes read. Who knows the
    /// links may know better.
    #[default]
    Auto,
}

/// How the FFN's results come together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FfnReduce {
    /// One all-reduce over all ranks.
    #[default]
    World,
    /// As in the paper: an all-reduce in each expert group, then the sum across groups. The same
    /// as `World` where either has one member.
    Grid,
}

/// HOP-B: the batch's attention is cut into pieces, and a piece's all-to-all is in flight while the
/// next pieces compute. Changes no bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HopB {
    /// One all-to-all per layer.
    #[default]
    Off,
    /// So many pieces, from 1 to 64, or as many as there are runs and KV heads to cut between.
    Pieces(usize),
    /// As many as a model of the step says is fastest, by what links and attention were measured to
    /// take in this run: all ranks decide alike.
    Auto,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads_per_rank: 1,
            precision: Precision::Fast,
            kv_type: KvType::F16,
            max_context: 4096,
            max_sequences: 1,
            max_step_tokens: 512,
            max_logits: 1,
            rewind: 512,
            mla_up: MlaUp::Auto,
            ffn_reduce: FfnReduce::World,
            hopb: HopB::Off,
            reduce_slices: 1,
            delay: None,
            trace: 0,
            deadline: Duration::from_secs(120),
            pin: false,
        }
    }
}
