//! DeepSeek-V2, V3 and R1, and Kimi-K2: latent attention, experts in groups, shared experts.

use super::{Arch, Family, GgufFamily, HuggingFaceFamily, moe};
use crate::ModelError;
use crate::config::{Config, GroupScore, Groups, Keys, Moe, RopeStyle, Routing, Scoring};
use crate::huggingface::Json;

pub(super) const DEEPSEEK: Family = Family {
    arch: Arch::DeepSeek,
    name: "deepseek2",
    latent: true,
    gguf: GgufFamily {
        name: "deepseek2",
        rope_style: RopeStyle::Interleaved,
        reads: &["expert_count", "leading_dense_block_count", "rope.scaling.yarn_log_multiplier"],
        renames: &[],
        read: gguf,
    },
    huggingface: HuggingFaceFamily {
        model_types: &["deepseek_v2", "deepseek_v3", "kimi_k2"],
        rope_style: RopeStyle::Interleaved,
        rope_theta: 10_000.0,
        rms_eps: 1e-6,
        places: &[],
        read: huggingface,
    },
};

fn huggingface(json: &Json<'_>, config: &mut Config) -> Result<(), ModelError> {
    for key in ["attention_bias", "mlp_bias"] {
        if json.flag(key)? {
            return json.refuse(key, true, "Helix runs this architecture without biases");
        }
    }
    if json.boolean("rope_interleave")? == Some(false) {
        config.ropes.iter_mut().for_each(|rope| rope.style = RopeStyle::Half);
    }
    let magnitude = json.mla_magnitude()?;
    config.attention_scale *= magnitude * magnitude;
    config.moe = match json.get("n_routed_experts").or(json.get("num_local_experts")) {
        None => None, // every layer is dense
        Some(_) => Some(experts(json)?),
    };
    Ok(())
}

fn experts(json: &Json<'_>) -> Result<Moe, ModelError> {
    let third = json.string("model_type")? != Some("deepseek_v2");
    let scoring = match json.string("scoring_func")? {
        None if third => Scoring::Sigmoid,
        None | Some("softmax") => Scoring::Softmax,
        Some("sigmoid") => Scoring::Sigmoid,
        Some(other) => {
            let problem = "Helix runs \"softmax\" and \"sigmoid\"";
            return json.refuse("scoring_func", format!("{other:?}"), problem);
        }
    };
    let by = match json.string("topk_method")? {
        None if third => Some(GroupScore::SumOfTop2),
        Some("noaux_tc") => Some(GroupScore::SumOfTop2),
        Some("group_limited_greedy") => Some(GroupScore::Max),
        None | Some("greedy") => None,
        Some(other) => {
            let problem = "Helix runs \"greedy\", \"group_limited_greedy\" and \"noaux_tc\"";
            return json.refuse("topk_method", format!("{other:?}"), problem);
        }
    };
    let or_third = |given: Option<usize>, of_third| given.or(third.then_some(of_third));
    let groups = match (by, or_third(json.optional_size("n_group")?, 8)) {
        (Some(by), Some(count)) if count > 1 => {
            let kept = or_third(json.optional_size("topk_group")?, 4);
            Some(Groups { count, kept: kept.ok_or_else(|| json.missing("topk_group"))?, by })
        }
        _ => None,
    };
    let routing = Routing {
        scoring,
        top_k: 0,
        normalise: json.boolean("norm_topk_prob")?.unwrap_or(third),
        scale: json.positive("routed_scaling_factor")?.unwrap_or(if third { 2.5 } else { 1.0 }),
        groups,
    };
    match json.integer("moe_layer_freq")? {
        None | Some(1) => {}
        Some(other) => return json.refuse("moe_layer_freq", other, "Helix runs 1"),
    }
    let ffn = json.size("moe_intermediate_size")?;
    let shared = json.integer("n_shared_experts")?.unwrap_or(0);
    let shared_ffn = match shared {
        0 => 0,
        count => json.in_range(
            "n_shared_experts",
            count.saturating_mul(ffn as u64),
            crate::config::MAX_SIZE,
        )?,
    };
    let first = json.integer("first_k_dense_replace")?.unwrap_or(0);
    Ok(Moe {
        shared_ffn,
        first_layer: usize::try_from(first).unwrap_or(usize::MAX),
        selection_bias: by == Some(GroupScore::SumOfTop2),
        ..moe::experts(json, ffn, routing)?
    })
}

fn gguf(keys: &Keys<'_>, config: &mut Config) -> Result<(), ModelError> {
    let magnitude = keys.mla_magnitude()?;
    config.attention_scale *= magnitude * magnitude;
    let Some(experts) = keys.optional_size("expert_count")? else { return Ok(()) };
    let ffn = keys.size("expert_feed_forward_length")?;
    let shared = keys.optional_count("expert_shared_count")?;
    let first = keys.optional_count("leading_dense_block_count")?;
    let first_layer = first.min(config.layers);
    let selection_bias = keys.has_tensor(&format!("blk.{first_layer}.exp_probs_b.bias"));
    let scoring = match keys.optional_count("expert_gating_func")? {
        0 | 1 => Scoring::Softmax,
        2 => Scoring::Sigmoid,
        other => return keys.refuse("expert_gating_func", other, "Helix runs 1 and 2".to_owned()),
    };
    let by = if selection_bias { GroupScore::SumOfTop2 } else { GroupScore::Max };
    let groups = match keys.optional_count("expert_group_count")? {
        0 | 1 => None,
        count => Some(Groups { count, kept: keys.size("expert_group_used_count")?, by }),
    };
    let routing = Routing {
        scoring,
        top_k: 0,
        normalise: keys.flag("expert_weights_norm")?,
        scale: keys.positive("expert_weights_scale")?.unwrap_or(1.0),
        groups,
    };
    let moe = Moe {
        experts,
        shared_ffn: keys.in_range_or_0("expert_shared_count", shared, ffn)?,
        first_layer,
        selection_bias,
        ..keys.moe(ffn, routing)?
    };
    config.moe = Some(moe);
    Ok(())
}
