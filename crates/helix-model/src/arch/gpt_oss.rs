//! gpt-oss: attention sinks, a window in every other layer, biases, experts in MXFP4.

use super::names::{Part, Place};
use super::{Arch, Family, GgufFamily, HuggingFaceFamily, moe};
use crate::ModelError;
use crate::config::{Activation, Config, Keys, Moe, RopeStyle, Routing, Scoring, Sliding};
use crate::huggingface::Json;

pub(super) const GPT_OSS: Family = Family {
    arch: Arch::GptOss,
    name: "gpt-oss",
    latent: false,
    gguf: GgufFamily {
        name: "gpt-oss",
        rope_style: RopeStyle::Half,
        reads: &["expert_count"],
        renames: &[("ffn_norm.weight", "post_attention_norm.weight")],
        read: gguf,
    },
    huggingface: HuggingFaceFamily {
        model_types: &["gpt_oss"],
        rope_style: RopeStyle::Half,
        rope_theta: 150_000.0,
        rms_eps: 1e-5,
        places: &[
            ("ffn_gate_inp.weight", Place::Whole("mlp.router.weight")),
            ("ffn_gate_inp.bias", Place::Whole("mlp.router.bias")),
            ("ffn_gate_exps.weight", Place::Fused("mlp.experts.gate_up_proj", Part::Even)),
            ("ffn_up_exps.weight", Place::Fused("mlp.experts.gate_up_proj", Part::Odd)),
            ("ffn_down_exps.weight", Place::Fused("mlp.experts.down_proj", Part::All)),
            ("ffn_gate_exps.bias", Place::Fused("mlp.experts.gate_up_proj_bias", Part::Even)),
            ("ffn_up_exps.bias", Place::Fused("mlp.experts.gate_up_proj_bias", Part::Odd)),
            ("ffn_down_exps.bias", Place::Fused("mlp.experts.down_proj_bias", Part::All)),
        ],
        read: huggingface,
    },
};

fn huggingface(json: &Json<'_>, config: &mut Config) -> Result<(), ModelError> {
    for (key, only) in [("swiglu_limit", 7.0), ("swiglu_alpha", 1.702)] {
        if let Some(value) = json.float(key)?.filter(|value| *value != only) {
            return json.refuse(key, value, format!("Helix runs {only}"));
        }
    }
    let bias = json.boolean("attention_bias")?.unwrap_or(true);
    (config.qkv_bias, config.out_bias) = (bias, bias);
    let sliding = json.layer_types(config.layers)?.unwrap_or(Sliding::ExceptEvery(2));
    config.set_window(json.window(Some(128))?, sliding);
    let moe = moe::experts(json, config.ffn, routing())?;
    common(config, moe);
    Ok(())
}

fn gguf(keys: &Keys<'_>, config: &mut Config) -> Result<(), ModelError> {
    (config.qkv_bias, config.out_bias) = (true, true);
    let window = keys.optional_size("attention.sliding_window")?;
    config.set_window(window, keys.sliding_pattern(2)?);
    let moe = keys.moe(keys.size("expert_feed_forward_length")?, routing())?;
    common(config, moe);
    Ok(())
}

fn common(config: &mut Config, moe: Moe) {
    config.sinks = true;
    config.activation = Activation::ClampedSwiglu;
    config.moe = Some(Moe { bias: true, expert_bias: true, ..moe });
}

fn routing() -> Routing {
    let scoring = Scoring::SoftmaxAfterTopK;
    Routing { scoring, top_k: 0, normalise: true, scale: 1.0, groups: None }
}
