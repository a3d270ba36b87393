//! Any vocabulary, and any text for it: an error, or a tokenizer that keeps its promises.
//!
//! The input is lines. The first character of a line says what the rest is:
//!
//!     m gpt2              model              t 1 -2.5 text       token: type, score, text
//!     p llama-bpe         pre-tokenizer      g left right        merge
//!     b 1   e 2   u 0     BOS, EOS, unknown  + beu- or any other flags of `b`, `e`, space prefix
//!     anything else       text to encode
#![no_main]

use helix_model::{Tokenizer, Vocabulary};
use libfuzzer_sys::fuzz_target;

#[derive(Default)]
struct Input {
    model: String,
    pre: Option<String>,
    tokens: Vec<String>,
    types: Vec<u64>,
    scores: Vec<f32>,
    merges: Vec<String>,
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    flags: [Option<bool>; 3],
    texts: Vec<String>,
}

impl Input {
    fn read(bytes: &[u8]) -> Input {
        let mut input = Input::default();
        for line in String::from_utf8_lossy(bytes).split('\n') {
            let (what, rest) = line.split_once(' ').unwrap_or(("", line));
            match what {
                "m" => input.model = rest.to_owned(),
                "p" => input.pre = Some(rest.to_owned()),
                "t" => {
                    let mut fields = rest.splitn(3, ' ');
                    let mut field = || fields.next().unwrap_or_default();
                    input.types.push(field().parse().unwrap_or(1));
                    input.scores.push(field().parse().unwrap_or(0.0));
                    input.tokens.push(field().replace("\\n", "\n"));
                }
                // All 256 byte tokens, in the way of either kind of vocabulary.
                "B" => input.bytes(),
                "g" => input.merges.push(rest.to_owned()),
                "b" => input.bos = rest.parse().ok(),
                "e" => input.eos = rest.parse().ok(),
                "u" => input.unknown = rest.parse().ok(),
                "+" => input.flags = ["b", "e", "s"].map(|flag| Some(rest.contains(flag))),
                _ => input.texts.push(line.replace("\\n", "\n")),
            }
        }
        input
    }

    fn bytes(&mut self) {
        for byte in 0..=255u32 {
            let letter = match byte {
                0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte,
                0..=0x20 => 0x100 + byte,
                0x7f..=0xa0 => 0x121 + byte - 0x7f,
                _ => 0x143,
            };
            let letter = char::from_u32(letter).unwrap_or_default().to_string();
            let gpt2 = self.model == "gpt2";
            self.tokens.push(if gpt2 { letter } else { format!("<0x{byte:02X}>") });
            self.types.push(if gpt2 { 1 } else { 6 });
            self.scores.push(0.0);
        }
    }

    fn vocabulary(&self) -> Vocabulary<'_> {
        let [add_bos, add_eos, add_space_prefix] = self.flags;
        Vocabulary {
            model: &self.model,
            pre: self.pre.as_deref(),
            tokens: &self.tokens,
            types: Some(self.types.clone()),
            scores: Some(&self.scores),
            merges: Some(&self.merges),
            bos: self.bos,
            eos: self.eos,
            unknown: self.unknown,
            add_bos,
            add_eos,
            add_space_prefix,
            ..Vocabulary::default()
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let input = Input::read(bytes);
    let Ok(tokenizer) = Tokenizer::new(&input.vocabulary()) else { return };
    for text in &input.texts {
        let tokens = tokenizer.encode(text, false);
        let control = |&&token: &&u32| tokenizer.is_control(token);
        let made: Vec<&u32> = tokens.iter().filter(control).collect();
        assert!(made.iter().all(|&&token| Some(token) == input.unknown), "{text:?} made {made:?}");
        for tokens in [tokens, tokenizer.encode_with_control(text, true)] {
            assert!(tokens.iter().all(|&token| tokenizer.piece(token).is_some()));
            let mut stream = tokenizer.stream(&[]);
            let streamed: String = tokens.iter().map(|&token| stream.push(token)).collect();
            assert_eq!(streamed + &stream.finish(), tokenizer.decode(&tokens));
            let _ = tokenizer.decode_with_control(&tokens);
        }
    }
});
