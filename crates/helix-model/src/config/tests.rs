use super::*;
use crate::gguf::{Array, GgmlType, Gguf, Value, Writer};
use crate::synthetic::{self, Spec};

fn config(writer: Writer) -> Result<Config, ModelError> {
    Config::read(&Gguf::from_bytes(writer.finish()).unwrap())
}

fn changed(
    arch: Arch,
    change: impl FnOnce(&mut Writer) -> &mut Writer,
) -> Result<Config, ModelError> {
    let mut writer = synthetic::writer(&Spec::tiny(arch), 1);
    change(&mut writer);
    config(writer)
}

#[track_caller]
fn refused(found: Result<Config, ModelError>, expected: &str) {
    let error = found.expect_err(expected).to_string();
    assert!(error.contains(expected), "wanted {expected:?}, got {error:?}");
}

#[test]
fn every_architecture_is_read_as_specified() {
    for arch in Arch::DENSE {
        let spec = Spec { rope_dims: 6, ..Spec::tiny(arch) };
        let config = config(synthetic::writer(&spec, 1)).unwrap();
        let frequencies = [1.0, 10_000_f32.powf(-1.0 / 3.0), 10_000_f32.powf(-2.0 / 3.0)];
        let expected = Config {
            arch,
            name: format!("tiny-{arch}"),
            layers: 2,
            hidden: 48,
            q_heads: 6,
            kv_heads: 2,
            head_dim: 8,
            ffn: 80,
            vocab: 300,
            context: 512,
            rms_eps: 1e-5,
            value_dim: 8,
            ropes: vec![Rope {
                dims: 6,
                base: 10_000.0,
                style: if arch == Arch::Llama { RopeStyle::Interleaved } else { RopeStyle::Half },
                frequencies: config.ropes[0].frequencies.clone(),
                magnitude: 1.0,
                scaling: "none",
                factor: None,
            }],
            window: None,
            sliding: Sliding::Never,
            attention_scale: 1.0 / 8_f32.sqrt(),
            mla: None,
            moe: None,
            activation: Activation::Silu,
            qkv_bias: arch == Arch::Qwen2,
            out_bias: false,
            sinks: false,
            post_norms: false,
            norm_offset: 0.0,
            embedding_scale: 1.0,
            qk_norm: arch == Arch::Qwen3,
            tied_head: arch == Arch::Llama,
            bos: Some(0),
            eos: Some(2),
        };
        assert_eq!(config, expected);
        assert_close(&config.ropes[0].frequencies, &frequencies.map(f64::from));
    }
}

#[test]
fn optional_keys_have_llama_cpps_defaults() {
    let config = changed(Arch::Llama, |writer| {
        for suffix in [
            "attention.head_count_kv",
            "attention.key_length",
            "attention.value_length",
            "rope.dimension_count",
            "rope.freq_base",
        ] {
            writer.unset(&format!("llama.{suffix}"));
        }
        writer.unset("general.name").unset("tokenizer.ggml.bos_token_id")
    })
    .unwrap();
    assert_eq!((config.kv_heads, config.head_dim, config.ropes[0].dims), (6, 8, 8));
    assert_eq!((config.name.as_str(), config.bos, config.ropes[0].base), ("llama", None, 10_000.0));
}

#[test]
fn missing_keys_are_named() {
    for suffix in [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    ] {
        let key = format!("qwen3.{suffix}");
        let expected = format!("metadata key {key:?} is missing");
        refused(changed(Arch::Qwen3, |writer| writer.unset(&key)), &expected);
    }
    let key = "general.architecture";
    refused(changed(Arch::Qwen3, |writer| writer.unset(key)), "\"general.architecture\"");
}

#[test]
fn values_that_do_not_run_are_refused() {
    let array = |values: &[u32]| Value::from(values.to_vec());
    let cases: Vec<(&str, Value, &str)> = vec![
        ("block_count", 0_u32.into(), "llama.block_count = 0: it must be from 1 to 16777216"),
        ("embedding_length", u32::MAX.into(), "llama.embedding_length = 4294967295: it must be"),
        ("context_length", 0_u32.into(), "llama.context_length = 0"),
        ("block_count", "2".into(), "\"llama.block_count\" is a string, and an integer"),
        ("feed_forward_length", (-1).into(), "is an i32, and an integer from 0"),
        ("attention.head_count", array(&[6, 6, 6]), "an array of 3: the model has 2 layers"),
        ("attention.head_count", array(&[6, 4]), "layer 0 has 6 and layer 1 has 4"),
        ("feed_forward_length", array(&[0, 0]), "llama.feed_forward_length = 0"),
        ("feed_forward_length", vec![1.0_f32].into(), "is an array, and an array of integers"),
        ("attention.head_count_kv", 4_u32.into(), "does not divide the 6 query heads"),
        ("attention.head_count_kv", 0_u32.into(), "llama.attention.head_count_kv = 0"),
        ("attention.key_length", 16_u32.into(), "keys have 16 elements; Helix runs equal lengths"),
        ("attention.key_length", (1_u32 << 20).into(), "it must be from 1 to 65536"),
        ("attention.layer_norm_rms_epsilon", 0.0_f32.into(), "it must be between 0 and 1"),
        ("attention.layer_norm_rms_epsilon", f32::NAN.into(), "it must be between 0 and 1"),
        ("rope.dimension_count", 10_u32.into(), "at most the head's 8 elements"),
        ("rope.dimension_count", 7_u32.into(), "it must be even"),
        ("rope.freq_base", 1.0_f32.into(), "it must be more than 1"),
        ("rope.freq_base", f32::INFINITY.into(), "it must be more than 1"),
        ("rope.scaling.type", "longrope".into(), "\"longrope\": Helix runs none, linear and yarn"),
        ("rope.scaling.type", "yarn".into(), "\"llama.rope.scaling.factor\" is missing"),
        ("rope.scaling.factor", 0.0_f32.into(), "it must be more than 0"),
        ("rope.scaling.attn_factor", f32::NAN.into(), "it must be more than 0"),
        ("rope.scaling.yarn_log_multiplier", 0.1_f32.into(), "does not run a YaRN logarithm"),
        ("attention.sliding_window", 511_u32.into(), "attends to the last 511 of up to 512"),
        ("attention.scale", 0.5_f32.into(), "Helix runs 1/sqrt(8) = 0.35355338 only"),
        ("attention.causal", false.into(), "attention that is not causal"),
        ("logit_scale", 0.25_f32.into(), "Helix does not run scaled logits yet"),
        ("embedding_scale", 12.0_f32.into(), "scaled embeddings"),
        ("residual_scale", 0.22_f32.into(), "scaled residuals"),
        ("final_logit_softcapping", 30.0_f32.into(), "capped logits"),
        ("attention.clamp_kqv", 8.0_f32.into(), "clamped Q, K and V"),
        ("expert_count", 8_u32.into(), "\"llama.expert_used_count\" is missing"),
        ("use_parallel_residual", true.into(), "parallel residuals"),
        ("logit_scale", "big".into(), "\"llama.logit_scale\" is a string, and a number or bool"),
        ("vocab_size", 301_u32.into(), "llama.vocab_size = 301: token_embd.weight has 300 rows"),
    ];
    for (suffix, value, expected) in cases {
        let key = format!("llama.{suffix}");
        refused(changed(Arch::Llama, |writer| writer.set(key, value)), expected);
    }
    refused(
        changed(Arch::Llama, |writer| writer.set("general.architecture", "mamba")),
        "unknown architecture \"mamba\"; Helix runs deepseek2, gemma3, gpt-oss, llama",
    );
    refused(
        changed(Arch::Llama, |writer| writer.set("tokenizer.ggml.eos_token_id", 300_u32)),
        "tokenizer.ggml.eos_token_id = 300: the vocabulary has 300 tokens",
    );
    let tokens = vec!["x".to_owned(); 301];
    refused(
        changed(Arch::Llama, |writer| writer.set("tokenizer.ggml.tokens", tokens)),
        "tokenizer.ggml.tokens = 301 tokens: token_embd.weight has 300 rows",
    );
}

#[test]
fn heads_must_divide_the_width_unless_their_length_is_given() {
    let spec = Spec { q_heads: 5, kv_heads: 1, ..Spec::tiny(Arch::Llama) };
    assert_eq!(config(synthetic::writer(&spec, 1)).unwrap().head_dim, 8);
    for key in ["llama.attention.key_length", "llama.attention.value_length"] {
        let mut writer = synthetic::writer(&spec, 1);
        writer.unset(key);
        refused(
            config(writer),
            "llama.attention.head_count = 5: it does not divide embedding_length 48",
        );
    }
}

#[test]
fn values_that_change_nothing_are_taken() {
    changed(Arch::Llama, |writer| {
        writer
            .set("llama.attention.head_count", vec![6_u32, 6])
            .set("llama.attention.head_count_kv", Value::Array(Array::I32(vec![2, 2])))
            .set("llama.feed_forward_length", Value::Array(Array::U64(vec![80, 80])))
            .set("llama.logit_scale", 1.0_f32)
            .set("llama.expert_count", 0_u32)
            .set("llama.attention.causal", true)
            .set("llama.attention.scale", 0.353_553_4_f32)
            .set("llama.attention.sliding_window", 512_u32)
            .set("llama.rope.scaling.type", "none")
            .set("llama.rope.scaling.factor", 0.0_f32)
            .set("llama.vocab_size", 300_u32)
    })
    .unwrap();
}

// ---- rotary embedding

#[track_caller]
fn assert_close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) / expected - 1.0).abs();
        assert!(error < 1e-6, "frequency {i}: {found}, and not {expected}");
    }
}

fn rope(spec: &Spec) -> Rope {
    config(synthetic::writer(spec, 1)).unwrap().rope(0).clone()
}

fn long_heads(arch: Arch, rope_base: f32, scaling: Scaling) -> Spec {
    Spec { head_dim: 64, rope_dims: 64, rope_base, scaling, layers: 1, ..Spec::tiny(arch) }
}

const PAIRS: [usize; 7] = [0, 12, 14, 16, 18, 20, 31];

#[test]
fn llama3_scaling_is_transformers() {
    // modeling_rope_utils.py, `_compute_llama3_parameters`, in Python's doubles.
    let spec = long_heads(Arch::Llama, 5e5, Spec::llama32_1b(helix_kernels::Format::F32).scaling);
    let expected = [
        1.0,
        7.292664737e-03,
        3.211445995e-03,
        4.295567966e-04,
        1.946163818e-05,
        8.570255490e-06,
        9.418306725e-08,
    ];
    let rope = rope(&spec);
    assert_close(&PAIRS.map(|pair| rope.frequencies[pair]), &expected);
    assert_eq!(rope.magnitude, 1.0);
}

#[test]
fn yarn_scaling_is_transformers() {
    // modeling_rope_utils.py, `_compute_yarn_parameters`, in Python's doubles.
    let yarn = Yarn {
        factor: 4.0,
        original_context: 32768,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor: None,
    };
    let rope = rope(&long_heads(Arch::Qwen2, 1e6, Scaling::Yarn(yarn)));
    let expected = [
        1.0,
        5.154795481e-03,
        1.778530279e-03,
        5.833333333e-04,
        1.757068764e-04,
        4.445698525e-05,
        3.849816315e-07,
    ];
    assert_close(&PAIRS.map(|pair| rope.frequencies[pair]), &expected);
    assert_close(&[rope.magnitude], &[1.138629436111989]);
}

#[test]
fn linear_scaling_divides_every_frequency() {
    let spec = long_heads(Arch::Qwen3, 1e4, Scaling::Linear { factor: 4.0 });
    let plain = rope(&Spec { scaling: Scaling::None, ..spec.clone() });
    let scaled = rope(&spec);
    let expected: Vec<f64> = plain.frequencies.iter().map(|&f| f64::from(f) / 4.0).collect();
    assert_close(&scaled.frequencies, &expected);

    // Two older ways to say the same.
    for (unset, set) in [
        ("qwen3.rope.scaling.type", None),
        ("qwen3.rope.scaling.factor", Some("qwen3.rope.scale_linear")),
    ] {
        let mut writer = synthetic::writer(&spec, 1);
        writer.unset(unset);
        if let Some(key) = set {
            writer.set(key, 4.0_f32);
        }
        assert_eq!(config(writer).unwrap().rope(0), &scaled);
    }
}

#[test]
fn rotary_factors_are_checked() {
    let f32s = GgmlType::from_name("F32").unwrap();
    let with = |values: &[f32]| {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        changed(Arch::Llama, |writer| {
            writer.tensor("rope_freqs.weight", &[values.len()], f32s, data)
        })
    };
    assert_eq!(with(&[2.0; 4]).unwrap().ropes[0].frequencies[0], 0.5);
    refused(with(&[2.0; 5]), "\"rope_freqs.weight\" is [5], and the metadata ask for [4]");
    refused(with(&[2.0, 0.0, 1.0, 1.0]), "a frequency cannot be divided by 0");
    refused(with(&[2.0, f32::NAN, 1.0, 1.0]), "holds a value that is not finite");
}
