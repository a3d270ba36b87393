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
use crate::comms::Phase;
use crate::counters::{Line, Meters};
use crate::exchange;
use crate::ffn::{self, Work};
use crate::hopb::{self, Turn};
use crate::lanes::Lanes;
use crate::projection::project_rows;
use crate::qkv::{self, Projection};
use crate::rank::Rank;
use crate::residual::{self, Finish};
use crate::slices::{self, Stream};
use helix_comm::{Comm, CommError};
use helix_kernels::elementwise::rms_norm;
use helix_kernels::{Activations, Matrix};
use std::ops::Range;

/// Runs layer `index` on the rows `x` of the batch, which every rank has and every rank updates
/// to the same bits.
pub(crate) fn run(rank: &mut Rank, index: usize) -> Result<(), CommError> {
    let Rank { plan, weights, kv, batch, lanes, comms, buffers: b, counters: c, clock, .. } = rank;
    let w = &weights.layers[index];
    let sight = &batch.sights[plan.pool_of[index]];
    let turns = b.turns.of(plan.rope_of[index]);
    let (rows, own) = (batch.ids.len(), batch.tokens.len());
    let hidden = plan.hidden;
    let x = &mut b.x[..rows * hidden];

    // The attention phase: KVP x TPA.
    norm(lanes, &mut b.hidden, x, &batch.rows, &w.attn_norm, plan.rms_eps);
    clock.lap(c, Line::AttentionNorm);
    let (weights, input, cuts) = (&w.attention, &b.hidden, &mut b.cuts);
    let projection = Projection { plan: &plan.qkv, weights, input, turns, cuts };
    let (read, shares) = qkv::share(lanes, &mut comms.kvp, projection, &mut b.qkv)?;
    c.weight_bytes += read;
    clock.lap(c, Line::Qkv);
    qkv::gather(&mut comms.kvp, shares, |shares| {
        clock.lap(c, Line::QkvGather);
        qkv::rotate(lanes, &plan.qkv, &w.attention, (own, shares), turns, &mut b.qkv);
    })?;
    let qkv = b.qkv.rows(&plan.qkv);
    qkv::append(lanes, &plan.qkv, kv, index, batch, qkv);
    clock.lap(c, Line::RopeAppend);
    // HOP-B: one piece, or several of which each is in flight while the next ones compute.
    let (heads, parts, exchanged) = (&plan.heads, &mut b.attention, &mut b.exchange);
    for turn in hopb::turns(&comms.kvp, sight.pieces()) {
        match turn {
            Turn::Start(piece) => {
                attention::partial(lanes, kv, index, (batch, sight, piece), heads, qkv, parts);
                clock.lap(c, Line::Attention);
                let (outputs, units) = (parts.outputs(batch, heads), &sight.piece(piece));
                c.weight_bytes +=
                    exchange::send(lanes, &mut comms.kvp, outputs, units, w, exchanged)?;
                clock.lap(c, Line::AllToAll);
            }
            Turn::Finish(piece) => {
                let (outputs, units) = (parts.outputs(batch, heads), &sight.piece(piece));
                exchange::receive(&mut comms.kvp, exchanged, |received, exchanged| {
                    clock.lap(c, Line::AllToAll);
                    exchange::merge(lanes, received, outputs, units, w, exchanged);
                })?;
                clock.lap(c, Line::Merge);
            }
        }
    }
    c.kv_bytes_read += kv.bytes_read(sight.visible_tokens);
    c.weight_bytes += exchange::collect(lanes, batch, heads, w, exchanged, &mut b.out);
    clock.lap(c, Line::Merge);

    // The same ranks as one tensor-parallel group: output projection.
    let whole = batch.by_group.is_empty();
    let mut out = |lanes: &mut Lanes, y: &mut [f32], columns, (c, clock): Meters<'_>| {
        c.weight_bytes += product(lanes, y, &b.out, &w.out, columns, &mut b.cuts);
        clock.lap(c, Line::OutProjection);
    };
    let finish = Finish::of_attention(w, plan.rms_eps);
    if whole {
        let (stream, slices) = (Stream { x: &mut *x, hidden, finish }, &mut b.slices);
        let meters = (&mut *c, &mut *clock);
        slices::reduce(lanes, comms, meters, Phase::Attention, plan.slices, stream, slices, out)?;
    } else {
        let world = &mut comms.world;
        let out = |y: &mut [f32]| out(lanes, y, 0..hidden, (&mut *c, &mut *clock));
        let y = residual::start_gather(world, batch, hidden, &mut b.counts, out)?;
        world.finish(y, |parts| {
            residual::add_gathered(lanes, x, hidden, batch, parts, finish);
        })?;
        clock.lap(c, Line::OutAllReduce);
    }

    // The FFN phase: TPF x EP.
    norm(lanes, &mut b.hidden, x, &b.all_rows[..rows], &w.ffn_norm, plan.rms_eps);
    clock.lap(c, Line::FfnNorm);
    let finish = Finish::of_ffn(w, plan.rms_eps);
    let (stream, slices) = (Stream { x: &mut *x, hidden, finish }, &mut b.slices);
    let cut = ffn::slices(&w.ffn, plan.slices);
    slices::reduce(lanes, comms, (c, clock), Phase::Ffn, cut, stream, slices, |lanes, y, cut, c| {
        let (plan, input, cuts) = (&plan.ffn, &b.hidden, &mut b.cuts);
        ffn::run(&mut Work { lanes, plan, input, cuts, meters: c }, &w.ffn, (y, cut), &mut b.ffn);
    })
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

/// This rank's part of some columns of a product whose input is cut over the ranks; a rank without
/// any input has zeros to add.
pub(crate) fn product(
    lanes: &mut Lanes,
    y: &mut [f32],
    input: &Activations,
    matrix: &Matrix,
    columns: Range<usize>,
    cuts: &mut Vec<usize>,
) -> u64 {
    if matrix.cols() == 0 {
        y.fill(0.0);
        return 0;
    }
    project_rows(lanes, y, input, (matrix, columns), cuts)
}
