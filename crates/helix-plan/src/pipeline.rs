//! HOP-B: a request's all-to-all runs while the next one's attention does (the paper's section
//! 2.1.3 and figure 3).

use crate::network::Wire;

/// One piece of a batch: its attention, then its transfer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece {
    /// Seconds of compute.
    pub compute_s: f64,
    /// The transfer, which starts when both the compute and the link are free.
    pub wire: Wire,
}

/// Seconds from the start of the first piece's compute to the arrival of the last transfer, event
/// by event: pieces compute one after the other, and their transfers take the link in turn.
pub fn pipelined(pieces: &[Piece]) -> f64 {
    let (mut computed, mut link_free, mut arrived) = (0.0, 0.0, 0.0f64);
    for piece in pieces {
        computed += piece.compute_s;
        link_free = f64::max(computed, link_free) + piece.wire.busy_s;
        arrived = arrived.max(link_free + piece.wire.latency_s);
    }
    arrived
}

/// Seconds when every transfer waits for all compute and for the transfer before it.
pub fn lockstep(pieces: &[Piece]) -> f64 {
    pieces.iter().map(|piece| piece.compute_s + piece.wire.seconds()).sum()
}

/// [`pipelined`] of `count` equal pieces, in closed form: the slower of the two goes through
/// `count` times, the other once.
pub fn pipelined_equal(count: f64, piece: Piece) -> f64 {
    let Piece { compute_s, wire } = piece;
    compute_s + (count - 1.0) * compute_s.max(wire.busy_s) + wire.seconds()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(compute_s: f64, busy_s: f64, latency_s: f64) -> Piece {
        Piece { compute_s, wire: Wire { busy_s, latency_s } }
    }

    #[test]
    fn a_slow_link_is_what_remains() {
        // 1 of compute, then 4 transfers of 3, and 5 until the last is there.
        assert_eq!(pipelined(&[piece(1.0, 3.0, 5.0); 4]), 1.0 + 12.0 + 5.0);
        assert_eq!(pipelined(&[]), 0.0);
    }

    proptest! {
        #[test]
        fn equal_pieces_have_a_closed_form(
            count in 1usize..40, compute in 0.0..9.0, busy in 0.0..9.0, latency in 0.0..9.0
        ) {
            let piece = piece(compute, busy, latency);
            let events = pipelined(&vec![piece; count]);
            let closed = pipelined_equal(count as f64, piece);
            prop_assert!((events - closed).abs() < 1e-9, "{events} {closed}");
            prop_assert!(events <= lockstep(&vec![piece; count]) + 1e-9);
        }
    }
}
