//! The legal layouts nearest to one that was refused.

use std::fmt;

use crate::{Degrees, MAX_RANKS, ModelShape, Strategy};

/// Legal degrees nearest to those asked for, nearest first; displays as a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest(pub Vec<Degrees>);

impl Nearest {
    const SHOWN: usize = 3;

    /// Of as many ranks as `asked` has in either phase, with head slices and then sequence shards
    /// as close as they can be.
    pub(crate) fn to(asked: Degrees, strategy: Strategy, shape: &ModelShape) -> Self {
        let mut found = legal_degrees(shape, strategy, asked.attention_ranks());
        if asked.ffn_ranks() != asked.attention_ranks() {
            found.extend(legal_degrees(shape, strategy, asked.ffn_ranks()));
        }
        found.sort_by_key(|d| (d.tpa.abs_diff(asked.tpa), d.kvp.abs_diff(asked.kvp)));
        found.truncate(Self::SHOWN);
        Self(found)
    }
}

impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, degrees) in self.0.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{degrees}")?;
        }
        Ok(())
    }
}

/// Every legal way to cut a dense model over exactly `ranks`, fewest sequence shards first.
pub(crate) fn legal_degrees(shape: &ModelShape, strategy: Strategy, ranks: usize) -> Vec<Degrees> {
    if !(1..=MAX_RANKS).contains(&ranks) {
        return Vec::new();
    }
    let tpas = match strategy {
        Strategy::Tp => ranks..=ranks,
        Strategy::Helix | Strategy::Medha => 1..=ranks.min(shape.kv_heads),
    };
    let whole = tpas.rev().filter(|tpa| ranks.is_multiple_of(*tpa));
    whole.map(|tpa| strategy.degrees(ranks / tpa, tpa)).collect()
}
