//! What a rank reads to decode a token, counted in elements.

use crate::{Layout, MlaShape, MoeShape, Rank};

/// Elements that one rank reads to decode one token of one sequence, by what they are. Norms,
/// biases and the embedding's row are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// W_q, W_k and W_v over all layers; or MLA's projections of queries and of the latent.
    pub qkv: u64,
    /// Output projections over all layers, with MLA's value projections of the heads that go into
    /// them.
    pub out: u64,
    /// Gate, up and down projections of dense layers and of shared experts, and the routers.
    pub ffn: u64,
    /// Gate, up and down projections of routed experts.
    pub experts: u64,
    /// Its rows of the LM head.
    pub head: u64,
    /// Keys and values, or latents, of its heads and positions, over all layers.
    pub kv: u64,
}

/// Of which routed experts the weights are counted.
#[derive(Clone, Copy)]
enum Routed {
    /// Those that a token is routed to, if all experts are as likely.
    Mean,
    /// Every one.
    All,
}

impl Reads {
    /// What `rank` reads to decode one token after `context` others.
    ///
    /// Of the routed experts a token reads `top_k`; this counts those that fall on the rank's
    /// group on average, all experts being as likely. Under `dp-ep` the sequence is taken for one
    /// of the rank's own.
    pub fn of(layout: &Layout, rank: Rank, context: usize) -> Self {
        Self::counted(layout, rank, context, Routed::Mean)
    }

    /// What `rank` holds for a sequence of `context` tokens: all its experts, whoever is routed to
    /// them.
    pub fn held(layout: &Layout, rank: Rank, context: usize) -> Self {
        Self::counted(layout, rank, context, Routed::All)
    }

    /// Weights of the layers, without the LM head.
    pub fn layer_weights(&self) -> u64 {
        let Self { qkv, out, ffn, experts, .. } = *self;
        qkv.saturating_add(out).saturating_add(ffn).saturating_add(experts)
    }

    fn counted(layout: &Layout, rank: Rank, context: usize, routed: Routed) -> Self {
        let shape = layout.shape();
        let [layers, hidden] = [shape.layers, shape.hidden].map(|x| x as u64);
        let weights = |columns: usize| (layers * hidden).saturating_mul(columns as u64);
        let stored = layout.owned_before(layout.attention(rank).kvp, context) as u64;
        // A latent is key and value at once.
        let kv_width = match shape.mla {
            None => layout.kv_heads(rank).len() * (shape.head_dim + shape.value_dim),
            Some(_) => layout.kv_heads(rank).len() * shape.head_dim,
        };
        let out = weights(layout.out_cols(rank).len());
        let (qkv, out) = match &shape.mla {
            None => (weights(layout.qkv_share(rank).iter().map(|rows| rows.len()).sum()), out),
            Some(mla) => {
                let kept = layout.out_heads(rank).len() * shape.value_dim;
                let values = layers.saturating_mul((kept * mla.kv_lora) as u64);
                let latent = layers.saturating_mul(latent_weights(layout, rank, mla));
                (latent, out.saturating_add(values))
            }
        };
        let dense = shape.dense_layers() as u64 * hidden;
        let dense = dense.saturating_mul(3 * layout.ffn_cols(rank).len() as u64);
        let (always, experts) =
            shape.moe.map_or((0, 0), |moe| moe_weights(layout, rank, &moe, routed));
        Self {
            qkv,
            out,
            ffn: dense.saturating_add(always),
            experts,
            head: hidden * layout.vocab_rows(rank).len() as u64,
            kv: (layers * kv_width as u64).saturating_mul(stored),
        }
    }
}

/// One layer's projections of queries and of the latent. Whoever has any heads compresses the
/// hidden state itself; the heads' queries are those of the rank's share, absorbed by W_UK.
fn latent_weights(layout: &Layout, rank: Rank, mla: &MlaShape) -> u64 {
    if layout.q_heads(rank).is_empty() {
        return 0;
    }
    let hidden = layout.shape().hidden;
    let compress = (mla.q_lora.unwrap_or(0) + mla.kv_lora + mla.rope) as u64 * hidden as u64;
    let of_head = mla.q_lora.unwrap_or(hidden) * layout.shape().q_dim() + mla.nope * mla.kv_lora;
    (of_head as u64).saturating_mul(layout.q_share(rank).len() as u64).saturating_add(compress)
}

/// What MoE layers read: whatever the routing is, and of routed experts.
fn moe_weights(layout: &Layout, rank: Rank, moe: &MoeShape, routed: Routed) -> (u64, u64) {
    if layout.ffn(rank).is_none() {
        return (0, 0);
    }
    let all = moe.layers as u64 * layout.shape().hidden as u64;
    let always = 3 * layout.shared_cols(rank).len() + moe.experts;
    let own = layout.experts(rank).len();
    let experts = match routed {
        Routed::All => own as f64,
        Routed::Mean => moe.top_k as f64 * own as f64 / moe.experts as f64,
    };
    let expert = all as f64 * (3 * layout.expert_cols(rank).len()) as f64;
    (all.saturating_mul(always as u64), (experts * expert).round() as u64)
}

#[cfg(test)]
mod tests;
