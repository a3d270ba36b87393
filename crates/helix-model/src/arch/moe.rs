//! Mixtral and Qwen3-MoE: their dense relatives with experts in place of the FFN.

use super::names::Place;
use super::{Arch, Family, GgufFamily, HuggingFaceFamily, dense};
use crate::ModelError;
use crate::config::{Moe, RopeStyle, Routing, Scoring, Sliding};
use crate::huggingface::Json;

pub(super) const MIXTRAL: Family = Family {
    arch: Arch::Mixtral,
    name: "mixtral",
    latent: false,
    gguf: GgufFamily {
        name: "llama",
        rope_style: RopeStyle::Interleaved,
        reads: &["expert_count"],
        renames: &[],
        read: |keys, config| {
            keys.refuse_window(config.context)?;
            let routing = Routing { scoring: Scoring::SoftmaxAfterTopK, ..softmax() };
            // Its experts are as wide as the FFN that they replace.
            let ffn = keys.optional_size("expert_feed_forward_length")?.unwrap_or(config.ffn);
            config.moe = Some(keys.moe(ffn, routing)?);
            Ok(())
        },
    },
    huggingface: HuggingFaceFamily {
        model_types: &["mixtral"],
        rope_style: RopeStyle::Half,
        rope_theta: 1e6,
        rms_eps: 1e-5,
        places: &[
            ("ffn_gate_inp.weight", Place::Whole("block_sparse_moe.gate.weight")),
            ("ffn_gate_exps.weight", Place::Each("block_sparse_moe.experts.{}.w1.weight")),
            ("ffn_up_exps.weight", Place::Each("block_sparse_moe.experts.{}.w3.weight")),
            ("ffn_down_exps.weight", Place::Each("block_sparse_moe.experts.{}.w2.weight")),
        ],
        read: |json, config| {
            dense::mistral(json, config, None)?;
            let routing = Routing { scoring: Scoring::SoftmaxAfterTopK, ..softmax() };
            config.moe = Some(experts(json, config.ffn, routing)?);
            Ok(())
        },
    },
};

pub(super) const QWEN3_MOE: Family = Family {
    arch: Arch::Qwen3Moe,
    name: "qwen3moe",
    latent: false,
    gguf: GgufFamily {
        name: "qwen3moe",
        rope_style: RopeStyle::Half,
        reads: &["expert_count"],
        renames: &[],
        read: |keys, config| {
            dense::qk_norm_of_gguf(keys, config)?;
            let ffn = keys.size("expert_feed_forward_length")?;
            config.moe = Some(keys.moe(ffn, softmax())?);
            Ok(())
        },
    },
    huggingface: HuggingFaceFamily {
        model_types: &["qwen3_moe"],
        rope_style: RopeStyle::Half,
        rope_theta: 10_000.0,
        rms_eps: 1e-6,
        places: &[],
        read: |json, config| {
            dense::qwen3(json, config)?;
            // Unlike its dense relative's, that of all layers.
            if json.flag("use_sliding_window")? {
                config.set_window(json.window(dense::WINDOW)?, Sliding::Always);
            }
            let normalise = json.flag("norm_topk_prob")?;
            let ffn = json.size("moe_intermediate_size")?;
            let mut moe = experts(json, ffn, Routing { normalise, ..softmax() })?;
            moe.every = json.optional_size("decoder_sparse_step")?.unwrap_or(1);
            moe.dense = json.layers("mlp_only_layers", config.layers)?;
            config.moe = Some(moe);
            Ok(())
        },
    },
};

/// Softmax over all experts, the weights of the chosen divided by their sum.
fn softmax() -> Routing {
    Routing { scoring: Scoring::Softmax, top_k: 0, normalise: true, scale: 1.0, groups: None }
}

/// The experts that a configuration describes, of `ffn` columns, in every layer.
pub(super) fn experts(json: &Json<'_>, ffn: usize, routing: Routing) -> Result<Moe, ModelError> {
    let top_k = json.size("num_experts_per_tok")?;
    let moe = Moe {
        experts: json.size_of(&["num_local_experts", "n_routed_experts", "num_experts"])?,
        ffn,
        shared_ffn: 0,
        first_layer: 0,
        every: 1,
        dense: Vec::new(),
        routing: Routing { top_k, ..routing },
        bias: false,
        selection_bias: false,
        expert_bias: false,
    };
    moe.check()?;
    Ok(moe)
}
