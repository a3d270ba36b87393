//! Tokens against llama.cpp's and tiktoken's, over awkward texts, in both directions.
//!
//! `golden/generate.py` and `generate_tiktoken.py` wrote the expectations. Three small vocabularies are in the repository; the
//! real one is checked when `HELIX_TEST_MODEL` names SmolLM2-135M-Instruct's GGUF file.

use std::path::{Path, PathBuf};

use helix_model::{Gguf, Special, Tokenizer};
use serde_json::Value;

struct Expected {
    text: String,
    plain: Vec<u32>,
    with_control: Vec<u32>,
}

fn golden(lines: &str) -> Vec<Expected> {
    let ids = |list: &Value| -> Vec<u32> {
        let ids = list.as_array().unwrap().iter();
        ids.map(|id| id.as_u64().unwrap().try_into().unwrap()).collect()
    };
    let parse = |line| {
        let line: Value = serde_json::from_str(line).unwrap();
        let plain = ids(&line[1]);
        let with_control = line.get(2).map_or_else(|| plain.clone(), ids);
        Expected { text: line[0].as_str().unwrap().to_owned(), plain, with_control }
    };
    lines.lines().map(parse).collect()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../helix-engine/tests/fixtures").join(name)
}

/// `lost` are characters that the vocabulary has no tokens for.
fn check_gguf(model: &Path, lines: &str, lost: &[char]) {
    let gguf = Gguf::open(model).unwrap();
    check(&Tokenizer::from_gguf(&gguf).unwrap(), lines, lost);
}

fn check(tokenizer: &Tokenizer, lines: &str, lost: &[char]) {
    for Expected { text, plain, with_control } in golden(lines) {
        assert_eq!(tokenizer.encode(&text, false), plain, "{text:?}");
        assert_eq!(tokenizer.encode_with_control(&text, false), with_control, "{text:?}");
        let decoded = tokenizer.decode(&plain);
        assert_eq!(decoded, text.replace(lost, ""), "{plain:?}");
        let mut stream = tokenizer.stream(&[]);
        let streamed: String = plain.iter().map(|&token| stream.push(token)).collect();
        assert_eq!(streamed + &stream.finish(), decoded, "{plain:?}");
    }
}

#[test]
fn byte_level_tokens_equal_llama_cpps() {
    check_gguf(&fixture("llama.gguf"), include_str!("golden/tiny-bpe.jsonl"), &[]);
}

#[test]
fn sentence_piece_tokens_equal_llama_cpps() {
    check_gguf(&fixture("mistral.gguf"), include_str!("golden/tiny-spm.jsonl"), &[]);
}

#[test]
fn ranked_tokens_equal_tiktokens() {
    let config = include_str!("golden/tiktoken/tokenizer_config.json");
    let config: Value = serde_json::from_str(config).unwrap();
    let special = Special {
        bos: Some("[BOS]".to_owned()),
        eos: Some("[EOS]".to_owned()),
        ends: vec![602],
        ..Special::default()
    };
    let model = include_str!("golden/tiktoken/tiktoken.model");
    let tokenizer = Tokenizer::from_tiktoken(model, &config, None, &special).unwrap();
    check(&tokenizer, include_str!("golden/tiny-tiktoken.jsonl"), &[]);
    assert_eq!((tokenizer.vocab(), tokenizer.ends()), (610, &[601, 602][..]));
    assert_eq!(tokenizer.encode("a", true), [97], "Kimi's texts have nothing before and after");
}

#[test]
fn smollm2_tokens_equal_llama_cpps() {
    let Some(model) = std::env::var_os("HELIX_TEST_MODEL") else {
        println!("HELIX_TEST_MODEL is not set: SmolLM2's tokens are not checked");
        return;
    };
    let lost = ['\u{4}', '\u{6}'];
    check_gguf(Path::new(&model), include_str!("golden/smollm2.jsonl"), &lost);
}
