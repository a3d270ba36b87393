//! What kind of model it is: architecture, sizes, rotary embedding.

mod keys;
mod rope;

use std::fmt;

pub use rope::{Llama3, Rope, RopeStyle, Scaling, Yarn};

use crate::{Gguf, ModelError};
use keys::Keys;

/// A family of decoders whose layers Helix knows.
///
/// All three are pre-norm transformers with RMS norms, grouped-query attention, rotary positions
/// and a SwiGLU FFN; they differ as said here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// Llama, Mistral, SmolLM: interleaved rotary pairs (the converters permute W_q and W_k).
    Llama,
    /// Qwen2 and Qwen2.5: biases on Q, K and V; rotary pairs half a head apart.
    Qwen2,
    /// Qwen3: an RMS norm on each query and key head; rotary pairs half a head apart.
    Qwen3,
}

impl Arch {
    /// Every architecture.
    pub const ALL: [Arch; 3] = [Arch::Llama, Arch::Qwen2, Arch::Qwen3];

    /// The value of `general.architecture`, and the prefix of its keys.
    pub const fn name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
        }
    }

    /// How rotary pairs lie in a head.
    pub const fn rope_style(self) -> RopeStyle {
        match self {
            Arch::Llama => RopeStyle::Interleaved,
            Arch::Qwen2 | Arch::Qwen3 => RopeStyle::Half,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A model's architecture and sizes, checked against each other and against its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The architecture.
    pub arch: Arch,
    /// `general.name`, or the architecture's.
    pub name: String,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads per layer; a multiple of `kv_heads`.
    pub q_heads: usize,
    /// KV heads per layer.
    pub kv_heads: usize,
    /// Elements per head of Q, K and V; need not be `hidden / q_heads`.
    pub head_dim: usize,
    /// Width of the FFN.
    pub ffn: usize,
    /// Rows of the embedding and of the LM head.
    pub vocab: usize,
    /// Positions that the model was trained for.
    pub context: usize,
    /// Added to the mean square in RMS norms.
    pub rms_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Whether Q, K and V have biases.
    pub qkv_bias: bool,
    /// Whether each query and key head is RMS-normalised before the rotary embedding.
    pub qk_norm: bool,
    /// Whether the LM head is the embedding.
    pub tied_head: bool,
    /// The token that starts a text, if the file names one.
    pub bos: Option<u32>,
    /// The token that ends a text, if the file names one.
    pub eos: Option<u32>,
}

/// Largest value of any size; see [`helix_layout::ModelShape::MAX_SIZE`].
const MAX_SIZE: usize = helix_layout::ModelShape::MAX_SIZE;

impl Config {
    /// Reads and checks the metadata. Tensors are looked at for what metadata do not say: the
    /// vocabulary, a separate LM head, biases, rotary factors.
    pub fn read(gguf: &Gguf) -> Result<Config, ModelError> {
        let keys = Keys::new(gguf)?;
        let arch = keys.arch();
        keys.refuse_variants()?;

        let layers = keys.size("block_count")?;
        let hidden = keys.size("embedding_length")?;
        let ffn = keys.per_layer("feed_forward_length", layers)?;
        let context = keys.size_up_to("context_length", u32::MAX as usize)?;
        let q_heads = keys.per_layer("attention.head_count", layers)?;
        let kv_heads = keys.kv_heads(q_heads, layers)?;
        let head_dim = keys.head_dim(hidden, q_heads)?;
        keys.refuse_window(context)?;
        let vocab = keys.vocab(hidden)?;

        Ok(Config {
            arch,
            name: gguf.string("general.name")?.unwrap_or(arch.name()).to_owned(),
            layers,
            hidden,
            q_heads,
            kv_heads,
            head_dim,
            ffn,
            vocab,
            context,
            rms_eps: keys.rms_eps()?,
            rope: keys.rope(head_dim, context)?,
            qkv_bias: arch == Arch::Qwen2 || gguf.tensor("blk.0.attn_q.bias").is_some(),
            qk_norm: arch == Arch::Qwen3,
            tied_head: gguf.tensor("output.weight").is_none(),
            bos: keys.token("tokenizer.ggml.bos_token_id", vocab)?,
            eos: keys.token("tokenizer.ggml.eos_token_id", vocab)?,
        })
    }
}

#[cfg(test)]
mod tests;
