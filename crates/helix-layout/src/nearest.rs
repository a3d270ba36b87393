//! The legal layouts nearest to one that was refused.

use std::fmt;

use crate::{Degrees, MAX_RANKS, ModelShape, Strategy};

/// Legal degrees nearest to those asked for, nearest first; displays as a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest(pub Vec<Degrees>);

impl Nearest {
    const SHOWN: usize = 3;

    /// Of as many ranks as `asked` has in either phase, and the fewest steps away in all degrees
    /// together; then in head slices and sequence shards.
    pub(crate) fn to(asked: Degrees, strategy: Strategy, shape: &ModelShape) -> Self {
        let mut found = legal_degrees(shape, strategy, asked.attention_ranks());
        if asked.ffn_ranks() != asked.attention_ranks() {
            found.extend(legal_degrees(shape, strategy, asked.ffn_ranks()));
        }
        found.sort_by_key(|d| {
            let (tpa, kvp) = (d.tpa.abs_diff(asked.tpa), d.kvp.abs_diff(asked.kvp));
            let rest = [(d.dp, asked.dp), (d.tpf, asked.tpf), (d.ep, asked.ep)];
            let steps = rest.into_iter().map(|(a, b)| a.abs_diff(b));
            (steps.fold(tpa.saturating_add(kvp), usize::saturating_add), tpa, kvp)
        });
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

/// Every legal way to cut a model over exactly `ranks`, fewest sequence shards and then fewest
/// groups of experts first.
pub(crate) fn legal_degrees(shape: &ModelShape, strategy: Strategy, ranks: usize) -> Vec<Degrees> {
    if !(1..=MAX_RANKS).contains(&ranks) {
        return Vec::new();
    }
    let most_tpa = match strategy {
        Strategy::Helix | Strategy::Medha => ranks.min(shape.kv_heads),
        Strategy::Tp => ranks,
        Strategy::DpEp => 1,
    };
    let cuts_experts = shape.moe.is_some() && strategy != Strategy::Tp;
    let attention = divisors(ranks).filter(|&tpa| tpa <= most_tpa).map(|tpa| match strategy {
        Strategy::DpEp => (1, 1, ranks),
        _ => (ranks / tpa, tpa, 1),
    });
    let attention = attention.filter(|&(kvp, ..)| strategy != Strategy::Tp || kvp == 1);
    let mut all = Vec::new();
    for (kvp, tpa, dp) in attention {
        let ffn_ranks = if strategy == Strategy::Medha { tpa } else { ranks };
        let grids = divisors(ffn_ranks).map(|tpf| (tpf, ffn_ranks / tpf));
        let grids = grids.filter(|&(_, ep)| ep == 1 || cuts_experts);
        all.extend(grids.map(|(tpf, ep)| Degrees { kvp, tpa, dp, tpf, ep }));
    }
    all
}

/// Largest first.
fn divisors(n: usize) -> impl Iterator<Item = usize> {
    (1..=n).rev().filter(move |d| n.is_multiple_of(*d))
}
