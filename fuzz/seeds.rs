//! Writes the seed corpora of the `gguf` and `safetensors` targets: one small model of each kind.

use std::error::Error;
use std::fs;
use std::path::Path;

use helix_kernels::Format;
use helix_model::Arch;
use helix_model::config::{Llama3, Scaling, Yarn};
use helix_model::synthetic::{Spec, gguf};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/gguf");
    fs::create_dir_all(&dir)?;
    for (name, spec) in specs() {
        fs::write(dir.join(format!("{name}.gguf")), gguf(&spec, 1))?;
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/safetensors");
    fs::create_dir_all(&dir)?;
    for (name, config, layer) in directories() {
        let mut bytes = config.as_bytes().to_vec();
        bytes.push(0);
        bytes.extend(safetensors(&layer));
        fs::write(dir.join(name), bytes)?;
    }
    Ok(())
}

/// Names and extents of a layer's tensors.
type Layer = Vec<(&'static str, &'static [usize])>;

const HEADS: [(&str, &[usize]); 6] = [
    ("input_layernorm", &[4]),
    ("self_attn.q_proj", &[4, 4]),
    ("self_attn.k_proj", &[2, 4]),
    ("self_attn.v_proj", &[2, 4]),
    ("self_attn.o_proj", &[4, 4]),
    ("post_attention_layernorm", &[4]),
];

/// One directory of each kind: its configuration, and the tensors of its one layer.
fn directories() -> [(&'static str, String, Layer); 3] {
    let config = |rest: &str| {
        r#"{"hidden_size":4,"num_hidden_layers":1,"num_attention_heads":2,"vocab_size":8,"#
            .to_owned()
            + r#""max_position_embeddings":64,"tie_word_embeddings":true,"rms_norm_eps":1e-6,"#
            + rest
            + "}"
    };
    let llama = r#""model_type":"llama","num_key_value_heads":1,"intermediate_size":4"#;
    let mixtral = r#""model_type":"mixtral","num_key_value_heads":1,"intermediate_size":4,
        "num_local_experts":1,"num_experts_per_tok":1"#;
    let deepseek = r#""model_type":"deepseek_v3","intermediate_size":4,"kv_lora_rank":4,
        "q_lora_rank":null,"qk_nope_head_dim":2,"qk_rope_head_dim":2,"v_head_dim":2,
        "rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":16,
        "mscale":1.0,"mscale_all_dim":1.0}"#;
    let dense: Layer =
        vec![("mlp.gate_proj", &[4, 4]), ("mlp.up_proj", &[4, 4]), ("mlp.down_proj", &[4, 4])];
    let experts: Layer = vec![
        ("block_sparse_moe.gate", &[1, 4]),
        ("block_sparse_moe.experts.0.w1", &[4, 4]),
        ("block_sparse_moe.experts.0.w2", &[4, 4]),
        ("block_sparse_moe.experts.0.w3", &[4, 4]),
    ];
    let latent: Layer = vec![
        ("input_layernorm", &[4]),
        ("self_attn.q_proj", &[8, 4]),
        ("self_attn.kv_a_proj_with_mqa", &[6, 4]),
        ("self_attn.kv_a_layernorm", &[4]),
        ("self_attn.kv_b_proj", &[8, 4]),
        ("self_attn.o_proj", &[4, 4]),
        ("post_attention_layernorm", &[4]),
    ];
    [
        ("llama", config(llama), [HEADS.to_vec(), dense.clone()].concat()),
        ("mixtral", config(mixtral), [HEADS.to_vec(), experts].concat()),
        ("deepseek", config(deepseek), [latent, dense].concat()),
    ]
}

/// The bytes of a file with these tensors in a layer, and those outside layers.
fn safetensors(layer: &Layer) -> Vec<u8> {
    let outer: Layer = vec![("model.embed_tokens", &[8, 4]), ("model.norm", &[4])];
    let inner = layer.iter().map(|(name, shape)| (format!("model.layers.0.{name}"), *shape));
    let all = outer.into_iter().map(|(name, shape)| (name.to_owned(), shape)).chain(inner);
    let (mut entries, mut end) = (Vec::new(), 0);
    for (name, shape) in all {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        entries.push(format!(
            r#""{name}.weight":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
        ));
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..end / 4).flat_map(|i| (i as f32 / end as f32 - 0.1).to_le_bytes()));
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
    let yarn = Yarn { factor: 4.0, original_context: 128, beta_fast: 32.0, beta_slow: 1.0, truncate: true, attention_factor: None };
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
