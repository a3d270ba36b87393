//! Queries, keys and values: from the projection's rows to rotated queries and an appended cache.

use crate::attention::QkvRows;
use crate::batch::Batch;
use crate::kv::KvCache;
use crate::lanes::Lanes;
use helix_comm::{Comm, CommError};
use helix_kernels::SharedRows;
use helix_kernels::elementwise::{RopeTable, add_in_place, rms_norm_heads};
use helix_kernels::kv;
use helix_layout::{Layout, QkvMode, Rank};
use helix_model::HeadsWeights;
use std::ops::Range;

/// A rank's rows of `[q; k; v]`: its TPA slice.
pub(crate) struct QkvPlan {
    pub(crate) head_dim: usize,
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    /// Values of one token's `[q, k, v]`.
    pub(crate) row: usize,
    /// The values of that row that each member of the KVP group computes; one whole row where
    /// every member computes all of it.
    pub(crate) shares: Vec<Range<usize>>,
    pub(crate) member: usize,
    pub(crate) rms_eps: f32,
    pub(crate) rope: RopeTable,
}

impl QkvPlan {
    pub(crate) fn new(layout: &Layout, rank: Rank, rope: RopeTable, rms_eps: f32) -> QkvPlan {
        let (q_heads, kv_heads) = (layout.q_heads(rank).len(), layout.kv_heads(rank).len());
        let head_dim = layout.shape().head_dim;
        let row = (q_heads + 2 * kv_heads) * head_dim;
        let group = layout.kvp_group(rank);
        let gathers = layout.qkv() == QkvMode::Gather && group.len() > 1;
        let mut end = 0;
        let mut share = |member| {
            let start = end;
            end += layout.qkv_share(Rank(member)).map(|rows| rows.len()).iter().sum::<usize>();
            start..end
        };
        QkvPlan {
            head_dim,
            q_heads,
            kv_heads,
            row,
            shares: if gathers {
                group.map(&mut share).collect()
            } else {
                std::iter::once(0..row).collect()
            },
            member: if gathers { layout.attention(rank).kvp } else { 0 },
            rms_eps,
            rope,
        }
    }

    /// Values of one token that this rank computes.
    pub(crate) fn share(&self) -> usize {
        self.shares[self.member].len()
    }
}

/// Brings the group's shares together: `qkv [tokens, row]`. Where there is nothing to gather the
/// share is the whole.
pub(crate) fn gather(
    group: &mut impl Comm,
    plan: &QkvPlan,
    tokens: usize,
    share: &mut Vec<f32>,
    recv: &mut [f32],
    qkv: &mut Vec<f32>,
) -> Result<(), CommError> {
    if plan.shares.len() == 1 {
        std::mem::swap(share, qkv);
        return Ok(());
    }
    let recv = &mut recv[..tokens * plan.row];
    group.all_gather(&share[..tokens * plan.share()], recv)?;
    let mut rest = &*recv;
    for columns in &plan.shares {
        let (rows, after) = rest.split_at(tokens * columns.len());
        rest = after;
        if columns.is_empty() {
            continue;
        }
        for (row, values) in rows.chunks_exact(columns.len()).enumerate() {
            qkv[row * plan.row..][columns.clone()].copy_from_slice(values);
        }
    }
    Ok(())
}

/// Adds the bias, norms and rotates each head of q and k in place.
pub(crate) fn rotate(
    lanes: &mut Lanes,
    plan: &QkvPlan,
    weights: &HeadsWeights,
    batch: &Batch,
    angles: &[f32],
    qkv: &mut [f32],
) {
    if plan.row == 0 {
        return;
    }
    let tokens = batch.tokens.len();
    let rows = SharedRows::new(&mut qkv[..tokens * plan.row], plan.row);
    let turn = plan.rope.turn_len();
    lanes.by_token(tokens, |_| {
        while let Some((row, values)) = rows.next() {
            if let Some(bias) = &weights.bias {
                add_in_place(values, bias);
            }
            let angles = &angles[row * turn..][..turn];
            let (q, kv) = values.split_at_mut(plan.q_heads * plan.head_dim);
            let k = &mut kv[..plan.kv_heads * plan.head_dim];
            for (heads, norm) in [(q, &weights.q_norm), (k, &weights.k_norm)] {
                if let Some(norm) = norm {
                    rms_norm_heads(heads, norm, plan.rms_eps);
                }
                plan.rope.apply(heads, plan.head_dim, angles);
            }
        }
    });
}

/// Stores keys and values of the positions that this rank owns.
pub(crate) fn append(
    lanes: &mut Lanes,
    plan: &QkvPlan,
    cache: &mut KvCache,
    layer: usize,
    batch: &Batch,
    qkv: QkvRows<'_>,
) {
    let shape = cache.shape();
    let (pages, head_bytes, tables) = cache.layer_mut(layer);
    if pages.is_empty() {
        return;
    }
    let heads = SharedRows::new(pages, head_bytes);
    lanes.by_token(batch.tokens.len(), |_| {
        while let Some((head, pages)) = heads.next() {
            let k = (plan.q_heads + head) * plan.head_dim;
            let v = k + plan.kv_heads * plan.head_dim;
            for (row, token) in batch.tokens.iter().enumerate() {
                let Some(local) = token.local else { continue };
                let values = &qkv.values[row * qkv.len..][..qkv.len];
                let (page, slot) = tables.page(pages, token.slot, local);
                let (k, v) = (&values[k..][..plan.head_dim], &values[v..][..plan.head_dim]);
                kv::append(page, shape, slot, k, v);
            }
        }
    });
}
