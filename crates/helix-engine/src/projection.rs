//! Products with weight matrices, shared over a rank's threads.

use crate::lanes::Lanes;
use crate::pieces;
use helix_kernels::{ActivationRows, Activations, Matrix, SharedColumns, matmul, matmul_from};
use std::ops::Range;

/// Rows of a matrix that lie together: no piece of a product cuts them.
pub(crate) const PANEL: usize = 16;
/// Short pieces per thread.
const REST_PIECES: usize = 2;

/// `out [tokens, sum of rows] = input · [matrices]ᵀ`: the matrices' outputs lie side by side.
///
/// `cuts` is scratch for where pieces end. Returns the bytes of weights that the pass reads: none
/// for no tokens.
pub(crate) fn project<'a>(
    lanes: &mut Lanes,
    out: &mut [f32],
    input: impl Into<ActivationRows<'a>>,
    matrices: &[&Matrix],
    cuts: &mut Vec<usize>,
) -> u64 {
    let input = input.into();
    let total = matrices.iter().map(|matrix| matrix.rows()).sum();
    if total == 0 || input.tokens() == 0 {
        return 0;
    }
    cut(cuts, total, lanes.threads(), matrices.iter().map(|matrix| matrix.rows()));
    let shared = SharedColumns::with_cuts(&mut out[..input.tokens() * total], total, total, cuts);
    lanes.share(|_| {
        while let Some(mut columns) = shared.next() {
            let mut first = 0;
            for matrix in matrices {
                if columns.range().start < first + matrix.rows() {
                    matmul(&mut columns, first, matrix, input);
                    break;
                }
                first += matrix.rows();
            }
        }
    });
    matrices.iter().map(|matrix| matrix.bytes() as u64).sum()
}

/// As [`project`], of some rows of one matrix: `out [tokens, rows]`. They start with a panel.
pub(crate) fn project_rows(
    lanes: &mut Lanes,
    out: &mut [f32],
    input: &Activations,
    (matrix, rows): (&Matrix, Range<usize>),
    cuts: &mut Vec<usize>,
) -> u64 {
    let total = rows.len();
    if total == 0 || input.tokens() == 0 {
        return 0;
    }
    cut(cuts, total, lanes.threads(), [total]);
    let shared = SharedColumns::with_cuts(&mut out[..input.tokens() * total], total, total, cuts);
    lanes.share(|_| {
        while let Some(mut columns) = shared.next() {
            matmul_from(&mut columns, rows.start, matrix, input);
        }
    });
    let panel = matrix.bytes() / matrix.rows().div_ceil(PANEL);
    (total.div_ceil(PANEL) * panel) as u64
}

/// Where [`pieces`] of `total` columns end, and every matrix of so many `rows`. Between them pieces
/// are whole panels of their matrix.
fn cut(cuts: &mut Vec<usize>, total: usize, threads: usize, rows: impl IntoIterator<Item = usize>) {
    cuts.clear();
    let mut start = 0;
    for rows in rows {
        let end = start + rows;
        let within =
            pieces::ends(total, threads, REST_PIECES).filter(|at| (start..end).contains(at));
        cuts.extend(within.map(|at| start + (at - start) / PANEL * PANEL));
        cuts.push(end);
        start = end;
    }
}

/// The most cuts that a product of up to three matrices has.
pub(crate) const fn max_cuts(threads: usize) -> usize {
    pieces::count(threads, REST_PIECES) + 3
}
