//! What a phase adds to the residual stream.

use crate::batch::Batch;
use crate::lanes::Lanes;
use helix_comm::{Chunks, Comm, CommError, Pending};
use helix_kernels::SharedRows;
use helix_kernels::elementwise::{add_in_place, rms_norm_heads};
use helix_model::LayerWeights;
use std::ops::Range;

/// What is done to a phase's result before it is added.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    bias: Option<&'a [f32]>,
    norm: Option<&'a [f32]>,
    rms_eps: f32,
}

impl<'a> Finish<'a> {
    pub(crate) fn of_attention(w: &'a LayerWeights, rms_eps: f32) -> Finish<'a> {
        let (bias, norm) = (w.out_bias.as_deref(), w.attn_post_norm.as_deref());
        Finish { bias, norm, rms_eps }
    }

    pub(crate) fn of_ffn(w: &'a LayerWeights, rms_eps: f32) -> Finish<'a> {
        Finish { bias: None, norm: w.ffn_post_norm.as_deref(), rms_eps }
    }

    /// `x += norm(y + bias)`, without what there is none of. `y` is used up.
    fn add(&self, x: &mut [f32], y: &mut [f32]) {
        self.bias.iter().for_each(|bias| add_in_place(y, bias));
        self.norm.iter().for_each(|norm| rms_norm_heads(y, norm, self.rms_eps));
        add_in_place(x, y);
    }
}

/// The stream `x [rows, hidden]` takes the sum of what the ranks have computed.
pub(crate) fn add_sum(
    lanes: &mut Lanes,
    x: &mut [f32],
    hidden: usize,
    parts: Chunks<'_>,
    finish: Finish<'_>,
) {
    add(lanes, x, hidden, finish, |row, y| parts.sum(row * hidden..(row + 1) * hidden, y));
}

/// The stream `x [rows, hidden]` takes `sums` of the same shape.
pub(crate) fn add_rows(
    lanes: &mut Lanes,
    x: &mut [f32],
    sums: &[f32],
    hidden: usize,
    finish: Finish<'_>,
) {
    add(lanes, x, hidden, finish, |row, y| y.copy_from_slice(&sums[row * hidden..][..hidden]));
}

/// The stream takes in each row what `write` gives of it.
fn add(
    lanes: &mut Lanes,
    x: &mut [f32],
    hidden: usize,
    finish: Finish<'_>,
    write: impl Fn(usize, &mut [f32]) + Sync,
) {
    let rows = x.len() / hidden;
    let stream = SharedRows::new(x, hidden);
    lanes.by_token(rows, |lane| {
        while let Some((row, x)) = stream.next() {
            let y = &mut lane.row[..hidden];
            write(row, y);
            finish.add(x, y);
        }
    });
}

/// Some columns of `sums [rows, hidden]` get the sum of what the ranks have computed of them.
pub(crate) fn sum_columns(
    lanes: &mut Lanes,
    sums: &mut [f32],
    hidden: usize,
    columns: Range<usize>,
    parts: Chunks<'_>,
) {
    let (rows, len) = (sums.len() / hidden, columns.len());
    let sums = SharedRows::new(sums, hidden);
    lanes.by_token(rows, |_| {
        while let Some((row, sums)) = sums.next() {
            parts.sum(row * len..(row + 1) * len, &mut sums[columns.clone()]);
        }
    });
}

/// Starts to bring together what the ranks compute of rows of their own.
pub(crate) fn start_gather(
    world: &mut impl Comm,
    batch: &Batch,
    hidden: usize,
    counts: &mut Vec<usize>,
    write: impl FnOnce(&mut [f32]),
) -> Result<Pending, CommError> {
    counts.clear();
    counts.extend(batch.group_rows.iter().map(|rows| rows * hidden));
    world.start_all_gather(counts, write)
}

/// The stream takes what the ranks have computed of rows of their own: groups of ranks attend to
/// different sequences.
pub(crate) fn add_gathered(
    lanes: &mut Lanes,
    x: &mut [f32],
    hidden: usize,
    batch: &Batch,
    parts: Chunks<'_>,
    finish: Finish<'_>,
) {
    let mut places = batch.by_group.iter();
    for (rank, &rows) in batch.group_rows.iter().enumerate() {
        for (from, &row) in parts.of(rank).chunks_exact(hidden).zip(places.by_ref().take(rows)) {
            let y = lanes.leader_row(hidden);
            y.copy_from_slice(from);
            finish.add(&mut x[row * hidden..][..hidden], y);
        }
    }
}
