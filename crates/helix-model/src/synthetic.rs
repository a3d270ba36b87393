//! Seeded models with random weights, as the bytes of a GGUF file.
//!
//! For tests, which need every architecture in awkward shapes, and for benches, which need real
//! shapes without a download. The same [`Spec`] and seed give the same bytes everywhere. Weights
//! are scaled so that attention is peaked, layers matter more than the embedding, and the logits
//! of a position spread by about 4: greedy choices are clear.

mod random;
mod vocabulary;

use helix_kernels::{Format, quantize};

use crate::Arch;
use crate::config::Scaling;
use crate::gguf::{GgmlType, Writer};
use random::Random;

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
    /// KV heads.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Width of the FFN.
    pub ffn: usize,
    /// Tokens. The tokenizer knows all bytes from 259 tokens on.
    pub vocab: usize,
    /// `context_length`.
    pub context: usize,
    /// Added in RMS norms.
    pub rms_eps: f32,
    /// Rotary base.
    pub rope_base: f32,
    /// Rotated elements per head; even.
    pub rope_dims: usize,
    /// Rotary scaling.
    pub scaling: Scaling,
    /// Whether the LM head is the embedding.
    pub tied_head: bool,
    /// Biases on Q, K and V (Qwen2 must have them).
    pub bias: bool,
    /// Format of the layers' matrices. Its block must divide their widths.
    pub format: Format,
    /// Format of `ffn_down`, which real files often store in another.
    pub down_format: Format,
    /// Format of the embedding and the LM head.
    pub embedding_format: Format,
    /// How weights are drawn.
    pub values: Values,
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

impl Spec {
    /// A small model with awkward sizes: 2 layers, 6 query heads over 2 KV heads of 8 elements.
    pub fn tiny(arch: Arch) -> Spec {
        Spec {
            name: format!("tiny-{arch}"),
            arch,
            layers: 2,
            hidden: 48,
            q_heads: 6,
            kv_heads: 2,
            head_dim: 8,
            ffn: 80,
            vocab: 300,
            context: 512,
            rms_eps: 1e-5,
            rope_base: 10_000.0,
            rope_dims: 8,
            scaling: Scaling::None,
            tied_head: arch == Arch::Llama,
            bias: arch == Arch::Qwen2,
            format: Format::F32,
            down_format: Format::F32,
            embedding_format: Format::F32,
            values: Values::Independent,
        }
    }

    /// The shape of SmolLM2-135M, layers in `format`, embedding in Q8_0.
    pub fn smollm2_135m(format: Format) -> Spec {
        Spec {
            name: "synthetic SmolLM2-135M".to_owned(),
            layers: 30,
            hidden: 576,
            q_heads: 9,
            kv_heads: 3,
            head_dim: 64,
            ffn: 1536,
            vocab: 49152,
            context: 8192,
            rope_base: 1e5,
            rope_dims: 64,
            format,
            down_format: format,
            embedding_format: Format::Q8_0,
            values: Values::Repeated,
            ..Spec::tiny(Arch::Llama)
        }
    }

    /// The shape of Llama-3.2-1B, layers in `format`, embedding in Q6_K.
    pub fn llama32_1b(format: Format) -> Spec {
        Spec {
            name: "synthetic Llama-3.2-1B".to_owned(),
            layers: 16,
            hidden: 2048,
            q_heads: 32,
            kv_heads: 8,
            head_dim: 64,
            ffn: 8192,
            vocab: 128_256,
            context: 131_072,
            rope_base: 5e5,
            rope_dims: 64,
            scaling: Scaling::Llama3(crate::config::Llama3 {
                factor: 32.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context: 8192,
            }),
            format,
            down_format: format,
            embedding_format: Format::Q6K,
            values: Values::Repeated,
            ..Spec::tiny(Arch::Llama)
        }
    }
}

/// The bytes of a valid GGUF file.
///
/// # Panics
/// When a format's block does not divide the width of its matrices.
pub fn gguf(spec: &Spec, seed: u64) -> Vec<u8> {
    writer(spec, seed).finish()
}

/// The file before it is closed, for what differs in one key or tensor.
pub fn writer(spec: &Spec, seed: u64) -> Writer {
    let mut writer = Writer::default();
    metadata(spec, &mut writer);
    vocabulary::write(spec, &mut writer);
    tensors(spec, seed, &mut writer);
    writer
}

fn metadata(spec: &Spec, writer: &mut Writer) {
    let key = |suffix: &str| format!("{}.{suffix}", spec.arch.gguf_name());
    let size = |size: usize| u32::try_from(size).expect("sizes in GGUF are u32");
    writer
        .set("general.architecture", spec.arch.gguf_name())
        .set("general.name", spec.name.as_str())
        .set(key("block_count"), size(spec.layers))
        .set(key("context_length"), size(spec.context))
        .set(key("embedding_length"), size(spec.hidden))
        .set(key("feed_forward_length"), size(spec.ffn))
        .set(key("attention.head_count"), size(spec.q_heads))
        .set(key("attention.head_count_kv"), size(spec.kv_heads))
        .set(key("attention.key_length"), size(spec.head_dim))
        .set(key("attention.value_length"), size(spec.head_dim))
        .set(key("attention.layer_norm_rms_epsilon"), spec.rms_eps)
        .set(key("rope.dimension_count"), size(spec.rope_dims))
        .set(key("rope.freq_base"), spec.rope_base);
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

fn tensors(spec: &Spec, seed: u64, writer: &mut Writer) {
    let mut maker = Maker { spec, seed, writer };
    // The logits' spread: a head row is as long as this, and the final norm makes x's mean square 1.
    const LOGIT_SPREAD: f32 = 4.0;
    let head = LOGIT_SPREAD / (spec.hidden as f32).sqrt();
    let embedding = if spec.tied_head { head } else { 1.0 };
    let (hidden, vocab) = (spec.hidden, spec.vocab);
    maker.matrix("token_embd.weight", hidden, vocab, spec.embedding_format, embedding);
    if let Scaling::Llama3(llama3) = &spec.scaling {
        let divisors = llama3.divisors(spec.rope_dims, spec.rope_base);
        maker.f32s("rope_freqs.weight", &divisors);
    }
    for layer in 0..spec.layers {
        maker.layer(layer);
    }
    maker.vector("output_norm.weight", hidden, 1.0, 0.2);
    if !spec.tied_head {
        maker.matrix("output.weight", hidden, vocab, spec.embedding_format, head);
    }
}

struct Maker<'a> {
    spec: &'a Spec,
    seed: u64,
    writer: &'a mut Writer,
}

impl Maker<'_> {
    fn layer(&mut self, layer: usize) {
        let &Spec { hidden, q_heads, kv_heads, head_dim, ffn, format, .. } = self.spec;
        let (q, kv) = (q_heads * head_dim, kv_heads * head_dim);
        let unit = |inputs: usize| 1.0 / (inputs as f32).sqrt();
        let name = |suffix: &str| format!("blk.{layer}.{suffix}");
        // Scores of standard deviation 1.5² make attention peaked but not one-hot.
        let peaked = 1.5 * unit(hidden);
        self.vector(&name("attn_norm.weight"), hidden, 1.0, 0.2);
        self.matrix(&name("attn_q.weight"), hidden, q, format, peaked);
        self.matrix(&name("attn_k.weight"), hidden, kv, format, peaked);
        self.matrix(&name("attn_v.weight"), hidden, kv, format, unit(hidden));
        self.matrix(&name("attn_output.weight"), q, hidden, format, 1.5 * unit(q));
        if self.spec.bias {
            self.vector(&name("attn_q.bias"), q, 0.0, 0.5);
            self.vector(&name("attn_k.bias"), kv, 0.0, 0.5);
            self.vector(&name("attn_v.bias"), kv, 0.0, 0.5);
        }
        if self.spec.arch == Arch::Qwen3 {
            self.vector(&name("attn_q_norm.weight"), head_dim, 1.5, 0.2);
            self.vector(&name("attn_k_norm.weight"), head_dim, 1.5, 0.2);
        }
        self.vector(&name("ffn_norm.weight"), hidden, 1.0, 0.2);
        self.matrix(&name("ffn_gate.weight"), hidden, ffn, format, unit(hidden));
        self.matrix(&name("ffn_up.weight"), hidden, ffn, format, unit(hidden));
        // silu(gate) * up has a standard deviation of about 0.6.
        let down_format = self.spec.down_format;
        self.matrix(&name("ffn_down.weight"), ffn, hidden, down_format, 1.7 * unit(ffn));
    }

    /// A matrix of normally distributed weights.
    fn matrix(&mut self, name: &str, cols: usize, rows: usize, format: Format, deviation: f32) {
        const DIFFERENT_ROWS: usize = 48;
        let mut random = Random::named(self.seed, name);
        let row_bytes = format
            .row_bytes(cols)
            .unwrap_or_else(|| panic!("{name}: {format} cannot store rows of {cols}"));
        let drawn = match self.spec.values {
            Values::Independent => rows,
            Values::Repeated => rows.min(DIFFERENT_ROWS),
        };
        let mut data = vec![0; rows * row_bytes];
        let mut row = vec![0.0; cols];
        for bytes in data.chunks_exact_mut(row_bytes).take(drawn) {
            row.fill_with(|| deviation * random.normal());
            quantize(format, &row, bytes);
        }
        let (first, rest) = data.split_at_mut(drawn * row_bytes);
        for chunk in rest.chunks_mut(first.len()) {
            chunk.copy_from_slice(&first[..chunk.len()]);
        }
        self.writer.tensor(name, &[cols, rows], ggml_type(format), data);
    }

    fn vector(&mut self, name: &str, len: usize, mean: f32, deviation: f32) {
        let mut random = Random::named(self.seed, name);
        let values: Vec<f32> = (0..len).map(|_| mean + deviation * random.normal()).collect();
        self.f32s(name, &values);
    }

    fn f32s(&mut self, name: &str, values: &[f32]) {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.writer.tensor(name, &[values.len()], ggml_type(Format::F32), data);
    }
}

fn ggml_type(format: Format) -> &'static GgmlType {
    GgmlType::from_name(format.name()).expect("every format is a ggml type")
}

#[cfg(test)]
mod tests;
