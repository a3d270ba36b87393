//! Any bytes as a `tiktoken.model` beside its `tokenizer_config.json`, and any text for it: an error,
//! or a tokenizer that keeps its promises.
//!
//! The input is the model, the configuration, the text, and if there is any the Python file, with
//! zero bytes between. A first line `B` of the model stands for the 256 bytes as the first ranks.
#![no_main]

use std::collections::HashMap;

use helix_model::{Special, Tokenizer};
use libfuzzer_sys::fuzz_target;

/// Longest text whose merges are done again in the plain way, which takes the cube of it.
const PLAIN: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let model = parts.next().unwrap_or_default();
    let config = parts.next().unwrap_or_default();
    let text = parts.next().unwrap_or_default();
    let code = parts.next();
    let Ok(config) = serde_json::from_str::<serde_json::Value>(&config) else { return };
    let model = match model.strip_prefix("B\n") {
        Some(rest) => every_byte() + rest,
        None => model.into_owned(),
    };
    let special = Special::default();
    let Ok(tokenizer) = Tokenizer::from_tiktoken(&model, &config, code.as_deref(), &special) else {
        return;
    };
    let plain = tokenizer.encode(&text, false);
    assert!(!plain.iter().any(|&token| tokenizer.is_control(token)), "{text:?}: {plain:?}");
    if all_added_are_control(&config, &tokenizer) {
        assert_eq!(tokenizer.decode(&plain), text);
        if text.len() <= PLAIN && text.bytes().all(|byte| byte.is_ascii_lowercase()) {
            assert_eq!(plain, merged(&tokenizer, text.as_bytes()), "{text:?}");
        }
    }
    for tokens in [plain, tokenizer.encode_with_control(&text, true)] {
        assert!(tokens.iter().all(|&token| tokenizer.piece(token).is_some()));
        let mut stream = tokenizer.stream(&[]);
        let streamed: String = tokens.iter().map(|&token| stream.push(token)).collect();
        assert_eq!(streamed + &stream.finish(), tokenizer.decode(&tokens));
        let _ = tokenizer.decode_with_control(&tokens);
    }
});

fn every_byte() -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let line = |byte: usize| {
        let [high, low] = [byte >> 2, (byte & 3) << 4].map(|digit| DIGITS[digit] as char);
        format!("{high}{low}== {byte}\n")
    };
    (0..256).map(line).collect()
}

/// Whether no text becomes an added token, and none is one of the 256 bytes: then nothing of a text
/// is lost.
fn all_added_are_control(config: &serde_json::Value, tokenizer: &Tokenizer) -> bool {
    let added = config["added_tokens_decoder"].as_object();
    added.is_some_and(|added| {
        added.keys().all(|id| {
            let id = id.parse().expect("a tokenizer was made of it");
            tokenizer.is_control(id) && tokenizer.piece(id).is_some_and(|name| name.len() > 1)
        })
    })
}

/// The tokens of a word: its own, or else bytes of which the neighbours of the lowest rank become
/// one, the leftmost first, until no neighbours are a token.
fn merged(tokenizer: &Tokenizer, word: &[u8]) -> Vec<u32> {
    let tokens = 0..u32::try_from(tokenizer.vocab()).expect("numbers of tokens are u32");
    let ranks: HashMap<&[u8], u32> = tokens
        .filter(|&token| !tokenizer.is_control(token))
        .filter_map(|token| Some((tokenizer.piece(token)?, token)))
        .collect();
    if let Some(&token) = ranks.get(word) {
        return vec![token];
    }
    let mut cuts: Vec<usize> = (0..=word.len()).collect();
    let rank = |from: usize, to: usize| ranks.get(&word[from..to]);
    while let Some((_, left)) =
        cuts.windows(3).enumerate().filter_map(|(i, c)| Some((rank(c[0], c[2])?, i))).min()
    {
        cuts.remove(left + 1);
    }
    cuts.windows(2).map(|c| *rank(c[0], c[1]).expect("bytes are tokens")).collect()
}
