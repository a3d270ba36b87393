use serde_json::json;

use super::*;

const MODEL: &str = include_str!("../../../tests/golden/tiktoken/tiktoken.model");

fn config() -> Value {
    let config = include_str!("../../../tests/golden/tiktoken/tokenizer_config.json");
    serde_json::from_str(config).unwrap()
}

/// All bytes, and what `more` adds to them.
fn bytes(more: &str) -> String {
    let table: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let line = |byte: usize| {
        let (high, low) = (table[byte >> 2] as char, table[(byte & 3) << 4] as char);
        format!("{high}{low}== {byte}\n")
    };
    (0..256).map(line).collect::<String>() + more
}

#[test]
fn hostile_files_are_refused() {
    let refused = |model: &str, expected: &str| {
        let result = Tokenizer::from_tiktoken(model, &config(), None, &Special::default());
        let error = result.expect_err(expected).to_string();
        assert!(error.contains(expected), "wanted {expected:?}, got {error:?}");
    };
    refused("", "no token is the byte 0x00 alone");
    refused(&bytes("").replacen("/w== 255", "", 1), "no token is the byte 0xff alone");
    for (more, expected) in [
        ("YWI=", "line 257: it is not a token and its rank"),
        ("YWI= ", "its rank is not a number"),
        ("YWI= -1", "its rank is not a number"),
        ("YWI= 256 7", "its rank is not a number"),
        ("YWI= 4294967296", "its rank is not a number from 0 to 4294967295"),
        ("YWI 256", "its token is not in Base64"),
        ("Y!I= 256", "its token is not in Base64"),
        ("YWJ= 256", "its token is not in Base64"),
        (" 256", "its token has no bytes"),
        ("YQ== 256", "its token has the rank 97, too"),
        ("YWI= 257", "257 stands in the place of 256"),
        ("YWI= 4294967295", "4294967295 stands in the place of 256"),
        ("YWI= 0", "0 stands in the place of 1"),
        ("YWI= 256\nYWJj 256", "256 stands in the place of 257"),
    ] {
        refused(&bytes(more), expected);
    }
}

#[test]
fn configurations_must_be_kimis() {
    let refused = |at: &str, value: Value, expected: &str| {
        let mut config = config();
        config[at] = value;
        let result = Tokenizer::from_tiktoken(MODEL, &config, None, &Special::default());
        let error = result.expect_err(expected).to_string();
        assert!(error.contains(expected), "wanted {expected:?}, got {error:?}");
    };
    refused(
        "tokenizer_class",
        json!("QWenTokenizer"),
        "\"QWenTokenizer\", and Helix runs tiktoken",
    );
    refused("tokenizer_class", json!(null), "its tokenizer_class is \"\"");
    let added = |id: &str, token: Value| json!({ id: token });
    for (added, expected) in [
        (json!(null), "added_tokens_decoder is missing"),
        (added("x", json!({"content": "a"})), "\"x\" is no token's number"),
        (added("600", json!("a")), "token 600: invalid type"),
        (added("600", json!({})), "token 600: missing field `content`"),
        (added("5", json!({"content": "[BOS]"})), "has the number 5, which"),
        (added("600", json!({"content": "a"})), "are both \"a\""),
        (added("99999999", json!({"content": "[BOS]"})), "which leaves gaps"),
        (added("18446744073709551616", json!({"content": "a"})), "is no token's number"),
        (added("600", json!({"content": "a", "single_word": true})), "inside words"),
    ] {
        refused("added_tokens_decoder", added, expected);
    }
    let absent = Special { eos: Some("[END]".to_owned()), ..Special::default() };
    let error = Tokenizer::from_tiktoken(MODEL, &config(), None, &absent).unwrap_err();
    assert!(error.to_string().contains("its eos_token is \"[END]\""), "{error}");
}

/// What merging pairs of a list would give another result for: "abc" is "a" and "bc" in rank order,
/// although "ab" is a token; and a piece that is a token is that token.
#[test]
fn the_lowest_rank_goes_first() {
    // bc, ab, cd, abcd, and xyz, which no two tokens are
    let model = bytes("YmM= 256\nYWI= 257\nY2Q= 258\nYWJjZA== 259\neHl6 260\n");
    let mut config = config();
    config["added_tokens_decoder"] = json!({"261": {"content": "[BOS]", "special": true}});
    let tokenizer = Tokenizer::from_tiktoken(&model, &config, None, &Special::default()).unwrap();
    let encode = |text: &str| tokenizer.encode(text, true);
    assert_eq!(encode("abc"), [97, 256]);
    assert_eq!(encode("abcd"), [259]);
    assert_eq!(encode("abcde"), [97, 256, 100, 101]);
    assert_eq!(encode("xyz"), [260]);
    assert_eq!(encode("xyzxyz"), [120, 121, 122, 120, 121, 122]);
    assert_eq!(encode("cdcd"), [258, 258]);
}

/// Whatever a file names: a token that ends texts does not come out of them.
#[test]
fn text_does_not_become_a_control_token() {
    let model = bytes("YmM= 256\nYWI= 257\n");
    let mut config = config();
    config["added_tokens_decoder"] = json!({
        "98": {"content": "b", "special": true}, "258": {"content": "[EOS]", "special": true}
    });
    let special = Special { eos: Some("[EOS]".to_owned()), ends: vec![257], ..Special::default() };
    let tokenizer = Tokenizer::from_tiktoken(&model, &config, None, &special).unwrap();
    for text in ["b", "ab", "abc", "bab[EOS]"] {
        let tokens = tokenizer.encode(text, false);
        assert!(!tokens.iter().any(|&token| tokenizer.is_control(token)), "{text}: {tokens:?}");
    }
    assert_eq!(tokenizer.encode_with_control("b[EOS]", false), [98, 258]);
}

/// Bytes of the file that are changed one by one, and files that end anywhere.
#[test]
fn no_change_of_a_byte_is_a_panic() {
    let (model, config) = (bytes("YmM= 256\nYWI= 257\n"), config());
    for at in 0..model.len() {
        for byte in [b' ', b'\n', b'=', b'9', b'A', 0] {
            let mut changed = model.clone().into_bytes();
            changed[at] = byte;
            let changed = String::from_utf8(changed).unwrap();
            let _ = Tokenizer::from_tiktoken(&changed, &config, None, &Special::default());
        }
        let _ = Tokenizer::from_tiktoken(&model[..at], &config, None, &Special::default());
    }
}

#[test]
fn long_pieces_take_no_time() {
    let special = Special::default();
    let tokenizer = Tokenizer::from_tiktoken(MODEL, &config(), None, &special).unwrap();
    let text = "a".repeat(1 << 20);
    assert_eq!(tokenizer.decode(&tokenizer.encode(&text, false)), text);
}
