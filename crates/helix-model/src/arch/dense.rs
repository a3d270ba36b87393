//! Llama, Qwen2 and Qwen3: pre-norm layers with grouped-query attention and a SwiGLU FFN.

use super::{Arch, Family, GgufFamily, HuggingFaceFamily};
use crate::ModelError;
use crate::config::{Config, Keys, RopeStyle, Sliding};
use crate::huggingface::Json;

/// Mistral's and Qwen's window where their configuration says nothing of it.
pub(super) const WINDOW: Option<usize> = Some(4096);

/// GGUF's converter permutes W_q and W_k so that rotary pairs lie side by side.
pub(super) const LLAMA: Family = Family {
    arch: Arch::Llama,
    name: "llama",
    latent: false,
    gguf: GgufFamily {
        name: "llama",
        rope_style: RopeStyle::Interleaved,
        reads: &[],
        renames: &[],
        read: |keys, config| keys.refuse_window(config.context),
    },
    huggingface: HuggingFaceFamily {
        model_types: &["llama", "mistral"],
        rope_style: RopeStyle::Half,
        rope_theta: 10_000.0,
        rms_eps: 1e-6,
        places: &[],
        read: |json, config| match json.string("model_type")? {
            Some("mistral") => mistral(json, config, WINDOW),
            // Llama has no windows, whatever its configuration says of them.
            _ => biases(json, config),
        },
    },
};

pub(super) const QWEN2: Family = Family {
    arch: Arch::Qwen2,
    name: "qwen2",
    latent: false,
    gguf: GgufFamily {
        name: "qwen2",
        rope_style: RopeStyle::Half,
        reads: &[],
        renames: &[],
        read: |keys, config| keys.refuse_window(config.context),
    },
    huggingface: HuggingFaceFamily {
        model_types: &["qwen2"],
        rope_style: RopeStyle::Half,
        rope_theta: 10_000.0,
        rms_eps: 1e-6,
        places: &[],
        read: |json, config| {
            config.qkv_bias = true;
            qwen_window(json, config)
        },
    },
};

pub(super) const QWEN3: Family = Family {
    arch: Arch::Qwen3,
    name: "qwen3",
    latent: false,
    gguf: GgufFamily {
        name: "qwen3",
        rope_style: RopeStyle::Half,
        reads: &[],
        renames: &[],
        read: |keys, config| {
            config.qk_norm = true;
            keys.refuse_window(config.context)
        },
    },
    huggingface: HuggingFaceFamily {
        model_types: &["qwen3"],
        rope_style: RopeStyle::Half,
        rope_theta: 10_000.0,
        rms_eps: 1e-6,
        places: &[],
        read: |json, config| {
            qwen3(json, config)?;
            qwen_window(json, config)
        },
    },
};

/// Mistral's window, if there is one, is that of all layers.
pub(super) fn mistral(
    json: &Json<'_>,
    config: &mut Config,
    absent: Option<usize>,
) -> Result<(), ModelError> {
    biases(json, config)?;
    config.set_window(json.window(absent)?, Sliding::Always);
    Ok(())
}

/// Qwen3's attention, but for windows.
pub(super) fn qwen3(json: &Json<'_>, config: &mut Config) -> Result<(), ModelError> {
    config.qk_norm = true;
    biases(json, config)
}

/// `attention_bias` is the output projection's too.
fn biases(json: &Json<'_>, config: &mut Config) -> Result<(), ModelError> {
    config.qkv_bias = json.flag("attention_bias")?;
    config.out_bias = config.qkv_bias;
    Ok(())
}

/// Layers from `max_window_layers` on have the window, unless a list says which.
fn qwen_window(json: &Json<'_>, config: &mut Config) -> Result<(), ModelError> {
    if !json.flag("use_sliding_window")? {
        return Ok(());
    }
    let first = json.integer("max_window_layers")?.unwrap_or(28);
    let sliding = json.layer_types(config.layers)?.unwrap_or(Sliding::From(first as usize));
    config.set_window(json.window(WINDOW)?, sliding);
    Ok(())
}

/// A GGUF file of an architecture whose settings are all common ones.
pub(super) fn qk_norm_of_gguf(keys: &Keys<'_>, config: &mut Config) -> Result<(), ModelError> {
    config.qk_norm = true;
    keys.refuse_window(config.context)
}
