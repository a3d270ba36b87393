//! HOP-B: attention in pieces, so that a piece's all-to-all is in flight while the next pieces
//! compute (the paper's section 2.3 and figure 3).
//!
//! The paper's pieces are requests. Here a batch is cut between units, a run's rows of one KV head,
//! so that few requests, or one, can be cut as well. A row's sums don't depend on the rows beside
//! it, and a merge adds in shard order, so pieces change no bits.

use crate::tuner::Tuner;
use helix_comm::Comm;

/// The most pieces that a batch's attention is cut into.
pub const MAX_PIECES: usize = 64;

/// Who says how many pieces there are.
#[derive(Clone, Copy)]
pub(crate) enum Pieces<'a> {
    /// So many at most.
    Fixed(usize),
    Tuned(&'a Tuner),
}

/// Cuts units of such costs into at most `pieces` runs that cost about the same, and gives their
/// ends. One run at least, which is empty if there are no units.
pub(crate) fn cut(ends: &mut Vec<usize>, costs: &[u64], pieces: usize) {
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

/// What a rank does next with a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Computes and sends it.
    Start(usize),
    /// Receives the others' parts and brings them together.
    Finish(usize),
}

/// The turns of `pieces` pieces: each is finished as late as the collectives that `comm` can have in
/// flight allow, so that it is there by then.
pub(crate) fn turns<C: Comm>(_comm: &C, pieces: usize) -> impl Iterator<Item = Turn> + use<C> {
    let behind = C::IN_FLIGHT - 1;
    (0..pieces + behind).flat_map(move |index| {
        let start = (index < pieces).then_some(Turn::Start(index));
        let finish = index.checked_sub(behind).map(Turn::Finish);
        start.into_iter().chain(finish)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use helix_comm::ThreadComm;
    use std::time::Duration;

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
    fn as_many_are_in_flight_as_may_be() {
        let comm = ThreadComm::group(&[0], 1, Duration::from_secs(1)).remove(0);
        for pieces in 1..10 {
            let (mut sent, mut merged, mut most) = (0, 0, 0);
            for turn in turns(&comm, pieces) {
                match turn {
                    Turn::Start(piece) => {
                        assert_eq!(piece, sent);
                        sent += 1;
                    }
                    Turn::Finish(piece) => {
                        assert_eq!(piece, merged);
                        merged += 1;
                    }
                }
                most = most.max(sent - merged);
            }
            assert_eq!((sent, merged), (pieces, pieces));
            assert_eq!(most, pieces.min(ThreadComm::IN_FLIGHT));
        }
    }
}
