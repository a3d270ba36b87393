//! Latent attention and experts: what their configurations say.

pub use helix_kernels::router::{GroupScore, Groups, Routing, Scoring};

use crate::ModelError;
use crate::config::{MAX_FACTOR, MAX_SIZE};

/// Multi-head latent attention: keys and values of all heads come from one latent per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mla {
    /// Elements that queries are projected through; `None` where they are projected directly.
    pub q_lora: Option<usize>,
    /// Elements of the latent.
    pub kv_lora: usize,
    /// Elements of a head's query and key without positions.
    pub nope: usize,
    /// Elements with positions, which the key has once for all heads.
    pub rope: usize,
    /// Elements of a head's value.
    pub value: usize,
}

impl Mla {
    /// Refuses extents whose products with `q_heads` are past what layouts take.
    pub(crate) fn check(&self, q_heads: usize) -> Result<(), ModelError> {
        let widest = (self.nope + self.rope).max(self.value).max(self.kv_lora + self.rope);
        if q_heads.saturating_mul(widest) > MAX_SIZE || !self.rope.is_multiple_of(2) {
            return Err(ModelError::Setting {
                key: "latent attention".to_owned(),
                value: format!("{q_heads} heads of {self:?}"),
                problem: format!(
                    "the rotary part must be even, and heads times elements at most {MAX_SIZE}"
                ),
            });
        }
        Ok(())
    }
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// Experts that tokens are routed to.
    pub experts: usize,
    /// Width of one expert.
    pub ffn: usize,
    /// Width of the experts that every token goes to, together; 0 without any.
    pub shared_ffn: usize,
    /// Layers before this one are dense.
    pub first_layer: usize,
    /// From there on every n-th layer has experts: those whose number is 1 below a multiple.
    pub every: usize,
    /// Layers that are dense all the same.
    pub dense: Vec<usize>,
    /// How experts are chosen and weighted.
    pub routing: Routing,
    /// Whether the router has a bias.
    pub bias: bool,
    /// Whether there is a bias that counts for the choice of experts, and not for their weights.
    pub selection_bias: bool,
    /// Whether experts' matrices have biases.
    pub expert_bias: bool,
}

impl Moe {
    /// Whether a layer has experts.
    pub fn contains(&self, layer: usize) -> bool {
        layer >= self.first_layer
            && (layer + 1).is_multiple_of(self.every)
            && !self.dense.contains(&layer)
    }

    /// How many of `layers` layers have experts.
    pub fn layers(&self, layers: usize) -> usize {
        let before = |layer: usize| layer / self.every;
        let all = before(layers).saturating_sub(before(self.first_layer.min(layers)));
        let mut dense = self.dense.clone();
        dense.sort_unstable();
        dense.dedup();
        let counted = Moe { dense: Vec::new(), ..self.clone() };
        all - dense.iter().filter(|&&layer| layer < layers && counted.contains(layer)).count()
    }

    /// Refuses a router whose rule has no meaning for this number of experts.
    pub(crate) fn check(&self) -> Result<(), ModelError> {
        let refuse = |problem: String| {
            let key = "mixture of experts".to_owned();
            let value = format!("{} of {} experts", self.routing.top_k, self.experts);
            Err(ModelError::Setting { key, value, problem })
        };
        if let Err(error) = self.routing.check(self.experts) {
            return refuse(error.to_string());
        }
        let scale = self.routing.scale;
        if !(scale > 0.0 && scale <= MAX_FACTOR) {
            let range = format!("more than 0 and at most {MAX_FACTOR}");
            return refuse(format!("their scale {scale} is not {range}"));
        }
        Ok(())
    }
}
