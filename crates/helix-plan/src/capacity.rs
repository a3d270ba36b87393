//! What a rank has to hold.

use crate::costs::{Message, Work};
use crate::{Costs, Line, Load, Part};
use serde::Serialize;

/// Bytes that the busiest rank of a stage holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Held {
    /// Weights of its layers, the embedding's and the LM head's rows.
    pub weight_bytes: f64,
    /// Keys and values of all sequences, whole blocks of positions.
    pub kv_bytes: f64,
    /// Activations of one step.
    pub workspace_bytes: f64,
}

impl Held {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.weight_bytes + self.kv_bytes + self.workspace_bytes
    }
}

/// Bytes of an activation while it is worked on.
const F32: f64 = 4.0;

/// What does not depend on the batch, and what each sequence adds.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    weight_bytes: f64,
    sequence_bytes: f64,
    row_bytes: f64,
    stages: usize,
}

impl Capacity {
    /// Of the rank of `costs` in a pipeline of `pp` stages, for sequences of `context` positions.
    pub fn new(costs: &Costs<'_>, context: usize, pp: usize) -> Capacity {
        let (model, share) = (costs.model, &costs.share);
        let shape = &model.shape;
        // The fullest stage has its part of the layers, rounded up.
        let stage = shape.layers.div_ceil(pp) as f64 / shape.layers as f64;
        let rows =
            share.vocab_rows as f64 * shape.hidden as f64 * model.formats.of(Part::Head).bytes();
        // What is held is what a token reads that goes to every expert.
        let everything = Load {
            tokens: 1.0,
            own_tokens: 1.0,
            experts: share.experts as f64,
            expert_rows: share.experts as f64,
            ..Load::default()
        };
        let mut layers = 0.0;
        let mut add = |_: Line, count: f64, work: Work, _: Option<Message>| {
            layers += count * work.weight_bytes;
        };
        costs.visit(&everything, &mut add);
        let position = share.kv_heads as f64 * costs.position_bytes();
        let windowed = model.window.map_or(0.0, |window| {
            window.layers as f64 * share.local(window.positions.min(context)) as f64
        });
        let full = model.full_layers() as f64 * share.local(context) as f64;
        let columns = 2 * share.ffn_cols.max(share.shared_cols);
        let top_k = shape.moe.map_or(0, |moe| moe.top_k);
        let row = 4 * shape.hidden
            + 2 * (share.q_heads + share.kv_heads) * shape.head_dim
            + columns
            + top_k * (2 * share.expert_cols + shape.hidden)
            + shape.vocab;
        Capacity {
            weight_bytes: layers * stage + if model.tied_head { rows } else { 2.0 * rows },
            sequence_bytes: (full + windowed) * stage * position,
            row_bytes: row as f64 * F32,
            stages: pp,
        }
    }

    /// With `batch` sequences in all, of which the rank attends to `own`.
    pub fn held(&self, batch: usize, own: usize) -> Held {
        Held {
            weight_bytes: self.weight_bytes,
            kv_bytes: self.sequence_bytes * own as f64,
            workspace_bytes: self.row_bytes * batch.div_ceil(self.stages) as f64,
        }
    }
}
