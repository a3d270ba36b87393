//! The tensors that a configuration calls for, by the names that GGUF gives them.

use crate::config::{Config, Mla, Moe};

pub(crate) const EMBEDDING: &str = "token_embd.weight";
pub(crate) const FINAL_NORM: &str = "output_norm.weight";
pub(crate) const HEAD: &str = "output.weight";

/// A tensor that must be there.
pub(crate) struct Slot {
    /// Its name, without its layer.
    pub suffix: &'static str,
    /// Its extents as ggml writes them: `[cols, rows]`, or `[len]`.
    pub dims: Vec<usize>,
    /// How many experts or heads have one each: the last extent of all of them together.
    pub parts: Option<usize>,
}

impl Slot {
    /// The extents of one part as other files than GGUF's have them: the contiguous one last.
    pub fn shape(&self) -> String {
        format!("{:?}", self.dims.iter().rev().collect::<Vec<_>>())
    }
}

/// A tensor of all experts or heads.
fn each(suffix: &'static str, dims: Vec<usize>, parts: usize) -> Slot {
    Slot { suffix, dims, parts: Some(parts) }
}

fn one(suffix: &'static str, dims: Vec<usize>) -> Slot {
    Slot { suffix, dims, parts: None }
}

/// The name of a layer's tensor.
pub(crate) fn layer_tensor(layer: usize, suffix: &str) -> String {
    format!("blk.{layer}.{suffix}")
}

/// The tensors outside layers.
pub(crate) fn outer(config: &Config) -> Vec<Slot> {
    let (hidden, vocab) = (config.hidden, config.vocab);
    let mut slots = vec![one(EMBEDDING, vec![hidden, vocab]), one(FINAL_NORM, vec![hidden])];
    if !config.tied_head {
        slots.push(one(HEAD, vec![hidden, vocab]));
    }
    slots
}

/// The tensors of a layer.
pub(crate) fn layer(config: &Config, layer: usize) -> Vec<Slot> {
    let &Config { hidden, ffn, .. } = config;
    let mut slots = vec![one("attn_norm.weight", vec![hidden])];
    match &config.mla {
        None => heads(config, &mut slots),
        Some(mla) => latent(config, mla, &mut slots),
    }
    slots.push(one("attn_output.weight", vec![config.q_heads * config.value_dim, hidden]));
    if config.out_bias {
        slots.push(one("attn_output.bias", vec![hidden]));
    }
    if config.sinks {
        slots.push(one("attn_sinks.weight", vec![config.q_heads]));
    }
    slots.push(one("ffn_norm.weight", vec![hidden]));
    if config.post_norms {
        slots.push(one("post_attention_norm.weight", vec![hidden]));
        slots.push(one("post_ffw_norm.weight", vec![hidden]));
    }
    match config.moe(layer) {
        None => slots.extend([
            one("ffn_gate.weight", vec![hidden, ffn]),
            one("ffn_up.weight", vec![hidden, ffn]),
            one("ffn_down.weight", vec![ffn, hidden]),
        ]),
        Some(moe) => experts(hidden, moe, &mut slots),
    }
    slots
}

fn heads(config: &Config, slots: &mut Vec<Slot>) {
    let &Config { hidden, head_dim, .. } = config;
    let (q, kv) = (config.q_heads * head_dim, config.kv_heads * head_dim);
    slots.extend([
        one("attn_q.weight", vec![hidden, q]),
        one("attn_k.weight", vec![hidden, kv]),
        one("attn_v.weight", vec![hidden, kv]),
    ]);
    if config.qkv_bias {
        slots.extend([
            one("attn_q.bias", vec![q]),
            one("attn_k.bias", vec![kv]),
            one("attn_v.bias", vec![kv]),
        ]);
    }
    if config.qk_norm {
        slots.push(one("attn_q_norm.weight", vec![head_dim]));
        slots.push(one("attn_k_norm.weight", vec![head_dim]));
    }
}

fn latent(config: &Config, mla: &Mla, slots: &mut Vec<Slot>) {
    let &Config { hidden, q_heads, .. } = config;
    let &Mla { q_lora, kv_lora, nope, rope, value } = mla;
    let q = q_heads * (nope + rope);
    match q_lora {
        None => slots.push(one("attn_q.weight", vec![hidden, q])),
        Some(q_lora) => slots.extend([
            one("attn_q_a.weight", vec![hidden, q_lora]),
            one("attn_q_a_norm.weight", vec![q_lora]),
            one("attn_q_b.weight", vec![q_lora, q]),
        ]),
    }
    slots.extend([
        one("attn_kv_a_mqa.weight", vec![hidden, kv_lora + rope]),
        one("attn_kv_a_norm.weight", vec![kv_lora]),
        // From a head's query to what it is compared with in the latent, and from the latent to
        // the head's value.
        each("attn_k_b.weight", vec![nope, kv_lora], q_heads),
        each("attn_v_b.weight", vec![kv_lora, value], q_heads),
    ]);
}

fn experts(hidden: usize, moe: &Moe, slots: &mut Vec<Slot>) {
    let &Moe { experts, ffn, shared_ffn, .. } = moe;
    slots.push(one("ffn_gate_inp.weight", vec![hidden, experts]));
    if moe.bias {
        slots.push(one("ffn_gate_inp.bias", vec![experts]));
    }
    if moe.selection_bias {
        slots.push(one("exp_probs_b.bias", vec![experts]));
    }
    slots.extend([
        each("ffn_gate_exps.weight", vec![hidden, ffn], experts),
        each("ffn_up_exps.weight", vec![hidden, ffn], experts),
        each("ffn_down_exps.weight", vec![ffn, hidden], experts),
    ]);
    if moe.expert_bias {
        slots.extend([
            each("ffn_gate_exps.bias", vec![ffn], experts),
            each("ffn_up_exps.bias", vec![ffn], experts),
            each("ffn_down_exps.bias", vec![hidden], experts),
        ]);
    }
    if shared_ffn > 0 {
        slots.extend([
            one("ffn_gate_shexp.weight", vec![hidden, shared_ffn]),
            one("ffn_up_shexp.weight", vec![hidden, shared_ffn]),
            one("ffn_down_shexp.weight", vec![shared_ffn, hidden]),
        ]);
    }
}
