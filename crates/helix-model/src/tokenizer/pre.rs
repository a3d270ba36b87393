//! Named pre-tokenizers: how text is cut into pieces before byte-level merges.
//!
//! Each name stands for the regular expressions in the `tokenizer.json` of the models that it is
//! named after. They all run in linear time here, on `regex-automata`: backtracking engines take
//! a stack entry per character on them, and give up on long runs of spaces
//! (`docs/decisions/006-own-tokenizers.md`). The one construct that a finite automaton lacks,
//! `\s+(?!\S)`, is [`Stage::words`]'s rule about white space.

use std::ops::Range;

use regex_automata::meta::Regex;
use regex_automata::{Input, PatternID};

use super::TokenizerError;
use super::pattern::Pattern;

/// How a family of models cuts text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Default,
    Gpt2,
    Starcoder,
    Falcon,
    /// cl100k and its descendants, with this many digits in a piece at most.
    Cl100k {
        digits: u8,
    },
    Qwen35,
    /// As `Cl100k`, with case, and marks belonging to letters.
    Gpt4o,
    /// As `Gpt4o`, with Chinese characters apart from other letters.
    Kimi,
    Tekken,
    DeepseekLlm,
    DeepseekCoder,
    DeepseekV3,
    Bailing,
    SeedCoder,
    Bloom,
    Viking,
}

/// A pre-tokenizer's name in GGUF files, and what goes with it.
struct Named {
    name: &'static str,
    rule: Rule,
    /// A piece that is a token as a whole becomes that token, whatever merges would make of it.
    whole: bool,
    /// Texts start with the BOS token unless the file says otherwise.
    bos: bool,
}

const fn named(name: &'static str, rule: Rule) -> Named {
    Named { name, rule, whole: false, bos: false }
}

const fn whole(name: &'static str, rule: Rule) -> Named {
    Named { whole: true, ..named(name, rule) }
}

const fn whole_after_bos(name: &'static str, rule: Rule) -> Named {
    Named { bos: true, ..whole(name, rule) }
}

const CL100K: Rule = Rule::Cl100k { digits: 3 };
const QWEN2: Rule = Rule::Cl100k { digits: 1 };

/// Source of names and flags: llama.cpp's converter and `llama-vocab.cpp`.
const KNOWN: [Named; 63] = [
    named("default", Rule::Default),
    named("gpt-2", Rule::Gpt2),
    named("phi-2", Rule::Gpt2),
    named("mpt", Rule::Gpt2),
    named("olmo", Rule::Gpt2),
    named("jais", Rule::Gpt2),
    named("trillion", Rule::Gpt2),
    named("exaone4", Rule::Gpt2),
    named("a.x-4.0", Rule::Gpt2),
    named("mellum", Rule::Gpt2),
    named("gigachat", Rule::Gpt2),
    named("granite-docling", Rule::Gpt2),
    named("starcoder", Rule::Starcoder),
    named("refact", Rule::Starcoder),
    named("command-r", Rule::Starcoder),
    named("smollm", Rule::Starcoder),
    named("codeshell", Rule::Starcoder),
    named("exaone", Rule::Starcoder),
    named("minerva-7b", Rule::Starcoder),
    named("mellum2", Rule::Starcoder),
    named("falcon", Rule::Falcon),
    whole_after_bos("llama-bpe", CL100K),
    whole_after_bos("llama3", CL100K),
    whole_after_bos("llama-v3", CL100K),
    whole_after_bos("falcon3", CL100K),
    whole_after_bos("falcon-h1", CL100K),
    whole_after_bos("pixtral", CL100K),
    whole_after_bos("midm-2.0", CL100K),
    whole_after_bos("lfm2", CL100K),
    named("dbrx", CL100K),
    named("smaug-bpe", CL100K),
    named("chatglm-bpe", CL100K),
    whole("glm4", CL100K),
    named("qwen2", QWEN2),
    named("deepseek-r1-qwen", QWEN2),
    named("kormo", QWEN2),
    named("f2llmv2", QWEN2),
    named("stablelm2", QWEN2),
    named("hunyuan", QWEN2),
    named("solar-open", QWEN2),
    named("megrez", QWEN2),
    named("grok-2", QWEN2),
    named("qwen35", Rule::Qwen35),
    named("gpt-4o", Rule::Gpt4o),
    named("llama4", Rule::Gpt4o),
    named("kanana2", Rule::Gpt4o),
    named("minimax-m2", Rule::Gpt4o),
    named(KIMI, Rule::Kimi),
    whole_after_bos("tekken", Rule::Tekken),
    named("deepseek-llm", Rule::DeepseekLlm),
    named("deepseek-coder", Rule::DeepseekCoder),
    named("deepseek-v3", Rule::DeepseekV3),
    named("hunyuan-dense", Rule::DeepseekV3),
    named("joyai-llm", Rule::DeepseekV3),
    named("hy_v4", Rule::DeepseekV3),
    named("bailingmoe", Rule::Bailing),
    named("bailingmoe2", Rule::Bailing),
    named("llada-moe", Rule::Bailing),
    named("seed-coder", Rule::SeedCoder),
    named("bloom", Rule::Bloom),
    named("gpt3-finnish", Rule::Bloom),
    named("poro-chat", Rule::Bloom),
    named("viking", Rule::Viking),
];

/// The name of Kimi's, which a directory's `tiktoken.model` has, too.
pub(super) const KIMI: &str = "kimi-k2";

/// The words of GPT-2, which `ByteLevel` in `tokenizer.json` means as well.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+";

impl Rule {
    /// The cuts, in the order they are made: each works on the pieces of the one before.
    fn stages(self) -> Vec<Stage> {
        const DIGIT: &str = r"\p{N}";
        const THREE: &str = "[0-9][0-9][0-9]";
        const CJK: &str = "[一-龥ࠀ-一가-퟿]+";
        match self {
            Rule::Default => vec![
                Stage::isolate(r"[\p{P}$+<=>^~|]+"),
                Stage::words(GPT2),
                Stage::isolate(r"\p{N}+"),
                Stage::isolate(THREE),
            ],
            Rule::Gpt2 => vec![Stage::words(GPT2)],
            Rule::Starcoder => vec![Stage::isolate(DIGIT), Stage::words(GPT2)],
            Rule::Falcon => vec![
                Stage::isolate(r"[\p{P}$+<=>^~|`]+"),
                Stage::words(GPT2),
                Stage::isolate(THREE),
            ],
            Rule::Cl100k { digits } => vec![Stage::words(&format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,{digits}}}{}",
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            ))],
            Rule::Qwen35 => vec![Stage::words(concat!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
                r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
            ))],
            Rule::Gpt4o => vec![Stage::words(&format!(
                "{}{}",
                cased(CONTRACTIONS, r"\p{N}{1,3}", ""),
                r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
            ))],
            Rule::Kimi => vec![Stage::words(&format!(
                r"[\p{{Han}}]+|{}{}",
                cased(CONTRACTIONS, r"\p{N}{1,3}", r"&&[^\p{Han}]"),
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            ))],
            Rule::Tekken => vec![Stage::words(&format!(
                "{}{}",
                cased("", r"\p{N}", ""),
                r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
            ))],
            Rule::DeepseekLlm => vec![
                Stage::isolate(r"[\r\n]"),
                Stage::isolate(&format!(r"\s?[{CASED_LETTERS}]+")),
                Stage::isolate(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
                Stage::isolate(r"\s+\z"),
                Stage::isolate(CJK),
                Stage::isolate(r"\p{N}+"),
            ],
            Rule::DeepseekCoder => vec![
                Stage::isolate(r"[\r\n]"),
                Stage::isolate(r"\s?\p{L}+"),
                Stage::isolate(r"\s?\p{P}+"),
                Stage::isolate(CJK),
                Stage::isolate(DIGIT),
            ],
            Rule::DeepseekV3 => vec![
                Stage::isolate(r"\p{N}{1,3}"),
                Stage::isolate("[一-龥぀-ゟ゠-ヿ]+"),
                Stage::words(concat!(
                    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
                    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"
                )),
            ],
            Rule::Bailing => vec![Stage::words(concat!(
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]"
            ))],
            Rule::SeedCoder => vec![Stage::words(concat!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
                r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
            ))],
            Rule::Bloom => vec![Stage::isolate(r" ?[^(\s|.,!?…。，、।۔،)]+")],
            Rule::Viking => {
                vec![Stage::isolate(r" ?[^(\s|.,!?…。，、।۔،)]+"), Stage::isolate(DIGIT)]
            }
        }
    }
}

/// What may follow a word.
const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?";

/// Words cut where lower case is followed by upper case, with `suffix` after them, and `digits`. Of
/// the letters, `without` takes some away.
fn cased(suffix: &str, digits: &str, without: &str) -> String {
    let upper = format!(r"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{without}]");
    let lower = format!(r"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{without}]");
    let lead = r"[^\r\n\p{L}\p{N}]?";
    format!("{lead}{upper}*{lower}+{suffix}|{lead}{upper}+{lower}*{suffix}|{digits}")
}

/// The letters with case that DeepSeek-LLM's `tokenizer.json` lists: not all that Unicode has.
const CASED_LETTERS: &str = concat!(
    r"A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}",
    r"\u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}",
    r"\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}",
    r"\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}",
    r"\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}",
    r"\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}",
    r"\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}",
    r"\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}",
    r"\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}",
    r"\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}",
    r"\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}",
    r"\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}",
    r"\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}",
    r"\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}",
    r"\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}",
    r"\u{1e900}-\u{1e943}",
);

/// A pre-tokenizer that is ready to cut.
pub(super) struct PreTokenizer {
    stages: Vec<Stage>,
    whole: bool,
    bos: bool,
}

impl PreTokenizer {
    /// The pre-tokenizer of this name.
    pub fn named(name: &str) -> Result<PreTokenizer, TokenizerError> {
        let found = KNOWN.iter().find(|known| known.name == name);
        let Named { rule, whole, bos, .. } = *found.ok_or_else(|| {
            let known: Vec<&str> = KNOWN.iter().map(|known| known.name).collect();
            TokenizerError::PreTokenizer { name: name.to_owned(), known: known.join(", ") }
        })?;
        Ok(PreTokenizer { stages: rule.stages(), whole, bos })
    }

    /// One that cuts by `stages`.
    pub fn of(stages: Vec<Stage>, whole: bool) -> PreTokenizer {
        PreTokenizer { stages, whole, bos: false }
    }

    /// Whether a piece that is a token becomes that token without any merging.
    pub fn takes_whole_tokens(&self) -> bool {
        self.whole
    }

    /// Whether texts start with the BOS token unless the file says otherwise.
    pub fn starts_with_bos(&self) -> bool {
        self.bos
    }

    /// Gives `each` the pieces of `text` in order. Together they are `text`, unless a stage leaves
    /// something out.
    pub fn split<'t>(&self, text: &'t str, each: &mut dyn FnMut(&'t str)) {
        fn cut<'t>(stages: &[Stage], text: &'t str, each: &mut dyn FnMut(&'t str)) {
            match stages.split_first() {
                Some((first, rest)) => first.split(text, &mut |piece| cut(rest, piece, each)),
                None => each(text),
            }
        }
        cut(&self.stages, text, each);
    }
}

/// What becomes of the matches of an expression, and of the text between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behavior {
    /// Both are pieces.
    Isolated,
    /// Matches are left out.
    Removed,
    /// What is between them is left out.
    Kept,
    /// A match belongs to the piece before it.
    MergedWithPrevious,
    /// A match belongs to the piece behind it.
    MergedWithNext,
}

/// One expression that text is cut by.
pub(super) struct Stage {
    regex: Regex,
    behavior: Behavior,
}

impl Stage {
    /// Matches become pieces, and so does the text between two matches.
    pub fn isolate(pattern: &str) -> Stage {
        Stage::known(&[pattern])
    }

    /// `pattern|\s+(?!\S)|\s+`: of a run of white space that is no part of a word, all but the last
    /// character is a piece, as the last one may belong to the word that follows; at the end of the
    /// text, or if it is one character, the whole run is.
    fn words(pattern: &str) -> Stage {
        Stage::known(&[pattern, SPACES])
    }

    /// What `ByteLevel` does by itself.
    pub fn gpt2() -> Stage {
        Stage::words(GPT2)
    }

    fn known(patterns: &[&str]) -> Stage {
        let regex = Regex::new_many(patterns).expect("the expressions of this file are valid");
        Stage { regex, behavior: Behavior::Isolated }
    }

    /// An expression of a file.
    pub fn of_pattern(pattern: &str, behavior: Behavior) -> Result<Stage, TokenizerError> {
        let Pattern { regex, words } = Pattern::new(pattern)?;
        let patterns: &[&str] = if words { &[&regex, SPACES] } else { &[&regex] };
        Stage::compile(pattern, patterns, behavior)
    }

    /// A text of a file.
    pub fn of_literal(literal: &str, behavior: Behavior) -> Result<Stage, TokenizerError> {
        Stage::compile(literal, &[&Pattern::literal(literal).regex], behavior)
    }

    fn compile(
        pattern: &str,
        patterns: &[&str],
        behavior: Behavior,
    ) -> Result<Stage, TokenizerError> {
        let regex = Regex::new_many(patterns).map_err(|error| TokenizerError::Pattern {
            pattern: pattern.chars().take(200).collect(),
            problem: error.to_string(),
        })?;
        Ok(Stage { regex, behavior })
    }

    fn split<'t>(&self, text: &'t str, each: &mut dyn FnMut(&'t str)) {
        let mut emit = |piece: Range<usize>| {
            if !piece.is_empty() {
                each(&text[piece]);
            }
        };
        // Where the piece starts that is not given out yet, and where to search.
        let (mut start, mut from) = (0, 0);
        while let Some(found) = self.regex.search(&Input::new(text).range(from..)) {
            let mut piece = found.range();
            if found.pattern() == PatternID::must(1) && piece.end < text.len() {
                let (last, _) = text[piece.clone()].char_indices().next_back().unwrap_or_default();
                piece.end = if last == 0 { piece.end } else { piece.start + last };
            }
            if piece.is_empty() {
                // An expression of a file may match nothing, which cuts nothing.
                let Some(c) = text[piece.end..].chars().next() else { break };
                from = piece.end + c.len_utf8();
                continue;
            }
            from = piece.end;
            match self.behavior {
                Behavior::Isolated => {
                    emit(start..piece.start);
                    emit(piece.clone());
                }
                Behavior::Removed => emit(start..piece.start),
                Behavior::Kept => emit(piece.clone()),
                Behavior::MergedWithPrevious => emit(start..piece.end),
                Behavior::MergedWithNext => {
                    emit(start..piece.start);
                    start = piece.start;
                    continue;
                }
            }
            start = piece.end;
        }
        if self.behavior != Behavior::Kept {
            emit(start..text.len());
        }
    }
}

/// The second of two expressions, which leaves its last character to the word behind it.
const SPACES: &str = r"\s+";

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        let mut pieces = Vec::new();
        PreTokenizer::named(name).unwrap().split(text, &mut |piece| pieces.push(piece));
        pieces
    }

    #[test]
    fn white_space_leaves_its_last_character_to_the_word_behind_it() {
        assert_eq!(pieces("gpt-2", "a   b"), ["a", "  ", " b"]);
        assert_eq!(pieces("gpt-2", "a\n\nb  "), ["a", "\n", "\n", "b", "  "]);
        assert_eq!(pieces("llama-bpe", "a \n\n  b\t"), ["a", " \n\n", " ", " b", "\t"]);
        assert_eq!(pieces("qwen2", "\u{a0}\u{2003}x"), ["\u{a0}", "\u{2003}x"]);
    }

    #[test]
    fn families_cut_digits_contractions_and_case_their_own_way() {
        assert_eq!(pieces("gpt-2", "it's 12345"), ["it", "'s", " 12345"]);
        assert_eq!(pieces("smollm", "IT'S 123"), ["IT", "'", "S", " ", "1", "2", "3"]);
        assert_eq!(pieces("llama-bpe", "IT'S 12345"), ["IT", "'S", " ", "123", "45"]);
        assert_eq!(pieces("qwen2", "x=12"), ["x", "=", "1", "2"]);
        assert_eq!(pieces("tekken", "fooBar ÉTÉété"), ["foo", "Bar", " ÉTÉété"]);
        assert_eq!(pieces("gpt-4o", "HTTPServer's"), ["HTTPServer's"]);
        assert_eq!(
            pieces("kimi-k2", "fooBar's漢字x1234"),
            ["foo", "Bar's", "漢字", "x", "123", "4"]
        );
        assert_eq!(pieces("deepseek-v3", "abc漢字1234"), ["abc", "漢字", "123", "4"]);
        assert_eq!(pieces("deepseek-coder", "a\r\nb  "), ["a", "\r", "\n", "b", "  "]);
    }

    #[test]
    fn pieces_are_the_text_and_long_runs_are_no_problem() {
        let text = format!("x{}y\u{301}\0{}", " ".repeat(1 << 20), "=".repeat(1 << 16));
        for known in &KNOWN {
            let pieces = pieces(known.name, &text);
            assert!(pieces.iter().all(|piece| !piece.is_empty()), "{}", known.name);
            assert_eq!(pieces.concat(), text, "{}", known.name);
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let error = PreTokenizer::named("llama-7").err().unwrap().to_string();
        assert!(error.contains("\"llama-7\"") && error.contains("llama-bpe, "), "{error}");
    }
}
