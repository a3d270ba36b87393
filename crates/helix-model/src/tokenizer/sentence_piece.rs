//! SentencePiece's BPE: merges over characters, ranked by the score of what they make.
//!
//! Spaces are written `▁`. A character that no token holds becomes byte tokens, or the unknown
//! token in a vocabulary without them. Source: SentencePiece's `bpe_model.cc`.

use std::collections::{HashMap, HashSet};

use super::TokenizerError;
use super::merge::{Merged, Merger, Rules, Symbol};
use super::vocabulary::{Kind, Names};

/// What stands for a space inside tokens.
pub(super) const SPACE: &str = "\u{2581}";

/// The byte that a token such as `<0x0A>` stands for.
pub(super) fn byte_value(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// A SentencePiece BPE vocabulary.
pub(super) struct SentencePiece {
    /// Every token that text can become by merging: neither control nor byte tokens, so that
    /// `</s>` or `<0x0A>` in a text stay the characters that they are.
    tokens: HashMap<Box<str>, Scored>,
    /// Bytes of the longest of them: nothing longer is looked up.
    longest: usize,
    /// Characters that are neighbours in some token. Between any others nothing ever merges, so
    /// text is cut there, mostly into words: many short searches instead of one long one.
    neighbours: HashSet<(char, char)>,
    /// What the bytes of unknown characters become.
    bytes: [Option<u32>; 256],
    unknown: Option<u32>,
    add_space_prefix: bool,
}

struct Scored {
    token: u32,
    score: Score,
}

/// A score that is not NaN; -0.0 has become 0.0, so that bits and value order alike.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Score(f32);

impl Eq for Score {}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl SentencePiece {
    /// `scores` has one entry per token.
    pub fn new(
        names: &Names<'_>,
        scores: &[f32],
        unknown: Option<u32>,
        add_space_prefix: bool,
    ) -> Result<SentencePiece, TokenizerError> {
        let mut tokens: HashMap<Box<str>, Scored> = HashMap::new();
        let mut bytes = [None; 256];
        for ((token, text, kind), &score) in names.iter().zip(scores) {
            if score.is_nan() {
                return Err(TokenizerError::Score { token });
            }
            match kind {
                Kind::Byte => {
                    let byte = byte_value(text).ok_or_else(|| TokenizerError::ByteToken {
                        token,
                        text: text.to_owned(),
                    })?;
                    bytes[usize::from(byte)] = Some(token);
                }
                Kind::Normal | Kind::UserDefined | Kind::Unused if !text.is_empty() => {
                    tokens.insert(text.into(), Scored { token, score: Score(score + 0.0) });
                }
                _ => {}
            }
        }
        if unknown.is_none()
            && let Some(byte) = (0..=255).find(|&byte| bytes[usize::from(byte)].is_none())
        {
            return Err(TokenizerError::NoFallback { byte });
        }
        let longest = tokens.keys().map(|text| text.len()).max().unwrap_or(0);
        let mut neighbours = HashSet::new();
        for text in tokens.keys() {
            neighbours.extend(text.chars().zip(text.chars().skip(1)));
        }
        Ok(SentencePiece { tokens, longest, neighbours, bytes, unknown, add_space_prefix })
    }

    /// Whether text that starts, or that follows a special token, gets a space before it.
    pub fn adds_space_prefix(&self) -> bool {
        self.add_space_prefix
    }

    /// Appends the tokens of `text`, which starts the whole text or follows a special token.
    pub fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let mut escaped = String::with_capacity(text.len() + text.len() / 4 + SPACE.len());
        if self.add_space_prefix {
            escaped.push_str(SPACE);
        }
        for (index, part) in text.split(' ').enumerate() {
            escaped.push_str(if index == 0 { "" } else { SPACE });
            escaped.push_str(part);
        }
        let mut merger = Merger::new();
        let mut start = 0;
        for ((_, left), (at, right)) in escaped.char_indices().zip(escaped.char_indices().skip(1)) {
            if !self.neighbours.contains(&(left, right)) {
                self.encode_piece(&escaped[start..at], &mut merger, out);
                start = at;
            }
        }
        self.encode_piece(&escaped[start..], &mut merger, out);
    }

    fn encode_piece(&self, piece: &str, merger: &mut Merger<Score>, out: &mut Vec<u32>) {
        let characters = piece.char_indices().map(|(start, c)| {
            let character = &piece[start..start + c.len_utf8()];
            (character.len(), self.tokens.get(character).map(|scored| scored.token))
        });
        for symbol in merger.run(self, piece, characters) {
            match symbol.token {
                Some(token) => out.push(token),
                None => {
                    let bytes = &piece.as_bytes()[symbol.start..symbol.start + symbol.len];
                    self.fall_back(bytes, out);
                }
            }
        }
    }

    fn fall_back(&self, character: &[u8], out: &mut Vec<u32>) {
        let tokens = character.iter().map(|&byte| self.bytes[usize::from(byte)]);
        match tokens.collect::<Option<Vec<u32>>>() {
            Some(tokens) => out.extend(tokens),
            None => out.extend(self.unknown),
        }
    }
}

impl Rules for SentencePiece {
    type Rank = Score;

    fn merge(&self, text: &str, left: &Symbol, right: &Symbol) -> Option<Merged<Score>> {
        let len = left.len + right.len;
        if len > self.longest {
            return None;
        }
        let scored = self.tokens.get(&text[left.start..left.start + len])?;
        Some(Merged { rank: scored.score, token: scored.token })
    }
}
