use super::*;

/// A vocabulary that owns its lists: `vocabulary()` lends them out.
#[derive(Clone, Default)]
struct Lists {
    model: &'static str,
    tokens: Vec<String>,
    types: Vec<u64>,
    scores: Vec<f32>,
    merges: Vec<String>,
}

impl Lists {
    fn vocabulary(&self) -> Vocabulary<'_> {
        Vocabulary {
            model: self.model,
            pre: Some("gpt-2"),
            tokens: &self.tokens,
            types: Some(self.types.clone()),
            scores: Some(&self.scores),
            merges: Some(&self.merges),
            ..Vocabulary::default()
        }
    }

    fn id(&self, text: &str) -> u32 {
        let index = self.tokens.iter().position(|token| token == text);
        u32::try_from(index.unwrap_or_else(|| panic!("no token {text:?}"))).unwrap()
    }

    fn push(&mut self, text: &str, kind: u64, score: f32) {
        self.tokens.push(text.to_owned());
        self.types.push(kind);
        self.scores.push(score);
    }
}

const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

/// All bytes, `merges`, a few special tokens.
fn byte_level(merges: &[&str]) -> Lists {
    let mut lists = Lists { model: "gpt2", ..Lists::default() };
    for code in (0x21..=0x7e).chain(0xa1..=0xac).chain(0xae..=0xff).chain(0x100..=0x143) {
        lists.push(&char::from_u32(code).unwrap().to_string(), 1, 0.0);
    }
    for merge in merges {
        lists.push(&merge.replace(' ', ""), 1, 0.0);
        lists.merges.push((*merge).to_owned());
    }
    for (text, kind) in
        [("<s>", CONTROL), ("<|im_end|>", CONTROL), ("<think>", USER_DEFINED), ("", 5)]
    {
        lists.push(text, kind, 0.0);
    }
    lists
}

/// `<unk>`, `<s>`, `</s>`, all byte tokens, a user-defined one, and `pieces` with their scores.
fn sentence_piece(pieces: &[(&str, f32)]) -> Lists {
    let mut lists = Lists { model: "llama", ..Lists::default() };
    for (text, kind) in
        [("<unk>", 2), ("<s>", CONTROL), ("</s>", CONTROL), ("<tool>", USER_DEFINED)]
    {
        lists.push(text, kind, 0.0);
    }
    for byte in 0..=255 {
        lists.push(&format!("<0x{byte:02X}>"), BYTE, 0.0);
    }
    for &(text, score) in pieces {
        lists.push(text, 1, score);
    }
    lists
}

fn build(lists: &Lists) -> Tokenizer {
    Tokenizer::new(&lists.vocabulary()).unwrap()
}

fn refused(vocabulary: &Vocabulary<'_>) -> TokenizerError {
    Tokenizer::new(vocabulary).unwrap_err()
}

/// xorshift: seeded and printed by whoever fails.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    fn word(&mut self, alphabet: &[char], longest: usize) -> String {
        (0..self.below(longest) + 1).map(|_| alphabet[self.below(alphabet.len())]).collect()
    }
}

#[test]
fn byte_level_merges_equal_a_naive_search() {
    for seed in 1..=200 {
        let mut random = Random(seed);
        let mut parts = vec!["a".to_owned(), "b".into(), "c".into()];
        let mut merges: Vec<(String, String)> = Vec::new();
        for _ in 0..12 {
            let (left, right) = (random.below(parts.len()), random.below(parts.len()));
            let (left, right) = (parts[left].clone(), parts[right].clone());
            let result = [left.as_str(), &right].concat();
            if !parts.contains(&result) {
                parts.push(result);
                merges.push((left, right));
            }
        }
        let written: Vec<String> = merges.iter().map(|(l, r)| format!("{l} {r}")).collect();
        let lists = byte_level(&written.iter().map(String::as_str).collect::<Vec<_>>());
        let tokenizer = build(&lists);
        for _ in 0..20 {
            let text = random.word(&['a', 'b', 'c'], 30);
            let mut symbols: Vec<String> = text.chars().map(String::from).collect();
            while let Some((_, at)) = (1..symbols.len())
                .filter_map(|at| {
                    let pair = (symbols[at - 1].clone(), symbols[at].clone());
                    Some((merges.iter().position(|merge| *merge == pair)?, at))
                })
                .min()
            {
                let right = symbols.remove(at);
                symbols[at - 1] += &right;
            }
            let expected: Vec<u32> = symbols.iter().map(|symbol| lists.id(symbol)).collect();
            assert_eq!(tokenizer.encode(&text, false), expected, "seed {seed}: {text} {written:?}");
            assert_eq!(tokenizer.decode(&expected), text);
        }
    }
}

#[test]
fn sentence_piece_merges_equal_a_naive_search() {
    for seed in 1..=200 {
        let mut random = Random(seed);
        let mut pieces: Vec<(String, f32)> =
            vec![("a".into(), -9.0), ("é".into(), -9.0), ("\u{2581}".into(), -9.0)];
        for _ in 0..14 {
            let text = random.word(&['a', 'b', 'é', '\u{2581}', '語'], 4);
            let score = -(random.below(6) as f32) / 2.0;
            if pieces.iter().all(|(piece, _)| *piece != text) {
                pieces.push((text, score));
            }
        }
        let borrowed: Vec<(&str, f32)> = pieces.iter().map(|(text, s)| (&**text, *s)).collect();
        let lists = sentence_piece(&borrowed);
        let tokenizer = build(&lists);
        let score = |text: &str| pieces.iter().find(|(piece, _)| piece == text).map(|pair| pair.1);
        for _ in 0..20 {
            let text = random.word(&['a', 'b', 'é', ' ', '語', '😀'], 24);
            let escaped = format!("\u{2581}{}", text.replace(' ', "\u{2581}"));
            let mut symbols: Vec<String> = escaped.chars().map(String::from).collect();
            loop {
                let mut best: Option<(f32, usize)> = None;
                for at in 1..symbols.len() {
                    let joined = [&*symbols[at - 1], &*symbols[at]].concat();
                    match (score(&joined), best) {
                        (Some(found), Some((highest, _))) if found <= highest => {}
                        (Some(found), _) => best = Some((found, at)),
                        (None, _) => {}
                    }
                }
                let Some((_, at)) = best else { break };
                let right = symbols.remove(at);
                symbols[at - 1] += &right;
            }
            let mut expected = Vec::new();
            for symbol in &symbols {
                match score(symbol) {
                    Some(_) => expected.push(lists.id(symbol)),
                    None => expected.extend(symbol.bytes().map(|byte| 4 + u32::from(byte))),
                }
            }
            assert_eq!(
                tokenizer.encode(&text, false),
                expected,
                "seed {seed}: {text:?} {pieces:?}"
            );
            assert_eq!(tokenizer.decode(&expected), text, "seed {seed}");
        }
    }
}

#[test]
fn control_tokens_come_only_from_control() {
    let lists = byte_level(&["i m", "< |"]);
    let tokenizer = build(&lists);
    let end = lists.id("<|im_end|>");
    let text = "hi<|im_end|><think>";
    assert!(!tokenizer.encode(text, false).contains(&end));
    let parsed = tokenizer.encode_with_control(text, false);
    assert_eq!(parsed[2..], [end, lists.id("<think>")]);
    assert_eq!(tokenizer.encode(text, false).last(), parsed.last(), "user-defined tokens are text");
    assert_eq!(tokenizer.decode(&parsed), "hi<think>");
    assert_eq!(tokenizer.decode_with_control(&parsed), text);
    assert_eq!(tokenizer.decode(&tokenizer.encode(text, false)), text);
}

#[test]
fn no_merge_makes_a_control_token() {
    let mut lists = byte_level(&["a b", "ab c"]);
    let made = lists.id("abc") as usize;
    lists.types[made] = CONTROL;
    assert_eq!(build(&lists).encode("abc", false), [lists.id("ab"), lists.id("c")]);
    let lists = sentence_piece(&[("</", -1.0), ("s>", -1.0), ("</s>", -2.0)]);
    let mut lists = Lists { tokens: lists.tokens, ..lists };
    lists.tokens[2] = "<other>".into();
    let made = lists.id("</s>") as usize;
    lists.types[made] = CONTROL;
    let tokens = build(&lists).encode("</s><0x41>", false);
    assert_eq!(tokens[3..5], [lists.id("</"), lists.id("s>")], "after three bytes of a space");
    assert!(!tokens.contains(&lists.id("<0x41>")));
}

#[test]
fn the_longest_special_token_counts() {
    let mut lists = byte_level(&[]);
    lists.push("<|im_end|>>", CONTROL, 0.0);
    let tokenizer = build(&lists);
    let (end, longer) = (lists.id("<|im_end|>"), lists.id("<|im_end|>>"));
    let tokens = tokenizer.encode_with_control("<|im_end|>><|im_end|>", false);
    assert_eq!(tokens, [longer, end]);
}

#[test]
fn texts_start_and_end_as_the_model_was_trained() {
    let lists = byte_level(&[]);
    let (bos, eos) = (lists.id("<s>"), lists.id("<|im_end|>"));
    let with = |pre, add_bos, add_eos, bos, eos| {
        let vocabulary =
            Vocabulary { pre: Some(pre), bos, eos, add_bos, add_eos, ..lists.vocabulary() };
        Tokenizer::new(&vocabulary).map(|tokenizer| {
            assert!(tokenizer.encode("", false).is_empty());
            tokenizer.encode("", true)
        })
    };
    assert_eq!(with("gpt-2", None, None, Some(bos), Some(eos)), Ok(vec![]));
    assert_eq!(with("llama-bpe", None, None, Some(bos), Some(eos)), Ok(vec![bos]));
    assert_eq!(with("llama-bpe", None, None, None, None), Ok(vec![]));
    assert_eq!(with("llama-bpe", Some(false), None, Some(bos), None), Ok(vec![]));
    assert_eq!(with("qwen2", Some(true), Some(true), Some(bos), Some(eos)), Ok(vec![bos, eos]));
    let missing = with("qwen2", Some(true), None, None, None).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "tokenizer.ggml.add_bos_token is true, and tokenizer.ggml.bos_token_id is missing"
    );
    let lists = sentence_piece(&[]);
    let vocabulary = Vocabulary { bos: Some(1), eos: Some(2), ..lists.vocabulary() };
    assert_eq!(Tokenizer::new(&vocabulary).unwrap().encode("", true), [1]);
}

#[test]
fn every_end_token_ends() {
    let mut lists = byte_level(&[]);
    lists.push("<|eot_id|>", CONTROL, 0.0);
    lists.push("<|end|>", USER_DEFINED, 0.0);
    lists.push("<|endoftext|>", 1, 0.0);
    lists.push("<custom>", 1, 0.0);
    let vocabulary = Vocabulary { eot: Some(lists.id("<custom>")), ..lists.vocabulary() };
    let tokenizer = Tokenizer::new(&vocabulary).unwrap();
    let ends = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<custom>"].map(|text| lists.id(text));
    assert_eq!(tokenizer.ends(), ends);
    assert!(ends.iter().all(|&end| tokenizer.is_end(end) && tokenizer.is_control(end)));
    assert!(!tokenizer.is_end(lists.id("<|endoftext|>")), "a normal token is text");
    assert_eq!(tokenizer.encode("<custom>", false).len(), 8, "an end token is no text");
}

#[test]
fn streams_give_whole_characters() {
    let lists = byte_level(&[]);
    let tokenizer = build(&lists);
    let tokens = tokenizer.encode("é😀", false);
    let mut stream = tokenizer.stream(&[]);
    let parts: Vec<String> = tokens.iter().map(|&token| stream.push(token)).collect();
    assert_eq!(parts, ["", "é", "", "", "", "😀"]);
    assert_eq!(stream.finish(), "");

    let mut stream = tokenizer.stream(&[]);
    assert_eq!(stream.push(tokens[2]), "");
    assert_eq!(stream.push(lists.id("<|im_end|>")), "", "a control token is no text");
    assert_eq!(stream.push(lists.id("x")), "\u{fffd}x", "the character was never completed");
    assert_eq!(stream.push(tokens[1]), "\u{fffd}", "a continuation of nothing");
    assert_eq!(stream.push(tokens[0]), "");
    assert_eq!(stream.push(u32::MAX), "", "no such token");
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
fn the_space_that_encoding_adds_is_taken_away_again() {
    let lists = sentence_piece(&[("\u{2581}", -1.0), ("a", -1.0), ("\u{2581}a", -0.5)]);
    let tokenizer = build(&lists);
    let word = lists.id("\u{2581}a");
    assert_eq!(tokenizer.encode("a a", false), [word, word]);
    assert_eq!(tokenizer.encode_with_control("a</s>a", false), [word, 2, word]);
    assert_eq!(tokenizer.encode("a<tool>a", false), [word, 3, word]);
    assert_eq!(tokenizer.decode(&[1, word, word]), "a a");
    assert_eq!(tokenizer.stream(&[1]).push(word), "a", "after a control token");
    assert_eq!(tokenizer.stream(&[1, word]).push(word), " a", "in the middle of a text");
    let none = Vocabulary { add_space_prefix: Some(false), ..lists.vocabulary() };
    let none = Tokenizer::new(&none).unwrap();
    assert_eq!(none.encode("a", false), [lists.id("a")]);
    assert_eq!(none.decode(&[word]), " a");
}

#[test]
fn characters_outside_the_vocabulary_become_bytes_or_unknown() {
    let lists = sentence_piece(&[("\u{2581}", -1.0)]);
    let bytes = build(&lists).encode("\u{7}é", false);
    assert_eq!(bytes[1..], [7, 0xc3, 0xa9].map(|byte| 4 + byte));
    let space = lists.id("\u{2581}");

    let keep = [0, 1, 2, space as usize];
    let few = Lists {
        model: "llama",
        tokens: keep.iter().map(|&id| lists.tokens[id].clone()).collect(),
        types: keep.iter().map(|&id| lists.types[id]).collect(),
        scores: vec![0.0; 4],
        merges: Vec::new(),
    };
    let unknown = Vocabulary { unknown: Some(0), ..few.vocabulary() };
    assert_eq!(Tokenizer::new(&unknown).unwrap().encode("é ", false), [3, 0, 3]);
    assert_eq!(refused(&few.vocabulary()), TokenizerError::NoFallback { byte: 0 });
}

#[test]
fn long_texts_of_one_kind_are_encoded() {
    let bytes = build(&byte_level(&["a a", "aa aa", "Ġ Ġ"]));
    let pieces = build(&sentence_piece(&[
        ("a", -3.0),
        ("aa", -1.0),
        ("\u{2581}", -9.0),
        ("\u{2581}\u{2581}", -1.0),
    ]));
    for unit in ["a", " ", "\n", "9", "=", "é", "😀", "<|im_end|", "<"] {
        let text = unit.repeat((1 << 18) / unit.len());
        assert_eq!(bytes.decode(&bytes.encode_with_control(&text, true)), text, "{unit:?}");
        assert_eq!(pieces.decode(&pieces.encode(&text, true)), text, "{unit:?}");
    }
}

#[test]
fn bad_vocabularies_are_refused() {
    let lists = byte_level(&["a b"]);
    let good = lists.vocabulary();
    let text = |vocabulary: Vocabulary<'_>| refused(&vocabulary).to_string();

    let model = text(Vocabulary { model: "bert", ..good.clone() });
    assert!(model.contains("\"bert\"") && model.contains("\"gpt2\""), "{model}");
    let pre = text(Vocabulary { pre: Some("gpt-5"), ..good.clone() });
    assert!(pre.contains("\"gpt-5\"") && pre.contains("qwen2"), "{pre}");
    assert!(text(Vocabulary { pre: None, ..good.clone() }).contains("tokenizer.ggml.pre"));
    assert!(text(Vocabulary { merges: None, ..good.clone() }).contains("tokenizer.ggml.merges"));

    for (merge, expected) in [
        ("ab", "not two tokens"),
        (" ab", "not two tokens"),
        ("a ", "not two tokens"),
        ("a b c", "not two tokens"),
        ("", "not two tokens"),
        ("a zz", "\"zz\" is not in the vocabulary"),
        ("a c", "\"ac\" is not in the vocabulary"),
    ] {
        let merges = ["a b".to_owned(), merge.to_owned()];
        let error = text(Vocabulary { merges: Some(&merges), ..good.clone() });
        assert!(error.starts_with("merge 1") && error.contains(expected), "{error}");
    }
    let tokens = lists.tokens.len();
    for (key, bad) in [
        ("bos_token_id", Vocabulary { bos: Some(tokens as u32), ..good.clone() }),
        ("eos_token_id", Vocabulary { eos: Some(u32::MAX), ..good.clone() }),
        ("unknown_token_id", Vocabulary { unknown: Some(1 << 31), ..good.clone() }),
    ] {
        let error = text(bad);
        assert!(error.contains(key) && error.contains(&tokens.to_string()), "{error}");
    }
    let short = text(Vocabulary { types: Some(vec![1; 3]), ..good.clone() });
    assert_eq!(short, format!("tokenizer.ggml.token_type has 3 entries for {tokens} tokens"));
    let mut types = lists.types.clone();
    types[7] = 9;
    let kind = text(Vocabulary { types: Some(types), ..good.clone() });
    assert_eq!(kind, "token 7 has the type 9; types are 0 to 6");
}

#[test]
fn bad_tokens_are_refused() {
    let mut twice = byte_level(&[]);
    twice.push("<s>", 1, 0.0);
    let second = twice.tokens.len() as u32 - 1;
    let first = second - 4;
    let expected = TokenizerError::Duplicate { text: "<s>".into(), first, second };
    assert_eq!(refused(&twice.vocabulary()), expected);

    let many = vec![String::new(); (1 << 24) + 1];
    let too_many = Vocabulary { tokens: &many, types: None, ..twice.vocabulary() };
    assert!(refused(&too_many).to_string().contains("16777217 tokens"));

    let mut long = byte_level(&[]);
    long.push(&"x".repeat(1 << 21), CONTROL, 0.0);
    assert!(refused(&long.vocabulary()).to_string().contains("2097"));

    let pieces = sentence_piece(&[("a", f32::NAN)]);
    assert_eq!(refused(&pieces.vocabulary()), TokenizerError::Score { token: pieces.id("a") });
    let scores = Vocabulary { scores: None, ..pieces.vocabulary() };
    assert!(refused(&scores).to_string().contains("tokenizer.ggml.scores"));
    let scores = Vocabulary { scores: Some(&[1.0]), ..pieces.vocabulary() };
    assert!(refused(&scores).to_string().contains("tokenizer.ggml.scores has 1 entries"));

    for name in ["<0x4>", "<0xZZ>", "<0x+1>", "A", "<0x041>"] {
        let mut pieces = sentence_piece(&[]);
        pieces.push(name, BYTE, 0.0);
        let error = refused(&pieces.vocabulary()).to_string();
        assert!(error.contains("type byte") && error.contains(name), "{error}");
        let mut bytes = byte_level(&[]);
        bytes.push(&format!("{name} "), BYTE, 0.0);
        assert!(refused(&bytes.vocabulary()).to_string().contains("type byte"));
    }
}

#[test]
fn an_empty_vocabulary_encodes_nothing() {
    let empty = Vocabulary {
        model: "gpt2",
        pre: Some("default"),
        merges: Some(&[]),
        ..Vocabulary::default()
    };
    let tokenizer = Tokenizer::new(&empty).unwrap();
    assert!(tokenizer.encode("any text", true).is_empty());
    assert_eq!(tokenizer.decode(&[0, 1, u32::MAX]), "");
    assert_eq!(tokenizer.vocab(), 0);
}
