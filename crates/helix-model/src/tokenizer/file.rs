//! `tokenizer.json`, as Hugging Face's tokenizers write it.
//!
//! What a file asks for is either run as it says, or refused by its name: a tokenizer that is
//! almost right gives tokens that the model was not trained on. Source: the tokenizers crate.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::byte_level::{ByteLevel, Joins};
use super::characters::{Characters, Prefix, Rules};
use super::merges::Merges;
use super::normal::Form;
use super::pre::{Behavior, PreTokenizer, Stage};
use super::sentence_piece::{SPACE, byte_value};
use super::vocabulary::Names;
use super::{Algorithm, Tokenizer, TokenizerError, Vocabulary};

/// Numbers without a token, at most: files leave a few out.
pub(super) const MAX_GAPS: usize = 1 << 16;

/// Cuts of a pre-tokenizer, at most: each has an automaton and a stack frame. Models have up to 6.
const MAX_STAGES: usize = 32;

/// Characters of a file that an error quotes.
const MAX_QUOTED: usize = 200;

/// What other files say about a tokenizer.
#[derive(Clone, Debug, Default)]
pub struct Special {
    /// `bos_token`: the name of the token that starts a text.
    pub bos: Option<String>,
    /// `eos_token`: the name of the one that ends it.
    pub eos: Option<String>,
    /// `add_bos_token`; the file's own post-processor counts where this is absent.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `eos_token_id` of `generation_config.json`: tokens that end a text or turn.
    pub ends: Vec<u32>,
}

impl Tokenizer {
    /// The tokenizer of a `tokenizer.json`.
    pub fn from_json(json: &[u8], special: &Special) -> Result<Tokenizer, TokenizerError> {
        let broken = |error: serde_json::Error| TokenizerError::File { problem: error.to_string() };
        let file: File = serde_json::from_slice(json).map_err(broken)?;
        let kind = file.model.get("type").and_then(Value::as_str).unwrap_or("BPE");
        if kind != "BPE" {
            return refuse("model", quoted(kind), "\"BPE\"");
        }
        let model = Bpe::deserialize(&file.model).map_err(broken)?;
        model.refuse_variants()?;

        let normal = Normal::read(file.normalizer.as_ref())?;
        let cut = Cut::read(file.pre_tokenizer.as_ref())?;
        let table = Table::new(&model, &file.added_tokens)?;
        let added = Added::read(file.post_processor.as_ref())?;
        let vocabulary = table.vocabulary(special, &added)?;
        let mut names = Names::new(&vocabulary)?;
        names.add_ends(&special.ends)?;
        let merges = Merges::new(&names, model.merges.iter().map(|merge| Ok(merge.pair())))?;
        let algorithm = match cut {
            Cut::Bytes(stages) => {
                normal.refuse_spaces()?;
                let pre = PreTokenizer::of(stages, model.ignore_merges);
                Algorithm::ByteLevel(ByteLevel::new(pre, &names, Joins::Listed(merges)))
            }
            Cut::Characters(cut) => {
                if model.ignore_merges {
                    return refuse("model", "\"ignore_merges\"".into(), "it for bytes alone");
                }
                let rules = Rules {
                    prefix: normal.prefix(cut.prefix)?,
                    words: cut.words,
                    unknown: model.unk_token.as_deref().and_then(|unknown| names.find(unknown)),
                    fuse_unknown: model.fuse_unk,
                };
                Algorithm::Characters(Characters::new(&names, merges, rules)?)
            }
        };
        let mut tokenizer = Tokenizer::of(&vocabulary, names, algorithm, normal.form, false)?;
        tokenizer.set_strips(&file.added_tokens);
        Ok(tokenizer)
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    model: Value,
}

/// A token that text contains literally.
#[derive(Deserialize)]
pub(super) struct AddedToken {
    pub id: u64,
    pub content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Bpe {
    dropout: Option<f64>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, u64>,
    merges: Vec<Merge>,
}

/// Older files have a space between the two.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

impl Merge {
    fn pair(&self) -> (&str, &str) {
        match self {
            Merge::Pair(left, right) => (left, right),
            // Without a space it is no token's name, and refused as such.
            Merge::Text(text) => text.split_once(' ').unwrap_or((text, "")),
        }
    }
}

impl Bpe {
    fn refuse_variants(&self) -> Result<(), TokenizerError> {
        let texts = [&self.continuing_subword_prefix, &self.end_of_word_suffix];
        let names = ["continuing_subword_prefix", "end_of_word_suffix"];
        for (text, name) in texts.into_iter().zip(names) {
            if text.as_ref().is_some_and(|text| !text.is_empty()) {
                return refuse("model", quoted(name), "BPE without it");
            }
        }
        if self.dropout.is_some_and(|dropout| dropout != 0.0) {
            return refuse("model", quoted("dropout"), "BPE without it");
        }
        Ok(())
    }
}

// ---- the vocabulary

/// Tokens by number, with their types as GGUF numbers them.
#[derive(Default)]
pub(super) struct Table {
    texts: Vec<String>,
    types: Vec<u64>,
}

pub(super) const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
pub(super) const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const UNUSED: u64 = 5;
const BYTE: u64 = 6;

impl Table {
    fn new(model: &Bpe, added: &[AddedToken]) -> Result<Table, TokenizerError> {
        let most = (model.vocab.len() + added.len() + MAX_GAPS) as u64;
        let mut table = Table::default();
        for (text, &id) in &model.vocab {
            let kind = match () {
                () if model.unk_token.as_ref() == Some(text) => UNKNOWN,
                () if model.byte_fallback && byte_value(text).is_some() => BYTE,
                () => NORMAL,
            };
            table.set(id, text, kind, most)?;
        }
        table.add(added, model.unk_token.as_deref(), most)?;
        Ok(table)
    }

    /// Adds tokens that text contains literally, or says so of those that are there.
    pub(super) fn add(
        &mut self,
        added: &[AddedToken],
        unknown: Option<&str>,
        most: u64,
    ) -> Result<(), TokenizerError> {
        for token in added {
            let AddedToken { id, ref content, special, single_word, .. } = *token;
            if single_word {
                return refuse("added token", quoted(content), "those that match inside words too");
            }
            let kind = match special {
                _ if unknown == Some(content) => UNKNOWN,
                true => CONTROL,
                false => USER_DEFINED,
            };
            let place = usize::try_from(id).unwrap_or(usize::MAX);
            match self.texts.get(place) {
                Some(text) if text == content => self.types[place] = kind,
                _ => self.set(id, content, kind, most)?,
            }
        }
        Ok(())
    }

    /// Gives number `id` to a token. Numbers are less than `most`.
    pub(super) fn set(
        &mut self,
        id: u64,
        text: &str,
        kind: u64,
        most: u64,
    ) -> Result<(), TokenizerError> {
        let refuse =
            |problem: String| Err(TokenizerError::Number { text: text.to_owned(), id, problem });
        if id >= most {
            return refuse(format!("which leaves gaps: the tokens fit in {most}"));
        }
        let place = id as usize; // less than the number of tokens and a few
        if place >= self.texts.len() {
            self.texts.resize(place + 1, String::new());
            self.types.resize(place + 1, UNUSED);
        }
        if self.types[place] != UNUSED {
            return refuse(format!("which {:?} has too", self.texts[place]));
        }
        text.clone_into(&mut self.texts[place]);
        self.types[place] = kind;
        Ok(())
    }

    /// Names the numbers that no token has.
    pub(super) fn fill(&mut self, kind: u64, name: impl Fn(usize) -> String) {
        let places = self.texts.iter_mut().zip(&mut self.types).enumerate();
        for (place, (text, found)) in places.filter(|(_, (_, found))| **found == UNUSED) {
            (*text, *found) = (name(place), kind);
        }
    }

    fn find(&self, text: &str) -> Option<u32> {
        let place = self.texts.iter().position(|known| known == text)?;
        u32::try_from(place).ok()
    }

    pub(super) fn vocabulary(
        &self,
        special: &Special,
        added: &Added,
    ) -> Result<Vocabulary<'_>, TokenizerError> {
        let named = |name: Option<&String>, part| match name {
            None => Ok(None),
            Some(name) => match self.find(name) {
                Some(id) => Ok(Some(id)),
                None => refuse(part, quoted(name), "a token of the vocabulary"),
            },
        };
        let first = named(added.first.as_ref(), "post_processor")?;
        let last = named(added.last.as_ref(), "post_processor")?;
        let bos = first.or(named(special.bos.as_ref(), "bos_token")?);
        let eos = named(special.eos.as_ref(), "eos_token")?.or(last);
        if last.is_some() && last != eos {
            return refuse("post_processor", "an end of its own".into(), "eos_token at the end");
        }
        Ok(Vocabulary {
            model: "",
            tokens: &self.texts,
            types: Some(self.types.clone()),
            bos,
            eos,
            add_bos: special.add_bos.filter(|add| !add || bos.is_some()).or(Some(first.is_some())),
            add_eos: special.add_eos.filter(|add| !add || eos.is_some()).or(Some(last.is_some())),
            ..Vocabulary::default()
        })
    }
}

// ---- the parts

/// The list in a part that may be one, or the one that it is.
fn sequence<'a>(value: Option<&'a Value>, list: &str) -> Vec<&'a Value> {
    match value {
        None => Vec::new(),
        Some(value) if kind(value) == "Sequence" => {
            let parts = value.get(list).and_then(Value::as_array).into_iter().flatten();
            parts.flat_map(|part| sequence(Some(part), list)).collect()
        }
        Some(value) => vec![value],
    }
}

fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or("without a type")
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

fn flag(value: &Value, key: &str, default: bool) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(default)
}

pub(super) fn quoted(text: &str) -> String {
    format!("{text:?}")
}

pub(super) fn refuse<T>(
    part: &'static str,
    mut found: String,
    known: &'static str,
) -> Result<T, TokenizerError> {
    if let Some((end, _)) = found.char_indices().nth(MAX_QUOTED) {
        found.replace_range(end.., "...");
    }
    Err(TokenizerError::Part { part, found, known })
}

/// What the normalizer does.
#[derive(Default)]
struct Normal {
    form: Option<Form>,
    /// Whether `▁` comes before each part of the text.
    prepends: bool,
    /// Whether spaces become `▁`.
    replaces: bool,
}

impl Normal {
    fn read(value: Option<&Value>) -> Result<Normal, TokenizerError> {
        const KNOWN: &str = "Unicode's normal forms, Prepend and Replace with \"\u{2581}\"";
        let mut normal = Normal::default();
        for part in sequence(value, "normalizers") {
            match kind(part) {
                "Prepend" if text(part, "prepend") == Some(SPACE) => normal.prepends = true,
                "Replace"
                    if part.pointer("/pattern/String").and_then(Value::as_str) == Some(" ")
                        && text(part, "content") == Some(SPACE) =>
                {
                    normal.replaces = true;
                }
                name => match Form::named(name) {
                    Some(form) if normal.form.is_none() && !normal.replaces && !normal.prepends => {
                        normal.form = Some(form);
                    }
                    _ => return refuse("normalizer", part.to_string(), KNOWN),
                },
            }
        }
        Ok(normal)
    }

    /// Bytes have a letter for the space.
    fn refuse_spaces(&self) -> Result<(), TokenizerError> {
        match self.prepends || self.replaces {
            true => refuse("normalizer", "one of spaces".into(), "normal forms with ByteLevel"),
            false => Ok(()),
        }
    }

    /// Where a space is put, by the normalizer or by the `Metaspace` of the pre_tokenizer.
    fn prefix(&self, metaspace: Option<Prefix>) -> Result<Prefix, TokenizerError> {
        match (metaspace, self.prepends, self.replaces) {
            (Some(prefix), false, false) => Ok(prefix),
            (None, true, true) => Ok(Prefix::Always { unless_there: false }),
            (None, false, true) => Ok(Prefix::Never),
            _ => refuse(
                "normalizer",
                "no rule for spaces, or two of them".into(),
                "Replace of spaces, or a Metaspace",
            ),
        }
    }
}

/// How text is cut, into bytes or into characters.
enum Cut {
    Bytes(Vec<Stage>),
    Characters(CharacterCut),
}

struct CharacterCut {
    prefix: Option<Prefix>,
    words: bool,
}

impl Cut {
    fn read(value: Option<&Value>) -> Result<Cut, TokenizerError> {
        const PART: &str = "pre_tokenizer";
        let parts = sequence(value, "pretokenizers");
        if !parts.iter().any(|part| kind(part) == "ByteLevel") {
            return Cut::characters(&parts);
        }
        if parts.len() > MAX_STAGES {
            return refuse(PART, format!("a sequence of {}", parts.len()), "sequences of up to 32");
        }
        let mut stages = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            match kind(part) {
                "ByteLevel" if index + 1 < parts.len() => {
                    return refuse(
                        PART,
                        "something after ByteLevel".into(),
                        "ByteLevel at the end",
                    );
                }
                "ByteLevel" if flag(part, "add_prefix_space", true) => {
                    let found = "ByteLevel with add_prefix_space".into();
                    return refuse(PART, found, "ByteLevel without add_prefix_space");
                }
                "ByteLevel" if flag(part, "use_regex", true) => stages.push(Stage::gpt2()),
                "ByteLevel" => {}
                "Digits" if flag(part, "individual_digits", false) => {
                    stages.push(Stage::isolate(r"\p{N}"));
                }
                "Digits" => stages.push(Stage::isolate(r"\p{N}+")),
                "Split" => stages.push(split(part)?),
                _ => {
                    return refuse(PART, part.to_string(), "Split, Digits, ByteLevel, Metaspace");
                }
            }
        }
        Ok(Cut::Bytes(stages))
    }

    fn characters(parts: &[&Value]) -> Result<Cut, TokenizerError> {
        const PART: &str = "pre_tokenizer";
        let mut cut = CharacterCut { prefix: None, words: false };
        for part in parts {
            // By then there is no space left to cut at: Gemma's.
            let spaces = part.pointer("/pattern/String").and_then(Value::as_str) == Some(" ");
            match kind(part) {
                "Split" if spaces => {}
                "Metaspace" if cut.prefix.is_none() && text(part, "replacement") == Some(SPACE) => {
                    let always = Prefix::Always { unless_there: true };
                    let by_flag = match flag(part, "add_prefix_space", true) {
                        true => always,
                        false => Prefix::Never,
                    };
                    cut.prefix = Some(match text(part, "prepend_scheme") {
                        None => by_flag,
                        Some("always") => always,
                        Some("first") => Prefix::First,
                        Some("never") => Prefix::Never,
                        Some(other) => {
                            return refuse("prepend_scheme", quoted(other), "always, first, never");
                        }
                    });
                    cut.words = flag(part, "split", true);
                }
                _ => return refuse(PART, part.to_string(), "Metaspace, or Split and ByteLevel"),
            }
        }
        Ok(Cut::Characters(cut))
    }
}

fn split(part: &Value) -> Result<Stage, TokenizerError> {
    let pattern = part.get("pattern");
    let inverted = flag(part, "invert", false);
    let behavior = match (text(part, "behavior"), inverted) {
        (Some("Isolated"), _) => Behavior::Isolated,
        (Some("Removed"), false) => Behavior::Removed,
        (Some("Removed"), true) => Behavior::Kept,
        (Some("MergedWithPrevious"), false) => Behavior::MergedWithPrevious,
        (Some("MergedWithNext"), false) => Behavior::MergedWithNext,
        _ => {
            let known = "Isolated, Removed, MergedWithPrevious, MergedWithNext";
            return refuse("Split", part.to_string(), known);
        }
    };
    let get = |key: &str| pattern.and_then(|pattern| text(pattern, key));
    match (get("Regex"), get("String")) {
        (Some(regex), None) => Stage::of_pattern(regex, behavior),
        (None, Some(literal)) if !literal.is_empty() => Stage::of_literal(literal, behavior),
        _ => refuse("Split", part.to_string(), "a pattern that is a Regex or a String"),
    }
}

/// What the post-processor puts around a text.
#[derive(Default)]
pub(super) struct Added {
    first: Option<String>,
    last: Option<String>,
}

impl Added {
    fn read(value: Option<&Value>) -> Result<Added, TokenizerError> {
        const PART: &str = "post_processor";
        let mut added = Added::default();
        for part in sequence(value, "processors") {
            match kind(part) {
                "ByteLevel" => {} // offsets, which nobody asks for here
                "TemplateProcessing" => {
                    let single = part.get("single").and_then(Value::as_array);
                    let mut text_seen = false;
                    for piece in single.into_iter().flatten() {
                        let special = piece.pointer("/SpecialToken/id").and_then(Value::as_str);
                        let place = if text_seen { &mut added.last } else { &mut added.first };
                        match special {
                            Some(token) if place.is_none() => *place = Some(token.to_owned()),
                            None if piece.get("Sequence").is_some() && !text_seen => {
                                text_seen = true;
                            }
                            _ => return refuse(PART, part.to_string(), "one token on each side"),
                        }
                    }
                }
                _ => return refuse(PART, part.to_string(), "ByteLevel, TemplateProcessing"),
            }
        }
        Ok(added)
    }
}

#[cfg(test)]
mod tests;
