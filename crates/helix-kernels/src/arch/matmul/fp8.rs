//! FP8 with a scale for every 128 columns: its panels, and their product.

use super::Dots;
use super::kernel::{How, Operand, Rule, ask};
use super::panel::GROUP;
use crate::activations::ActivationRows;
use crate::formats::SUB_BLOCK;

/// Columns that share a scale of [`Format::F8E4M3`](crate::formats::Format::F8E4M3).
pub(crate) const COLUMNS: usize = 128;
/// Runs of consecutive columns that a chunk of FP8 is cut into.
pub(crate) const RUNS: usize = 4;

/// Columns of a shard that share scales, as their panel holds them: a unit of 16 `f32` scales, one
/// for each row, then units of 4 columns, one of each of [`RUNS`] runs of equal length. Columns
/// that the last runs lack are zeros.
///
/// The runs are chains of their own, so that a product with one token is not bound by the latency
/// of its multiply-adds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Chunk {
    /// First column in the shard.
    pub start: usize,
    /// Columns.
    pub len: usize,
    /// First unit in the panel.
    pub unit: usize,
}

impl Chunk {
    /// Columns of a run; units behind that of the scales.
    #[inline(always)]
    pub fn run(self) -> usize {
        self.len.div_ceil(RUNS)
    }

    /// Where a unit has the column of run `run` of row `row` of the panel.
    pub fn byte(run: usize, row: usize) -> usize {
        [0, 32, 1, 33][run] + 2 * row
    }
}

/// The chunks of a shard of `cols` columns whose first is `lead` columns into its scale's block.
#[inline(always)]
pub(crate) fn chunks(lead: usize, cols: usize) -> impl Iterator<Item = Chunk> {
    let (mut start, mut unit) = (0, 0);
    std::iter::from_fn(move || {
        if start == cols {
            return None;
        }
        let len = (COLUMNS - (lead + start) % COLUMNS).min(cols - start);
        let chunk = Chunk { start, len, unit };
        start += len;
        unit += 1 + chunk.run();
        Some(chunk)
    })
}

/// Units of 64 bytes of a panel.
pub(crate) fn units(lead: usize, cols: usize) -> usize {
    chunks(lead, cols).last().map_or(0, |last| last.unit + 1 + last.run())
}

/// FP8 meets values.
pub(super) struct Fp8;

impl Rule for Fp8 {
    type Block = [u8; GROUP];
    type Input = f32;

    fn blocks(w: &Operand<'_>) -> usize {
        units(w.lead, w.cols)
    }

    fn inputs<'a>(x: ActivationRows<'a>) -> &'a [f32] {
        x.values()
    }

    #[inline(always)]
    fn sums<L: Dots, const T: usize>(
        l: L,
        panel: &[[u8; GROUP]],
        x: [&[f32]; T],
        how: How,
    ) -> [L::F; T] {
        let mut sums = [l.splat(0.0); T];
        for at in chunks(how.lead, x[0].len()) {
            let scale = &panel[at.unit];
            ask(l, scale, 0, how.ahead);
            let scale = l.load_f32(scale);
            let own = &panel[at.unit + 1..][..at.run()];
            if at.len == COLUMNS {
                let mut whole = [&[0.0; COLUMNS]; T];
                for t in 0..T {
                    whole[t] = x[t][at.start..].first_chunk().expect("as many columns");
                }
                add_chunk(l, own, scale, whole, &mut sums, how);
            } else {
                // Runs of the length of whole ones; zeros meet the columns that are not there.
                let mut whole = [[0.0; COLUMNS]; T];
                for t in 0..T {
                    let x = x[t][at.start..at.start + at.len].chunks(at.run());
                    for (to, x) in whole[t].chunks_mut(SUB_BLOCK).zip(x) {
                        to[..x.len()].copy_from_slice(x);
                    }
                }
                add_chunk(l, own, scale, whole.each_ref(), &mut sums, how);
            }
        }
        sums
    }
}

/// Adds a chunk's units times `x`, whose runs begin 32 columns apart.
#[inline(always)]
fn add_chunk<L: Dots, const T: usize>(
    l: L,
    units: &[[u8; GROUP]],
    scale: L::F,
    x: [&[f32; COLUMNS]; T],
    sums: &mut [L::F; T],
    how: How,
) {
    let mut chains = [[l.splat(0.0); T]; RUNS];
    // As many runs at once as the registers hold chains.
    if const { L::SUMS / T >= RUNS } {
        for (unit, c) in units.iter().zip(0..SUB_BLOCK) {
            ask(l, unit, 0, how.ahead);
            let ([w0, w1], [w2, w3]) = (l.even_e4m3(unit), l.odd_e4m3(unit));
            for t in 0..T {
                chains[0][t] = l.fma(w0, l.splat(x[t][c]), chains[0][t]);
                chains[1][t] = l.fma(w1, l.splat(x[t][SUB_BLOCK + c]), chains[1][t]);
                chains[2][t] = l.fma(w2, l.splat(x[t][2 * SUB_BLOCK + c]), chains[2][t]);
                chains[3][t] = l.fma(w3, l.splat(x[t][3 * SUB_BLOCK + c]), chains[3][t]);
            }
        }
    } else {
        add_runs::<L, T, 0>(l, units, x, &mut chains, how);
        add_runs::<L, T, 2>(l, units, x, &mut chains, how);
    }
    for chain in &chains {
        for t in 0..T {
            sums[t] = l.fma(chain[t], scale, sums[t]);
        }
    }
}

/// Runs `R` and `R + 1` alone.
#[inline(always)]
fn add_runs<L: Dots, const T: usize, const R: usize>(
    l: L,
    units: &[[u8; GROUP]],
    x: [&[f32; COLUMNS]; T],
    chains: &mut [[L::F; T]; RUNS],
    how: How,
) {
    let load = |unit| if R == 0 { l.even_e4m3(unit) } else { l.odd_e4m3(unit) };
    for (unit, c) in units.iter().zip(0..SUB_BLOCK) {
        if R == 0 {
            ask(l, unit, 0, how.ahead);
        }
        let [a, b] = load(unit);
        for t in 0..T {
            chains[R][t] = l.fma(a, l.splat(x[t][R * SUB_BLOCK + c]), chains[R][t]);
            if L::SUMS / T >= 2 {
                let x = l.splat(x[t][(R + 1) * SUB_BLOCK + c]);
                chains[R + 1][t] = l.fma(b, x, chains[R + 1][t]);
            }
        }
    }
    if L::SUMS / T < 2 {
        for (unit, c) in units.iter().zip(0..SUB_BLOCK) {
            let b = load(unit)[1];
            for t in 0..T {
                let x = l.splat(x[t][(R + 1) * SUB_BLOCK + c]);
                chains[R + 1][t] = l.fma(b, x, chains[R + 1][t]);
            }
        }
    }
}
