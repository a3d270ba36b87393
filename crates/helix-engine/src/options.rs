//! What an engine is sized for.

use helix_kernels::Precision;
use helix_kernels::kv::KvType;
use std::time::Duration;

/// Everything that the engine allocates follows from these; after start-up it allocates nothing.
#[derive(Clone, Copy, Debug)]
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
    /// How long a rank waits for another before it gives up.
    pub deadline: Duration,
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
            deadline: Duration::from_secs(120),
        }
    }
}
