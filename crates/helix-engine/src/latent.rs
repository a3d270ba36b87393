//! Queries and latents of multi-head latent attention, with W_UK absorbed into the query.
//!
//! A head's score `q_nope · (W_UK c) + q_rope · k_rope` is `(W_UKᵀ q_nope) · c + q_rope · k_rope`:
//! a query `[W_UKᵀ q_nope; q_rope]` against one row `[c; k_rope]` per token, the same for all heads.
//! Source: DeepSeek-V2, arXiv 2405.04434, section 2.1 and appendix C.

use crate::lanes::Lanes;
use crate::projection::project;
use crate::qkv::Turns;
use helix_kernels::elementwise::rms_norm;
use helix_kernels::{Activations, Forms, SharedRows};
use helix_layout::{Layout, Rank};
use helix_model::LatentWeights;
use helix_model::config::Mla;

/// What the stage knows of its rank; made once.
pub(crate) struct LatentPlan {
    mla: Mla,
    /// Heads whose queries this rank computes.
    heads: usize,
    /// Of the norms of compressed queries and of latents.
    eps: f32,
}

/// The stage's buffers, sized once.
pub(crate) struct LatentBuffers {
    /// What comes straight from the stream: `[tokens, compressed query | latent | rotary key]`.
    down: Vec<f32>,
    compressed: Activations,
    /// `[tokens, heads, nope | rope]`.
    queries: Vec<f32>,
    /// Head by head: `[heads, tokens, nope]`, and what W_UK makes of it.
    nope: Activations,
    absorbed: Vec<f32>,
}

impl LatentPlan {
    pub(crate) fn new(mla: Mla, layout: &Layout, rank: Rank, eps: f32) -> LatentPlan {
        LatentPlan { mla, heads: layout.q_share(rank).len(), eps }
    }

    pub(crate) fn buffers(&self, tokens: usize, forms: Forms) -> LatentBuffers {
        let Mla { q_lora, kv_lora, nope, .. } = self.mla;
        let rows = self.heads * tokens;
        LatentBuffers {
            down: vec![0.0; tokens * self.down()],
            compressed: Activations::new(tokens, q_lora.unwrap_or(0), forms),
            queries: vec![0.0; tokens * self.heads * self.query()],
            nope: Activations::new(rows, nope, forms),
            absorbed: vec![0.0; rows * kv_lora],
        }
    }

    /// The widest row that a lane works on.
    pub(crate) fn lane_row(&self) -> usize {
        self.mla.q_lora.unwrap_or(0).max(self.mla.nope).max(self.mla.kv_lora)
    }

    fn query(&self) -> usize {
        self.mla.nope + self.mla.rope
    }

    /// Values per token that come straight from the stream.
    fn down(&self) -> usize {
        self.mla.q_lora.unwrap_or(0) + self.mla.kv_lora + self.mla.rope
    }

    /// Absorbed and rotated queries of this rank's heads, `[heads, kv_lora | rope]` at the start
    /// of each of `out`'s rows; latents stay in the buffers for [`LatentPlan::key`]. Bytes of
    /// weights read.
    pub(crate) fn queries(
        &self,
        lanes: &mut Lanes,
        w: &LatentWeights,
        input: &Activations,
        turns: Turns<'_>,
        buffers: &mut LatentBuffers,
        (out, row): (&mut [f32], usize),
        cuts: &mut Vec<usize>,
    ) -> u64 {
        let tokens = input.tokens();
        let LatentBuffers { down, compressed, queries, nope, absorbed } = buffers;
        let mut bytes;
        match &w.q_a {
            Some((q_a, norm)) => {
                bytes = project(lanes, down, input, &[q_a, &w.kv_a], cuts);
                self.compress(lanes, norm, down, tokens, compressed);
                bytes += project(lanes, queries, &*compressed, &[&w.q_b], cuts);
            }
            None => {
                bytes = project(lanes, down, input, &[&w.kv_a], cuts);
                bytes += project(lanes, queries, input, &[&w.q_b], cuts);
            }
        }
        if self.heads == 0 {
            return bytes;
        }
        let Mla { kv_lora, nope: size, .. } = self.mla;
        let rows = nope.fill(self.heads * tokens, size);
        lanes.by_token(self.heads * tokens, |_| {
            while let Some(row) = rows.next() {
                let (head, token) = (row.token() / tokens, row.token() % tokens);
                row.write(&queries[(token * self.heads + head) * self.query()..][..size]);
            }
        });
        for (head, matrix) in w.k_up.iter().enumerate() {
            let rows = head * tokens..(head + 1) * tokens;
            let out = &mut absorbed[rows.start * kv_lora..rows.end * kv_lora];
            bytes += project(lanes, out, nope.rows(rows), &[matrix], cuts);
        }
        let out = SharedRows::new(&mut out[..tokens * row], row);
        lanes.by_token(tokens, |_| {
            while let Some((token, out)) = out.next() {
                for (head, out) in out.chunks_exact_mut(kv_lora + self.mla.rope).enumerate() {
                    if head == self.heads {
                        break; // the latent's place
                    }
                    let (latent, rope) = out.split_at_mut(kv_lora);
                    latent
                        .copy_from_slice(&absorbed[(head * tokens + token) * kv_lora..][..kv_lora]);
                    let query = &queries[(token * self.heads + head) * self.query()..];
                    rope.copy_from_slice(&query[size..self.query()]);
                    turns.rope.apply(rope, rope.len(), turns.of(token));
                }
            }
        });
        bytes
    }

    fn compress(
        &self,
        lanes: &mut Lanes,
        norm: &[f32],
        down: &[f32],
        tokens: usize,
        out: &mut Activations,
    ) {
        let rows = out.fill(tokens, norm.len());
        lanes.by_token(tokens, |lane| {
            while let Some(row) = rows.next() {
                let normed = &mut lane.row[..norm.len()];
                let x = &down[row.token() * self.down()..][..norm.len()];
                rms_norm(normed, x, norm, self.eps);
                row.write(normed);
            }
        });
    }

    /// A token's row of the cache: the normed latent, and the rotated key behind it.
    pub(crate) fn key(
        &self,
        w: &LatentWeights,
        turns: Turns<'_>,
        buffers: &LatentBuffers,
        token: usize,
        out: &mut [f32],
    ) {
        let down = &buffers.down[token * self.down()..][..self.down()];
        let (latent, rope) = down[self.mla.q_lora.unwrap_or(0)..].split_at(self.mla.kv_lora);
        let (out_latent, out_rope) = out.split_at_mut(self.mla.kv_lora);
        rms_norm(out_latent, latent, &w.kv_a_norm, self.eps);
        out_rope.copy_from_slice(rope);
        turns.rope.apply(out_rope, rope.len(), turns.of(token));
    }
}
