//! Any bytes as a `tokenizer.json`, and any text for it: an error, or a tokenizer that keeps its
//! promises.
//!
//! The input is the file, a zero byte, and the text.
#![no_main]

use helix_model::{Special, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(bytes.get(at + 1..).unwrap_or_default());
    let Ok(tokenizer) = Tokenizer::from_json(&bytes[..at], &Special::default()) else { return };
    for tokens in [tokenizer.encode(&text, true), tokenizer.encode_with_control(&text, true)] {
        assert!(tokens.iter().all(|&token| tokenizer.piece(token).is_some()));
        let mut stream = tokenizer.stream(&[]);
        let streamed: String = tokens.iter().map(|&token| stream.push(token)).collect();
        assert_eq!(streamed + &stream.finish(), tokenizer.decode(&tokens));
        let _ = tokenizer.decode_with_control(&tokens);
    }
});
