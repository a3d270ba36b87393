//! How many experts a batch touches, on the rank that touches most.

use helix_layout::{MoeShape, split};

use crate::Routing;

/// How tokens choose experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Popularity {
    /// All experts are as likely; all ranks are taken for the mean one.
    Mean,
    /// All experts are as likely; the step waits for the group that happens to have most, and for
    /// one whose experts are `skew` times as likely as the mean (1: none is).
    Busiest {
        /// At least 1.
        skew: f64,
    },
}

impl Routing {
    /// No experts.
    pub const NONE: Routing = Routing { experts: 0.0, rows: 0.0 };

    /// The expected routing of `tokens` tokens over `ep` groups of experts.
    ///
    /// Each token goes to `k` of `E` experts, so one of them has none of `T` tokens with
    /// probability `(1 - k/E)^T`. A group of `n` touches `n (1 - (1 - k/E)^T)` on average; the
    /// busiest of all groups `sum over m of (1 - P(no group touches more than m))`, each group's
    /// number being binomial.
    pub fn expected(moe: &MoeShape, ep: usize, tokens: f64, popularity: Popularity) -> Routing {
        if tokens == 0.0 {
            return Routing::NONE;
        }
        let share = moe.top_k as f64 / moe.experts as f64;
        let touched = |share: f64| 1.0 - (1.0 - share.min(1.0)).powf(tokens);
        let largest = split(moe.experts, ep, 1, 0).len();
        let mean = largest as f64 * touched(share);
        let rows_of_one = tokens * share / touched(share);
        let experts = match popularity {
            Popularity::Mean => mean,
            Popularity::Busiest { skew } => {
                let popular = largest as f64 * touched(share * skew);
                busiest(moe.experts, ep, touched(share)).max(popular)
            }
        };
        let skew = match popularity {
            Popularity::Busiest { skew } => skew,
            Popularity::Mean => 1.0,
        };
        let most = tokens * moe.top_k.min(largest) as f64;
        let rows = (experts * rows_of_one).max(mean * rows_of_one * skew);
        Routing { experts, rows: rows.min(most) }
    }
}

/// The mean over draws of the most experts that any of `ep` groups has, where each of `experts` is
/// drawn with `probability`.
fn busiest(experts: usize, ep: usize, probability: f64) -> f64 {
    let (each, longer) = (experts / ep, experts % ep);
    if ep == 1 || probability >= 1.0 {
        return experts.div_ceil(ep) as f64 * probability;
    }
    let mut small = Binomial::new(each, probability);
    let mut large = Binomial::new(each + 1, probability);
    let mut mean = 0.0;
    for _ in 0..experts.div_ceil(ep) {
        let none_has_more =
            small.at_most().powi((ep - longer) as i32) * large.at_most().powi(longer as i32);
        let more = 1.0 - none_has_more;
        mean += more;
        if more < 1e-9 {
            break;
        }
    }
    mean
}

/// Walks a binomial distribution from 0 up.
struct Binomial {
    trials: usize,
    odds: f64,
    next: usize,
    term: f64,
    sum: f64,
}

impl Binomial {
    fn new(trials: usize, probability: f64) -> Binomial {
        let term = (1.0 - probability).powi(trials as i32);
        Binomial { trials, odds: probability / (1.0 - probability), next: 0, term, sum: 0.0 }
    }

    /// The probability of at most 0, 1, 2, … on successive calls.
    fn at_most(&mut self) -> f64 {
        if self.next <= self.trials {
            self.sum += self.term;
            let left = (self.trials - self.next) as f64;
            self.next += 1;
            self.term *= self.odds * left / self.next as f64;
        }
        self.sum.min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R1: MoeShape = MoeShape {
        layers: 58,
        experts: 256,
        top_k: 8,
        ffn: 2048,
        block: 1,
        shared_ffn: 2048,
        shared_block: 1,
    };

    /// A generator good enough to deal experts with.
    fn next(state: &mut u64) -> usize {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*state >> 33) as usize
    }

    /// Draws tokens' experts and counts.
    fn drawn(ep: usize, tokens: usize, draws: usize) -> (f64, f64) {
        let mut state = 7;
        let (mut most, mut mean) = (0, 0);
        for _ in 0..draws {
            let mut touched = vec![false; R1.experts];
            for _ in 0..tokens {
                let mut left: Vec<usize> = (0..R1.experts).collect();
                for _ in 0..R1.top_k {
                    touched[left.swap_remove(next(&mut state) % left.len())] = true;
                }
            }
            let groups = (0..ep)
                .map(|g| split(R1.experts, ep, 1, g).filter(|&expert| touched[expert]).count());
            most += groups.max().unwrap();
            mean += touched.iter().filter(|t| **t).count();
        }
        (most as f64 / draws as f64, mean as f64 / draws as f64 / ep as f64)
    }

    #[test]
    fn expected_numbers_are_those_of_many_draws() {
        for (ep, tokens) in [(1, 1), (8, 1), (64, 1), (64, 8), (16, 64), (12, 20), (256, 30)] {
            let (most, mean) = drawn(ep, tokens, 400);
            let uniform = Popularity::Busiest { skew: 1.0 };
            let found = Routing::expected(&R1, ep, tokens as f64, uniform);
            assert!((found.experts / most - 1.0).abs() < 0.06, "{ep}, {tokens}: {found:?}, {most}");
            if R1.experts.is_multiple_of(ep) {
                let found = Routing::expected(&R1, ep, tokens as f64, Popularity::Mean);
                assert!((found.experts / mean - 1.0).abs() < 0.06, "{ep}, {tokens}: {mean}");
                let rows = (tokens * R1.top_k) as f64 / ep as f64;
                assert!((found.rows - rows).abs() < 1e-9, "{ep}, {tokens}: {found:?}");
            }
        }
    }

    #[test]
    fn skew_only_adds_and_never_past_what_there_is() {
        for tokens in [1.0, 10.0, 1e5] {
            let mut last = Routing::NONE;
            for skew in [1.0, 2.0, 8.0, 1e9] {
                let found = Routing::expected(&R1, 64, tokens, Popularity::Busiest { skew });
                assert!(found.experts >= last.experts && found.experts <= 4.0, "{found:?}");
                assert!(found.rows >= last.rows && found.rows <= 4.0 * tokens, "{found:?}");
                last = found;
            }
        }
    }
}
