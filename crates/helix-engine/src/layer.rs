//! One layer on one rank: the paper's figure 4, line by line.
//!
//! | line | shape | over |
//! |---|---|---|
//! | norm, QKV | q `[B, Q/tpa, D]`, k and v `[B, K/tpa, D]` | repeated over KVP, or gathered |
//! | RoPE, append | k and v of the positions this rank owns | KVP |
//! | partial attention | o `[B, Q/tpa, D]`, lse `[B, Q/tpa]`, own tokens only | KVP x TPA |
//! | all-to-all, merge | `[B, own heads, D]`, exact | the KVP group |
//! | out-projection, all-reduce | `[B, H]` | all N ranks |
//! | norm, FFN, all-reduce | `[B, H]` | TPF = N ranks |

use crate::attention::{self, QkvRows};
use crate::counters::Line;
use crate::lanes::Lanes;
use crate::projection::project;
use crate::qkv;
use crate::rank::Rank;
use helix_comm::{Comm, CommError};
use helix_kernels::elementwise::{add_in_place, rms_norm, swiglu};
use helix_kernels::{Activations, Matrix, SharedRows};
use helix_model::{AttentionWeights, FfnWeights};

/// Runs layer `index` on the rows `x` of the batch, which every rank has and every rank updates
/// to the same bits.
pub(crate) fn run(rank: &mut Rank, index: usize) -> Result<(), CommError> {
    let Rank { plan, weights, kv, batch, lanes, world, group, buffers, counters: c, clock, .. } =
        rank;
    let b = buffers;
    let w = &weights.layers[index];
    let tokens = batch.tokens.len();
    let x = &mut b.x[..tokens * plan.hidden];
    let (AttentionWeights::Heads(heads), FfnWeights::Dense(ffn)) = (&w.attention, &w.ffn) else {
        unreachable!("the engine refuses models with other layers");
    };

    // The attention phase: KVP x TPA.
    norm(lanes, &mut b.hidden, x, &w.attn_norm, plan.rms_eps);
    clock.lap(c, Line::AttentionNorm);
    c.weight_bytes +=
        project(lanes, &mut b.qkv_share, &b.hidden, &[&heads.q, &heads.k, &heads.v], &mut b.cuts);
    clock.lap(c, Line::Qkv);
    qkv::gather(group, &plan.qkv, tokens, &mut b.qkv_share, &mut b.qkv_recv, &mut b.qkv)?;
    clock.lap(c, Line::QkvGather);
    qkv::rotate(lanes, &plan.qkv, heads, batch, &b.angles, &mut b.qkv);
    let qkv = QkvRows { values: &b.qkv, len: plan.qkv.row };
    qkv::append(lanes, &plan.qkv, kv, index, batch, qkv);
    clock.lap(c, Line::RopeAppend);
    attention::partial(lanes, kv, index, batch, &plan.heads, qkv, &mut b.attention);
    c.kv_bytes_read += kv.bytes_read(batch.visible_tokens);
    clock.lap(c, Line::Attention);
    if group.size() > 1 {
        attention::exchange(lanes, group, batch, &plan.heads, &mut b.attention)?;
    }
    clock.lap(c, Line::AllToAll);
    let merged = b.out.fill(tokens, plan.heads.out_cols);
    lanes.by_token(tokens, |lane| {
        while let Some(row) = merged.next() {
            let out = &mut lane.row[..plan.heads.out_cols];
            let lse = &mut lane.lse;
            attention::merge_row(out, row.token(), batch, &plan.heads, &b.attention, lse);
            row.write(out);
        }
    });
    clock.lap(c, Line::Merge);

    // The same ranks as one tensor-parallel group: output projection.
    let y = &mut b.y[..tokens * plan.hidden];
    c.weight_bytes += product(lanes, y, &b.out, &w.out, &mut b.cuts);
    clock.lap(c, Line::OutProjection);
    world.all_reduce(y)?;
    clock.lap(c, Line::OutAllReduce);
    add(lanes, x, y, plan.hidden);

    // The FFN phase: TPF = N.
    norm(lanes, &mut b.hidden, x, &w.ffn_norm, plan.rms_eps);
    clock.lap(c, Line::FfnNorm);
    c.weight_bytes += project(lanes, &mut b.gate_up, &b.hidden, &[&ffn.gate, &ffn.up], &mut b.cuts);
    clock.lap(c, Line::FfnUp);
    activate(lanes, &mut b.ffn, &b.gate_up, tokens, plan.ffn_cols);
    c.weight_bytes += product(lanes, y, &b.ffn, &ffn.down, &mut b.cuts);
    clock.lap(c, Line::FfnDown);
    world.all_reduce(y)?;
    clock.lap(c, Line::FfnAllReduce);
    add(lanes, x, y, plan.hidden);
    Ok(())
}

/// RMS norm of each row of `x`, as the input of the next products.
pub(crate) fn norm(
    lanes: &mut Lanes,
    out: &mut Activations,
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
) {
    let tokens = x.len() / weight.len();
    let rows = out.fill(tokens, weight.len());
    lanes.by_token(tokens, |lane| {
        while let Some(row) = rows.next() {
            let normed = &mut lane.row[..weight.len()];
            rms_norm(normed, &x[row.token() * weight.len()..][..weight.len()], weight, epsilon);
            row.write(normed);
        }
    });
}

/// This rank's part of a product whose input columns are cut over the ranks; a rank without any
/// has zeros to add.
fn product(
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

/// The residual stream takes a phase's result: `x += y`.
fn add(lanes: &mut Lanes, x: &mut [f32], y: &[f32], hidden: usize) {
    let rows = SharedRows::new(x, hidden);
    lanes.by_token(y.len() / hidden, |_| {
        while let Some((row, x)) = rows.next() {
            add_in_place(x, &y[row * hidden..][..hidden]);
        }
    });
}

/// `silu(gate) · up` of each row `[gate, up]`, as the input of the down-projection.
fn activate(lanes: &mut Lanes, out: &mut Activations, gate_up: &[f32], tokens: usize, cols: usize) {
    if cols == 0 {
        return;
    }
    let rows = out.fill(tokens, cols);
    lanes.by_token(tokens, |lane| {
        while let Some(row) = rows.next() {
            let (gate, up) = gate_up[row.token() * 2 * cols..][..2 * cols].split_at(cols);
            swiglu(&mut lane.row[..cols], gate, up);
            row.write(&lane.row[..cols]);
        }
    });
}
