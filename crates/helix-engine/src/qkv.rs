//! Queries, keys and values: from the normed stream to rotated queries and an appended cache.
//!
//! A rank's row of a token is `[q; k; v]` of its TPA slice, or with latent attention
//! `[q; latent]`, where a query is already turned into the latent's terms (see `latent.rs`).

use crate::attention::QkvRows;
use crate::batch::Batch;
use crate::kv::KvCache;
use crate::lanes::Lanes;
use crate::latent::{LatentBuffers, LatentPlan};
use crate::projection::project;
use helix_comm::{Chunks, Comm, CommError, Pending};
use helix_kernels::elementwise::{RopeTable, add_in_place, rms_norm_heads};
use helix_kernels::{Activations, SharedRows, kv};
use helix_layout::{Layout, QkvMode, Rank};
use helix_model::{AttentionWeights, Config, HeadsWeights};
use std::ops::Range;

/// A rank's rows of `[q; k; v]`: its TPA slice.
pub(crate) struct QkvPlan {
    /// Elements of a query and a key.
    pub(crate) head_dim: usize,
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    /// Elements of a value in the row; none of a latent, which is its own key's.
    pub(crate) value_dim: usize,
    /// Values of one token's row.
    pub(crate) row: usize,
    /// The values of that row that each member of the KVP group computes; one whole row where
    /// every member computes all of it.
    pub(crate) shares: Vec<Range<usize>>,
    pub(crate) member: usize,
    pub(crate) rms_eps: f32,
    pub(crate) latent: Option<LatentPlan>,
}

/// The stage's buffers, sized once.
pub(crate) struct QkvBuffers {
    /// `[tokens, row]`
    rows: Vec<f32>,
    /// Values that each member of the group brings.
    counts: Vec<usize>,
    latent: Option<LatentBuffers>,
}

impl QkvPlan {
    pub(crate) fn new(config: &Config, layout: &Layout, rank: Rank) -> QkvPlan {
        let (q_heads, kv_heads) = (layout.q_heads(rank).len(), layout.kv_heads(rank).len());
        let head_dim = config.head_dim;
        let value_dim = if config.mla.is_some() { 0 } else { config.value_dim };
        let row = q_heads * head_dim + kv_heads * (head_dim + value_dim);
        let group = layout.kvp_group(rank);
        let gathers = layout.qkv() == QkvMode::Gather && group.len() > 1;
        let mut end = 0;
        let mut share = |member| {
            let start = end;
            end += match config.mla {
                Some(_) => layout.q_share(Rank(member)).len() * head_dim,
                None => layout.qkv_share(Rank(member)).map(|rows| rows.len()).iter().sum(),
            };
            start..end
        };
        QkvPlan {
            head_dim,
            q_heads,
            kv_heads,
            value_dim,
            row,
            shares: if gathers {
                group.map(&mut share).collect()
            } else {
                std::iter::once(0..row).collect()
            },
            member: if gathers { layout.attention(rank).kvp } else { 0 },
            rms_eps: config.rms_eps,
            latent: config.mla.map(|mla| LatentPlan::new(mla, layout, rank, config.rms_eps)),
        }
    }

    /// Values of one token that this rank computes.
    pub(crate) fn share(&self) -> usize {
        self.shares[self.member].len()
    }

    /// A token's row out of what each member has computed of it.
    fn put_together(&self, shares: Chunks<'_>, token: usize, row: &mut [f32]) {
        for (member, columns) in self.shares.iter().enumerate() {
            let values = &shares.of(member)[token * columns.len()..][..columns.len()];
            row[columns.clone()].copy_from_slice(values);
        }
    }
}

impl QkvBuffers {
    pub(crate) fn new(plan: &QkvPlan, tokens: usize, latent: Option<LatentBuffers>) -> QkvBuffers {
        QkvBuffers {
            rows: vec![0.0; tokens * plan.row],
            counts: Vec::with_capacity(plan.shares.len()),
            latent,
        }
    }

    /// The rows put together.
    pub(crate) fn rows(&self, plan: &QkvPlan) -> QkvRows<'_> {
        QkvRows { values: &self.rows, len: plan.row }
    }
}

/// What a projection works with.
pub(crate) struct Projection<'a> {
    pub(crate) plan: &'a QkvPlan,
    pub(crate) weights: &'a AttentionWeights,
    pub(crate) input: &'a Activations,
    pub(crate) turns: Turns<'a>,
    pub(crate) cuts: &'a mut Vec<usize>,
}

/// Computes this rank's share of the projection, and starts to bring the group's together; where
/// there is nothing to gather the share is the whole. Gives bytes of weights read.
pub(crate) fn share(
    lanes: &mut Lanes,
    group: &mut impl Comm,
    projection: Projection<'_>,
    buffers: &mut QkvBuffers,
) -> Result<(u64, Option<Pending>), CommError> {
    let QkvBuffers { rows, counts, latent } = buffers;
    let (plan, tokens) = (projection.plan, projection.input.tokens());
    if plan.shares.len() == 1 {
        let rows = &mut rows[..tokens * plan.row];
        return Ok((projection.run(lanes, latent, rows, plan.row), None));
    }
    counts.clear();
    counts.extend(plan.shares.iter().map(|columns| tokens * columns.len()));
    let mut bytes = 0;
    let pending = group.start_all_gather(counts, |message| {
        bytes = projection.run(lanes, latent, message, plan.share());
    })?;
    Ok((bytes, Some(pending)))
}

impl Projection<'_> {
    /// `out [tokens, row]`
    fn run(
        self,
        lanes: &mut Lanes,
        latent: &mut Option<LatentBuffers>,
        out: &mut [f32],
        row: usize,
    ) -> u64 {
        let Projection { plan, weights, input, turns, cuts } = self;
        match (weights, &plan.latent, latent) {
            (AttentionWeights::Latent(w), Some(latent), Some(scratch)) => {
                latent.queries(lanes, w, input, turns, scratch, (out, row), cuts)
            }
            (AttentionWeights::Heads(w), ..) => {
                project(lanes, out, input, &[&w.q, &w.k, &w.v], cuts)
            }
            _ => unreachable!("a plan is made for the model's attention"),
        }
    }
}

/// Waits for the group's shares, and hands them to `rotate`; none where nothing is gathered.
pub(crate) fn gather(
    group: &mut impl Comm,
    shares: Option<Pending>,
    rotate: impl FnOnce(Option<Chunks<'_>>),
) -> Result<(), CommError> {
    match shares {
        None => rotate(None),
        Some(pending) => group.finish(pending, |shares| rotate(Some(shares)))?,
    }
    Ok(())
}

/// How the batch's positions turn pairs of elements: angles of each token.
#[derive(Clone, Copy)]
pub(crate) struct Turns<'a> {
    pub(crate) rope: &'a RopeTable,
    pub(crate) angles: &'a [f32],
}

impl<'a> Turns<'a> {
    pub(crate) fn of(&self, token: usize) -> &'a [f32] {
        let len = self.rope.turn_len();
        &self.angles[token * len..][..len]
    }
}

/// Puts the group's shares together to rows and finishes them: bias, norms and rotation of heads;
/// or the latent and its rotary part, which every rank computes for itself.
pub(crate) fn rotate(
    lanes: &mut Lanes,
    plan: &QkvPlan,
    weights: &AttentionWeights,
    (tokens, shares): (usize, Option<Chunks<'_>>),
    turns: Turns<'_>,
    buffers: &mut QkvBuffers,
) {
    if plan.row == 0 {
        return;
    }
    let rows = SharedRows::new(&mut buffers.rows[..tokens * plan.row], plan.row);
    let (latent, scratch) = (&plan.latent, &buffers.latent);
    lanes.by_token(tokens, |_| {
        while let Some((row, values)) = rows.next() {
            if let Some(shares) = shares {
                plan.put_together(shares, row, values);
            }
            match (weights, latent, scratch) {
                (AttentionWeights::Heads(w), ..) => heads(plan, w, turns, row, values),
                (AttentionWeights::Latent(w), Some(latent), Some(scratch)) => {
                    let key = &mut values[plan.q_heads * plan.head_dim..];
                    latent.key(w, turns, scratch, row, key);
                }
                _ => unreachable!("a plan is made for the model's attention"),
            }
        }
    });
}

/// Adds the bias, norms and rotates each head of q and k in place.
fn heads(
    plan: &QkvPlan,
    weights: &HeadsWeights,
    turns: Turns<'_>,
    token: usize,
    values: &mut [f32],
) {
    if let Some(bias) = &weights.bias {
        add_in_place(values, bias);
    }
    let (q, kv) = values.split_at_mut(plan.q_heads * plan.head_dim);
    let k = &mut kv[..plan.kv_heads * plan.head_dim];
    for (heads, norm) in [(q, &weights.q_norm), (k, &weights.k_norm)] {
        if let Some(norm) = norm {
            rms_norm_heads(heads, norm, plan.rms_eps);
        }
        turns.rope.apply(heads, plan.head_dim, turns.of(token));
    }
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
            let v = (plan.q_heads + plan.kv_heads) * plan.head_dim + head * plan.value_dim;
            for (row, token) in batch.tokens.iter().enumerate() {
                let Some(local) = token.local else { continue };
                let values = &qkv.values[row * qkv.len..][..qkv.len];
                let (page, slot) = tables.page(pages, token.slot, local);
                let (k, v) = (&values[k..][..plan.head_dim], &values[v..][..plan.value_dim]);
                kv::append(page, shape, slot, k, v);
            }
        }
    });
}
