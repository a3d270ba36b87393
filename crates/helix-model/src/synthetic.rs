//! Seeded models with random weights, as the bytes of a GGUF file.
//!
//! For tests, which need every architecture in awkward shapes, and for benches, which need real
//! shapes without a download. The same [`Spec`] and seed give the same bytes everywhere. Weights
//! are scaled so that attention is peaked, layers matter more than the embedding, and the logits
//! of a position spread by about 4: greedy choices are clear.

mod presets;
mod random;
mod tensors;
mod vocabulary;

use helix_kernels::Format;

use crate::Arch;
use crate::config::{Mla, Scaling, Scoring};
use crate::gguf::Writer;

/// The architectures that can be made.
pub const ARCHS: [Arch; 6] =
    [Arch::Llama, Arch::Qwen2, Arch::Qwen3, Arch::Mixtral, Arch::Qwen3Moe, Arch::DeepSeek];

/// What model to make. Start from a preset and change fields.
#[derive(Clone, Debug)]
pub struct Spec {
    /// `general.name`.
    pub name: String,
    /// The architecture.
    pub arch: Arch,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub q_heads: usize,
    /// KV heads; without meaning where `mla` is given.
    pub kv_heads: usize,
    /// Elements per head; without meaning where `mla` is given.
    pub head_dim: usize,
    /// Latent attention: DeepSeek's, which must have it.
    pub mla: Option<Mla>,
    /// Width of the FFN of dense layers.
    pub ffn: usize,
    /// Experts, which Mixtral, Qwen3-MoE and DeepSeek may have in place of the FFN.
    pub experts: Option<Experts>,
    /// Tokens. The tokenizer knows all bytes from 259 tokens on.
    pub vocab: usize,
    /// `context_length`.
    pub context: usize,
    /// Added in RMS norms.
    pub rms_eps: f32,
    /// Rotary base.
    pub rope_base: f32,
    /// Rotated elements per head; even. Without meaning where `mla` is given.
    pub rope_dims: usize,
    /// Rotary scaling.
    pub scaling: Scaling,
    /// Whether the LM head is the embedding.
    pub tied_head: bool,
    /// Biases on Q, K and V (Qwen2 must have them).
    pub bias: bool,
    /// Format of the layers' matrices. Its block must divide their widths; where a head of latent
    /// attention is narrower, Q8_0 or F32 takes its place. Routers are F32.
    pub format: Format,
    /// Format of `ffn_down` and of experts' down-projections, which real files often store in
    /// another.
    pub down_format: Format,
    /// Format of the embedding and the LM head.
    pub embedding_format: Format,
    /// How weights are drawn.
    pub values: Values,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// How many a token goes to.
    pub top_k: usize,
    /// Width of one.
    pub ffn: usize,
    /// How many more every token goes to: DeepSeek's.
    pub shared: usize,
    /// Layers before the first that has experts: DeepSeek's.
    pub dense_layers: usize,
    /// How the router scores them: DeepSeek's may do so by sigmoids, with a bias on the choice.
    pub scoring: Scoring,
}

/// How weights are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Every weight for itself.
    Independent,
    /// A few dozen different rows per matrix, over and over: for benches of large shapes, where
    /// only the bytes matter. Logits are not well spread.
    Repeated,
}

/// The bytes of a valid GGUF file.
///
/// # Panics
/// When a format's block does not divide the width of its matrices, or the architecture is none of
/// [`ARCHS`].
pub fn gguf(spec: &Spec, seed: u64) -> Vec<u8> {
    writer(spec, seed).finish()
}

/// The file before it is closed, for what differs in one key or tensor.
pub fn writer(spec: &Spec, seed: u64) -> Writer {
    let mut writer = Writer::default();
    metadata(spec, &mut writer);
    vocabulary::write(spec, &mut writer);
    tensors::write(spec, seed, &mut writer);
    writer
}

fn metadata(spec: &Spec, writer: &mut Writer) {
    assert!(ARCHS.contains(&spec.arch), "{} is not made synthetically", spec.arch);
    let key = |suffix: &str| format!("{}.{suffix}", spec.arch.gguf_name());
    writer
        .set("general.architecture", spec.arch.gguf_name())
        .set("general.name", spec.name.as_str())
        .set(key("block_count"), size(spec.layers))
        .set(key("context_length"), size(spec.context))
        .set(key("embedding_length"), size(spec.hidden))
        .set(key("feed_forward_length"), size(spec.ffn))
        .set(key("attention.head_count"), size(spec.q_heads))
        .set(key("attention.layer_norm_rms_epsilon"), spec.rms_eps)
        .set(key("rope.freq_base"), spec.rope_base);
    match &spec.mla {
        None => {
            writer
                .set(key("attention.head_count_kv"), size(spec.kv_heads))
                .set(key("attention.key_length"), size(spec.head_dim))
                .set(key("attention.value_length"), size(spec.head_dim))
                .set(key("rope.dimension_count"), size(spec.rope_dims));
        }
        Some(mla) => latent(mla, &key, writer),
    }
    if let Some(experts) = &spec.experts {
        mixture(experts, spec.arch, &key, writer);
    }
    scaling(spec, &key, writer);
}

fn size(size: usize) -> u32 {
    u32::try_from(size).expect("sizes in GGUF are u32")
}

/// As llama.cpp's converter writes it: one KV head, whose key is the latent and the rotary part.
fn latent(mla: &Mla, key: &dyn Fn(&str) -> String, writer: &mut Writer) {
    writer
        .set(key("attention.head_count_kv"), 1_u32)
        .set(key("attention.key_length"), size(mla.kv_lora + mla.rope))
        .set(key("attention.value_length"), size(mla.kv_lora))
        .set(key("attention.kv_lora_rank"), size(mla.kv_lora))
        .set(key("attention.key_length_mla"), size(mla.nope + mla.rope))
        .set(key("attention.value_length_mla"), size(mla.value))
        .set(key("rope.dimension_count"), size(mla.rope));
    if let Some(q_lora) = mla.q_lora {
        writer.set(key("attention.q_lora_rank"), size(q_lora));
    }
}

fn mixture(experts: &Experts, arch: Arch, key: &dyn Fn(&str) -> String, writer: &mut Writer) {
    writer
        .set(key("expert_count"), size(experts.count))
        .set(key("expert_used_count"), size(experts.top_k))
        .set(key("expert_feed_forward_length"), size(experts.ffn));
    if arch != Arch::DeepSeek {
        return;
    }
    const SOFTMAX: u32 = 1;
    const SIGMOID: u32 = 2;
    let function = if experts.scoring == Scoring::Sigmoid { SIGMOID } else { SOFTMAX };
    writer
        .set(key("leading_dense_block_count"), size(experts.dense_layers))
        .set(key("expert_shared_count"), size(experts.shared))
        .set(key("expert_gating_func"), function)
        .set(key("expert_weights_norm"), true)
        .set(key("expert_weights_scale"), 1.0_f32);
}

fn scaling(spec: &Spec, key: &dyn Fn(&str) -> String, writer: &mut Writer) {
    match &spec.scaling {
        Scaling::None | Scaling::Llama3(_) => {}
        Scaling::Linear { factor } => {
            writer.set(key("rope.scaling.type"), "linear").set(key("rope.scaling.factor"), *factor);
        }
        Scaling::Yarn(yarn) => {
            writer
                .set(key("rope.scaling.type"), "yarn")
                .set(key("rope.scaling.factor"), yarn.factor)
                .set(key("rope.scaling.original_context_length"), size(yarn.original_context))
                .set(key("rope.scaling.yarn_beta_fast"), yarn.beta_fast)
                .set(key("rope.scaling.yarn_beta_slow"), yarn.beta_slow);
        }
    }
}

#[cfg(test)]
mod tests;
