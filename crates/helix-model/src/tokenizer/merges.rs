//! The merges of a BPE vocabulary, by rank.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::TokenizerError;
use super::merge::{Merged, Rules, Symbol};
use super::vocabulary::Names;

/// Which two tokens become which, and in what order of precedence.
pub(super) struct Merges {
    /// (left, right) -> (rank, result)
    table: HashMap<(u32, u32), (usize, u32)>,
}

impl Merges {
    /// From pairs of texts, the first of which go first. Merges that make control tokens are left
    /// out: text cannot become one by merging.
    pub fn new<'a>(
        names: &Names<'_>,
        pairs: impl ExactSizeIterator<Item = Result<(&'a str, &'a str), TokenizerError>>,
    ) -> Result<Merges, TokenizerError> {
        let mut table = HashMap::with_capacity(pairs.len());
        for (index, pair) in pairs.enumerate() {
            let (left, right) = pair?;
            let find = |text: &str| {
                names.find(text).ok_or_else(|| TokenizerError::MergeToken {
                    index,
                    merge: format!("{left} {right}"),
                    text: text.to_owned(),
                })
            };
            let pair = (find(left)?, find(right)?);
            let result = find(&[left, right].concat())?;
            if !names.kind(result).is_control() {
                // Of two equal merges the first counts: its rank is higher.
                table.entry(pair).or_insert((index, result));
            }
        }
        Ok(Merges { table })
    }

    /// The pairs of a list in which a space stands between the two.
    pub fn split(
        merges: &[String],
    ) -> impl ExactSizeIterator<Item = Result<(&str, &str), TokenizerError>> {
        merges.iter().enumerate().map(|(index, merge)| {
            let broken = || TokenizerError::Merge { index, merge: merge.clone() };
            let (left, right) = merge.split_once(' ').ok_or_else(broken)?;
            if left.is_empty() || right.is_empty() || right.contains(' ') {
                return Err(broken());
            }
            Ok((left, right))
        })
    }
}

impl Rules for Merges {
    type Rank = Reverse<usize>;

    fn merge(&self, _: &str, left: &Symbol, right: &Symbol) -> Option<Merged<Self::Rank>> {
        let &(rank, token) = self.table.get(&(left.token?, right.token?))?;
        Some(Merged { rank: Reverse(rank), token })
    }
}
