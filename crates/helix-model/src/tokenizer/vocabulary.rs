//! What a file says about its tokenizer, and which of its tokens are special.

use std::collections::HashMap;

use super::TokenizerError;
use crate::{Gguf, ModelError};

/// The most tokens that are read: far above any model's, and few enough to index without harm.
const MAX_TOKENS: usize = 1 << 24;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const EOM: &str = "tokenizer.ggml.eom_token_id";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";

/// Names of tokens that end a turn or a text, in the chat formats of published models. A file
/// names at most three of its end tokens by number.
const ENDS: [&str; 15] = [
    "</s>",
    "<eos>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<|call|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|im_end|>",
    "<|return|>",
    "<EOT>",
    "[EOT]",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];

/// A tokenizer as a file describes it: the metadata keys `tokenizer.ggml.*`, unchecked.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary<'a> {
    /// `model`: `gpt2` or `llama`.
    pub model: &'a str,
    /// `pre`: the named pre-tokenizer, for `gpt2`.
    pub pre: Option<&'a str>,
    /// `tokens`: texts by id.
    pub tokens: &'a [String],
    /// `token_type`: 0 undefined, 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused,
    /// 6 byte. All tokens are normal where it is missing.
    pub types: Option<Vec<u64>>,
    /// `scores`, for `llama`.
    pub scores: Option<&'a [f32]>,
    /// `merges`, for `gpt2`.
    pub merges: Option<&'a [String]>,
    /// `bos_token_id`: what starts a text.
    pub bos: Option<u32>,
    /// `eos_token_id`: what ends a text or turn.
    pub eos: Option<u32>,
    /// `eot_token_id`: what ends a turn.
    pub eot: Option<u32>,
    /// `eom_token_id`: what ends a message that continues after a tool's answer.
    pub eom: Option<u32>,
    /// `unknown_token_id`.
    pub unknown: Option<u32>,
    /// `add_bos_token`: texts start with `bos`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`: texts end with `eos`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`, for `llama`: texts start with a space that is not theirs.
    pub add_space_prefix: Option<bool>,
}

impl<'a> Vocabulary<'a> {
    /// The keys of a file. Fails on a key of another type.
    pub fn of(gguf: &'a Gguf) -> Result<Vocabulary<'a>, ModelError> {
        let model = gguf.string(MODEL)?.ok_or(TokenizerError::Missing { key: MODEL })?;
        let tokens = gguf.strings(TOKENS)?.ok_or(TokenizerError::Missing { key: TOKENS })?;
        Ok(Vocabulary {
            model,
            pre: gguf.string(PRE)?,
            tokens,
            types: gguf.integers(TYPES)?,
            scores: gguf.floats(SCORES)?,
            merges: gguf.strings(MERGES)?,
            bos: gguf.unsigned(BOS)?,
            eos: gguf.unsigned(EOS)?,
            eot: gguf.unsigned(EOT)?,
            eom: gguf.unsigned(EOM)?,
            unknown: gguf.unsigned(UNKNOWN)?,
            add_bos: gguf.boolean(ADD_BOS)?,
            add_eos: gguf.boolean(ADD_EOS)?,
            add_space_prefix: gguf.boolean(ADD_SPACE_PREFIX)?,
        })
    }

    pub(super) fn pre(&self) -> Result<&'a str, TokenizerError> {
        self.pre.ok_or(TokenizerError::Missing { key: PRE })
    }

    pub(super) fn merges(&self) -> Result<&'a [String], TokenizerError> {
        self.merges.ok_or(TokenizerError::Missing { key: MERGES })
    }

    pub(super) fn scores(&self) -> Result<&'a [f32], TokenizerError> {
        let scores = self.scores.ok_or(TokenizerError::Missing { key: SCORES })?;
        self.length(SCORES, scores.len())?;
        Ok(scores)
    }

    fn length(&self, key: &'static str, found: usize) -> Result<(), TokenizerError> {
        let tokens = self.tokens.len();
        if found == tokens { Ok(()) } else { Err(TokenizerError::Length { key, found, tokens }) }
    }

    /// Whether texts start with `bos`, where `default` is what the kind of tokenizer does.
    pub(super) fn starts_with_bos(&self, default: bool) -> Result<bool, TokenizerError> {
        flagged(self.add_bos, default && self.bos.is_some(), self.bos, ADD_BOS, BOS)
    }

    /// Whether texts end with `eos`.
    pub(super) fn ends_with_eos(&self) -> Result<bool, TokenizerError> {
        flagged(self.add_eos, false, self.eos, ADD_EOS, EOS)
    }
}

fn flagged(
    flag: Option<bool>,
    default: bool,
    id: Option<u32>,
    flag_key: &'static str,
    key: &'static str,
) -> Result<bool, TokenizerError> {
    match (flag, id) {
        (Some(true), None) => Err(TokenizerError::NoSuchSpecial { flag: flag_key, key }),
        (flag, _) => Ok(flag.unwrap_or(default)),
    }
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text, reached by merging.
    Normal,
    /// Stands for what the vocabulary cannot express; treated as a control token.
    Unknown,
    /// Structure, such as the end of a turn: never comes out of plain text, hidden in output.
    Control,
    /// Text that is always one token, wherever it occurs.
    UserDefined,
    /// A place without a meaning, or with an undefined one.
    Unused,
    /// One byte of a character that has no token.
    Byte,
}

impl Kind {
    fn of(types: Option<&[u64]>, token: usize) -> Result<Kind, TokenizerError> {
        match types.map_or(1, |types| types[token]) {
            1 => Ok(Kind::Normal),
            2 => Ok(Kind::Unknown),
            3 => Ok(Kind::Control),
            4 => Ok(Kind::UserDefined),
            0 | 5 => Ok(Kind::Unused),
            6 => Ok(Kind::Byte),
            kind => Err(TokenizerError::Kind { token, kind }),
        }
    }

    /// Whether it is structure rather than text.
    pub fn is_control(self) -> bool {
        matches!(self, Kind::Control | Kind::Unknown)
    }
}

/// The texts, ids and kinds of a checked vocabulary.
pub(super) struct Names<'a> {
    texts: &'a [String],
    kinds: Vec<Kind>,
    ids: HashMap<&'a str, u32>,
    /// Tokens after which nothing more is to be generated, in order.
    pub ends: Vec<u32>,
}

impl<'a> Names<'a> {
    /// Checks sizes, types, numbers and that no text occurs twice (empty ones may: some files fill
    /// places up with them).
    pub fn new(vocabulary: &Vocabulary<'a>) -> Result<Names<'a>, TokenizerError> {
        let texts = vocabulary.tokens;
        if texts.len() > MAX_TOKENS {
            return Err(TokenizerError::TooManyTokens { tokens: texts.len(), limit: MAX_TOKENS });
        }
        let types = vocabulary.types.as_deref();
        types.map_or(Ok(()), |types| vocabulary.length(TYPES, types.len()))?;
        let kinds = (0..texts.len()).map(|token| Kind::of(types, token));
        let mut names = Names {
            texts,
            kinds: kinds.collect::<Result<_, _>>()?,
            ids: HashMap::with_capacity(texts.len()),
            ends: Vec::new(),
        };
        for (second, text) in (0u32..).zip(texts).filter(|(_, text)| !text.is_empty()) {
            if let Some(first) = names.ids.insert(text, second) {
                return Err(TokenizerError::Duplicate { text: text.clone(), first, second });
            }
        }
        names.mark_special(vocabulary)?;
        Ok(names)
    }

    /// What the file names by number is a control token whatever its type says, and so is a
    /// user-defined token that is known to end turns: some converters mark `<|im_end|>` so.
    fn mark_special(&mut self, vocabulary: &Vocabulary<'_>) -> Result<(), TokenizerError> {
        let Vocabulary { bos, eos, eot, eom, unknown, .. } = *vocabulary;
        let tokens = self.texts.len();
        for (key, id) in [(BOS, bos), (EOS, eos), (EOT, eot), (EOM, eom), (UNKNOWN, unknown)] {
            let Some(id) = id else { continue };
            let kind = usize::try_from(id).ok().and_then(|id| self.kinds.get_mut(id));
            let kind = kind.ok_or(TokenizerError::Id { key, id, tokens })?;
            if key != UNKNOWN {
                *kind = Kind::Control;
            }
        }
        self.ends.extend([eos, eot, eom].into_iter().flatten());
        for text in ENDS {
            let Some(&id) = self.ids.get(text) else { continue };
            if matches!(self.kind(id), Kind::Control | Kind::UserDefined) {
                self.kinds[id as usize] = Kind::Control;
                self.ends.push(id);
            }
        }
        self.ends.sort_unstable();
        self.ends.dedup();
        Ok(())
    }

    /// Marks more tokens as ends, by their numbers.
    pub fn add_ends(&mut self, ends: &[u32]) -> Result<(), TokenizerError> {
        let tokens = self.texts.len();
        for &id in ends {
            let kind = usize::try_from(id).ok().and_then(|id| self.kinds.get_mut(id));
            *kind.ok_or(TokenizerError::Id { key: "eos_token_id", id, tokens })? = Kind::Control;
        }
        self.ends.extend(ends);
        self.ends.sort_unstable();
        self.ends.dedup();
        Ok(())
    }

    /// Tokens in all.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// The token with this text.
    pub fn find(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// The token with this text, unless it is a control token.
    pub fn plain(&self, text: &str) -> Option<u32> {
        self.find(text).filter(|&id| !self.kind(id).is_control())
    }

    /// `id` comes from here.
    pub fn kind(&self, id: u32) -> Kind {
        self.kinds[id as usize]
    }

    /// All tokens: id, text, kind.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &'a str, Kind)> {
        let tokens = self.texts.iter().zip(&self.kinds);
        (0u32..).zip(tokens).map(|(id, (text, &kind))| (id, text.as_str(), kind))
    }
}
