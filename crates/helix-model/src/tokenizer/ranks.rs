//! A byte-level vocabulary whose order is its rule: tiktoken's.
//!
//! Any two neighbours that are a token together become it, those of the lowest number first. No
//! list says which pairs do.

use std::cmp::Reverse;
use std::collections::HashMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::TokenizerError;
use super::merge::{Merged, Rules, Symbol};

/// Tokens by their bytes.
pub(super) struct Ranks {
    table: HashMap<Box<[u8]>, u32>,
    /// Bytes of the longest.
    longest: usize,
}

impl Ranks {
    /// Reads lines of a token's bytes in Base64 and its rank. Ranks go from 0 on without a gap, in
    /// any order, and all bytes are tokens.
    pub fn read(file: &str) -> Result<Ranks, TokenizerError> {
        let mut ranks = Ranks { table: HashMap::new(), longest: 0 };
        let mut seen = Vec::new();
        for (index, line) in file.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
            let refuse = |problem: String| TokenizerError::Rank { line: index + 1, problem };
            let (token, rank) = line
                .split_once(' ')
                .ok_or_else(|| refuse("it is not a token and its rank".to_owned()))?;
            let bytes = BASE64_STANDARD
                .decode(token)
                .map_err(|error| refuse(format!("its token is not in Base64: {error}")))?;
            let rank: u32 = rank
                .parse()
                .map_err(|_| refuse("its rank is not a number from 0 to 4294967295".to_owned()))?;
            if bytes.is_empty() {
                return Err(refuse("its token has no bytes".to_owned()));
            }
            ranks.longest = ranks.longest.max(bytes.len());
            if let Some(other) = ranks.table.insert(bytes.into(), rank) {
                return Err(refuse(format!("its token has the rank {other}, too")));
            }
            seen.push(rank);
        }
        seen.sort_unstable();
        for (expected, &found) in (0u32..).zip(&seen) {
            if found != expected {
                return Err(TokenizerError::RankGap { expected, found });
            }
        }
        match (0..=255u8).find(|byte| ranks.find(&[*byte]).is_none()) {
            Some(byte) => Err(TokenizerError::NoByte { byte }),
            None => Ok(ranks),
        }
    }

    /// Tokens in all.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// The token of these bytes.
    pub fn find(&self, bytes: &[u8]) -> Option<u32> {
        self.table.get(bytes).copied()
    }

    /// Leaves tokens out: text does not become them.
    pub fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.table.retain(|_, token| keep(*token));
    }

    /// All tokens, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.table.iter().map(|(bytes, &rank)| (&**bytes, rank))
    }
}

impl Rules for Ranks {
    type Rank = Reverse<usize>;

    fn merge(&self, text: &str, left: &Symbol, right: &Symbol) -> Option<Merged<Self::Rank>> {
        let len = left.len + right.len;
        // What is longer than any token is not looked up: hashing it would take its length.
        let bytes =
            (len <= self.longest).then(|| &text.as_bytes()[left.start..left.start + len])?;
        let token = self.find(bytes)?;
        Some(Merged { rank: Reverse(token as usize), token })
    }
}
