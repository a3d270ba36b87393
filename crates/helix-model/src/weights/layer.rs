//! One layer of a rank's weights.

use std::ops::Range;
use std::sync::Arc;

use helix_kernels::Matrix;

use super::Loader;
use super::shards::layer_shards;
use crate::ModelError;
use crate::arch::tensors::layer_tensor;
use crate::config::{Config, Mla, Moe};

/// One layer of a rank's weights.
#[derive(Debug)]
pub struct LayerWeights {
    /// `[hidden]`: the norm before attention.
    pub attn_norm: Vec<f32>,
    /// From the residual stream to queries, keys and values.
    pub attention: AttentionWeights,
    /// A logit for each of the rank's `out_heads`, which takes part in its softmax once.
    pub sinks: Option<Vec<f32>>,
    /// `[hidden, out_cols]`: the output projection.
    pub out: Arc<Matrix>,
    /// `[hidden]`: the output projection's bias, to be added once, after the sum over ranks.
    pub out_bias: Option<Vec<f32>>,
    /// `[hidden]`: the norm of what attention adds to the stream.
    pub attn_post_norm: Option<Vec<f32>>,
    /// `[hidden]`: the norm before the FFN.
    pub ffn_norm: Vec<f32>,
    /// The FFN.
    pub ffn: FfnWeights,
    /// `[hidden]`: the norm of what the FFN adds to the stream.
    pub ffn_post_norm: Option<Vec<f32>>,
}

/// From the residual stream to queries, keys and values.
#[derive(Debug)]
pub enum AttentionWeights {
    /// Each KV head has its own.
    Heads(HeadsWeights),
    /// All heads share a latent.
    Latent(LatentWeights),
}

/// Queries, keys and values of heads. `q`, `k` and `v` have the rows of
/// [`helix_layout::Layout::qkv_share`].
#[derive(Debug)]
pub struct HeadsWeights {
    /// `[share of q rows, hidden]`.
    pub q: Arc<Matrix>,
    /// `[share of k rows, hidden]`.
    pub k: Arc<Matrix>,
    /// `[share of v rows, hidden]`.
    pub v: Arc<Matrix>,
    /// The bias of the rank's whole slice, laid end to end as `[q; k; v]`, whatever its share is.
    pub bias: Option<Vec<f32>>,
    /// `[head_dim]`: the norm of each query head.
    pub q_norm: Option<Vec<f32>>,
    /// `[head_dim]`: the norm of each key head.
    pub k_norm: Option<Vec<f32>>,
}

/// Multi-head latent attention.
#[derive(Debug)]
pub struct LatentWeights {
    /// `[q_lora, hidden]` and the norm `[q_lora]` behind it, where queries are compressed.
    pub q_a: Option<(Arc<Matrix>, Vec<f32>)>,
    /// `[heads of q_share · (nope + rope), q_lora or hidden]`: each head's `[nope | rope]`.
    pub q_b: Arc<Matrix>,
    /// `[kv_lora + rope, hidden]`: the latent and the rotary key.
    pub kv_a: Arc<Matrix>,
    /// `[kv_lora]`: the norm of the latent.
    pub kv_a_norm: Vec<f32>,
    /// Per head of `q_share`, `[kv_lora, nope]`: a query without positions into the latent.
    pub k_up: Vec<Arc<Matrix>>,
    /// Per head of `q_heads`, `[value, kv_lora]`: from the latent to the head's value.
    pub v_up: Vec<Arc<Matrix>>,
}

/// The FFN of a layer.
#[derive(Debug)]
pub enum FfnWeights {
    /// One for all tokens.
    Dense(DenseWeights),
    /// A mixture of experts.
    Moe(MoeWeights),
}

/// An FFN, or an expert that all tokens go to.
#[derive(Debug)]
pub struct DenseWeights {
    /// `[cols, hidden]`.
    pub gate: Arc<Matrix>,
    /// `[cols, hidden]`.
    pub up: Arc<Matrix>,
    /// `[hidden, cols]`.
    pub down: Arc<Matrix>,
}

/// A mixture of experts.
#[derive(Debug)]
pub struct MoeWeights {
    /// `[experts, hidden]`: the logits of all experts, whoever holds them. Never quantised at load;
    /// without rows on ranks outside the FFN.
    pub router: Arc<Matrix>,
    /// `[experts]`: added to the logits.
    pub router_bias: Option<Vec<f32>>,
    /// `[experts]`: added to the scores for the choice alone.
    pub selection_bias: Option<Vec<f32>>,
    /// The rank's columns of each expert of its group, in the order of the model's experts.
    pub experts: Vec<ExpertWeights>,
    /// The experts that all tokens go to, as one.
    pub shared: Option<DenseWeights>,
}

/// A rank's columns of an expert.
#[derive(Debug)]
pub struct ExpertWeights {
    /// `[expert_cols, hidden]`.
    pub gate: Arc<Matrix>,
    /// `[expert_cols, hidden]`.
    pub up: Arc<Matrix>,
    /// `[hidden, expert_cols]`.
    pub down: Arc<Matrix>,
    /// `[expert_cols]`.
    pub gate_bias: Option<Vec<f32>>,
    /// `[expert_cols]`.
    pub up_bias: Option<Vec<f32>>,
    /// `[hidden]`, on the first rank of the expert's group: the sum over the group has it once.
    pub down_bias: Option<Vec<f32>>,
}

impl LayerWeights {
    /// All matrices.
    pub(super) fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let mut all: Vec<&Arc<Matrix>> = vec![&self.out];
        match &self.attention {
            AttentionWeights::Heads(HeadsWeights { q, k, v, .. }) => all.extend([q, k, v]),
            AttentionWeights::Latent(latent) => {
                all.extend(latent.q_a.iter().map(|(matrix, _)| matrix));
                all.extend([&latent.q_b, &latent.kv_a]);
                all.extend(latent.k_up.iter().chain(&latent.v_up));
            }
        }
        match &self.ffn {
            FfnWeights::Dense(DenseWeights { gate, up, down }) => all.extend([gate, up, down]),
            FfnWeights::Moe(moe) => {
                all.push(&moe.router);
                all.extend(moe.experts.iter().flat_map(|e| [&e.gate, &e.up, &e.down]));
                all.extend(moe.shared.iter().flat_map(|s| [&s.gate, &s.up, &s.down]));
            }
        }
        all.into_iter().map(Arc::as_ref)
    }
}

impl Loader<'_> {
    pub(super) fn layer(&self, layer: usize) -> Result<LayerWeights, ModelError> {
        let config = &self.model.config;
        let shards = layer_shards(self.model, self.layout, self.rank, layer);
        let mut shards = shards.into_iter();
        let mut next = || self.matrix(shards.next().expect("as many shards as are listed"));
        let name = |suffix: &str| layer_tensor(layer, suffix);
        let norm = |suffix: &str| self.norm(&name(suffix), config.hidden);
        let post_norm = |suffix| config.post_norms.then(|| norm(suffix)).transpose();
        let out_bias = || self.vector(&name("attn_output.bias"), config.hidden);
        let sinks = || -> Result<Vec<f32>, ModelError> {
            let sinks = self.vector(&name("attn_sinks.weight"), config.q_heads)?;
            Ok(sinks[self.layout.out_heads(self.rank)].to_vec())
        };
        let loaded = LayerWeights {
            attn_norm: norm("attn_norm.weight")?,
            attention: match &config.mla {
                None => AttentionWeights::Heads(self.heads(layer, &mut next)?),
                Some(mla) => AttentionWeights::Latent(self.latent(layer, mla, &mut next)?),
            },
            sinks: config.sinks.then(sinks).transpose()?,
            out: next()?,
            out_bias: config.out_bias.then(out_bias).transpose()?,
            attn_post_norm: post_norm("post_attention_norm.weight")?,
            ffn_norm: norm("ffn_norm.weight")?,
            ffn: match config.moe(layer) {
                None => FfnWeights::Dense(DenseWeights::take(&mut next)?),
                Some(moe) => FfnWeights::Moe(self.moe(layer, moe, &mut next)?),
            },
            ffn_post_norm: post_norm("post_ffw_norm.weight")?,
        };
        assert!(shards.next().is_none(), "a shard that is listed is not taken");
        Ok(loaded)
    }

    fn heads(&self, layer: usize, next: Next<'_>) -> Result<HeadsWeights, ModelError> {
        let config = &self.model.config;
        let norm = |suffix: &str| self.norm(&layer_tensor(layer, suffix), config.head_dim);
        let head_norm = |suffix| config.qk_norm.then(|| norm(suffix)).transpose();
        Ok(HeadsWeights {
            q: next()?,
            k: next()?,
            v: next()?,
            bias: config.qkv_bias.then(|| self.bias(layer)).transpose()?,
            q_norm: head_norm("attn_q_norm.weight")?,
            k_norm: head_norm("attn_k_norm.weight")?,
        })
    }

    /// The biases of the rank's heads, `[q; k; v]`.
    fn bias(&self, layer: usize) -> Result<Vec<f32>, ModelError> {
        let &Config { q_heads, kv_heads, head_dim, .. } = &self.model.config;
        let (q, kv) = (self.layout.q_heads(self.rank), self.layout.kv_heads(self.rank));
        let all = [
            ("attn_q.bias", q_heads, &q),
            ("attn_k.bias", kv_heads, &kv),
            ("attn_v.bias", kv_heads, &kv),
        ];
        let mut bias = Vec::new();
        for (suffix, heads, own) in all {
            let whole = self.vector(&layer_tensor(layer, suffix), heads * head_dim)?;
            bias.extend_from_slice(&whole[own.start * head_dim..own.end * head_dim]);
        }
        Ok(bias)
    }

    fn latent(&self, layer: usize, mla: &Mla, next: Next<'_>) -> Result<LatentWeights, ModelError> {
        let norm = |suffix: &str, len| self.norm(&layer_tensor(layer, suffix), len);
        let q_a = match mla.q_lora {
            Some(q_lora) => Some((next()?, norm("attn_q_a_norm.weight", q_lora)?)),
            None => None,
        };
        let (q_b, kv_a) = (next()?, next()?);
        let mut heads = |heads: Range<usize>| heads.map(|_| next()).collect::<Result<_, _>>();
        Ok(LatentWeights {
            q_a,
            q_b,
            kv_a,
            kv_a_norm: norm("attn_kv_a_norm.weight", mla.kv_lora)?,
            k_up: heads(self.layout.q_share(self.rank))?,
            v_up: heads(self.layout.q_heads(self.rank))?,
        })
    }

    fn moe(&self, layer: usize, moe: &Moe, next: Next<'_>) -> Result<MoeWeights, ModelError> {
        let vector = |suffix: &str| self.vector(&layer_tensor(layer, suffix), moe.experts);
        let router = next()?;
        let experts = self.layout.experts(self.rank);
        let experts = experts.map(|expert| self.expert(layer, moe, expert, next));
        Ok(MoeWeights {
            router,
            router_bias: moe.bias.then(|| vector("ffn_gate_inp.bias")).transpose()?,
            selection_bias: moe.selection_bias.then(|| vector("exp_probs_b.bias")).transpose()?,
            experts: experts.collect::<Result<_, _>>()?,
            shared: match moe.shared_ffn {
                0 => None,
                _ => Some(DenseWeights::take(next)?),
            },
        })
    }

    fn expert(
        &self,
        layer: usize,
        moe: &Moe,
        expert: usize,
        next: Next<'_>,
    ) -> Result<ExpertWeights, ModelError> {
        let DenseWeights { gate, up, down } = DenseWeights::take(next)?;
        let bias = |suffix: &str, len: usize| {
            let whole = self.model.part(&layer_tensor(layer, suffix), expert);
            moe.expert_bias.then(|| whole?.vector(len)).transpose()
        };
        let cols = self.layout.expert_cols(self.rank);
        let own = |whole: Option<Vec<f32>>| whole.map(|whole| whole[cols.clone()].to_vec());
        let leads = self.layout.ffn(self.rank).is_some_and(|at| at.tpf == 0);
        let down_bias = bias("ffn_down_exps.bias", self.model.config.hidden)?;
        Ok(ExpertWeights {
            gate,
            up,
            down,
            gate_bias: own(bias("ffn_gate_exps.bias", moe.ffn)?),
            up_bias: own(bias("ffn_up_exps.bias", moe.ffn)?),
            down_bias: down_bias.filter(|_| leads),
        })
    }
}

/// Loads the next of a layer's shards.
type Next<'a> = &'a mut dyn FnMut() -> Result<Arc<Matrix>, ModelError>;

impl DenseWeights {
    fn take(next: Next<'_>) -> Result<DenseWeights, ModelError> {
        Ok(DenseWeights { gate: next()?, up: next()?, down: next()? })
    }
}
