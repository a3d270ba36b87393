//! Tokens against llama.cpp's, over awkward texts, in both directions.
//!
//! `golden/generate.py` wrote the expectations. Two small vocabularies are in the repository; the
//! real one is checked when `HELIX_TEST_MODEL` names SmolLM2-135M-Instruct's GGUF file.

use std::path::{Path, PathBuf};

use helix_model::{Gguf, Tokenizer};
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
fn check(model: &Path, lines: &str, lost: &[char]) {
    let gguf = Gguf::open(model).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
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
    check(&fixture("llama.gguf"), include_str!("golden/tiny-bpe.jsonl"), &[]);
}

#[test]
fn sentence_piece_tokens_equal_llama_cpps() {
    check(&fixture("mistral.gguf"), include_str!("golden/tiny-spm.jsonl"), &[]);
}

#[test]
fn smollm2_tokens_equal_llama_cpps() {
    let Some(model) = std::env::var_os("HELIX_TEST_MODEL") else {
        println!("HELIX_TEST_MODEL is not set: SmolLM2's tokens are not checked");
        return;
    };
    let lost = ['\u{4}', '\u{6}'];
    check(Path::new(&model), include_str!("golden/smollm2.jsonl"), &lost);
}
