//! One layer on one rank: the paper's figure 4, line by line.
//!
//! | line | shape | over |
//! |---|---|---|
//! | norm, QKV | q `[B, Q/tpa, D]`, k and v `[B, K/tpa, D]`, or a latent | repeated over KVP, or gathered |
//! | RoPE, append | k and v of the positions this rank owns | KVP |
//! | partial attention | o `[B, Q/tpa, D]`, lse `[B, Q/tpa]`, own tokens only | KVP x TPA |
//! | all-to-all, merge | `[B, own heads, D]`, exact | the KVP group |
//! | out-projection, all-reduce | `[B, H]` | all N ranks |
//! | norm, FFN, all-reduce | `[B, H]` | TPF x EP = N ranks |
//!
//! Under `dp-ep` attention's lines see the tokens of a rank's own sequences only, and the
//! out-projection's result is gathered instead of reduced.

use crate::attention;
use crate::counters::Line;
use crate::ffn;
use crate::lanes::Lanes;
use crate::projection::project;
use crate::qkv;
use crate::rank::Rank;
use crate::residual;
use helix_comm::{Comm, CommError};
use helix_kernels::elementwise::rms_norm;
use helix_kernels::{Activations, Matrix};

/// Runs layer `index` on the rows `x` of the batch, which every rank has and every rank updates
/// to the same bits.
pub(crate) fn run(rank: &mut Rank, index: usize) -> Result<(), CommError> {
    let Rank { plan, weights, kv, batch, lanes, comms, buffers: b, counters: c, clock, .. } = rank;
    let w = &weights.layers[index];
    let sight = &batch.sights[plan.pool_of[index]];
    let turns = b.turns.of(plan.rope_of[index]);
    let (rows, own) = (batch.ids.len(), batch.tokens.len());
    let x = &mut b.x[..rows * plan.hidden];
    let y = &mut b.y[..rows * plan.hidden];

    // The attention phase: KVP x TPA.
    norm(lanes, &mut b.hidden, x, &batch.rows, &w.attn_norm, plan.rms_eps);
    clock.lap(c, Line::AttentionNorm);
    let input = &b.hidden;
    c.weight_bytes +=
        qkv::share(lanes, &plan.qkv, &w.attention, input, turns, &mut b.qkv, &mut b.cuts);
    clock.lap(c, Line::Qkv);
    qkv::gather(&mut comms.kvp, &plan.qkv, own, &mut b.qkv)?;
    clock.lap(c, Line::QkvGather);
    qkv::rotate(lanes, &plan.qkv, &w.attention, own, turns, &mut b.qkv);
    let qkv = b.qkv.rows(&plan.qkv);
    qkv::append(lanes, &plan.qkv, kv, index, batch, qkv);
    clock.lap(c, Line::RopeAppend);
    attention::partial(lanes, kv, index, (batch, sight), &plan.heads, qkv, &mut b.attention);
    c.kv_bytes_read += kv.bytes_read(sight.visible_tokens);
    clock.lap(c, Line::Attention);
    if comms.kvp.size() > 1 {
        c.weight_bytes +=
            attention::exchange(lanes, &mut comms.kvp, batch, &plan.heads, w, &mut b.attention)?;
    }
    clock.lap(c, Line::AllToAll);
    c.weight_bytes += attention::merge(lanes, batch, &plan.heads, w, &mut b.attention, &mut b.out);
    clock.lap(c, Line::Merge);

    // The same ranks as one tensor-parallel group: output projection.
    c.weight_bytes += product(lanes, &mut y[..own * plan.hidden], &b.out, &w.out, &mut b.cuts);
    clock.lap(c, Line::OutProjection);
    match batch.by_group.is_empty() {
        true => comms.world.all_reduce(y)?,
        false => residual::gather(&mut comms.world, batch, y, &mut b.gathered, plan.hidden)?,
    }
    clock.lap(c, Line::OutAllReduce);
    residual::add(lanes, x, y, w.out_bias.as_deref(), w.attn_post_norm.as_deref(), plan.rms_eps);

    // The FFN phase: TPF x EP.
    norm(lanes, &mut b.hidden, x, &b.all_rows[..rows], &w.ffn_norm, plan.rms_eps);
    clock.lap(c, Line::FfnNorm);
    ffn::run(lanes, &plan.ffn, &w.ffn, &b.hidden, y, &mut b.ffn, &mut b.cuts, (c, clock));
    comms.reduce_ffn(y)?;
    clock.lap(c, Line::FfnAllReduce);
    residual::add(lanes, x, y, None, w.ffn_post_norm.as_deref(), plan.rms_eps);
    Ok(())
}

/// RMS norm of some rows of `x`, as the input of the next products.
pub(crate) fn norm(
    lanes: &mut Lanes,
    out: &mut Activations,
    x: &[f32],
    rows: &[usize],
    weight: &[f32],
    epsilon: f32,
) {
    let normed = out.fill(rows.len(), weight.len());
    lanes.by_token(rows.len(), |lane| {
        while let Some(row) = normed.next() {
            let x = &x[rows[row.token()] * weight.len()..][..weight.len()];
            let normed = &mut lane.row[..weight.len()];
            rms_norm(normed, x, weight, epsilon);
            row.write(normed);
        }
    });
}

/// This rank's part of a product whose input columns are cut over the ranks; a rank without any
/// has zeros to add.
pub(crate) fn product(
    lanes: &mut Lanes,
    y: &mut [f32],
    input: &Activations,
    matrix: &Matrix,
    cuts: &mut Vec<usize>,
) -> u64 {
    if matrix.cols() == 0 {
        y.fill(0.0);
        return 0;
    }
    project(lanes, y, input, &[matrix], cuts)
}
