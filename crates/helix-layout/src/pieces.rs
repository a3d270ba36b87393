//! How a batch's attention is cut into pieces whose outputs are exchanged one after the other: HOP-B
//! (the paper's section 2.3).
//!
//! A batch is cut between units: a run's query rows of one KV head. Where, depends on their costs
//! alone, which all ranks of a KVP group see alike.

use std::ops::Range;

/// Query rows that attention takes through the keys in one go, if a token has fewer: enough to pay
/// for converting a page of keys once, few enough that a prefill chunk makes plenty of tiles.
const TILE_ROWS: usize = 64;
/// Query tokens of one tile at most.
const TILE_TOKENS: usize = 16;
/// Query rows that go through a page together, and what a tile costs beside: in tokens seen.
const PASS: (usize, usize) = (8, 64);

/// Query tokens that attention takes together for a KV head that serves `group` query heads.
pub fn tile_tokens(group: usize) -> usize {
    (TILE_ROWS / group.max(1)).clamp(1, TILE_TOKENS)
}

/// Positions before the first that a query at `position` sees.
pub fn hidden_before(window: Option<usize>, position: usize) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// What attention of a run's tokens at `positions` costs all ranks of a KVP group together, for one
/// KV head of `group` query heads: positions seen by rows that go through pages together.
pub fn cost(positions: Range<usize>, window: Option<usize>, group: usize) -> u64 {
    let tile = tile_tokens(group);
    let of_tile = |first: usize| {
        let end = positions.end.min(first + tile);
        let seen = end - hidden_before(window, first);
        let passes = ((end - first) * group).div_ceil(PASS.0);
        (passes * (seen + PASS.1)) as u64
    };
    positions.clone().step_by(tile).map(of_tile).sum()
}

/// Cuts units of such costs into at most `pieces` runs that cost about the same, and gives their
/// ends. One run at least, which is empty if there are no units.
pub fn cut(ends: &mut Vec<usize>, costs: &[u64], pieces: usize) {
    ends.clear();
    let total: u64 = costs.iter().sum();
    let (mut before, mut last) = (0, 0);
    for (unit, cost) in costs.iter().enumerate() {
        // The piece in whose share of the costs the unit's middle lies.
        let middle = u128::from(2 * before + cost) * pieces as u128;
        let piece = (middle / u128::from(2 * total).max(1)).min(pieces as u128 - 1);
        if unit > 0 && piece > last {
            ends.push(unit);
        }
        last = piece;
        before += cost;
    }
    ends.push(costs.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(costs: &[u64], pieces: usize) -> Vec<usize> {
        let mut ends = vec![7];
        cut(&mut ends, costs, pieces);
        ends
    }

    #[test]
    fn pieces_cost_about_the_same() {
        assert_eq!(ends(&[5; 8], 4), [2, 4, 6, 8]);
        assert_eq!(ends(&[5; 8], 8), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(ends(&[5; 3], 2).len(), 2);
        assert_eq!(ends(&[90, 10, 10, 10, 60], 2), [1, 5]);
        assert_eq!(ends(&[1, 1, 1, 97], 4), [3, 4], "a unit is not cut");
        assert_eq!(ends(&[1 << 60, 1 << 60], 64), [1, 2]);
    }

    #[test]
    fn there_is_always_a_piece_and_never_an_empty_one_between_others() {
        assert_eq!(ends(&[], 4), [0]);
        assert_eq!(ends(&[0, 0, 0], 4), [3]);
        for units in 1..12u64 {
            let costs: Vec<u64> = (0..units).map(|i| i * 7 % 5).collect();
            for pieces in 1..20 {
                let ends = ends(&costs, pieces);
                assert!(ends.len() <= pieces.min(units as usize), "{costs:?}, {pieces}");
                assert!(ends.is_sorted_by(|a, b| a < b) && ends[0] > 0, "{ends:?}");
                assert_eq!(ends.last(), Some(&(units as usize)));
            }
        }
    }

    #[test]
    fn what_a_window_hides_costs_nothing() {
        // By hand: one token of 4 heads is one pass, which sees 10 positions, or 5.
        assert_eq!(cost(9..10, None, 4), 10 + 64);
        assert_eq!(cost(9..10, Some(5), 4), 5 + 64);
        // Tiles of 16 and 1 tokens, in 8 passes and 1, which see 16 and 17 positions.
        assert_eq!(tile_tokens(4), 16);
        assert_eq!(cost(0..17, None, 4), 8 * (16 + 64) + 17 + 64);
        assert_eq!(hidden_before(Some(5), 3), 0);
        assert_eq!(cost(7..7, None, 4), 0);
    }
}
