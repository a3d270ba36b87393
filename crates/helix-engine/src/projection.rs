//! Products with weight matrices, shared over a rank's threads.

use crate::lanes::Lanes;
use helix_kernels::{Activations, Matrix, SharedColumns, matmul};

/// Columns of an output that a thread takes at a time, at the least: the panel of a matrix.
const PANEL: usize = 16;
/// Pieces of a product for each thread: enough that one that is held up does not hold up all.
const PIECES: usize = 6;

/// `out [tokens, sum of rows] = input · [matrices]ᵀ`: the matrices' outputs lie side by side.
///
/// `cuts` is scratch for where one matrix ends and the next starts. Returns the bytes of weights
/// that one pass reads.
pub(crate) fn project(
    lanes: &mut Lanes,
    out: &mut [f32],
    input: &Activations,
    matrices: &[&Matrix],
    cuts: &mut Vec<usize>,
) -> u64 {
    cuts.clear();
    let mut total = 0;
    for matrix in matrices {
        total += matrix.rows();
        cuts.push(total);
    }
    if total == 0 {
        return 0;
    }
    let tile = (total / (lanes.threads() * PIECES)).next_multiple_of(PANEL).max(PANEL);
    let shared = SharedColumns::with_cuts(&mut out[..input.tokens() * total], total, tile, cuts);
    let cuts = &*cuts;
    lanes.share(|_| {
        while let Some(mut columns) = shared.next() {
            let index = cuts.partition_point(|&end| end <= columns.range().start);
            let first = cuts[index] - matrices[index].rows();
            matmul(&mut columns, first, matrices[index], input);
        }
    });
    matrices.iter().map(|matrix| matrix.bytes() as u64).sum()
}
