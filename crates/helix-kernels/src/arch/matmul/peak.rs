//! Dot products from registers, for the roof that matrix kernels are held against.

use std::hint::black_box;

use super::panel::ROWS;
use super::{Dots, Job, Visit, dispatch};
use crate::isa;

/// Chains in flight: enough to hide the latency of a dot product.
const CHAINS: usize = 12;

/// Runs `rounds` of independent dot products; returns the operations done.
pub(crate) fn spin_dots(rounds: usize) -> usize {
    dispatch(isa::cpu(), Spin { rounds });
    rounds * CHAINS * ROWS * 4 * 2
}

struct Spin {
    rounds: usize,
}

impl Visit for Spin {
    fn visit<L: Dots>(self, l: L) {
        l.enter(self);
    }
}

impl Job for Spin {
    #[inline(always)]
    fn run<L: Dots>(self, l: L) {
        let w = l.bytes(black_box(&[7; 64]));
        let x = black_box([[1i8, -2, 3, -4]; CHAINS]);
        let mut sums = [l.splat_shl(0, 0); CHAINS];
        for _ in 0..self.rounds {
            for (sum, x) in sums.iter_mut().zip(&x) {
                *sum = l.dot(*sum, w, x);
            }
        }
        for sum in sums {
            let mut out = [0.0; ROWS];
            l.store(l.to_floats(sum), &mut out);
            black_box(out);
        }
    }
}
