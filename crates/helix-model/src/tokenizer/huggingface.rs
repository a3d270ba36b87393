//! Pre-tokenizers against Hugging Face's own, with the expressions as `tokenizer.json` files have
//! them: lookahead and all, on a backtracking engine.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper,
    SplitDelimiterBehavior,
};

use super::pre::PreTokenizer;

/// Texts of the golden file; expected ids stand beside them.
const CORPUS: &str = include_str!("../../tests/golden/smollm2.jsonl");

const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const KIMI: &str = concat!(
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const DEEPSEEK_V3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r##"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
);
const BAILING: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*",
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
);
const SEED_CODER: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}",
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
);

fn split(pattern: &str) -> PreTokenizerWrapper {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap().into()
}

fn references() -> Vec<(&'static str, Vec<PreTokenizerWrapper>)> {
    let gpt2 = || ByteLevel::new(false, true, true).into();
    let digits = || Digits::new(true).into();
    vec![
        ("gpt-2", vec![gpt2()]),
        ("smollm", vec![digits(), gpt2()]),
        ("llama-bpe", vec![split(LLAMA3)]),
        ("qwen2", vec![split(QWEN2)]),
        ("qwen35", vec![split(QWEN35)]),
        ("gpt-4o", vec![split(GPT4O)]),
        ("kimi-k2", vec![split(KIMI)]),
        ("tekken", vec![split(TEKKEN)]),
        ("deepseek-v3", vec![split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK_V3)]),
        (
            "deepseek-coder",
            vec![
                split("[\r\n]"),
                split(r"\s?\p{L}+"),
                split(r"\s?\p{P}+"),
                split("[一-龥ࠀ-一가-퟿]+"),
                digits(),
            ],
        ),
        ("bailingmoe", vec![split(BAILING)]),
        ("seed-coder", vec![split(SEED_CODER)]),
        ("viking", vec![split(r" ?[^(\s|[.,!?…。，、।۔،])]+"), digits()]),
    ]
}

#[test]
fn pieces_equal_hugging_faces() {
    let more = [
        "'\u{17f} 'S\u{17f} x'\u{212a}",
        "\u{37e}\u{1c80}\u{10fb}\u{3007}\u{a66e}",
        "a\u{b}\u{c}\u{1c} b",
    ];
    let lines = CORPUS.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line[0].as_str().unwrap().to_owned()
    });
    let texts: Vec<String> = lines.chain(more.map(String::from)).collect();
    assert!(texts.len() > 100);
    for (name, reference) in references() {
        let ours = PreTokenizer::named(name).unwrap();
        for text in &texts {
            let mut pieces = Vec::new();
            ours.split(text, &mut |piece| pieces.push(piece.to_owned()));
            let mut expected = PreTokenizedString::from(text.as_str());
            for stage in &reference {
                stage.pre_tokenize(&mut expected).unwrap();
            }
            let expected: Vec<String> = expected
                .get_splits(OffsetReferential::Original, OffsetType::Byte)
                .into_iter()
                .map(|(_, (start, end), _)| text[start..end].to_owned())
                .filter(|piece| !piece.is_empty())
                .collect();
            assert_eq!(pieces, expected, "{name}: {text:?}");
        }
    }
}
