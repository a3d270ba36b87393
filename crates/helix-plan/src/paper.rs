//! The paper's evaluation, computed again: arXiv 2507.07120, section 3, and what was measured
//! since. HELIX.md's sections 5 and 6 list what was published.

mod constants;
mod crossover;
mod headlines;
mod silicon;

pub use constants::{CONSTANTS, Constant, Setup};
pub use crossover::{Crossover, dcp_crossovers};
pub use headlines::{Headlines, Subject, headlines, loss};
pub use silicon::{Reading, SILICON, Silicon, as_the_engine_runs, as_the_paper_runs, readings};

use crate::costs::{Choices, Formulas, Message, Work};
use crate::load::Routing;
use crate::{Costs, Formats, Line, Load, Model, Share};
use helix_layout::{Degrees, LayoutSpec, ModelShape, Strategy};

/// A row of figure 1: what one layer reads, in microseconds at 8000 GB/s.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names are the figure's")]
pub struct Roofline {
    pub tpa: usize,
    pub tpf: usize,
    pub kvp: usize,
    pub kv_us: f64,
    pub weights_us: f64,
}

/// The figure's rows: TPA, TPF, KVP, then the published times of KV and weights.
pub const FIGURE_1: [Roofline; 7] = [
    row(1, 1, 1, 1024.0, 236.98),
    row(8, 8, 1, 128.0, 29.62),
    row(64, 64, 1, 128.0, 3.93),
    row(8, 64, 8, 16.0, 7.60),
    row(8, 8, 8, 16.0, 29.62),
    row(8, 32, 4, 32.0, 10.75),
    row(1, 64, 64, 16.0, 38.80),
];

const fn row(tpa: usize, tpf: usize, kvp: usize, kv_us: f64, weights_us: f64) -> Roofline {
    Roofline { tpa, tpf, kvp, kv_us, weights_us }
}

/// Bytes per microsecond of figure 1's machine.
const FIGURE_1_BYTES_PER_US: f64 = 8e6;

/// Figure 1's model: H = Q·Hsz = 16384, F = 65536; FP4 for weights and KV.
fn figure_1_model() -> Model {
    let shape = ModelShape {
        layers: 1,
        hidden: 16384,
        q_heads: 128,
        kv_heads: 8,
        head_dim: 128,
        value_dim: 128,
        ffn: 65536,
        vocab: 128_256,
        out_block: 1,
        ffn_block: 1,
        mla: None,
        moe: None,
    };
    Model {
        name: "figure 1".to_owned(),
        source: "arXiv 2507.07120, appendix A".to_owned(),
        shape,
        context: 1_000_000,
        window: None,
        tied_head: false,
        formats: Formats::default(),
    }
}

/// One row of figure 1, of B = 8 and S = 10^6, from the planner's formulas.
pub fn figure_1(tpa: usize, tpf: usize, kvp: usize, formulas: Formulas) -> Roofline {
    let model = figure_1_model();
    // The rows need not be layouts: TP 64 in the FFN stands beside KVP x TPA of 8.
    let degrees = Degrees { kvp, tpa, dp: 1, tpf, ep: 1 };
    let strategy = if tpa > 8 { Strategy::Tp } else { Strategy::Helix };
    // S/KVP without a remainder of blocks.
    let spec = LayoutSpec { degrees, kv_block: 1, ..LayoutSpec::new(strategy, kvp, tpa) };
    let share = Share::busiest(&model.shape, &spec);
    let costs = Costs { model: &model, share, choices: Choices { formulas, ..Default::default() } };
    let load = Load::decode(&model, &share, 8, 1_000_000, Routing::NONE);
    let (mut kv, mut weights) = (0.0, 0.0);
    let mut add = |_: Line, layers: f64, work: Work, _: Option<Message>| {
        kv += layers * work.kv_bytes;
        weights += layers * work.weight_bytes;
    };
    costs.attention_phase(&load, &mut add);
    costs.ffn_phase(&load, &mut add);
    row(tpa, tpf, kvp, kv / FIGURE_1_BYTES_PER_US, weights / FIGURE_1_BYTES_PER_US)
}

/// Figure 3: 8 requests, 2 units of attention and 1.2 of communication each, in lockstep and with
/// HOP-B.
pub fn figure_3() -> [f64; 2] {
    use crate::network::Wire;
    use crate::pipeline::{Piece, lockstep, pipelined};
    let wire = Wire { busy_s: 1.2, latency_s: 0.0 };
    let requests = [Piece { compute_s: 2.0, wire }; 8];
    [lockstep(&requests), pipelined(&requests)]
}

#[cfg(test)]
mod tests;
