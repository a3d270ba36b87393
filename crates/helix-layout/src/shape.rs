//! The sizes of a model that decide how it can be cut.

use crate::LayoutError;

/// The sizes of a dense decoder that decide how it can be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModelShape {
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads per layer.
    pub q_heads: usize,
    /// KV heads per layer; divides `q_heads`.
    pub kv_heads: usize,
    /// Elements per head, the same for queries, keys and values.
    pub head_dim: usize,
    /// Width of the FFN.
    pub ffn: usize,
    /// Rows of the LM head.
    pub vocab: usize,
    /// Elements per weight block along the input of the output projection (1, 32 or 256).
    pub out_block: usize,
    /// Elements per weight block along the input of the FFN's down projection (1, 32 or 256).
    pub ffn_block: usize,
}

impl ModelShape {
    /// The largest value of any size, and of heads times head size: far past any model, and small
    /// enough that no product of two of them overflows.
    pub const MAX_SIZE: usize = 1 << 24;

    /// Query heads that share one KV head.
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    pub(crate) fn validate(&self) -> Result<(), LayoutError> {
        let q_width = self.q_heads.saturating_mul(self.head_dim);
        let sizes = [
            ("layer count", self.layers),
            ("hidden size", self.hidden),
            ("query head count", self.q_heads),
            ("KV head count", self.kv_heads),
            ("head size", self.head_dim),
            ("FFN width", self.ffn),
            ("vocabulary size", self.vocab),
            ("output projection's weight block", self.out_block),
            ("down projection's weight block", self.ffn_block),
            ("query width (heads x head size)", q_width),
        ];
        let max = Self::MAX_SIZE;
        if let Some(&(name, value)) = sizes.iter().find(|(_, v)| !(1..=max).contains(v)) {
            return Err(LayoutError::Shape { name, value, max });
        }
        let (q_heads, kv_heads) = (self.q_heads, self.kv_heads);
        if q_heads % kv_heads != 0 {
            return Err(LayoutError::HeadGroups { q_heads, kv_heads });
        }
        Ok(())
    }
}
