//! Gemma 3, its text model: most layers with a window and a rotary base of their own, norms on both
//! sides of attention and FFN, an embedding that is scaled.

use super::names::Place;
use super::{Arch, Family, GgufFamily, HuggingFaceFamily};
use crate::ModelError;
use crate::config::{Activation, Config, Keys, Rope, RopeStyle, Sliding};
use crate::huggingface::Json;

/// Every sixth layer sees everything.
const PERIOD: usize = 6;
/// The rotary base of layers with a window.
const LOCAL_BASE: f32 = 10_000.0;

pub(super) const GEMMA3: Family = Family {
    arch: Arch::Gemma3,
    name: "gemma3",
    latent: false,
    gguf: GgufFamily {
        name: "gemma3",
        rope_style: RopeStyle::Half,
        reads: &[],
        renames: &[],
        read: gguf,
    },
    huggingface: HuggingFaceFamily {
        model_types: &["gemma3_text", "gemma3"],
        rope_style: RopeStyle::Half,
        rope_theta: 1e6,
        rms_eps: 1e-6,
        places: &[
            ("post_attention_norm.weight", Place::Whole("post_attention_layernorm.weight")),
            ("ffn_norm.weight", Place::Whole("pre_feedforward_layernorm.weight")),
            ("post_ffw_norm.weight", Place::Whole("post_feedforward_layernorm.weight")),
        ],
        read: huggingface,
    },
};

fn huggingface(json: &Json<'_>, config: &mut Config) -> Result<(), ModelError> {
    for key in ["attention_bias", "use_bidirectional_attention"] {
        if json.flag(key)? {
            return json.refuse(key, true, "Helix runs Gemma 3 without it");
        }
    }
    common(config);
    config.activation = json.activation()?.unwrap_or(config.activation);
    config.norm_offset = 1.0;
    let scalar = json.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    config.attention_scale = 1.0 / scalar.sqrt();
    let period = json.optional_size("sliding_window_pattern")?.unwrap_or(PERIOD);
    let sliding = json.layer_types(config.layers)?.unwrap_or(Sliding::ExceptEvery(period));
    let window = json.optional_size("sliding_window")?.unwrap_or(4096);
    config.ropes.push(json.local_rope(config.head_dim, LOCAL_BASE)?);
    config.set_window(Some(window), sliding);
    Ok(())
}

fn gguf(keys: &Keys<'_>, config: &mut Config) -> Result<(), ModelError> {
    common(config);
    // The 27B model scales by its width over its heads, which is not the size of a head; files
    // do not say so, and llama.cpp knows it by the number of layers, too.
    if config.layers == 62 {
        let scalar = config.hidden as f32 / config.q_heads as f32;
        config.attention_scale = 1.0 / scalar.sqrt();
    }
    let base = keys.positive("rope.freq_base_swa")?.unwrap_or(LOCAL_BASE);
    config.ropes.push(Rope::plain(config.ropes[0].dims, base, RopeStyle::Half));
    let window = keys.size("attention.sliding_window")?;
    config.set_window(Some(window), keys.sliding_pattern(PERIOD)?);
    Ok(())
}

fn common(config: &mut Config) {
    config.qk_norm = true;
    config.post_norms = true;
    config.activation = Activation::GeluTanh;
    config.embedding_scale = (config.hidden as f32).sqrt();
}
