use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::Model;
use crate::config::Activation;

/// A safetensors file: its header as given, its data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

#[test]
fn headers_that_lie_are_refused() {
    let two = |first: &str, second: &str, offsets: [&str; 2]| {
        let entry = |name: &str, offsets: &str| {
            format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#)
        };
        format!("{{{},{}}}", entry(first, offsets[0]), entry(second, offsets[1]))
    };
    let huge = u64::MAX;
    for (bytes, expected) in [
        (Vec::new(), "the safetensors header at byte 0 needs 8 bytes, and 0 are left"),
        (vec![1; 7], "needs 8 bytes, and 7 are left"),
        (vec![0xff; 8], "headers have up to 100000000"),
        (10_u64.to_le_bytes().to_vec(), "needs 10 bytes, and 0 are left"),
        (file("", 0), "EOF while parsing"),
        (file("[]", 0), "tensors by name"),
        (file(&"[".repeat(100_000), 0), "tensors by name"),
        (file(&format!("{{\"a\":{}", "[".repeat(100_000)), 0), "the safetensors header: "),
        (file("{\"a\":1}", 0), "invalid type: integer `1`"),
        (file("\u{feff}{}", 0), "expected value"),
        (file("{\"\\ud800\":{}}", 0), "the safetensors header: "),
        (file(&one("F32", "[1]", "[0,4]"), 3), "takes bytes 0..4 of the file's data, which has 3"),
        (file(&one("F32", "[1]", "[4,8]"), 4), "takes bytes 4..8 of the file's data"),
        (file(&one("F32", "[1]", "[4,0]"), 4), "takes bytes 4..0 of the file's data"),
        (file(&one("F32", "[1]", &format!("[{},{huge}]", huge - 4)), 4), "of the file's data"),
        (file(&one("F32", "[1]", "[0,2]"), 2), "F32 [1] takes 4 bytes, and it has 2"),
        (file(&one("F32", "[1]", "[0,4,8]"), 8), "the safetensors header: "),
        (file(&one("F32", "[-1]", "[0,4]"), 4), "invalid value: integer `-1`"),
        (file(&one("F32", "[1.5]", "[0,4]"), 4), "invalid type"),
        (file(&one("F99", "[1]", "[0,4]"), 4), "its dtype \"F99\" is not one of the format's"),
        (file(&one("F4", "[3]", "[0,2]"), 2), "F4 [3] is no whole number of bytes"),
        (file(&one("F32", "[4294967296,4294967296]", "[0,4]"), 4), "no whole number of bytes"),
        (file(&one("F32", &format!("[{huge}]"), "[0,4]"), 4), "no whole number of bytes"),
        (file(&one("F32", &format!("[0,{huge},{huge}]"), "[0,0]"), 0), "no whole number of bytes"),
        (file(&one("F32", "[1]", "[0,4]"), 5), "bytes 4..5 of the data are no tensor's"),
        (file("{}", 1), "bytes 0..1 of the data are no tensor's"),
        (file(&two("a", "b", ["[0,8]", "[12,20]"]), 20), "bytes 8..12 of the data are no tensor's"),
        (file(&two("a", "b", ["[0,8]", "[4,12]"]), 12), "\"a\" and \"b\" overlap"),
        (file(&two("a", "b", ["[0,8]", "[0,8]"]), 8), "overlap: \"b\" starts at byte 0, before 8"),
        (file(&two("a", "a", ["[0,8]", "[8,16]"]), 16), "tensor \"a\" occurs twice"),
    ] {
        let error = safetensors::parse(&bytes).expect_err(expected).to_string();
        assert!(error.contains(expected), "wanted {expected:?}, got {error:?}");
    }
    let swapped = safetensors::parse(&file(&two("a", "b", ["[8,16]", "[0,8]"]), 16)).unwrap();
    assert_eq!(swapped["b"].shape, [2]);
    let empty = file(
        r#"{"__metadata__":{"format":"pt"},"e":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0]}}"#,
        0,
    );
    assert_eq!(safetensors::parse(&empty).unwrap()["e"].bytes.len(), 0);
}

#[test]
fn every_truncation_is_an_error_and_no_flipped_byte_panics() {
    let header = r#"{"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}"#;
    let bytes = file(header, 8);
    safetensors::parse(&bytes).unwrap();
    for len in 0..bytes.len() {
        assert!(safetensors::parse(&bytes[..len]).is_err(), "{len}");
    }
    for at in 0..bytes.len() {
        for flip in [0x01, 0x20, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] ^= flip;
            let _ = safetensors::parse(&bytes);
        }
    }
}

// ---- directories

struct Copy(tempfile::TempDir);

impl Copy {
    /// A copy of a fixture: small models that transformers wrote.
    fn of(name: &str) -> Copy {
        let from = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../helix-engine/tests/fixtures/hf")
            .join(name);
        let copy = Copy(tempfile::tempdir().unwrap());
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.path(entry.file_name().to_str().unwrap())).unwrap();
        }
        copy
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    fn write(&self, name: &str, value: &Value) {
        fs::write(self.path(name), value.to_string()).unwrap();
    }

    /// Sets a key of `config.json`; null takes it away.
    fn set(&self, key: &str, value: Value) -> &Copy {
        let mut config = self.json(CONFIG);
        config[key] = value;
        self.write(CONFIG, &config);
        self
    }

    fn open(&self) -> Result<Model, ModelError> {
        Model::open(self.0.path())
    }

    #[track_caller]
    fn refused(&self, expected: &str) {
        let error = self.open().expect_err(expected).to_string();
        assert!(error.contains(expected), "wanted {expected:?}, got {error:?}");
    }
}

const PART: &str = "model-00002-of-00003.safetensors";

#[test]
fn an_index_stays_in_its_directory_and_tells_the_truth() {
    let copy = Copy::of("llama3");
    let index = copy.json(INDEX);
    let moved = |file: Value| {
        let mut index = index.clone();
        index["weight_map"]["model.norm.weight"] = file;
        copy.write(INDEX, &index);
    };
    for file in ["../model.safetensors", "/etc/passwd", "a/b", ".", "..", "", "a\\b", "a\0b", "./a"]
    {
        moved(json!(file));
        copy.refused("which is not the name of a file beside it");
    }
    moved(json!("absent.safetensors"));
    copy.refused("absent.safetensors");
    moved(json!(PART));
    copy.refused("\"model.norm.weight\" is said to be in \"model-00002-of-00003.safetensors\"");
    moved(json!(7));
    copy.refused("index.json: not the JSON that is needed: invalid type: integer `7`");
    copy.write(INDEX, &json!({ "weight_map": [] }));
    copy.refused("index.json: not the JSON that is needed");
    copy.write(INDEX, &json!({}));
    copy.refused("missing field `weight_map`");
    fs::remove_file(copy.path(INDEX)).unwrap();
    copy.refused("neither model.safetensors nor model.safetensors.index.json");
    copy.write(INDEX, &index);
    copy.open().unwrap();
    fs::write(copy.path(PART), &fs::read(copy.path(PART)).unwrap()[..200]).unwrap();
    copy.refused("model-00002-of-00003.safetensors: the file ends too early");
}

#[cfg(unix)]
#[test]
fn links_of_the_cache_are_followed() {
    let copy = Copy::of("qwen2.5");
    let blobs = tempfile::tempdir().unwrap();
    let snapshot = blobs.path().join("models--Org--Name").join("snapshots").join("0123");
    fs::create_dir_all(&snapshot).unwrap();
    for entry in fs::read_dir(copy.0.path()).unwrap() {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), snapshot.join(entry.file_name())).unwrap();
    }
    assert_eq!(Model::open(&snapshot).unwrap().config.name, "Org/Name");
}

#[test]
fn files_that_are_no_files_are_refused() {
    let copy = Copy::of("qwen3");
    fs::remove_file(copy.path(SINGLE)).unwrap();
    fs::create_dir(copy.path(SINGLE)).unwrap();
    copy.refused("not a regular file");
    fs::write(copy.path(CONFIG), "{").unwrap();
    copy.refused("config.json: not the JSON that is needed");
    fs::write(copy.path(CONFIG), "[".repeat(1 << 20)).unwrap();
    copy.refused("recursion limit exceeded");
    fs::write(copy.path(CONFIG), "[]").unwrap();
    copy.refused("config.json: \"the file\" is a list, and an object is needed");
    fs::remove_file(copy.path(CONFIG)).unwrap();
    copy.refused("has no config.json");
}

#[test]
fn tensors_must_be_those_of_the_configuration() {
    for (name, key, value, expected) in [
        ("qwen3", "num_hidden_layers", json!(4), "model.layers.2."),
        ("qwen3", "num_hidden_layers", json!(16_000_000), "is missing"),
        ("qwen3", "num_hidden_layers", json!(1), "is not part of architecture qwen3"),
        ("qwen3", "intermediate_size", json!(85), "is [84, 63], and the metadata ask for [85, 63]"),
        ("qwen3", "vocab_size", json!(282), "is [283, 63], and the metadata ask for [282, 63]"),
        ("qwen3", "model_type", json!("llama"), "is not part of architecture llama"),
        ("qwen3", "attention_bias", json!(true), "self_attn.q_proj.bias\" [168] is missing"),
        ("llama3", "tie_word_embeddings", json!(false), "\"lm_head.weight\" [283, 45] is missing"),
        ("mixtral", "num_local_experts", json!(6), "ask for [6, 40]"),
        ("mixtral", "num_local_experts", json!(4), "gate.weight\" is [5, 40]"),
        ("qwen3-moe", "mlp_only_layers", json!([0]), "layers.0.mlp.gate_proj.weight\" ["),
        ("deepseek-v3", "kv_lora_rank", json!(21), "kv_a_proj_with_mqa.weight\" is [32, 54]"),
        (
            "deepseek-v3",
            "q_lora_rank",
            json!(null),
            "self_attn.q_proj.weight\" [132, 54] is missing",
        ),
        ("deepseek-v3", "v_head_dim", json!(15), "kv_b_proj.weight\" is [144, 20]"),
        ("deepseek-v3", "first_k_dense_replace", json!(99), "mlp.gate_proj.weight\" [76, 54]"),
        ("deepseek-v3", "n_shared_experts", json!(0), "shared_experts.down_proj.weight\" is not"),
        ("deepseek-v3", "n_shared_experts", json!(2), "ask for [36, 54]"),
        ("deepseek-v3", "n_routed_experts", json!(12), "ask for [12, 54]"),
        ("mixtral", "num_local_experts", json!(1024), "ask for [1024, 40]"),
        ("gpt-oss", "attention_bias", json!(false), "is not part of architecture gpt-oss"),
        ("gpt-oss-mxfp4", "intermediate_size", json!(64), "and the metadata ask for [64, 64]"),
        ("gpt-oss-mxfp4", "num_local_experts", json!(4), "and the metadata ask for [4, 64]"),
        ("gpt-oss", "num_local_experts", json!(8), "is [7, 60], and the metadata ask for [8, 60]"),
        ("gpt-oss", "intermediate_size", json!(45), "and the metadata ask for [45, 60]"),
        ("gemma3", "head_dim", json!(22), "and the metadata ask for"),
    ] {
        let copy = Copy::of(name);
        copy.set(key, value);
        copy.refused(expected);
    }
}

#[test]
fn configurations_that_do_not_run_are_refused() {
    for (name, key, value, expected) in [
        ("qwen3", "model_type", json!("mamba"), "unknown architecture \"mamba\"; Helix runs llama"),
        ("qwen3", "model_type", json!(null), "\"model_type\" is missing"),
        ("qwen3", "model_type", json!(3), "\"model_type\" is an integer, and a string is needed"),
        ("qwen3", "hidden_size", json!(null), "\"hidden_size\" is missing"),
        ("qwen3", "hidden_size", json!(0), "hidden_size = 0: it must be from 1 to 16777216"),
        ("qwen3", "hidden_size", json!(-4), "\"hidden_size\" is an integer, and an integer from 0"),
        ("qwen3", "hidden_size", json!(1e300), "\"hidden_size\" is a float, and an integer from 0"),
        ("qwen3", "hidden_size", json!("63"), "\"hidden_size\" is a string"),
        ("qwen3", "num_hidden_layers", json!(u64::MAX), "it must be from 1 to 16777216"),
        ("qwen3", "num_key_value_heads", json!(2), "it does not divide the 7 query heads"),
        ("qwen3", "num_attention_heads", json!(1 << 20), "past the limits"),
        ("qwen3", "head_dim", json!(1 << 17), "past the limits"),
        ("qwen3", "head_dim", json!(null), "9 of 9 elements cannot be rotated in pairs"),
        ("qwen3", "rms_norm_eps", json!(0), "rms_norm_eps = 0: it must be between 0 and 1"),
        ("llama3", "rope_theta", json!(1), "rope_theta = 1: it must be more than 1"),
        ("llama3", "rope_theta", json!(1e308), "rope_theta = inf: it is not finite"),
        ("qwen3", "hidden_act", json!("relu"), "hidden_act = \"relu\": Helix runs \"silu\""),
        ("qwen3", "final_logit_softcapping", json!(30.0), "capped scores or logits"),
        ("qwen3", "mlp_bias", json!(true), "FFNs with biases"),
        ("llama3", "rope_scaling", json!([]), "\"rope_scaling\" is a list, and an object"),
        ("llama3", "rope_scaling", json!({"type": "dynamic"}), "rope_scaling.type = \"dynamic\""),
        ("llama3", "rope_scaling", json!({"type": "linear"}), "\"rope_scaling.factor\" is missing"),
        (
            "llama3",
            "rope_scaling",
            json!({"type": "linear", "factor": -1}),
            "it must be more than 0",
        ),
        (
            "llama3",
            "rope_scaling",
            json!({
                "rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
                "original_max_position_embeddings": 64
            }),
            "rope_scaling.low_freq_factor = 4: high_freq_factor is 4",
        ),
        ("qwen3", "partial_rotary_factor", json!(2.0), "cannot be rotated in pairs"),
        ("qwen3", "quantization_config", json!({"quant_method": "gptq"}), "\"gptq\": Helix reads"),
        ("qwen3", "quantization_config", json!({}), "\"quantization_config.quant_method\" is miss"),
        (
            "qwen3",
            "quantization_config",
            json!({"quant_method": "fp8", "weight_block_size": [64, 64]}),
            "FP8 with a scale per block of [128, 128]",
        ),
        (
            "gpt-oss",
            "layer_types",
            json!(["full_attention"]),
            "a list of 1: the model has 3 layers",
        ),
        ("gpt-oss", "layer_types", json!(["a", "b", "c"]), "Helix runs \"full_attention\""),
        ("gpt-oss", "swiglu_limit", json!(9.0), "swiglu_limit = 9: Helix runs 7"),
        ("gpt-oss", "num_experts_per_tok", json!(8), "8 of 7 experts per token: must be 1 to 7"),
        ("mixtral", "num_experts_per_tok", json!(0), "num_experts_per_tok = 0"),
        ("mixtral", "num_local_experts", json!(1 << 20), "it must have 1 to 1024"),
        ("qwen3-moe", "decoder_sparse_step", json!(0), "decoder_sparse_step = 0"),
        ("qwen3-moe", "mlp_only_layers", json!([99]), "mlp_only_layers = 99: the model has"),
        ("deepseek-v3", "n_group", json!(2), "groups must be equal"),
        ("deepseek-v3", "topk_group", json!(9), "and at least one of them kept"),
        ("deepseek-v3", "scoring_func", json!("tanh"), "Helix runs \"softmax\" and \"sigmoid\""),
        ("deepseek-v3", "topk_method", json!("best"), "topk_method = \"best\": Helix runs"),
        ("deepseek-v3", "moe_layer_freq", json!(2), "moe_layer_freq = 2: Helix runs 1"),
        ("deepseek-v3", "qk_rope_head_dim", json!(11), "the rotary part must be even"),
        ("deepseek-v3", "kv_lora_rank", json!(1 << 20), "it must be from 1 to 65536"),
        ("deepseek-v3", "n_shared_experts", json!(1_u64 << 40), "n_shared_experts = "),
        ("deepseek-v3", "attention_bias", json!(true), "without biases"),
        ("gemma3", "query_pre_attn_scalar", json!(0), "it must be more than 0"),
        ("qwen3", "num_attention_heads", json!(0), "num_attention_heads = 0: it must be from 1"),
        ("qwen3", "num_attention_heads", json!([7]), "\"num_attention_heads\" is a list"),
        ("qwen3", "num_attention_heads", json!(6.5), "\"num_attention_heads\" is a float"),
        ("qwen3", "num_key_value_heads", json!(0), "num_key_value_heads = 0"),
        ("qwen3", "num_key_value_heads", json!(14), "it does not divide the 7 query heads"),
        ("qwen3", "head_dim", json!(23), "23 of 23 elements cannot be rotated in pairs"),
        ("qwen3", "head_dim", json!(0), "head_dim = 0: it must be from 1"),
        ("qwen3", "vocab_size", json!(0), "vocab_size = 0"),
        ("qwen3", "vocab_size", json!(u64::MAX), "it must be from 1 to 16777216"),
        ("qwen3", "intermediate_size", json!(-84), "\"intermediate_size\" is an integer, and"),
        ("qwen3", "max_position_embeddings", json!(0), "it must be from 1 to 4294967295"),
        ("qwen3", "max_position_embeddings", json!(1_u64 << 32), "from 1 to 4294967295"),
        ("qwen3", "tie_word_embeddings", json!("no"), "\"tie_word_embeddings\" is a string"),
        ("qwen3", "bos_token_id", json!(-1), "\"bos_token_id\" is an integer, and a token id"),
        ("qwen3", "eos_token_id", json!([2, "</s>"]), "\"eos_token_id\" is a list, and a token"),
        ("qwen3", "rope_parameters", json!({"rope_theta": [1]}), "rope_theta\" is a list"),
        ("qwen3", "rope_parameters", json!({"rope_theta": -1e6}), "it must be more than 0"),
        ("qwen3", "partial_rotary_factor", json!(-0.5), "it must be more than 0"),
        ("qwen3", "rms_norm_eps", json!(-1e-6), "it must be between 0 and 1"),
        ("qwen3", "rms_norm_eps", json!("1e-6"), "\"rms_norm_eps\" is a string"),
        ("qwen3", "text_config", json!([]), "\"text_config\" is a list, and an object"),
        ("qwen3", "text_config", json!({}), "\"text_config.num_attention_heads\" is missing"),
        (
            "llama3",
            "rope_scaling",
            json!({"type": "linear", "factor": 1e-45}),
            "radians per position of a rotary embedding",
        ),
        (
            "llama3",
            "rope_scaling",
            json!({"type": "yarn", "factor": 1e-40}),
            "radians per position of a rotary embedding",
        ),
        (
            "llama3",
            "rope_scaling",
            json!({"type": "yarn", "factor": 2, "attention_factor": 1e-45}),
            "a rotary embedding cannot be multiplied by it",
        ),
        ("llama3", "rope_scaling", json!({"type": "yarn", "factor": 0}), "it must be more than 0"),
        (
            "deepseek-v3",
            "rope_scaling",
            json!({"type": "yarn", "factor": 40, "mscale_all_dim": 1e30}),
            "attention scale = inf: scores cannot be multiplied by it",
        ),
        ("mistral", "sliding_window", json!(0), "sliding_window = 0: it must be from 1"),
        ("mistral", "sliding_window", json!(-19), "\"sliding_window\" is an integer, and an"),
        ("mistral", "sliding_window", json!(1.5), "\"sliding_window\" is a float"),
        ("gpt-oss", "sliding_window", json!(0), "sliding_window = 0: it must be from 1"),
        ("gpt-oss", "num_local_experts", json!(0), "num_local_experts = 0"),
        ("gpt-oss", "layer_types", json!([0, 0, 0]), "Helix runs \"full_attention\""),
        ("mixtral", "num_local_experts", json!(-5), "\"num_local_experts\" is an integer, and"),
        ("mixtral", "num_local_experts", json!(1025), "it must have 1 to 1024"),
        ("mixtral", "num_experts_per_tok", json!(6), "6 of 5 experts per token"),
        ("mixtral", "num_experts_per_tok", json!(2.5), "\"num_experts_per_tok\" is a float"),
        ("qwen3-moe", "num_experts", json!(1_u64 << 40), "it must be from 1 to 16777216"),
        ("qwen3-moe", "moe_intermediate_size", json!(0), "moe_intermediate_size = 0"),
        ("qwen3-moe", "mlp_only_layers", json!([-1]), "mlp_only_layers = -1: the model has"),
        ("qwen3-moe", "mlp_only_layers", json!([[0]]), "mlp_only_layers = [0]: the model has"),
        ("qwen3-moe", "mlp_only_layers", json!(0), "\"mlp_only_layers\" is an integer, and a list"),
        ("deepseek-v3", "num_attention_heads", json!(0), "num_attention_heads = 0"),
        ("deepseek-v3", "num_attention_heads", json!(1 << 24), "heads times elements at most"),
        ("deepseek-v3", "kv_lora_rank", json!(0), "kv_lora_rank = 0"),
        ("deepseek-v3", "kv_lora_rank", json!(null), "\"kv_lora_rank\" is missing"),
        ("deepseek-v3", "q_lora_rank", json!(0), "q_lora_rank = 0"),
        ("deepseek-v3", "qk_rope_head_dim", json!(0), "qk_rope_head_dim = 0"),
        ("deepseek-v3", "qk_nope_head_dim", json!(-10), "\"qk_nope_head_dim\" is an integer, and"),
        ("deepseek-v3", "v_head_dim", json!(0), "v_head_dim = 0"),
        ("deepseek-v3", "n_routed_experts", json!(10), "10 experts in 3 groups"),
        ("deepseek-v3", "n_routed_experts", json!(3000), "it must have 1 to 1024"),
        ("deepseek-v3", "num_experts_per_tok", json!(7), "7 of 6 experts per token"),
        ("deepseek-v3", "n_group", json!(0), "n_group = 0"),
        ("deepseek-v3", "n_group", json!(1 << 20), "groups must be equal"),
        ("deepseek-v3", "topk_group", json!(0), "topk_group = 0"),
        ("deepseek-v3", "topk_group", json!(null), "9 experts in 3 groups, of which 4 are kept"),
        ("deepseek-v3", "n_group", json!(null), "9 experts in 8 groups, of which 2 are kept"),
        ("deepseek-v2", "topk_group", json!(null), "\"topk_group\" is missing"),
        ("deepseek-v3", "routed_scaling_factor", json!(-1), "it must be more than 0"),
        (
            "deepseek-v3",
            "routed_scaling_factor",
            json!(3e38),
            "not more than 0 and at most 1000000",
        ),
        ("deepseek-v3", "first_k_dense_replace", json!(-1), "\"first_k_dense_replace\" is an"),
        ("deepseek-v3", "n_shared_experts", json!(0.5), "\"n_shared_experts\" is a float"),
        ("gemma3", "query_pre_attn_scalar", json!(-24), "it must be more than 0"),
        ("gemma3", "query_pre_attn_scalar", json!(1e-38), "scores cannot be multiplied by it"),
        (
            "llama3",
            "rope_scaling",
            json!({"type": "yarn", "factor": 2, "attention_factor": 1e30}),
            "a rotary embedding cannot be multiplied by it",
        ),
        ("gemma3", "sliding_window", json!(0), "sliding_window = 0: it must be from 1"),
        ("gemma3", "rope_local_base_freq", json!(0.5), "it must be more than 1"),
        ("gemma3", "sliding_window_pattern", json!(0), "sliding_window_pattern = 0"),
        ("gemma3", "use_bidirectional_attention", json!(true), "Helix runs Gemma 3 without it"),
    ] {
        let copy = Copy::of(name);
        copy.set(key, value);
        copy.refused(expected);
    }
}

/// What a configuration says nothing of is as in transformers, which reads of it what its model of
/// that architecture has, and no more.
#[test]
fn configurations_are_read_as_by_transformers() {
    let config = |name: &str, gone: &[&str], set: &[(&str, Value)]| {
        let copy = Copy::of(name);
        let mut config = copy.json(CONFIG);
        gone.iter().for_each(|key| drop(config.as_object_mut().unwrap().remove(*key)));
        set.iter().for_each(|(key, value)| config[key] = value.clone());
        copy.write(CONFIG, &config);
        copy.open().unwrap().config
    };
    let windows = |name: &str, gone: &[&str], set: &[(&str, Value)]| {
        let long = [set, &[("max_position_embeddings", json!(20_000))]].concat();
        let config = config(name, gone, &long);
        [config.window(0), config.window(1)]
    };
    const WINDOW: &[&str] = &["sliding_window"];
    assert_eq!(windows("mistral", WINDOW, &[]), [Some(4096); 2]);
    assert_eq!(windows("mistral", &[], &[("sliding_window", json!(null))]), [None; 2]);
    assert_eq!(windows("mixtral", WINDOW, &[]), [None; 2]);
    assert_eq!(windows("llama3", &[], &[("sliding_window", json!(19))]), [None; 2]);
    assert_eq!(windows("gpt-oss", WINDOW, &[]), [Some(128), None]);
    let slides = ("use_sliding_window", json!(true));
    let from = |first: usize| [slides.clone(), ("max_window_layers", json!(first))];
    assert_eq!(windows("qwen2.5", &[], &from(1)), [None, Some(16)]);
    assert_eq!(windows("qwen2.5", WINDOW, &from(0)), [Some(4096); 2]);
    assert_eq!(windows("qwen2.5", &["max_window_layers"], &from(0)[..1]), [None; 2]);
    let every = [slides.clone(), ("sliding_window", json!(16))];
    assert_eq!(windows("qwen3-moe", &[], &every), [Some(16); 2]);

    let epsilon = |name: &str| config(name, &["rms_norm_eps"], &[]).rms_eps;
    assert_eq!(["qwen3", "mixtral", "gpt-oss"].map(epsilon), [1e-6, 1e-5, 1e-5]);
    let scale = |name: &str| config(name, &["routed_scaling_factor"], &[]).moe.unwrap();
    assert_eq!(["deepseek-v2", "deepseek-v3"].map(|name| scale(name).routing.scale), [1.0, 2.5]);
    const GELU: &[&str] = &["hidden_activation"];
    assert_eq!(config("gemma3", GELU, &[]).activation, Activation::GeluTanh);
    let silu = [(GELU[0], json!("silu"))];
    assert_eq!(config("gemma3", &[], &silu).activation, Activation::Silu);
}

#[test]
fn both_ways_to_write_a_rotary_embedding_are_read() {
    // As transformers 5 writes it already.
    assert!(Copy::of("qwen3").json(CONFIG)["rope_parameters"].is_object());
    for name in ["llama3", "gpt-oss", "deepseek-v3"] {
        let copy = Copy::of(name);
        let before = copy.open().unwrap().config;
        let mut config = copy.json(CONFIG);
        let mut parameters = config["rope_scaling"].take();
        if parameters.is_null() {
            parameters = json!({ "rope_type": "default" });
        }
        parameters["rope_theta"] = config["rope_theta"].take();
        config["rope_parameters"] = parameters;
        config["dtype"] = config["torch_dtype"].take();
        copy.write(CONFIG, &config);
        let after = copy.open().unwrap().config;
        assert_eq!(after, before, "{name}");
    }
    // Two kinds of layers, each with its own.
    let copy = Copy::of("gemma3");
    let before = copy.open().unwrap().config;
    let mut config = copy.json(CONFIG);
    let mut full = config["rope_scaling"].take();
    full["rope_theta"] = config["rope_theta"].take();
    let sliding = json!({
        "rope_type": "default", "rope_theta": config["rope_local_base_freq"].take(),
    });
    config["rope_parameters"] = json!({ "full_attention": full, "sliding_attention": sliding });
    copy.write(CONFIG, &config);
    let after = copy.open().unwrap().config;
    assert_eq!(after, before);
}

#[test]
fn text_models_inside_others_are_found() {
    let copy = Copy::of("gemma3");
    let before = copy.open().unwrap().config;
    let text = copy.json(CONFIG);
    let outer = json!({ "model_type": "gemma3", "text_config": text });
    copy.write(CONFIG, &outer);
    let after = copy.open().unwrap().config;
    assert_eq!(after, before);
}

/// Changes the header of a directory's only weight file; its data stay.
fn rewrite(copy: &Copy, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let bytes = fs::read(copy.path(SINGLE)).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header = serde_json::from_slice(header).unwrap();
    change(&mut header);
    let header = Value::from(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    fs::write(copy.path(SINGLE), bytes).unwrap();
}

#[test]
fn weight_files_that_lie_are_refused() {
    const K: &str = "model.layers.0.self_attn.k_proj.weight";
    const V: &str = "model.layers.0.self_attn.v_proj.weight";
    type Header = serde_json::Map<String, Value>;
    type Lie = fn(&mut Header);
    let cases: [(&str, Lie, &str); 9] = [
        ("mixtral", |h| h[V]["data_offsets"] = h[K]["data_offsets"].clone(), "overlap"),
        ("mixtral", |h| drop(h.remove(K)), "of the data are no tensor's"),
        ("mixtral", |h| h[K]["dtype"] = json!("F32"), "and it has"),
        ("mixtral", |h| h[K]["dtype"] = json!("I16"), "k_proj.weight\" is I16, and F32, F16"),
        ("mixtral", |h| h[K]["shape"] = json!([8, 2, 20]), "is [8, 2, 20], and the metadata ask"),
        ("mixtral", |h| h[K]["shape"] = json!([40, 8]), "is [40, 8], and the metadata ask for"),
        (
            "deepseek-v3-fp8",
            |h| {
                let scales = h.remove("model.layers.0.self_attn.o_proj.weight_scale_inv").unwrap();
                h.insert("elsewhere".into(), scales);
            },
            "self_attn.o_proj.weight_scale_inv",
        ),
        (
            "deepseek-v3-fp8",
            |h| {
                let name = "model.layers.0.self_attn.o_proj.weight_scale_inv";
                h[name]["shape"].as_array_mut().unwrap().reverse();
                h[name]["shape"].as_array_mut().unwrap().push(json!(1));
            },
            "self_attn.o_proj.weight_scale_inv\" is [1, 2, 1]",
        ),
        (
            "gpt-oss-mxfp4",
            |h| h["model.layers.0.mlp.experts.down_proj_scales"]["dtype"] = json!("I8"),
            "down_proj_scales\" is I8, and U8",
        ),
    ];
    for (name, change, expected) in cases {
        let copy = Copy::of(name);
        rewrite(&copy, change);
        copy.refused(expected);
    }
    let copy = Copy::of("mixtral");
    let bytes = fs::read(copy.path(SINGLE)).unwrap();
    for len in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(copy.path(SINGLE), &bytes[..len]).unwrap();
        let error = copy.open().unwrap_err().to_string();
        assert!(error.contains("model.safetensors: "), "{len}: {error}");
    }
}

#[test]
fn missing_experts_are_named() {
    let copy = Copy::of("mixtral");
    let mut bytes = fs::read(copy.path(SINGLE)).unwrap();
    let name = b"layers.1.block_sparse_moe.experts.4.w3.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at + name.len() - "4.w3.weight".len()] = b'9';
    fs::write(copy.path(SINGLE), bytes).unwrap();
    copy.refused("layers.1.block_sparse_moe.experts.4.w3.weight\" [36, 40] is missing");
}

#[test]
fn dtypes_that_no_kernel_reads_are_named() {
    let copy = Copy::of("qwen3");
    let mut bytes = fs::read(copy.path(SINGLE)).unwrap();
    let at = bytes.windows(5).position(|window| window == b"\"F32\"").unwrap();
    bytes[at..at + 5].copy_from_slice(b"\"I32\"");
    fs::write(copy.path(SINGLE), bytes).unwrap();
    copy.refused("is I32, and F32, F16, BF16");
}

/// As Kimi-K2's directories come: no `tokenizer.json`, and the pattern in a file of Python.
#[test]
fn a_directory_may_have_ranks() {
    let copy = Copy::of("deepseek-v3");
    fs::remove_file(copy.path("tokenizer.json")).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiktoken");
    for name in ["tiktoken.model", "tokenizer_config.json"] {
        fs::copy(golden.join(name), copy.path(name)).unwrap();
    }
    let generation = r#"{"eos_token_id": 602}"#;
    fs::write(copy.path("generation_config.json"), generation).unwrap();
    let tokenizer = || copy.open().unwrap().tokenizer();
    let encode = || tokenizer().unwrap().encode_with_control("[BOS]\u{4f60}<|im_end|>", true);
    let tokens = encode();
    assert_eq!((tokens[0], tokens[tokens.len() - 1]), (600, 602));
    assert!(tokenizer().unwrap().is_end(602) && tokenizer().unwrap().is_end(601));

    let code = |first: &str| {
        let tail = r#"r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n]*""", r"""\s*[\r\n]+""",
            r"""\s+(?!\S)""", r"""\s+""",
        ]) # r"""more""""#;
        let upper = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]";
        let lower = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]";
        let (lead, suffix) = (r"[^\r\n\p{L}\p{N}]?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?");
        format!(
            "x = r\"\"\"docs\"\"\"\npat_str = \"|\".join([\n{first},\nr\"\"\"{lead}{upper}*{lower}+\
             {suffix}\"\"\",\nr\"\"\"{lead}{upper}+{lower}*{suffix}\"\"\",\n{tail}\n"
        )
    };
    let python = copy.path("tokenization_kimi.py");
    fs::write(&python, code(r#"r"""[\p{Han}]+""""#)).unwrap();
    assert_eq!(encode(), tokens);
    for other in [r#"r"""[\p{Hangul}]+""""#, r#"r"""[\p{Han}]+""", r"""a""""#, "r\"a\""] {
        fs::write(&python, code(other)).unwrap();
        let error = tokenizer().unwrap_err().to_string();
        assert!(error.contains("and this is another"), "{error}");
        assert!(error.contains("tiktoken.model: "), "{error}");
    }
}

#[test]
fn tokenizers_need_their_file() {
    let copy = Copy::of("qwen3");
    fs::remove_file(copy.path("tokenizer.json")).unwrap();
    let error = copy.open().unwrap().tokenizer().unwrap_err().to_string();
    assert!(error.contains("has neither tokenizer.json nor tiktoken.model"), "{error}");
    let template = copy.open().unwrap().chat_template().unwrap();
    assert!(template.is_some());
    fs::remove_file(copy.path("chat_template.jinja")).unwrap();
    assert!(copy.open().unwrap().chat_template().unwrap().is_none());
    for (value, found) in [
        (json!("{{ 1 }}"), Some("1")),
        (
            json!([{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]),
            Some("d"),
        ),
        (json!([{"name": "only", "template": "o"}]), Some("o")),
        (json!([{"name": "a", "template": "a"}, {"name": "b", "template": "b"}]), None),
        (json!({"a": 1}), None),
    ] {
        let mut config = copy.json("tokenizer_config.json");
        config["chat_template"] = value.clone();
        copy.write("tokenizer_config.json", &config);
        let template = copy.open().unwrap().chat_template();
        match found {
            Some(text) => assert_eq!(template.unwrap().unwrap().render(&[], false).unwrap(), text),
            None => assert!(template.is_err(), "{value}"),
        }
    }
}
