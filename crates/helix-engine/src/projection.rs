//! Products with weight matrices, shared over a rank's threads.

use crate::lanes::Lanes;
use helix_kernels::{Activations, Matrix, SharedColumns, matmul};

/// Rows of a matrix that lie together: no piece of a product cuts them.
const PANEL: usize = 16;
/// The part of a thread's fair share that it takes in one piece. Threads that each stream one long
/// run of weights reach half as much bandwidth again as threads that take turns at short ones.
const FIRST_SHARE: (usize, usize) = (7, 8);
/// Pieces per thread that the rest is cut into, for whoever is done first.
const REST_PIECES: usize = 2;

/// `out [tokens, sum of rows] = input · [matrices]ᵀ`: the matrices' outputs lie side by side.
///
/// `cuts` is scratch for where pieces end. Returns the bytes of weights that one pass reads.
pub(crate) fn project(
    lanes: &mut Lanes,
    out: &mut [f32],
    input: &Activations,
    matrices: &[&Matrix],
    cuts: &mut Vec<usize>,
) -> u64 {
    let total = matrices.iter().map(|matrix| matrix.rows()).sum();
    if total == 0 {
        return 0;
    }
    cut(cuts, total, lanes.threads(), matrices);
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

/// Where pieces of `total` columns end: a long one for each thread, then short ones, and at every
/// matrix's end. Between them pieces are whole panels of their matrix.
fn cut(cuts: &mut Vec<usize>, total: usize, threads: usize, matrices: &[&Matrix]) {
    cuts.clear();
    let first = total / threads * FIRST_SHARE.0 / FIRST_SHARE.1;
    let rest = (total - first * threads).div_ceil(threads * REST_PIECES).max(1);
    let long = (1..=threads).map(|thread| thread * first);
    let short = (1..threads * REST_PIECES).map(|piece| threads * first + piece * rest);
    let mut start = 0;
    for matrix in matrices {
        let end = start + matrix.rows();
        let within = long.clone().chain(short.clone()).filter(|at| (start..end).contains(at));
        cuts.extend(within.map(|at| start + (at - start) / PANEL * PANEL));
        cuts.push(end);
        start = end;
    }
}

/// The most cuts that a product of up to three matrices has.
pub(crate) fn max_cuts(threads: usize) -> usize {
    threads * (1 + REST_PIECES) + 3
}
