//! HOP-B: attention in pieces, so that a piece's all-to-all is in flight while the next pieces
//! compute (the paper's section 2.3 and figure 3).
//!
//! The paper's pieces are requests. Here a batch is cut between units, a run's rows of one KV head
//! (`helix_layout::pieces`), so that few requests, or one, can be cut as well. A row's sums don't
//! depend on the rows beside it, and a merge adds in shard order, so pieces change no bits.

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
