//! What a phase adds to the residual stream.

use crate::batch::Batch;
use crate::lanes::Lanes;
use helix_comm::{Comm, CommError};
use helix_kernels::SharedRows;
use helix_kernels::elementwise::{add_in_place, rms_norm_heads};

/// The stream takes a phase's result: `x += norm(y + bias)`, without what there is none of. `y`
/// is used up.
pub(crate) fn add(
    lanes: &mut Lanes,
    x: &mut [f32],
    y: &mut [f32],
    bias: Option<&[f32]>,
    norm: Option<&[f32]>,
    rms_eps: f32,
) {
    let Some(hidden) = bias.or(norm).map(<[f32]>::len) else {
        return sum(lanes, x, y);
    };
    let rows = y.len() / hidden;
    let finished = SharedRows::new(&mut *y, hidden);
    lanes.by_token(rows, |_| {
        while let Some((_, y)) = finished.next() {
            bias.iter().for_each(|bias| add_in_place(y, bias));
            norm.iter().for_each(|norm| rms_norm_heads(y, norm, rms_eps));
        }
    });
    sum(lanes, x, y);
}

/// Values that a thread adds at a time.
const RUN: usize = 1024;

fn sum(lanes: &mut Lanes, x: &mut [f32], y: &[f32]) {
    let runs = SharedRows::new(x, RUN);
    lanes.by_token(y.len() / RUN, |_| {
        while let Some((run, x)) = runs.next() {
            add_in_place(x, &y[run * RUN..][..x.len()]);
        }
    });
}

/// Where groups of ranks attend to sequences of their own: every rank's rows of `y`, the first in
/// it, come to all ranks, and to their places.
pub(crate) fn gather(
    world: &mut impl Comm,
    batch: &Batch,
    y: &mut [f32],
    gathered: &mut [f32],
    hidden: usize,
) -> Result<(), CommError> {
    let gathered = &mut gathered[..y.len()];
    world.all_gather(&y[..batch.tokens.len() * hidden], gathered)?;
    for (from, &row) in gathered.chunks_exact(hidden).zip(&batch.by_group) {
        y[row * hidden..][..hidden].copy_from_slice(from);
    }
    Ok(())
}
