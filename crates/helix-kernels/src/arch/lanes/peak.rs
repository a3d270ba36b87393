//! Multiply-adds from registers, for the roof that attention is held against.

use std::hint::black_box;

use super::{Kernel, LANES, Lanes, dispatch};

/// Runs `rounds` of independent multiply-adds; returns the operations done.
pub(crate) fn spin_multiply_adds(rounds: usize) -> usize {
    dispatch(Spin { rounds })
}

struct Spin {
    rounds: usize,
}

impl Kernel for Spin {
    type Output = usize;

    /// In as many chains as there are registers for: enough to hide the latency.
    #[inline(always)]
    fn run<S: Lanes>(self, s: S) -> usize {
        match S::ROWS {
            4 => self.chains::<S, 16>(s),
            3 => self.chains::<S, 6>(s),
            _ => self.chains::<S, 1>(s),
        }
    }
}

impl Spin {
    #[inline(always)]
    fn chains<S: Lanes, const N: usize>(self, s: S) -> usize {
        let (x, y) = (s.splat(black_box(0.5)), s.splat(black_box(1.0)));
        let mut sums = [y; N];
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = s.fma(*sum, x, y);
            }
        }
        for sum in sums {
            black_box(s.sum(sum));
        }
        self.rounds * N * LANES * 2
    }
}
