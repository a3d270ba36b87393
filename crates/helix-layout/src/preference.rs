//! What is fixed of a layout when the number of its ranks is, and which layouts that leaves.

use crate::{
    Degrees, Layout, LayoutError, LayoutSpec, MAX_RANKS, ModelShape, PartialDegrees, QkvMode,
    Strategy,
};

/// What the user fixed of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preference {
    /// Ranks, exactly.
    pub ranks: usize,
    /// The strategy.
    pub strategy: Strategy,
    /// Degrees; any where `None`.
    pub degrees: PartialDegrees,
    /// Consecutive positions that one rank owns.
    pub kv_block: usize,
    /// How ranks come by Q, K and V; either way where `None`.
    pub qkv: Option<QkvMode>,
}

impl Preference {
    /// The legal layouts that have all of it, at least one: fewer collectives first, then fewer
    /// sequence shards, then fewer groups of experts.
    ///
    /// `dp-ep` is a baseline, not a search: unless told otherwise it has the grid of
    /// [`Strategy::complete`].
    ///
    /// # Errors
    /// There is none; the message names the numbers, and the nearest legal degrees.
    pub fn layouts(&self, shape: &ModelShape) -> Result<Vec<Layout>, LayoutError> {
        let &Preference { ranks, strategy, degrees, kv_block, qkv } = self;
        if ranks == 0 {
            return Err(LayoutError::NoRanks { max: MAX_RANKS });
        }
        if ranks > MAX_RANKS {
            let what = format!("{ranks} ranks");
            return Err(LayoutError::TooManyRanks { what, max: MAX_RANKS });
        }
        let always_legal = strategy.complete(strategy.anywhere(ranks), shape);
        let plain =
            LayoutSpec { degrees: always_legal, kv_block, ..LayoutSpec::new(strategy, 1, 1) };
        Layout::new(shape, plain)?;

        let allowed = match (strategy, degrees) {
            (Strategy::DpEp, PartialDegrees { tpf: None, ep: None, .. }) => {
                let Degrees { tpf, ep, .. } = always_legal;
                PartialDegrees { tpf: Some(tpf), ep: Some(ep), ..degrees }
            }
            _ => degrees,
        };
        let modes = QkvMode::ALL.into_iter().filter(|m| qkv.is_none_or(|fixed| fixed == *m));
        let found: Vec<Layout> = modes
            .flat_map(|mode| Layout::candidates(shape, ranks, strategy, kv_block, mode))
            .filter(|layout| allowed.allow(&layout.degrees()))
            // With nobody to gather from, the modes are one: keep the plain one unless told.
            .filter(|l| l.degrees().kvp > 1 || qkv.is_some() || l.qkv() == QkvMode::Replicate)
            .collect();
        match found.is_empty() {
            true => Err(self.refusal(shape, plain)),
            false => Ok(found),
        }
    }

    /// Why no layout has the degrees that were named: what is wrong with one that has them, and is
    /// otherwise like `plain`.
    fn refusal(&self, shape: &ModelShape, plain: LayoutSpec) -> LayoutError {
        let &Preference { ranks, strategy, degrees: named, .. } = self;
        let anywhere = strategy.anywhere(ranks);
        let degrees = PartialDegrees {
            kvp: named.kvp.or(anywhere.kvp),
            tpa: named.tpa.or(anywhere.tpa),
            dp: named.dp.or(anywhere.dp),
            ..named
        };
        let degrees = strategy.complete(degrees, shape);
        match Layout::new(shape, LayoutSpec { degrees, ..plain }) {
            Err(error) => error,
            Ok(_) => LayoutError::RankCount { degrees, ranks },
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
