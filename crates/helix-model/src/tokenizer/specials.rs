//! Finding special tokens in text.

use std::collections::HashMap;
use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind};

use super::TokenizerError;
use super::vocabulary::{Kind, Names};

/// The most bytes that special tokens have together: the search automaton takes many times that.
const MAX_BYTES: usize = 1 << 20;

/// Tokens that text contains literally. Matches do not overlap; of several that start at one place
/// the longest counts, as in Hugging Face's tokenizers.
pub(crate) struct Specials {
    automaton: AhoCorasick,
    ids: Vec<u32>,
    /// Tokens that take the white space before and behind them along.
    strips: HashMap<u32, [bool; 2]>,
}

impl Specials {
    /// The tokens of the given kinds.
    pub(super) fn new(names: &Names<'_>, kinds: &[Kind]) -> Result<Specials, TokenizerError> {
        let (ids, texts): (Vec<u32>, Vec<&str>) = names
            .iter()
            .filter(|(_, text, kind)| kinds.contains(kind) && !text.is_empty())
            .map(|(id, text, _)| (id, text))
            .unzip();
        let bytes = texts.iter().map(|text| text.len()).sum();
        let too_long = || TokenizerError::SpecialsTooLong { bytes, limit: MAX_BYTES };
        if bytes > MAX_BYTES {
            return Err(too_long());
        }
        // Not the DFA, which a file's few long tokens could make gigabytes large.
        let automaton = AhoCorasick::builder()
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)
            .map_err(|_| too_long())?;
        Ok(Specials { automaton, ids, strips: HashMap::new() })
    }

    /// The first special token that starts at `start` or after it: where, and which.
    pub fn find(&self, text: &str, start: usize) -> Option<(Range<usize>, u32)> {
        let found = self.automaton.find(Input::new(text).range(start..))?;
        let id = self.ids[found.pattern().as_usize()];
        let mut range = found.range();
        if let Some(&[before, behind]) = self.strips.get(&id) {
            if before {
                range.start = start + text[start..range.start].trim_end().len();
            }
            if behind {
                range.end = text.len() - text[range.end..].trim_start().len();
            }
        }
        Some((range, id))
    }

    /// Says which white space a token takes along: that before it, that behind it.
    pub(super) fn set_strips(&mut self, id: u32, strips: [bool; 2]) {
        if strips != [false; 2] {
            self.strips.insert(id, strips);
        }
    }
}
