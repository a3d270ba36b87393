//! The FFN phase: dense layers as one tensor-parallel group; experts on a TPF x EP grid.

use crate::counters::{Line, Meters};
use crate::lanes::Lanes;
use crate::layer::product;
use crate::moe::{MoeBuffers, MoePlan};
use crate::projection::project;
use helix_kernels::elementwise::{clamped_swiglu, gelu_tanh, swiglu};
use helix_kernels::{ActivationRows, Activations, Forms, Matrix};
use helix_layout::{Layout, Rank};
use helix_model::config::Activation;
use helix_model::{Config, DenseWeights, FfnWeights};
use std::ops::Range;

/// gpt-oss's gate: how steep, and where it ends. Sources: its model card and reference code.
const CLAMPED_ALPHA: f32 = 1.702;
const CLAMPED_LIMIT: f32 = 7.0;

/// What the phase knows of its rank; made once.
pub(crate) struct FfnPlan {
    pub(crate) hidden: usize,
    /// Columns of dense layers, over all ranks of the FFN.
    dense: usize,
    activation: Activation,
    pub(crate) moe: Option<MoePlan>,
}

/// The phase's buffers, sized once.
pub(crate) struct FfnBuffers {
    /// `[rows, gate | up]`
    pub(crate) gate_up: Vec<f32>,
    /// Activated columns.
    pub(crate) activated: Activations,
    moe: Option<MoeBuffers>,
}

impl FfnPlan {
    pub(crate) fn new(config: &Config, layout: &Layout, rank: Rank) -> FfnPlan {
        FfnPlan {
            hidden: config.hidden,
            dense: layout.ffn_cols(rank).len(),
            activation: config.activation,
            moe: config.moe.as_ref().map(|moe| MoePlan::new(moe, layout, rank)),
        }
    }

    /// The widest row that a lane works on.
    pub(crate) fn lane_row(&self) -> usize {
        let moe = self.moe.as_ref().map_or(0, |moe| moe.cols.max(moe.shared));
        self.dense.max(moe).max(self.hidden)
    }

    pub(crate) fn buffers(&self, tokens: usize, forms: Forms) -> FfnBuffers {
        // Values of all rows together, whichever kind of layer it is.
        let columns = match &self.moe {
            None => tokens * self.dense,
            Some(moe) => (tokens * self.dense.max(moe.shared)).max(tokens * moe.top_k() * moe.cols),
        };
        let rows = self.moe.as_ref().map_or(tokens, |moe| tokens * moe.top_k());
        FfnBuffers {
            gate_up: vec![0.0; 2 * columns],
            activated: Activations::new(rows, columns.div_ceil(rows).max(1), forms),
            moe: self.moe.as_ref().map(|moe| moe.buffers(tokens, self.hidden, forms)),
        }
    }
}

/// How many slices a layer's sum is cut into, where `most` are asked for: that of experts, of whom
/// each would be run once a slice, into none.
pub(crate) fn slices(weights: &FfnWeights, most: usize) -> usize {
    match weights {
        FfnWeights::Dense(_) => most,
        FfnWeights::Moe(_) => 1,
    }
}

/// An FFN at work: on which threads, by which plan, of what, and what is counted of it.
pub(crate) struct Work<'a> {
    pub(crate) lanes: &'a mut Lanes,
    pub(crate) plan: &'a FfnPlan,
    /// `[tokens, hidden]`
    pub(crate) input: &'a Activations,
    pub(crate) cuts: &'a mut Vec<usize>,
    pub(crate) meters: Meters<'a>,
}

/// `y [tokens, columns]`: some columns of this rank's part of the FFN of the input; over all ranks
/// they sum to it. The first columns come first, and with them what all need; experts' come all at
/// once.
pub(crate) fn run(
    work: &mut Work<'_>,
    weights: &FfnWeights,
    (y, columns): (&mut [f32], Range<usize>),
    buffers: &mut FfnBuffers,
) {
    match (weights, &work.plan.moe) {
        (FfnWeights::Dense(w), _) => work.dense(w, work.plan.dense, (y, columns), buffers),
        (FfnWeights::Moe(w), Some(moe)) => {
            let mut scratch = buffers.moe.take();
            let own = scratch.as_mut().expect("buffers are made for the model's layers");
            moe.route(work, w, own);
            work.lap(Line::Router);
            match &w.shared {
                Some(w) => work.dense(w, moe.shared, (&mut *y, columns), buffers),
                None => y.fill(0.0),
            }
            moe.experts(work, w, y, own, buffers);
            buffers.moe = scratch;
        }
        _ => unreachable!("a plan is made for the model's layers"),
    }
}

impl Work<'_> {
    /// An FFN of `cols` columns that every token goes through.
    fn dense(
        &mut self,
        w: &DenseWeights,
        cols: usize,
        (y, columns): (&mut [f32], Range<usize>),
        buffers: &mut FfnBuffers,
    ) {
        let FfnBuffers { gate_up, activated, .. } = buffers;
        if columns.start == 0 {
            self.project(gate_up, self.input, &[&w.gate, &w.up]);
            self.lap(Line::FfnUp);
            self.activate(activated, gate_up, self.input.tokens(), cols);
        }
        let read = product(self.lanes, y, activated, &w.down, columns, self.cuts);
        self.meters.0.weight_bytes += read;
        self.lap(Line::FfnDown);
    }

    /// [`project`], with what it reads counted.
    pub(crate) fn project<'r>(
        &mut self,
        out: &mut [f32],
        input: impl Into<ActivationRows<'r>>,
        matrices: &[&Matrix],
    ) {
        self.meters.0.weight_bytes += project(self.lanes, out, input, matrices, self.cuts);
    }

    /// All time since the last call belongs to `line`.
    pub(crate) fn lap(&mut self, line: Line) {
        let (counters, clock) = &mut self.meters;
        clock.lap(counters, line);
    }

    /// The gated columns of each row `[gate, up]`, as the input of the down-projection.
    pub(crate) fn activate(
        &mut self,
        out: &mut Activations,
        gate_up: &[f32],
        rows: usize,
        cols: usize,
    ) {
        let written = out.fill(rows, cols);
        if cols == 0 {
            return;
        }
        let activation = self.plan.activation;
        self.lanes.by_token(rows, |lane| {
            while let Some(row) = written.next() {
                let (gate, up) = gate_up[row.token() * 2 * cols..][..2 * cols].split_at(cols);
                let gated = &mut lane.row[..cols];
                match activation {
                    Activation::Silu => swiglu(gated, gate, up),
                    Activation::GeluTanh => gelu_tanh(gated, gate, up),
                    Activation::ClampedSwiglu => {
                        clamped_swiglu(gated, gate, up, CLAMPED_ALPHA, CLAMPED_LIMIT);
                    }
                }
                row.write(gated);
            }
        });
    }
}
