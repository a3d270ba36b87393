//! A step that decodes on one of the engine's layouts, rank by rank.

use helix_layout::Layout;
use helix_scheduler::{Step, Wanted};

use crate::costs::{Choices, Message, Work};
use crate::{
    Costs, Exchange, Line, Load, Machine, MachineError, Model, Overlap, Popularity, Routing, Share,
    StepTime, Timer,
};

/// One token of each of some sequences, as the engine decodes them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decode {
    /// Sequences.
    pub batch: usize,
    /// Positions that each token sees, its own among them.
    pub context: usize,
    /// Threads of a rank.
    pub threads: usize,
    /// What is chosen beside the layout.
    pub choices: Choices,
    /// What becomes of the all-to-all.
    pub exchange: Exchange,
}

impl Decode {
    /// Seconds of each line on the rank that takes longest in it: ranks meet in every layer.
    ///
    /// # Errors
    /// The machine connects fewer ranks, or has no rate for the model's formats.
    pub fn time(
        &self,
        model: &Model,
        machine: &Machine,
        layout: &Layout,
    ) -> Result<StepTime, MachineError> {
        let &Decode { batch, context, threads, choices, exchange } = self;
        let mut step = Step::default();
        let last = context.max(1) - 1;
        (0..batch).for_each(|slot| step.push(slot, last, &[0], Wanted::Last));
        let routing = model.shape.moe.map_or(Routing::NONE, |moe| {
            let ep = layout.degrees().ep;
            Routing::expected(&moe, ep, batch as f64, Popularity::Busiest { skew: 1.0 })
        });
        let ranks = layout.all_ranks().map(|rank| {
            let share = Share::of(layout, rank);
            let load = Load::of(model, layout, rank, &step, routing, choices.pieces);
            (Costs { model, share, choices }, load)
        });
        let ranks: Vec<(Costs<'_>, Load)> = ranks.collect();
        // What a cache would have to hold: other tokens go to other experts.
        let mut bytes = 0.0;
        let mut add = |_: Line, layers: f64, work: Work, _: Option<Message>| {
            bytes += layers * (work.weight_bytes + work.kv_bytes);
        };
        for (costs, load) in &ranks {
            let experts = costs.share.experts as f64;
            costs.visit(&Load { experts, expert_rows: experts, ..*load }, &mut add);
        }
        let timer = Timer::of_steps(machine, model, layout.ranks(), threads, bytes)?;
        let overlap = Overlap { exchange, exposed_reduce: 1.0 };
        let mut slowest = StepTime { pieces: 1, ..StepTime::default() };
        for (costs, load) in &ranks {
            let time = timer.step(costs, load, overlap);
            slowest.pieces = slowest.pieces.max(time.pieces);
            for (most, seconds) in slowest.lines.iter_mut().zip(time.lines) {
                *most = most.max(seconds);
            }
        }
        Ok(slowest)
    }
}
