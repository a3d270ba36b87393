use std::collections::HashSet;

use super::random::Random;
use super::*;
use crate::Model;
use crate::config::Yarn;

#[test]
fn a_seed_names_one_model() {
    let spec = Spec::tiny(Arch::Qwen2);
    assert_eq!(gguf(&spec, 1), gguf(&spec, 1));
    assert_ne!(gguf(&spec, 1), gguf(&spec, 2));
}

#[test]
fn every_architecture_format_and_scaling_opens() {
    let scalings = [
        Scaling::None,
        Scaling::Linear { factor: 2.0 },
        Scaling::Yarn(Yarn {
            factor: 4.0,
            original_context: 128,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: None,
        }),
    ];
    for arch in ARCHS {
        for format in Format::GGML {
            for (scaling, tied_head) in scalings.iter().zip([true, false, true]) {
                let wide = Spec::tiny(arch);
                let spec = Spec {
                    hidden: 256,
                    q_heads: 4,
                    head_dim: 64,
                    rope_dims: 64,
                    ffn: 256,
                    mla: wide.mla.map(|mla| Mla { q_lora: Some(256), value: 64, ..mla }),
                    experts: wide.experts.map(|experts| Experts { ffn: 256, ..experts }),
                    vocab: 11,
                    scaling: scaling.clone(),
                    tied_head,
                    format,
                    down_format: format,
                    embedding_format: format,
                    ..wide
                };
                let model = Model::from_gguf_bytes(gguf(&spec, 3)).unwrap();
                assert_eq!((model.config.arch, model.config.tied_head), (arch, tied_head));
            }
        }
    }
}

#[test]
fn tokens_differ_and_merges_make_tokens() {
    for vocab in [0, 1, 2, 3, 4, 259, 260, 1000, 49152] {
        let spec = Spec { vocab, ..Spec::tiny(Arch::Llama) };
        let mut writer = Writer::default();
        vocabulary::write(&spec, &mut writer);
        let gguf = crate::Gguf::from_bytes(writer.finish()).unwrap();
        let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap().unwrap();
        let known: HashSet<&String> = tokens.iter().collect();
        assert_eq!((tokens.len(), known.len()), (vocab, vocab));
        for merge in gguf.strings("tokenizer.ggml.merges").unwrap().unwrap() {
            let (left, right) = merge.split_once(' ').unwrap();
            assert!(known.contains(&format!("{left}{right}")), "{merge}");
            assert!(known.contains(&left.to_owned()) && known.contains(&right.to_owned()));
        }
    }
}

#[test]
fn weights_have_the_deviation_that_was_asked_for() {
    let mut random = Random::named(1, "x");
    let values: Vec<f64> = (0..100_000).map(|_| f64::from(random.normal())).collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64;
    assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
}

#[test]
fn presets_have_the_shapes_of_their_models() {
    let spec = Spec { layers: 1, ..Spec::smollm2_135m(Format::Q4_0) };
    let model = Model::from_gguf_bytes(gguf(&spec, 1)).unwrap();
    let shape = model.shape();
    assert_eq!((shape.hidden, shape.q_heads, shape.kv_heads, shape.vocab), (576, 9, 3, 49152));
    let spec = Spec { layers: 1, vocab: 16, ..Spec::llama32_1b(Format::Q4K) };
    let model = Model::from_gguf_bytes(gguf(&spec, 1)).unwrap();
    let shape = model.shape();
    assert_eq!((shape.hidden, shape.q_heads, shape.kv_heads, shape.ffn), (2048, 32, 8, 8192));
    assert_eq!((shape.out_block, shape.ffn_block), (256, 256));
}

#[test]
fn latents_and_experts_are_read_as_they_were_asked_for() {
    let spec = Spec::tiny(Arch::DeepSeek);
    let model = Model::from_gguf_bytes(gguf(&spec, 1)).unwrap();
    let config = &model.config;
    assert_eq!(config.mla, spec.mla);
    assert_eq!((config.kv_heads, config.head_dim, config.value_dim), (1, 40, 16));
    assert!(config.moe(0).is_none());
    let moe = config.moe(1).unwrap();
    assert_eq!((moe.experts, moe.routing.top_k, moe.ffn, moe.shared_ffn), (5, 2, 24, 24));
    assert!(moe.selection_bias && moe.routing.scoring == Scoring::Sigmoid);
    for arch in [Arch::Mixtral, Arch::Qwen3Moe] {
        let model = Model::from_gguf_bytes(gguf(&Spec::tiny(arch), 1)).unwrap();
        let moe = model.config.moe(0).unwrap();
        assert_eq!((moe.experts, moe.routing.top_k, moe.ffn, moe.shared_ffn), (5, 2, 24, 0));
    }
}

#[test]
fn experts_have_weights_of_their_own_and_routers_rows_of_their_own() {
    let spec = Spec { values: Values::Repeated, ..Spec::tiny(Arch::Qwen3Moe) };
    let spec = Spec { experts: spec.experts.map(|e| Experts { count: 60, ..e }), ..spec };
    let model = Model::from_gguf_bytes(gguf(&spec, 1)).unwrap();
    let router = model.tensor("blk.0.ffn_gate_inp.weight").unwrap();
    let rows: HashSet<&[u8]> = router.data.chunks_exact(4 * spec.hidden).collect();
    assert_eq!(rows.len(), 60);
    let spec = Spec { values: Values::Independent, ..spec };
    let model = Model::from_gguf_bytes(gguf(&spec, 1)).unwrap();
    let expert = |n| model.part("blk.0.ffn_up_exps.weight", n).unwrap().data.to_vec();
    assert_ne!(expert(0), expert(59));
}

#[test]
fn named_shapes_are_those_that_they_are_named_for() {
    assert!(Spec::named("mqa-70b").is_none());
    let shape = |name: &str| {
        let spec = Spec::named(name).unwrap();
        let experts = spec.experts.map(|experts| Experts { count: 8, ..experts });
        let spec = Spec { layers: 2, vocab: 16, experts, ..spec };
        Model::from_gguf_bytes(gguf(&spec, 1)).unwrap().shape()
    };
    for (name, _) in Spec::NAMES {
        let shape = shape(name);
        assert_eq!(shape.mla.is_some(), ["mla", "deepseek"].contains(&name), "{name}");
        assert_eq!(shape.moe.is_some(), ["moe", "deepseek"].contains(&name), "{name}");
    }
    let mqa = shape("mqa-1b");
    assert_eq!((mqa.hidden, mqa.q_heads, mqa.kv_heads, mqa.head_dim), (2048, 32, 1, 64));
    let dense = shape("8b");
    assert_eq!((dense.hidden, dense.q_heads, dense.kv_heads, dense.ffn), (4096, 32, 8, 14_336));
    let mla = shape("mla");
    assert_eq!((mla.q_heads, mla.kv_heads, mla.head_dim, mla.value_dim), (16, 1, 576, 128));
}

#[test]
fn text_goes_through_the_tokenizer_and_back() {
    for arch in ARCHS {
        for vocab in [259, 300, 5000] {
            let spec = Spec { vocab, ..Spec::tiny(arch) };
            let model = Model::from_gguf_bytes(gguf(&spec, 1)).unwrap();
            let tokenizer = model.tokenizer().unwrap();
            let text = "Grüße, world! 1+1=2";
            let tokens = tokenizer.encode(text, false);
            assert!(tokens.iter().all(|token| (*token as usize) < vocab));
            assert_eq!(tokenizer.decode(&tokens), text);
            assert!(model.chat_template().unwrap().is_some());
        }
    }
}
