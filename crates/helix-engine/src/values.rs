//! Values out of latents: the up-projection W_UV of latent attention, applied to what attention
//! gives instead of to every token of the cache.
//!
//! It is linear, so it may come before the all-to-all, on a shard's partial output (`value` numbers
//! per head go over the link), or after the merge, on the heads that a rank keeps (a rank reads a
//! KVP-th of the matrices). Both are exact.

use crate::attention::Heads;
use crate::batch::Row;
use crate::exchange::{Merged, Outputs};
use crate::lanes::Lanes;
use crate::projection::project;
use helix_kernels::{Activations, Forms, Matrix};
use helix_model::{AttentionWeights, LayerWeights};
use std::ops::Range;
use std::sync::Arc;

/// When W_UV is applied, and to how much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ValuePlan {
    /// Elements of a latent.
    pub(crate) latent: usize,
    /// Before the all-to-all.
    pub(crate) before: bool,
}

/// The phase's buffers, sized once. Rows go head by head, of some consecutive tokens each.
pub(crate) struct ValueBuffers {
    latents: Activations,
    values: Vec<f32>,
    cuts: Vec<usize>,
    /// Of the last call.
    tokens: Range<usize>,
    value: usize,
}

impl ValueBuffers {
    pub(crate) fn new(heads: &Heads, max_tokens: usize, forms: Forms, cuts: usize) -> ValueBuffers {
        let rows = match heads.values {
            None => 0,
            Some(ValuePlan { before: true, .. }) => max_tokens * heads.q,
            Some(_) => max_tokens * heads.own().len(),
        };
        ValueBuffers {
            latents: Activations::new(rows, heads.attended, forms),
            values: vec![0.0; rows * heads.value],
            cuts: Vec::with_capacity(cuts),
            tokens: 0..0,
            value: heads.value,
        }
    }

    /// Values of this rank's partial outputs of some tokens, of all its query heads.
    pub(crate) fn raise(
        &mut self,
        lanes: &mut Lanes,
        outputs: Outputs<'_>,
        tokens: Range<usize>,
        w: &LayerWeights,
    ) -> u64 {
        let (heads, count) = (outputs.heads, tokens.len());
        let rows = self.latents.fill(count * heads.q, heads.attended);
        lanes.by_token(count * heads.q, |lane| {
            while let Some(row) = rows.next() {
                let (head, token) = (row.token() / count, tokens.start + row.token() % count);
                let out = &mut lane.row[..heads.attended];
                outputs.finish(out, Row { token: token as u32, head: head as u32 });
                row.write(out);
            }
        });
        self.product(lanes, tokens, 0..heads.q, w)
    }

    /// Values of the merged outputs of the heads that this rank keeps.
    pub(crate) fn raise_merged(
        &mut self,
        lanes: &mut Lanes,
        merged: Merged<'_>,
        w: &LayerWeights,
    ) -> u64 {
        let Merged { batch, heads, .. } = merged;
        let (tokens, own) = (batch.tokens.len(), heads.own());
        let rows = self.latents.fill(tokens * own.len(), heads.attended);
        lanes.by_token(tokens * own.len(), |_| {
            while let Some(row) = rows.next() {
                let (index, token) = (row.token() / tokens, row.token() % tokens);
                row.write(merged.head(token, index));
            }
        });
        self.product(lanes, 0..tokens, own, w)
    }

    /// `heads` are those of the rank whose rows `latents` holds.
    fn product(
        &mut self,
        lanes: &mut Lanes,
        tokens: Range<usize>,
        heads: Range<usize>,
        w: &LayerWeights,
    ) -> u64 {
        let AttentionWeights::Latent(w) = &w.attention else { return 0 };
        let count = tokens.len();
        self.tokens = tokens;
        let matrices: &[Arc<Matrix>] = &w.v_up[heads];
        let mut bytes = 0;
        for (index, matrix) in matrices.iter().enumerate() {
            let rows = index * count..(index + 1) * count;
            let out = &mut self.values[rows.start * self.value..rows.end * self.value];
            bytes += project(lanes, out, self.latents.rows(rows), &[matrix], &mut self.cuts);
        }
        bytes
    }

    /// The values of one head that were computed last.
    pub(crate) fn copy(&self, out: &mut [f32], token: usize, head: usize) {
        let row = head * self.tokens.len() + token - self.tokens.start;
        out.copy_from_slice(&self.values[row * self.value..][..self.value]);
    }
}
