//! Text to tokens and back.
//!
//! A [`Tokenizer`] is built from a GGUF file's metadata, a `tokenizer.json` or a `tiktoken.model`. It
//! gives the tokens that the model was trained on, which tests check against llama.cpp, Hugging Face's
//! tokenizers and tiktoken. Two things it does more strictly than they do:
//!
//! - **Control tokens come from control.** `<|im_end|>` in a text is nine characters, not the end
//!   of a turn, unless the caller says otherwise ([`Tokenizer::encode_with_control`]); inside a
//!   chat message it is never anything else ([`Tokenizer::encode_chat`]).
//! - **Time is linear in the text**, up to a logarithm, for every text.

mod byte_level;
mod characters;
mod error;
mod file;
#[cfg(test)]
mod huggingface;
mod merge;
mod merges;
mod normal;
mod pattern;
mod pre;
mod ranks;
mod sentence_piece;
mod specials;
mod stream;
#[cfg(test)]
mod tests;
mod tiktoken;
mod vocabulary;

use std::borrow::Cow;
use std::fmt;

pub use error::TokenizerError;
pub use file::Special;
pub use stream::StreamDecoder;
pub use vocabulary::Vocabulary;

use crate::{Gguf, ModelError};
use byte_level::{ByteLevel, Joins};
use characters::Characters;
use file::AddedToken;
use merges::Merges;
use normal::Form;
use pre::PreTokenizer;
use sentence_piece::{SPACE, SentencePiece};
pub(crate) use specials::Specials;
use vocabulary::{Kind, Names};

/// Turns text into a model's tokens, and tokens into text.
pub struct Tokenizer {
    /// What text is brought into before it is cut.
    form: Option<Form>,
    algorithm: Algorithm,
    /// User-defined tokens, which are found in any text.
    user_defined: Specials,
    /// Those and control tokens.
    with_control: Specials,
    control: Specials,
    pieces: Pieces,
    kinds: Vec<Kind>,
    ends: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
}

enum Algorithm {
    ByteLevel(ByteLevel),
    SentencePiece(SentencePiece),
    Characters(Characters),
}

impl Tokenizer {
    /// The tokenizer that a model file describes.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, ModelError> {
        Ok(Tokenizer::new(&Vocabulary::of(gguf)?)?)
    }

    /// The tokenizer of a vocabulary.
    pub fn new(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, TokenizerError> {
        let names = Names::new(vocabulary)?;
        let (algorithm, bos_by_default) = match vocabulary.model {
            "gpt2" => {
                let pre = PreTokenizer::named(vocabulary.pre()?)?;
                let bos = pre.starts_with_bos();
                let merges = Merges::new(&names, Merges::split(vocabulary.merges()?))?;
                (Algorithm::ByteLevel(ByteLevel::new(pre, &names, Joins::Listed(merges))), bos)
            }
            "llama" => {
                let prefix = vocabulary.add_space_prefix.unwrap_or(true);
                let scores = vocabulary.scores()?;
                let model = SentencePiece::new(&names, scores, vocabulary.unknown, prefix)?;
                (Algorithm::SentencePiece(model), true)
            }
            name => return Err(TokenizerError::Model { name: name.to_owned() }),
        };
        Tokenizer::of(vocabulary, names, algorithm, None, bos_by_default)
    }

    fn of(
        vocabulary: &Vocabulary<'_>,
        names: Names<'_>,
        algorithm: Algorithm,
        form: Option<Form>,
        bos_by_default: bool,
    ) -> Result<Tokenizer, TokenizerError> {
        let control = [Kind::Control, Kind::Unknown];
        Ok(Tokenizer {
            form,
            user_defined: Specials::new(&names, &[Kind::UserDefined])?,
            with_control: Specials::new(&names, &[Kind::UserDefined, control[0], control[1]])?,
            control: Specials::new(&names, &control)?,
            pieces: Pieces::new(&names, &algorithm)?,
            kinds: names.iter().map(|(_, _, kind)| kind).collect(),
            ends: names.ends,
            bos: vocabulary.bos,
            eos: vocabulary.eos,
            add_bos: vocabulary.starts_with_bos(bos_by_default)?,
            add_eos: vocabulary.ends_with_eos()?,
            algorithm,
        })
    }

    fn set_strips(&mut self, added: &[AddedToken]) {
        for token in added {
            let Ok(id) = u32::try_from(token.id) else { continue };
            for specials in [&mut self.user_defined, &mut self.with_control, &mut self.control] {
                specials.set_strips(id, [token.lstrip, token.rstrip]);
            }
        }
    }

    /// The tokens of a text in which control tokens are text like any other.
    ///
    /// `add_special` puts the BOS token before and the EOS token behind, if the model was trained
    /// so. Bytes that the vocabulary has no token for (control characters in some) are left out,
    /// as other implementations do.
    pub fn encode(&self, text: &str, add_special: bool) -> Vec<u32> {
        self.encode_between(text, &self.user_defined, add_special)
    }

    /// As [`Tokenizer::encode`], but the names of control tokens in `text` become those tokens: for
    /// text from whoever runs the model, not from whoever talks to it.
    pub fn encode_with_control(&self, text: &str, add_special: bool) -> Vec<u32> {
        self.encode_between(text, &self.with_control, add_special)
    }

    fn encode_between(&self, text: &str, specials: &Specials, add_special: bool) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(text.len() / 3);
        tokens.extend(self.bos.filter(|_| add_special && self.add_bos));
        self.encode_parts(text, specials, &mut tokens, &|part| part.into());
        tokens.extend(self.eos.filter(|_| add_special && self.add_eos));
        tokens
    }

    /// The tokens of a rendered chat, in which `restore` undoes what protects its plain parts.
    pub(crate) fn encode_prompt<'t>(
        &self,
        text: &'t str,
        restore: &dyn Fn(&'t str) -> Cow<'t, str>,
    ) -> Vec<u32> {
        let mut tokens = Vec::new();
        self.encode_parts(text, &self.with_control, &mut tokens, restore);
        if self.add_bos && tokens.first().copied() != self.bos {
            tokens.splice(0..0, self.bos);
        }
        tokens
    }

    /// Appends the tokens of `text`: `specials` where they occur, and between them the text that
    /// `restore` makes of what stands there.
    fn encode_parts<'t>(
        &self,
        text: &'t str,
        specials: &Specials,
        out: &mut Vec<u32>,
        restore: &dyn Fn(&'t str) -> Cow<'t, str>,
    ) {
        let mut start = 0;
        while start < text.len() {
            let (range, special) = match specials.find(text, start) {
                Some((range, special)) => (range, Some(special)),
                None => (text.len()..text.len(), None),
            };
            if start < range.start {
                let part = restore(&text[start..range.start]);
                let part = self.form.map_or(Cow::Borrowed(&*part), |form| form.of(&part));
                match &self.algorithm {
                    Algorithm::ByteLevel(model) => model.encode(&part, out),
                    Algorithm::SentencePiece(model) => model.encode(&part, out),
                    Algorithm::Characters(model) => model.encode(&part, start == 0, out),
                }
            }
            out.extend(special);
            start = range.end;
        }
    }

    /// The text of whole `tokens`, without control tokens.
    ///
    /// Undoes [`Tokenizer::encode`]. Bytes that are not UTF-8 become U+FFFD; tokens outside the
    /// vocabulary have no text.
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.stream(&[]).decode_all(tokens)
    }

    /// The text of whole `tokens`, with the names of control tokens.
    pub fn decode_with_control(&self, tokens: &[u32]) -> String {
        self.stream(&[]).showing_control().decode_all(tokens)
    }

    /// A decoder for tokens that arrive one by one and continue `prompt`.
    pub fn stream(&self, prompt: &[u32]) -> StreamDecoder<'_> {
        StreamDecoder::new(self, self.adds_space_after(prompt.last().copied()))
    }

    /// Whether encoding puts a space of its own before text that follows `token`, or starts.
    fn adds_space_after(&self, token: Option<u32>) -> bool {
        let kind = token.and_then(|token| self.kind(token));
        let special = kind.is_none_or(|kind| kind.is_control() || kind == Kind::UserDefined);
        special
            && match &self.algorithm {
                Algorithm::ByteLevel(_) => false,
                Algorithm::SentencePiece(model) => model.adds_space_prefix(),
                Algorithm::Characters(model) => model.adds_space(token.is_some()),
            }
    }

    /// Tokens in the vocabulary; the model may have rows for more.
    pub fn vocab(&self) -> usize {
        self.kinds.len()
    }

    /// The token that starts a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text or turn; [`Tokenizer::is_end`] knows others.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether generation is over after this token: the end of a text, of a turn or of a message.
    pub fn is_end(&self, token: u32) -> bool {
        self.ends.binary_search(&token).is_ok()
    }

    /// All tokens for which [`Tokenizer::is_end`] holds, in order.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Whether a token is structure and not text.
    pub fn is_control(&self, token: u32) -> bool {
        self.kind(token).is_some_and(Kind::is_control)
    }

    /// The bytes that a token stands for, which need not be whole characters; for a control token
    /// its name. `None` outside the vocabulary.
    pub fn piece(&self, token: u32) -> Option<&[u8]> {
        self.pieces.get(token)
    }

    pub(crate) fn control(&self) -> &Specials {
        &self.control
    }

    fn kind(&self, token: u32) -> Option<Kind> {
        self.kinds.get(usize::try_from(token).ok()?).copied()
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocab())
    }
}

/// What each token decodes to, end to end.
struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Pieces {
    fn new(names: &Names<'_>, algorithm: &Algorithm) -> Result<Pieces, TokenizerError> {
        let mut pieces = Pieces { bytes: Vec::new(), ends: Vec::with_capacity(names.len()) };
        for (token, text, kind) in names.iter() {
            match (kind, algorithm) {
                (Kind::Control | Kind::Unknown | Kind::UserDefined, _) => {
                    pieces.bytes.extend_from_slice(text.as_bytes());
                }
                (Kind::Normal, Algorithm::ByteLevel(_)) => {
                    let bytes = byte_level::token_bytes(text);
                    pieces.bytes.extend(bytes.unwrap_or_else(|| text.as_bytes().to_vec()));
                }
                (Kind::Normal, Algorithm::SentencePiece(_) | Algorithm::Characters(_)) => {
                    pieces.bytes.extend_from_slice(text.replace(SPACE, " ").as_bytes());
                }
                (Kind::Byte, _) => {
                    let byte = sentence_piece::byte_value(text);
                    let wrong = || TokenizerError::ByteToken { token, text: text.to_owned() };
                    pieces.bytes.push(byte.ok_or_else(wrong)?);
                }
                (Kind::Unused, _) => {}
            }
            pieces.ends.push(pieces.bytes.len());
        }
        Ok(pieces)
    }

    fn get(&self, token: u32) -> Option<&[u8]> {
        let token = usize::try_from(token).ok()?;
        let end = *self.ends.get(token)?;
        let start = token.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.bytes[start..end])
    }
}
