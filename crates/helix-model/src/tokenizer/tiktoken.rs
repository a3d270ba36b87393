//! `tiktoken.model` with `tokenizer_config.json`, as Kimi-K2 comes.
//!
//! The vocabulary lists no pattern: it is in the Python file beside it, `tokenization_kimi.py`, which
//! is not run. The one that Kimi's models have in common is known here ([`super::pre::KIMI`]), and a
//! file with another is refused. That file also cuts texts of more than 400,000 characters, and
//! words or white space of more than 25,000, wherever that happens to be, which spares tiktoken a
//! stack overflow; here they are not cut.

use serde::Deserialize;
use serde_json::Value;

use super::byte_level::{ByteLevel, Joins, token_text};
use super::file::{Added, AddedToken, CONTROL, MAX_GAPS, NORMAL, Table, quoted, refuse};
use super::pre::{KIMI, PreTokenizer};
use super::ranks::Ranks;
use super::vocabulary::Names;
use super::{Algorithm, Special, Tokenizer, TokenizerError};

/// What Kimi's Python file calls its tokenizer.
const CLASS: &str = "TikTokenTokenizer";

/// The alternatives of Kimi's pattern, as its Python file has them.
const ALTERNATIVES: [&str; 8] = [
    r"[\p{Han}]+",
    concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    ),
    concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    ),
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
];

impl Tokenizer {
    /// The tokenizer of a `tiktoken.model`, with `tokenizer_config.json` and the Python file that has
    /// its pattern, if there is one.
    pub fn from_tiktoken(
        model: &str,
        config: &Value,
        code: Option<&str>,
        special: &Special,
    ) -> Result<Tokenizer, TokenizerError> {
        let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        if class != CLASS {
            return refuse(
                "tokenizer_class",
                quoted(class),
                "tiktoken.model of \"TikTokenTokenizer\"",
            );
        }
        code.map_or(Ok(()), check_pattern)?;

        let mut ranks = Ranks::read(model)?;
        let added = added_tokens(config)?;
        let most = (ranks.len() + added.len() + MAX_GAPS) as u64;
        let mut table = Table::default();
        for (bytes, rank) in ranks.iter() {
            table.set(rank.into(), &token_text(bytes), NORMAL, most)?;
        }
        table.add(&added, None, most)?;
        table.fill(CONTROL, |id| format!("<|reserved_token_{id}|>"));

        let vocabulary = table.vocabulary(special, &Added::default())?;
        let mut names = Names::new(&vocabulary)?;
        names.add_ends(&special.ends)?;
        ranks.retain(|token| !names.kind(token).is_control());
        let joins = Joins::Ranked(ranks);
        let model = ByteLevel::new(PreTokenizer::named(KIMI)?, &names, joins);
        let algorithm = Algorithm::ByteLevel(model);
        let mut tokenizer = Tokenizer::of(&vocabulary, names, algorithm, None, false)?;
        tokenizer.set_strips(&added);
        Ok(tokenizer)
    }
}

/// `added_tokens_decoder`: tokens by their numbers.
fn added_tokens(config: &Value) -> Result<Vec<AddedToken>, TokenizerError> {
    let broken = |problem: String| TokenizerError::File { problem };
    let listed = config.get("added_tokens_decoder").and_then(Value::as_object);
    let listed = listed.ok_or_else(|| broken("added_tokens_decoder is missing".to_owned()))?;
    let token = |(id, token): (&String, &Value)| {
        let id: u64 = id.parse().map_err(|_| broken(format!("{id:?} is no token's number")))?;
        let mut token = token.clone();
        if let Some(token) = token.as_object_mut() {
            token.insert("id".to_owned(), id.into());
        }
        AddedToken::deserialize(token).map_err(|error| broken(format!("token {id}: {error}")))
    };
    listed.iter().map(token).collect()
}

/// Refuses a Python file whose `pat_str` is not Kimi's.
fn check_pattern(code: &str) -> Result<(), TokenizerError> {
    let found = alternatives(code);
    if found == ALTERNATIVES {
        return Ok(());
    }
    Err(TokenizerError::Pattern {
        pattern: found.join("|").chars().take(400).collect(),
        problem:
            "Helix knows Kimi-K2's of tokenizers without a tokenizer.json, and this is another"
                .to_owned(),
    })
}

/// The raw strings in triple quotes from `pat_str =` up to the end of its list.
fn alternatives(code: &str) -> Vec<&str> {
    let mut rest = code.split_once("pat_str =").map_or("", |(_, rest)| rest);
    let mut found = Vec::new();
    while let Some((before, after)) = rest.split_once("r\"\"\"") {
        // A bracket between two strings closes the list.
        if !found.is_empty() && before.contains(']') {
            break;
        }
        let Some((text, after)) = after.split_once("\"\"\"") else { break };
        found.push(text);
        rest = after;
    }
    found
}

#[cfg(test)]
mod tests;
