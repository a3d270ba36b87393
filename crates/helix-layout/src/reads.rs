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
    /// So many, of whichever group that has any.
    Some(f64),
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

    /// As [`Reads::of`], if `experts` of the token's are the rank's in every layer; none are where
    /// it has none.
    pub(crate) fn with_experts(layout: &Layout, rank: Rank, context: usize, experts: f64) -> Self {
        Self::counted(layout, rank, context, Routed::Some(experts))
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
        Routed::Some(_) if own == 0 => 0.0,
        Routed::Some(experts) => experts,
    };
    let expert = all as f64 * (3 * layout.expert_cols(rank).len()) as f64;
    (all.saturating_mul(always as u64), (experts * expert).round() as u64)
}

/// Most experts per token that are weighed exactly; past it groups are as good as even.
const MAX_WEIGHED: usize = 64;

/// How many of a token's experts the busiest of `ep` groups has, on average, if all sets of
/// `top_k` experts are as likely.
///
/// `E[max] = sum over m of (1 - P(no group has more than m))`. With groups of sizes `n_g`,
/// `P = [x^top_k] prod_g (sum over j <= m of C(n_g, j) x^j) / C(experts, top_k)`. Both are
/// computed with `x` in units of `1 / experts`, where no number of experts overflows.
pub(crate) fn experts_of_busiest_group(moe: &MoeShape, ep: usize) -> f64 {
    let &MoeShape { experts, top_k, .. } = moe;
    if top_k > MAX_WEIGHED {
        return top_k as f64 * experts.div_ceil(ep) as f64 / experts as f64;
    }
    let (each, longer) = (experts / ep, experts % ep);
    let whole = ways(experts, top_k, experts)[top_k];
    let mut mean = 0.0;
    for most in 0..top_k {
        let power = |size, groups| power(&ways(size, most, experts), groups, top_k);
        let sets = product(&power(each + 1, longer), &power(each, ep - longer), top_k);
        let more = 1.0 - sets.get(top_k).map_or(0.0, |sets| sets / whole);
        if more < 1e-12 {
            break;
        }
        mean += more;
    }
    mean
}

/// `C(size, j) / unit^j` for `j` up to `most`.
fn ways(size: usize, most: usize, unit: usize) -> Vec<f64> {
    let mut terms = vec![1.0];
    for j in 0..most.min(size) {
        terms.push(terms[j] * (size - j) as f64 / (unit as f64 * (j + 1) as f64));
    }
    terms
}

/// `base` to the power of `exponent`, up to the term of `degree`.
fn power(base: &[f64], exponent: usize, degree: usize) -> Vec<f64> {
    let (mut result, mut square) = (vec![1.0], base.to_vec());
    let mut rest = exponent;
    while rest > 0 {
        if rest % 2 == 1 {
            result = product(&result, &square, degree);
        }
        square = product(&square, &square, degree);
        rest /= 2;
    }
    result
}

/// The product of two polynomials, up to the term of `degree`.
fn product(a: &[f64], b: &[f64], degree: usize) -> Vec<f64> {
    let mut terms = vec![0.0; (a.len() + b.len() - 1).min(degree + 1)];
    for (i, a) in a.iter().enumerate() {
        for (term, b) in terms.iter_mut().skip(i).zip(b) {
            *term += a * b;
        }
    }
    terms
}

#[cfg(test)]
mod tests;
