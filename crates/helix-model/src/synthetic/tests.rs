use std::collections::HashSet;

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
        Scaling::Yarn(Yarn { factor: 4.0, original_context: 128, beta_fast: 32.0, beta_slow: 1.0 }),
    ];
    for arch in Arch::ALL {
        for format in Format::GGML {
            for (scaling, tied_head) in scalings.iter().zip([true, false, true]) {
                let spec = Spec {
                    hidden: 256,
                    q_heads: 4,
                    head_dim: 64,
                    rope_dims: 64,
                    ffn: 256,
                    layers: 1,
                    vocab: 11,
                    scaling: scaling.clone(),
                    tied_head,
                    format,
                    down_format: format,
                    embedding_format: format,
                    ..Spec::tiny(arch)
                };
                let model = Model::from_gguf_bytes(gguf(&spec, 3)).unwrap();
                assert_eq!(model.config.tied_head, tied_head);
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
fn text_goes_through_the_tokenizer_and_back() {
    for arch in Arch::ALL {
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
