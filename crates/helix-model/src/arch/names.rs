//! Where Hugging Face directories, and older GGUF files, have the tensors that today's GGUF names.

/// Where a tensor of ours lies. Names are without `model.layers.N.`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is a tensor.
    Whole(&'static str),
    /// One tensor per expert, whose number stands for `{}`.
    Each(&'static str),
    /// Part of a tensor of all experts, `[experts, inputs, outputs]`, transposed; in MXFP4
    /// `NAME_blocks` and `NAME_scales`, which are not.
    Fused(&'static str, Part),
    /// Rows of each head in `[heads · (nope + value), kv_lora]`: those that make keys, transposed.
    KeysOf(&'static str),
    /// Those that make values.
    ValuesOf(&'static str),
}

/// Which outputs of a matrix of two, whose outputs alternate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// It is a matrix of one.
    All,
    /// 0, 2, 4, …
    Even,
    /// 1, 3, 5, …
    Odd,
}

/// Where older GGUF files have what current ones have in tensors of all experts or heads: Mixtral's
/// from before April 2024 and DeepSeek's from before
/// April 2025, whose W_UK and W_UV are one matrix. Names are without `blk.N.`. Source: llama.cpp's `llama-arch.cpp` of those times.
pub(crate) const OLDER: [(&str, Place); 5] = [
    ("ffn_gate_exps.weight", Place::Each("ffn_gate.{}.weight")),
    ("ffn_up_exps.weight", Place::Each("ffn_up.{}.weight")),
    ("ffn_down_exps.weight", Place::Each("ffn_down.{}.weight")),
    ("attn_k_b.weight", Place::KeysOf("attn_kv_b.weight")),
    ("attn_v_b.weight", Place::ValuesOf("attn_kv_b.weight")),
];

/// Outside layers; names are without `model.`, but for the head's.
pub(crate) const OUTER: [(&str, &str); 3] = [
    ("token_embd.weight", "embed_tokens.weight"),
    ("output_norm.weight", "norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// What stands before `embed_tokens` and `layers`, and what before `lm_head`.
pub(crate) const PREFIXES: [(&str, &str); 4] = [
    ("model.", ""),
    ("model.language_model.", ""),
    ("language_model.model.", "language_model."),
    ("", ""),
];

/// Where most architectures have the tensors of a layer.
pub(crate) const USUAL: [(&str, Place); 35] = [
    ("attn_norm.weight", Place::Whole("input_layernorm.weight")),
    ("attn_q.weight", Place::Whole("self_attn.q_proj.weight")),
    ("attn_k.weight", Place::Whole("self_attn.k_proj.weight")),
    ("attn_v.weight", Place::Whole("self_attn.v_proj.weight")),
    ("attn_q.bias", Place::Whole("self_attn.q_proj.bias")),
    ("attn_k.bias", Place::Whole("self_attn.k_proj.bias")),
    ("attn_v.bias", Place::Whole("self_attn.v_proj.bias")),
    ("attn_q_norm.weight", Place::Whole("self_attn.q_norm.weight")),
    ("attn_k_norm.weight", Place::Whole("self_attn.k_norm.weight")),
    ("attn_sinks.weight", Place::Whole("self_attn.sinks")),
    ("attn_output.weight", Place::Whole("self_attn.o_proj.weight")),
    ("attn_output.bias", Place::Whole("self_attn.o_proj.bias")),
    ("attn_q_a.weight", Place::Whole("self_attn.q_a_proj.weight")),
    ("attn_q_a_norm.weight", Place::Whole("self_attn.q_a_layernorm.weight")),
    ("attn_q_b.weight", Place::Whole("self_attn.q_b_proj.weight")),
    ("attn_kv_a_mqa.weight", Place::Whole("self_attn.kv_a_proj_with_mqa.weight")),
    ("attn_kv_a_norm.weight", Place::Whole("self_attn.kv_a_layernorm.weight")),
    ("attn_k_b.weight", Place::KeysOf("self_attn.kv_b_proj.weight")),
    ("attn_v_b.weight", Place::ValuesOf("self_attn.kv_b_proj.weight")),
    ("ffn_norm.weight", Place::Whole("post_attention_layernorm.weight")),
    ("ffn_gate.weight", Place::Whole("mlp.gate_proj.weight")),
    ("ffn_up.weight", Place::Whole("mlp.up_proj.weight")),
    ("ffn_down.weight", Place::Whole("mlp.down_proj.weight")),
    ("ffn_gate_inp.weight", Place::Whole("mlp.gate.weight")),
    ("ffn_gate_inp.bias", Place::Whole("mlp.gate.bias")),
    ("exp_probs_b.bias", Place::Whole("mlp.gate.e_score_correction_bias")),
    ("ffn_gate_exps.weight", Place::Each("mlp.experts.{}.gate_proj.weight")),
    ("ffn_up_exps.weight", Place::Each("mlp.experts.{}.up_proj.weight")),
    ("ffn_down_exps.weight", Place::Each("mlp.experts.{}.down_proj.weight")),
    ("ffn_gate_exps.bias", Place::Each("mlp.experts.{}.gate_proj.bias")),
    ("ffn_up_exps.bias", Place::Each("mlp.experts.{}.up_proj.bias")),
    ("ffn_down_exps.bias", Place::Each("mlp.experts.{}.down_proj.bias")),
    ("ffn_gate_shexp.weight", Place::Whole("mlp.shared_experts.gate_proj.weight")),
    ("ffn_up_shexp.weight", Place::Whole("mlp.shared_experts.up_proj.weight")),
    ("ffn_down_shexp.weight", Place::Whole("mlp.shared_experts.down_proj.weight")),
];
