//! Writes the seed corpora of the `gguf` and `safetensors` targets: one small model of each kind.

use std::error::Error;
use std::fs;
use std::path::Path;

use helix_kernels::Format;
use helix_model::Arch;
use helix_model::config::{Llama3, Scaling, Yarn};
use helix_model::synthetic::{Spec, gguf};

fn main() -> Result<(), Box<dyn Error>> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for target in ["gguf", "safetensors"] {
        fs::create_dir_all(seeds.join(target))?;
    }
    for (name, spec) in specs() {
        fs::write(seeds.join("gguf").join(format!("{name}.gguf")), gguf(&spec, 1))?;
    }
    for (name, config, tensors) in directories() {
        let mut bytes = config.into_bytes();
        bytes.push(0);
        bytes.extend(safetensors(&tensors));
        fs::write(seeds.join("safetensors").join(name), bytes)?;
    }
    Ok(())
}

/// Names of tensors in a layer, and their extents.
type Layer = Vec<(&'static str, Vec<usize>)>;

/// Two query heads of two elements over one KV head.
fn heads(hidden: usize) -> Layer {
    vec![
        ("input_layernorm.weight", vec![hidden]),
        ("self_attn.q_proj.weight", vec![4, hidden]),
        ("self_attn.k_proj.weight", vec![2, hidden]),
        ("self_attn.v_proj.weight", vec![2, hidden]),
        ("self_attn.o_proj.weight", vec![hidden, 4]),
        ("post_attention_layernorm.weight", vec![hidden]),
    ]
}

fn qkv_bias() -> Layer {
    vec![
        ("self_attn.q_proj.bias", vec![4]),
        ("self_attn.k_proj.bias", vec![2]),
        ("self_attn.v_proj.bias", vec![2]),
    ]
}

fn qk_norm() -> Layer {
    vec![("self_attn.q_norm.weight", vec![2]), ("self_attn.k_norm.weight", vec![2])]
}

fn dense() -> Layer {
    vec![
        ("mlp.gate_proj.weight", vec![4, 4]),
        ("mlp.up_proj.weight", vec![4, 4]),
        ("mlp.down_proj.weight", vec![4, 4]),
    ]
}

/// Two experts.
fn experts() -> Layer {
    vec![
        ("mlp.gate.weight", vec![2, 4]),
        ("mlp.experts.0.gate_proj.weight", vec![4, 4]),
        ("mlp.experts.0.up_proj.weight", vec![4, 4]),
        ("mlp.experts.0.down_proj.weight", vec![4, 4]),
        ("mlp.experts.1.gate_proj.weight", vec![4, 4]),
        ("mlp.experts.1.up_proj.weight", vec![4, 4]),
        ("mlp.experts.1.down_proj.weight", vec![4, 4]),
    ]
}

fn shared_expert() -> Layer {
    vec![
        ("mlp.shared_experts.gate_proj.weight", vec![4, 4]),
        ("mlp.shared_experts.up_proj.weight", vec![4, 4]),
        ("mlp.shared_experts.down_proj.weight", vec![4, 4]),
    ]
}

fn mixtral_experts() -> Layer {
    vec![
        ("block_sparse_moe.gate.weight", vec![1, 4]),
        ("block_sparse_moe.experts.0.w1.weight", vec![4, 4]),
        ("block_sparse_moe.experts.0.w2.weight", vec![4, 4]),
        ("block_sparse_moe.experts.0.w3.weight", vec![4, 4]),
    ]
}

/// Latent attention of two heads.
fn latent() -> Layer {
    vec![
        ("input_layernorm.weight", vec![4]),
        ("self_attn.kv_a_proj_with_mqa.weight", vec![6, 4]),
        ("self_attn.kv_a_layernorm.weight", vec![4]),
        ("self_attn.kv_b_proj.weight", vec![8, 4]),
        ("self_attn.o_proj.weight", vec![4, 4]),
        ("post_attention_layernorm.weight", vec![4]),
    ]
}

/// Its queries, projected directly or through four elements.
fn latent_queries(through: bool) -> Layer {
    if !through {
        return vec![("self_attn.q_proj.weight", vec![8, 4])];
    }
    vec![
        ("self_attn.q_a_proj.weight", vec![4, 4]),
        ("self_attn.q_a_layernorm.weight", vec![4]),
        ("self_attn.q_b_proj.weight", vec![8, 4]),
    ]
}

/// Scales of what is then FP8.
fn scales() -> Layer {
    vec![
        ("self_attn.kv_b_proj.weight_scale_inv", vec![1, 1]),
        ("self_attn.o_proj.weight_scale_inv", vec![1, 1]),
        ("mlp.experts.0.gate_proj.weight_scale_inv", vec![1, 1]),
        ("mlp.experts.1.down_proj.weight_scale_inv", vec![1, 1]),
    ]
}

/// gpt-oss's biases, sinks, router, and the biases of its two experts.
fn gpt_oss(hidden: usize) -> Layer {
    vec![
        ("self_attn.o_proj.bias", vec![hidden]),
        ("self_attn.sinks", vec![2]),
        ("mlp.router.weight", vec![2, hidden]),
        ("mlp.router.bias", vec![2]),
        ("mlp.experts.gate_up_proj_bias", vec![2, 2 * hidden]),
        ("mlp.experts.down_proj_bias", vec![2, hidden]),
    ]
}

/// Their matrices as floats.
fn fused() -> Layer {
    vec![("mlp.experts.gate_up_proj", vec![2, 4, 8]), ("mlp.experts.down_proj", vec![2, 4, 4])]
}

/// Their matrices in MXFP4.
fn fused_blocks() -> Layer {
    vec![
        ("mlp.experts.gate_up_proj_blocks", vec![2, 64, 1, 16]),
        ("mlp.experts.gate_up_proj_scales", vec![2, 64, 1]),
        ("mlp.experts.down_proj_blocks", vec![2, 32, 1, 16]),
        ("mlp.experts.down_proj_scales", vec![2, 32, 1]),
    ]
}

fn gemma_norms() -> Layer {
    vec![
        ("pre_feedforward_layernorm.weight", vec![4]),
        ("post_feedforward_layernorm.weight", vec![4]),
    ]
}

const GROUPED: &str = r#""num_key_value_heads":1,"head_dim":2"#;
const LATENT: &str = r#""kv_lora_rank":4,"qk_nope_head_dim":2,"qk_rope_head_dim":2,"v_head_dim":2,
    "rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":16,"beta_fast":32,
    "beta_slow":1,"mscale":1.0,"mscale_all_dim":1.0}"#;
const EXPERTS: &str = r#""n_routed_experts":2,"num_experts_per_tok":1,"moe_intermediate_size":4,
    "first_k_dense_replace":0,"routed_scaling_factor":2.5,"norm_topk_prob":true"#;

/// `config.json` of one layer, this wide.
fn config(hidden: usize, model_type: &str, parts: &[&str]) -> String {
    format!(
        r#"{{"model_type":"{model_type}","hidden_size":{hidden},"num_hidden_layers":1,
"num_attention_heads":2,"vocab_size":8,"max_position_embeddings":64,"tie_word_embeddings":true,
"rms_norm_eps":1e-6,"intermediate_size":{hidden},{}}}"#,
        parts.join(",\n")
    )
}

/// One directory of each kind: its configuration, and the tensors of its one layer.
fn directories() -> Vec<(&'static str, String, Tensors)> {
    let of = |name, kind, parts: &[&str], layer: &[Layer]| {
        let hidden = if name == "gpt-oss-mxfp4" { 32 } else { 4 };
        (name, config(hidden, kind, parts), tensors(hidden, &layer.concat()))
    };
    let windows = r#""sliding_window":16"#;
    let base = r#""rope_parameters":{"rope_type":"default","rope_theta":1e6}"#;
    let third = r#""scoring_func":"sigmoid","topk_method":"noaux_tc","n_group":1,"topk_group":1,
"n_shared_experts":1,"q_lora_rank":4,"quantization_config":{"quant_method":"fp8","fmt":"e4m3",
"weight_block_size":[128,128]}"#;
    let second = r#""scoring_func":"softmax","topk_method":"group_limited_greedy","n_group":2,
"topk_group":1,"q_lora_rank":null"#;
    let sparse = r#""num_experts":2,"num_experts_per_tok":1,"moe_intermediate_size":4,
"norm_topk_prob":true,"decoder_sparse_step":1,"mlp_only_layers":[]"#;
    let oss = r#""num_local_experts":2,"num_experts_per_tok":1,"attention_bias":true,
"layer_types":["sliding_attention"],"swiglu_limit":7.0,"sliding_window":16,
"rope_scaling":{"rope_type":"yarn","factor":4,"original_max_position_embeddings":16,
"truncate":false}"#;
    let gemma = r#""hidden_activation":"gelu_pytorch_tanh","query_pre_attn_scalar":2,
"sliding_window":16,"sliding_window_pattern":2,"rope_local_base_freq":1e4"#;
    let llama3 = r#""rope_scaling":{"rope_type":"llama3","factor":8,"low_freq_factor":1,
"high_freq_factor":4,"original_max_position_embeddings":16}"#;
    let bias = qkv_bias();
    let correction = vec![("mlp.gate.e_score_correction_bias", vec![2])];
    let [direct, through] = [false, true].map(latent_queries);
    vec![
        of("llama", "llama", &[GROUPED, llama3], &[heads(4), dense()]),
        of("mistral", "mistral", &[GROUPED, windows], &[heads(4), dense()]),
        of("qwen2", "qwen2", &[GROUPED, windows], &[heads(4), bias.clone(), dense()]),
        of("qwen3", "qwen3", &[GROUPED, base], &[heads(4), qk_norm(), dense()]),
        of(
            "mixtral",
            "mixtral",
            &[GROUPED, r#""num_local_experts":1,"num_experts_per_tok":1"#],
            &[heads(4), mixtral_experts()],
        ),
        of("qwen3-moe", "qwen3_moe", &[GROUPED, sparse], &[heads(4), qk_norm(), experts()]),
        of("deepseek", "deepseek_v3", &[LATENT], &[latent(), direct.clone(), dense()]),
        of(
            "deepseek-v2",
            "deepseek_v2",
            &[LATENT, EXPERTS, second],
            &[latent(), direct, experts()],
        ),
        of(
            "deepseek-v3-fp8",
            "deepseek_v3",
            &[LATENT, EXPERTS, third],
            &[latent(), through, experts(), correction, shared_expert(), scales()],
        ),
        of("gpt-oss", "gpt_oss", &[GROUPED, oss], &[heads(4), bias.clone(), gpt_oss(4), fused()]),
        of(
            "gpt-oss-mxfp4",
            "gpt_oss",
            &[GROUPED, oss, r#""quantization_config":{"quant_method":"mxfp4"}"#],
            &[heads(32), bias, gpt_oss(32), fused_blocks()],
        ),
        of(
            "gemma3",
            "gemma3_text",
            &[GROUPED, gemma],
            &[heads(4), qk_norm(), dense(), gemma_norms()],
        ),
    ]
}

/// Names and extents of all tensors.
type Tensors = Vec<(String, Vec<usize>)>;

fn tensors(hidden: usize, layer: &Layer) -> Tensors {
    let outer =
        [("model.embed_tokens.weight", vec![8, hidden]), ("model.norm.weight", vec![hidden])];
    let outer = outer.map(|(name, shape)| (name.to_owned(), shape));
    let inner = layer.iter().map(|(name, shape)| (format!("model.layers.0.{name}"), shape.clone()));
    outer.into_iter().chain(inner).collect()
}

/// The bytes of a file with these tensors.
fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        let scales = format!("{name}_scale_inv");
        let scaled = tensors.iter().any(|(name, _)| *name == scales);
        let dtype = match () {
            () if name.ends_with("_blocks") || name.ends_with("_scales") => "U8",
            () if scaled => "F8_E4M3",
            () => "F32",
        };
        for i in 0..shape.iter().product::<usize>() {
            match dtype {
                // Exponents and elements around 1.
                "U8" => data.push(120 + (i % 8) as u8),
                "F8_E4M3" => data.push(0x30 + (i % 8) as u8),
                _ => data.extend((i as f32 / 64.0 - 0.1).to_le_bytes()),
            }
        }
        let end = data.len();
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
        ));
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// One layer, four elements wide, eight tokens; blocks of 32 where a format needs them.
fn smallest(arch: Arch) -> Spec {
    Spec {
        layers: 1,
        hidden: 4,
        q_heads: 2,
        kv_heads: 1,
        head_dim: 2,
        rope_dims: 2,
        ffn: 4,
        vocab: 8,
        ..Spec::tiny(arch)
    }
}

fn specs() -> [(&'static str, Spec); 6] {
    let linear = Scaling::Linear { factor: 2.0 };
    let yarn = Yarn {
        factor: 4.0,
        original_context: 128,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor: None,
    };
    let llama3 =
        Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 64 };
    let blocks = Spec {
        hidden: 32,
        head_dim: 16,
        ffn: 32,
        format: Format::Q4_1,
        down_format: Format::Q4_0,
        embedding_format: Format::Q8_0,
        ..smallest(Arch::Llama)
    };
    let scaled = |arch, scaling| Spec { scaling, ..smallest(arch) };
    [
        ("llama", smallest(Arch::Llama)),
        ("llama-biases-linear", Spec { bias: true, ..scaled(Arch::Llama, linear) }),
        ("llama-blocks", blocks),
        ("llama3", scaled(Arch::Llama, Scaling::Llama3(llama3))),
        (
            "qwen2-f16-yarn",
            Spec { format: Format::F16, ..scaled(Arch::Qwen2, Scaling::Yarn(yarn)) },
        ),
        ("qwen3", smallest(Arch::Qwen3)),
    ]
}
