//! The sizes of a model that decide how it can be cut.

use crate::LayoutError;

/// The sizes of a decoder that decide how it can be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModelShape {
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads per layer.
    pub q_heads: usize,
    /// KV heads per layer; divides `q_heads`. 1 for MLA, whose latent serves every query head.
    pub kv_heads: usize,
    /// Elements of a query and of a key, per head. For MLA those of the latent and its rotary
    /// part: absorbed queries are as wide.
    pub head_dim: usize,
    /// Elements of a head's output that the output projection takes: `head_dim`, or what MLA's
    /// value projection makes of the latent.
    pub value_dim: usize,
    /// Width of the FFN in dense layers; may be 0 where all layers are MoE.
    pub ffn: usize,
    /// Rows of the LM head.
    pub vocab: usize,
    /// Elements per weight block along the input of the output projection (1, 32 or 256).
    pub out_block: usize,
    /// Elements per weight block along the input of the FFN's down projection (1, 32 or 256).
    pub ffn_block: usize,
    /// Multi-head latent attention: one latent per token instead of keys and values.
    pub mla: Option<MlaShape>,
    /// Routed experts, in the layers that have them.
    pub moe: Option<MoeShape>,
}

/// The projections of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MlaShape {
    /// Width that queries are compressed to before their heads; `None` where they are not.
    pub q_lora: Option<usize>,
    /// Width of the latent that keys and values are compressed to.
    pub kv_lora: usize,
    /// Elements of a head's query and key without position.
    pub nope: usize,
    /// Rotary elements of a head's query, and of the one key beside the latent.
    pub rope: usize,
}

/// The mixture-of-experts layers of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MoeShape {
    /// Layers that have experts; the others are dense.
    pub layers: usize,
    /// Routed experts per layer.
    pub experts: usize,
    /// Experts that a token is routed to.
    pub top_k: usize,
    /// Width of one expert.
    pub ffn: usize,
    /// Elements per weight block along the input of an expert's down projection.
    pub block: usize,
    /// Width of the shared experts together, which every token goes through; 0 where there are
    /// none.
    pub shared_ffn: usize,
    /// Elements per weight block along the input of their down projection; 1 where there are none.
    pub shared_block: usize,
}

impl ModelShape {
    /// The largest value of any size, and of heads times head size: far past any model, and small
    /// enough that no product of two of them overflows.
    pub const MAX_SIZE: usize = 1 << 24;

    /// Query heads that share one KV head.
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// Layers with a dense FFN.
    pub fn dense_layers(&self) -> usize {
        self.layers.saturating_sub(self.moe.map_or(0, |moe| moe.layers))
    }

    /// Elements of a head's query as it is projected: `head_dim`, but under MLA, whose queries
    /// reach that width only when they are absorbed into the latent.
    pub fn q_dim(&self) -> usize {
        self.mla.map_or(self.head_dim, |mla| mla.nope + mla.rope)
    }

    pub(crate) fn validate(&self) -> Result<(), LayoutError> {
        let q_width = self.q_heads.saturating_mul(self.head_dim);
        let out_width = self.q_heads.saturating_mul(self.value_dim);
        check_sizes(&[
            ("layer count", self.layers),
            ("hidden size", self.hidden),
            ("query head count", self.q_heads),
            ("KV head count", self.kv_heads),
            ("head size", self.head_dim),
            ("value head size", self.value_dim),
            ("vocabulary size", self.vocab),
            ("output projection's weight block", self.out_block),
            ("down projection's weight block", self.ffn_block),
            ("query width (heads x head size)", q_width),
            ("output width (heads x value head size)", out_width),
        ])?;
        let (q_heads, kv_heads) = (self.q_heads, self.kv_heads);
        if q_heads % kv_heads != 0 {
            return Err(LayoutError::HeadGroups { q_heads, kv_heads });
        }
        if let Some(mla) = &self.mla {
            mla.validate(self)?;
        }
        if let Some(moe) = &self.moe {
            moe.validate(self.layers)?;
        }
        match (self.dense_layers(), self.ffn) {
            (0, 0) => Ok(()),
            (_, ffn) => check_sizes(&[("FFN width", ffn)]),
        }
    }
}

impl MlaShape {
    fn validate(&self, shape: &ModelShape) -> Result<(), LayoutError> {
        let Self { q_lora, kv_lora, nope, rope } = *self;
        check_sizes(&[
            ("compressed query width", q_lora.unwrap_or(1)),
            ("latent width", kv_lora),
            ("head size without position", nope),
            ("rotary head size", rope),
            ("projected query width", shape.q_heads.saturating_mul(nope.saturating_add(rope))),
        ])?;
        let &ModelShape { kv_heads, head_dim, .. } = shape;
        match kv_heads == 1 && head_dim == kv_lora + rope {
            true => Ok(()),
            false => Err(LayoutError::Latent { kv_heads, head_dim, kv_lora, rope }),
        }
    }
}

impl MoeShape {
    fn validate(&self, layers: usize) -> Result<(), LayoutError> {
        check_sizes(&[
            ("expert count", self.experts),
            ("expert width", self.ffn),
            ("experts' weight block", self.block),
            ("shared experts' width", self.shared_ffn.max(1)),
            ("shared experts' weight block", self.shared_block),
        ])?;
        check_size("count of MoE layers", self.layers, layers)?;
        check_size("count of experts per token", self.top_k, self.experts)
    }
}

fn check_sizes(sizes: &[(&'static str, usize)]) -> Result<(), LayoutError> {
    sizes.iter().try_for_each(|&(name, value)| check_size(name, value, ModelShape::MAX_SIZE))
}

fn check_size(name: &'static str, value: usize, max: usize) -> Result<(), LayoutError> {
    match (1..=max).contains(&value) {
        true => Ok(()),
        false => Err(LayoutError::Shape { name, value, max }),
    }
}
