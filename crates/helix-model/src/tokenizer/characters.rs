//! BPE over characters by ranked merges: SentencePiece's vocabularies as `tokenizer.json` has them.
//!
//! Spaces are written `▁`. A character that no token holds becomes byte tokens, or the unknown
//! token. Source: `models/bpe/model.rs` of Hugging Face's tokenizers.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use super::TokenizerError;
use super::merge::Merger;
use super::merges::Merges;
use super::sentence_piece::{SPACE, byte_value};
use super::vocabulary::{Kind, Names};

/// Where text gets a space that is not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefix {
    Never,
    /// At the start of the whole text, unless it has one.
    First,
    /// There and after every special token; `unless_there` is as for `First`.
    Always {
        unless_there: bool,
    },
}

/// How text becomes characters, and what becomes of those that the vocabulary lacks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub prefix: Prefix,
    /// Words, each with the space before it, are encoded one by one.
    pub words: bool,
    pub unknown: Option<u32>,
    /// A row of unknown characters is one unknown token.
    pub fuse_unknown: bool,
}

pub(super) struct Characters {
    merges: Merges,
    characters: HashMap<char, u32>,
    /// Characters that are neighbours in some token. Between any others nothing ever merges, so
    /// text is cut there: many short searches instead of one long one.
    neighbours: HashSet<(char, char)>,
    bytes: [Option<u32>; 256],
    rules: Rules,
}

impl Characters {
    pub fn new(
        names: &Names<'_>,
        merges: Merges,
        rules: Rules,
    ) -> Result<Characters, TokenizerError> {
        let mut characters = HashMap::new();
        let mut neighbours = HashSet::new();
        let mut bytes = [None; 256];
        for (token, text, kind) in names.iter() {
            match kind {
                Kind::Byte => {
                    let wrong = || TokenizerError::ByteToken { token, text: text.to_owned() };
                    let byte = byte_value(text).ok_or_else(wrong)?;
                    bytes[usize::from(byte)] = Some(token);
                }
                Kind::Normal | Kind::UserDefined => {
                    let mut chars = text.chars();
                    if let (Some(only), None) = (chars.next(), chars.next()) {
                        characters.insert(only, token);
                    }
                    neighbours.extend(text.chars().zip(text.chars().skip(1)));
                }
                _ => {}
            }
        }
        Ok(Characters { merges, characters, neighbours, bytes, rules })
    }

    /// Whether the encoder puts a space of its own at the start of a text, or after a special token
    /// if that is what comes before.
    pub fn adds_space(&self, after_special: bool) -> bool {
        match self.rules.prefix {
            Prefix::Never => false,
            Prefix::First => !after_special,
            Prefix::Always { .. } => true,
        }
    }

    /// Appends the tokens of `text`, which starts the whole text if `first`, and follows a special
    /// token otherwise.
    pub fn encode(&self, text: &str, first: bool, out: &mut Vec<u32>) {
        let starts_with_space = text.starts_with([' ', '\u{2581}']);
        let prefixed = match self.rules.prefix {
            Prefix::Never => false,
            Prefix::First => first && !starts_with_space,
            Prefix::Always { unless_there } => !(unless_there && starts_with_space),
        };
        let mut escaped = String::with_capacity(text.len() + text.len() / 4 + SPACE.len());
        escaped.push_str(if prefixed { SPACE } else { "" });
        for (index, part) in text.split(' ').enumerate() {
            escaped.push_str(if index == 0 { "" } else { SPACE });
            escaped.push_str(part);
        }
        let mut merger = Merger::new();
        let mut start = 0;
        let mut after_unknown = false;
        for ((_, left), (at, right)) in escaped.char_indices().zip(escaped.char_indices().skip(1)) {
            let word = self.rules.words && right == '\u{2581}';
            if word || !self.neighbours.contains(&(left, right)) {
                let piece = &escaped[start..at];
                self.encode_piece(piece, &mut after_unknown, &mut merger, out);
                after_unknown &= !word;
                start = at;
            }
        }
        self.encode_piece(&escaped[start..], &mut after_unknown, &mut merger, out);
    }

    fn encode_piece(
        &self,
        piece: &str,
        after_unknown: &mut bool,
        merger: &mut Merger<Reverse<usize>>,
        out: &mut Vec<u32>,
    ) {
        let symbols = piece.chars().flat_map(|c| {
            let mut buffer = [(0, None); 4];
            let count = self.symbols(c, &mut buffer);
            buffer.into_iter().take(count)
        });
        for symbol in merger.run(&self.merges, piece, symbols) {
            let unknown = symbol.token.is_none();
            let token = symbol.token.or(self.rules.unknown);
            if !(unknown && *after_unknown && self.rules.fuse_unknown) {
                out.extend(token);
            }
            *after_unknown = unknown;
        }
    }

    /// What a character starts as: its token, or those of its bytes, or nothing known.
    fn symbols(&self, c: char, out: &mut [(usize, Option<u32>); 4]) -> usize {
        if let Some(&token) = self.characters.get(&c) {
            out[0] = (c.len_utf8(), Some(token));
            return 1;
        }
        let mut buffer = [0; 4];
        let bytes = c.encode_utf8(&mut buffer).bytes();
        let count = bytes.len();
        for (out, byte) in out.iter_mut().zip(bytes) {
            *out = (1, self.bytes[usize::from(byte)]);
        }
        if out[..count].iter().any(|(_, token)| token.is_none()) {
            out[0] = (count, None);
            return 1;
        }
        count
    }
}
