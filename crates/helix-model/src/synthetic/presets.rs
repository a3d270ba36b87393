//! Shapes of models: small ones for tests, and real ones for benches.

use helix_kernels::Format;

use super::{Experts, Spec, Values};
use crate::Arch;
use crate::config::{Llama3, Mla, Scaling, Scoring};

impl Spec {
    /// A small model with awkward sizes: 2 layers, 6 query heads over 2 KV heads of 8 elements, or
    /// over latents of 32 + 8; 5 experts, in DeepSeek's second layer with a shared one beside them.
    pub fn tiny(arch: Arch) -> Spec {
        Spec {
            name: format!("tiny-{arch}"),
            arch,
            layers: 2,
            hidden: 48,
            q_heads: 6,
            kv_heads: 2,
            head_dim: 8,
            mla: (arch == Arch::DeepSeek).then_some(Mla {
                q_lora: Some(24),
                kv_lora: 32,
                nope: 16,
                rope: 8,
                value: 16,
            }),
            ffn: 80,
            experts: tiny_experts(arch),
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
            scaling: Scaling::Llama3(Llama3 {
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

    /// A shape for benches by its name, one of [`Spec::NAMES`].
    pub fn named(name: &str) -> Option<Spec> {
        let spec = match name {
            "llama-1b" => Spec::llama32_1b(Format::Q4_0),
            "llama-1b-mqa" => Spec { kv_heads: 1, ..Spec::llama32_1b(Format::Q4_0) },
            "mqa-1b" => Spec { kv_heads: 1, layers: 8, ..Spec::llama32_1b(Format::Q4K) },
            "mqa-2b" => gemma_2b_attention(),
            "mqa-4" => {
                Spec { hidden: 1024, q_heads: 4, ffn: 6912, layers: 12, ..gemma_2b_attention() }
            }
            "8b" => llama31_8b(),
            "mla" => latent(),
            "moe" => qwen3_30b_experts(),
            "deepseek" => deepseek(),
            _ => return None,
        };
        Some(Spec { name: format!("synthetic {name}"), ..spec })
    }

    /// What [`Spec::named`] knows, and what each is. All stay below 800 MB.
    pub const NAMES: [(&str, &str); 9] = [
        ("llama-1b", "Llama-3.2-1B, whole: 32 query heads, 8 KV heads, 16 layers; Q4_0"),
        ("llama-1b-mqa", "the same with 1 KV head for its 32 query heads; Q4_0"),
        ("mqa-1b", "Llama-3.2-1B with 1 KV head for its 32 query heads; 8 of its 16 layers; Q4_K"),
        (
            "mqa-2b",
            "Gemma-2B's attention (8 query heads, 1 KV head of 256) and FFN; 6 layers; Q4_K",
        ),
        (
            "mqa-4",
            "Gemma-3-1B's heads (4 query heads, 1 KV head of 256), no windows; 12 layers; Q4_K",
        ),
        ("8b", "Llama-3.1-8B (32 query heads, 8 KV heads of 128); 3 of its 32 layers; Q4_0"),
        ("mla", "DeepSeek-V2-Lite's attention (16 heads on latents of 512 + 64); 8 layers; Q8_0"),
        ("moe", "Qwen3-30B-A3B with 64 of its 128 experts, top 8; 3 layers; Q4_K"),
        ("deepseek", "latents as mla, 64 experts of 512, top 6, 2 shared; 1 + 4 layers; Q4_0"),
    ];
}

/// Tokens of shapes with few layers: the LM head would be most of what they read.
const VOCAB: usize = 16_384;

fn llama31_8b() -> Spec {
    Spec {
        layers: 3,
        hidden: 4096,
        head_dim: 128,
        ffn: 14_336,
        rope_dims: 128,
        vocab: VOCAB,
        ..Spec::llama32_1b(Format::Q4_0)
    }
}

/// MQA as it is trained: few query heads for the one KV head, but long ones.
fn gemma_2b_attention() -> Spec {
    Spec {
        layers: 6,
        q_heads: 8,
        kv_heads: 1,
        head_dim: 256,
        rope_dims: 256,
        ffn: 16_384,
        vocab: VOCAB,
        scaling: Scaling::None,
        ..Spec::llama32_1b(Format::Q4K)
    }
}

/// Small FFNs, so that attention is most of a token.
fn latent() -> Spec {
    Spec {
        layers: 8,
        hidden: 2048,
        q_heads: 16,
        mla: Some(Mla { q_lora: None, kv_lora: 512, nope: 128, rope: 64, value: 128 }),
        ffn: 1408,
        experts: None,
        vocab: VOCAB,
        context: 163_840,
        format: Format::Q8_0,
        down_format: Format::Q8_0,
        embedding_format: Format::Q8_0,
        values: Values::Repeated,
        ..Spec::tiny(Arch::DeepSeek)
    }
}

fn qwen3_30b_experts() -> Spec {
    Spec {
        layers: 3,
        hidden: 2048,
        q_heads: 32,
        kv_heads: 4,
        head_dim: 128,
        rope_dims: 128,
        rope_base: 1e6,
        experts: Some(Experts { count: 64, top_k: 8, ffn: 768, ..NO_SHARED }),
        ffn: 6144,
        vocab: VOCAB,
        context: 40_960,
        format: Format::Q4K,
        down_format: Format::Q4K,
        embedding_format: Format::Q6K,
        tied_head: true,
        values: Values::Repeated,
        ..Spec::tiny(Arch::Qwen3Moe)
    }
}

fn deepseek() -> Spec {
    Spec {
        layers: 5,
        experts: Some(Experts {
            count: 64,
            top_k: 6,
            ffn: 512,
            shared: 2,
            dense_layers: 1,
            scoring: Scoring::Sigmoid,
        }),
        format: Format::Q4_0,
        down_format: Format::Q4_0,
        ..latent()
    }
}

const NO_SHARED: Experts =
    Experts { count: 5, top_k: 2, ffn: 24, shared: 0, dense_layers: 0, scoring: Scoring::Softmax };

fn tiny_experts(arch: Arch) -> Option<Experts> {
    match arch {
        Arch::Mixtral | Arch::Qwen3Moe => Some(NO_SHARED),
        Arch::DeepSeek => {
            Some(Experts { shared: 1, dense_layers: 1, scoring: Scoring::Sigmoid, ..NO_SHARED })
        }
        _ => None,
    }
}
