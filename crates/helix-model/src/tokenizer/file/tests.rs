use super::*;
use serde_json::json;

/// A byte-level tokenizer of a few letters, with one key changed by a pointer to it.
fn changed(at: &str, value: Value) -> Result<Tokenizer, TokenizerError> {
    let mut file = json!({
        "added_tokens": [{"id": 5, "content": "<s>", "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
        "post_processor": null,
        "model": {
            "type": "BPE",
            "unk_token": null,
            "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3, "abc": 4},
            "merges": [["a", "b"], ["ab", "c"]],
        },
    });
    if let Some((parent, key)) = at.rsplit_once('/') {
        file.pointer_mut(parent).unwrap()[key] = value;
    }
    Tokenizer::from_json(file.to_string().as_bytes(), &Special::default())
}

#[test]
fn what_is_not_run_is_refused_by_name() {
    let metaspace = |more: Value| {
        let mut part = json!({"type": "Metaspace", "replacement": "\u{2581}"});
        part.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        part
    };
    let stages = |stage: Value| {
        json!({"type": "Sequence", "pretokenizers": [
            stage, {"type": "ByteLevel", "add_prefix_space": false}
        ]})
    };
    let split = |pattern: &str, behavior: &str| {
        stages(json!({
            "type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": false
        }))
    };
    for (at, value, expected) in [
        ("/model/type", json!("Unigram"), "its model is \"Unigram\", and Helix runs \"BPE\""),
        ("/model/vocab", json!([]), "it is not a tokenizer: invalid type: sequence"),
        ("/model/vocab", json!({"a": -1}), "it is not a tokenizer: invalid value"),
        ("/model/vocab", json!({"a": 0, "b": 0}), "has the number 0, which"),
        ("/model/vocab", json!({"a": 1_u64 << 60}), "which leaves gaps"),
        ("/model/merges", json!([["a", "x"]]), "merge 0 is \"a x\", and \"x\" is not in"),
        ("/model/merges", json!(["ab"]), "and \"\" is not in the vocabulary"),
        ("/model/merges", json!([["b", "a"]]), "and \"ba\" is not in the vocabulary"),
        ("/model/merges", json!([["a"]]), "it is not a tokenizer"),
        ("/model/dropout", json!(0.1), "\"dropout\""),
        ("/model/end_of_word_suffix", json!("</w>"), "\"end_of_word_suffix\""),
        ("/normalizer", json!({"type": "Lowercase"}), "its normalizer is {\"type\":\"Lowercase"),
        ("/normalizer", json!({"type": "Prepend", "prepend": "\u{2581}"}), "one of spaces"),
        ("/pre_tokenizer", json!(null), "no rule for spaces"),
        (
            "/pre_tokenizer",
            stages(
                json!({"type": "Sequence", "pretokenizers": vec![json!({"type": "Digits"}); 9999]}),
            ),
            "a sequence of 10000",
        ),
        ("/pre_tokenizer", json!({"type": "a".repeat(9999)}), "aaa..., and Helix"),
        ("/pre_tokenizer", json!({"type": "Whitespace"}), "its pre_tokenizer is {\"type\":\"Wh"),
        ("/pre_tokenizer", json!({"type": "ByteLevel"}), "ByteLevel with add_prefix_space"),
        ("/pre_tokenizer", split("(?=a)", "Isolated"), "it looks around"),
        ("/pre_tokenizer", split("(", "Isolated"), "the pattern \"(\""),
        ("/pre_tokenizer", split("a", "Contiguous"), "its Split is"),
        ("/pre_tokenizer", stages(json!({"type": "Punctuation"})), "\"Punctuation\""),
        ("/pre_tokenizer", metaspace(json!({"prepend_scheme": "last"})), "\"last\""),
        ("/post_processor", json!({"type": "BertProcessing"}), "\"BertProcessing\""),
        (
            "/post_processor",
            json!({"type": "TemplateProcessing", "single": [
                {"SpecialToken": {"id": "<s>"}}, {"SpecialToken": {"id": "<s>"}}
            ]}),
            "one token on each side",
        ),
        (
            "/post_processor",
            json!({"type": "TemplateProcessing", "single": [
                {"SpecialToken": {"id": "<x>"}}, {"Sequence": {"id": "A"}}
            ]}),
            "its post_processor is \"<x>\"",
        ),
        (
            "/added_tokens",
            json!([{"id": 5, "content": "<s>", "single_word": true}]),
            "its added token is \"<s>\"",
        ),
        ("/added_tokens", json!([{"id": 0, "content": "<s>"}]), "has the number 0, which"),
        ("/added_tokens", json!([{"id": 9, "content": "a"}]), "are both \"a\""),
    ] {
        let error = changed(at, value).expect_err(expected).to_string();
        assert!(error.contains(expected), "wanted {expected:?}, got {error:?}");
    }
}

#[test]
fn settings_do_what_they_say() {
    let encode = |at: &str, value: Value, text: &str| {
        changed(at, value).unwrap().encode_with_control(text, true)
    };
    assert_eq!(encode("", json!(null), "abcab<s>c"), [4, 2, 5, 3]);
    assert_eq!(encode("/model/merges", json!(["a b", "ab c"]), "abc"), [4]);
    assert_eq!(encode("/model/merges", json!([]), "abc"), [0, 1, 3]);
    let whole = json!({
        "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3, "abc": 4}, "merges": [],
        "ignore_merges": true,
    });
    assert_eq!(encode("/model", whole, "abc"), [4]);
    let template = json!({"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}
    ]});
    assert_eq!(encode("/post_processor", template, "abc"), [5, 4]);
    let strip =
        json!([{"id": 5, "content": "<s>", "special": true, "lstrip": true, "rstrip": true}]);
    assert_eq!(encode("/added_tokens", strip, "a  <s> \n b"), [0, 5, 1]);
    let stage = |behavior: &str, invert| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"String": "c"}, "behavior": behavior, "invert": invert},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}
        ]})
    };
    for (behavior, invert, expected) in [
        ("Isolated", false, vec![2, 3, 2, 3]),
        ("Removed", false, vec![2, 2]),
        ("Removed", true, vec![3, 3]),
        ("MergedWithPrevious", false, vec![4, 4]),
        ("MergedWithNext", false, vec![2, 3, 2, 3]),
    ] {
        let found = encode("/pre_tokenizer", stage(behavior, invert), "abcabc");
        assert_eq!(found, expected, "{behavior} {invert}");
    }
}
