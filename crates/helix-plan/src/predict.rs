//! What one placement gives at one batch: latency, throughput, memory; or why it cannot run.

use serde::Serialize;
use std::collections::HashMap;

use crate::capacity::{Capacity, Held};
use crate::{
    Costs, Exchange, Line, Load, Machine, MachineError, Model, Overlap, Placement, PlacementError,
    Popularity, Routing, Share, StepTime, Timer, counted, figure,
};

/// What a plan is made for, beside model and machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Positions of every sequence.
    pub context: usize,
    /// How tokens choose experts.
    pub popularity: Popularity,
    /// The part of each all-reduce that nothing hides: 1 in the engine.
    pub exposed_reduce: f64,
    /// What happens without HOP-B.
    pub unhidden: Exchange,
    /// The part of a rank's memory that is somebody else's: a runtime's, a system's.
    pub reserved: f64,
    /// Threads of a rank, where ranks are teams of threads.
    pub threads: usize,
}

impl Settings {
    /// Sequences of `context` positions on ranks of one thread: nothing is hidden but what HOP-B
    /// hides, a tenth of the memory is reserved, experts are as likely as each other.
    pub fn new(context: usize) -> Settings {
        Settings {
            context,
            popularity: Popularity::Busiest { skew: 1.0 },
            exposed_reduce: 1.0,
            unhidden: Exchange::Whole,
            reserved: 0.1,
            threads: 1,
        }
    }

    /// Refuses settings that no plan can be made for.
    ///
    /// # Errors
    /// The setting, its value and what would do.
    pub fn check(&self) -> Result<(), PlanError> {
        let skew = match self.popularity {
            Popularity::Busiest { skew } => skew,
            Popularity::Mean => 1.0,
        };
        let size = |size: usize| (size as f64, size.to_string());
        let part = |part: f64| (part, figure(part));
        let checks = [
            ("the context", size(self.context), 1.0, MAX_CONTEXT),
            ("the skew of experts", part(skew), 1.0, 1e6),
            ("the exposed part of an all-reduce", part(self.exposed_reduce), 0.0, 1.0),
            ("the reserved part of the memory", part(self.reserved), 0.0, 0.99),
            ("threads of a rank", size(self.threads), 1.0, 4096.0),
        ];
        for (what, (value, given), least, most) in checks {
            if !(least..=most).contains(&value) {
                return Err(PlanError::Setting { what, value: given, least, most });
            }
        }
        Ok(())
    }
}

/// The longest context that is planned for; far past any, and no product overflows.
pub const MAX_CONTEXT: f64 = 1e9;

/// The most sequences that are planned for.
pub const MAX_BATCH: usize = 1 << 20;

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The machine has no answer.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The placement is none.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// A setting is out of its range.
    #[error("{what} is {value}: it goes from {least} to {most}")]
    Setting {
        /// In words.
        what: &'static str,
        /// As it was given.
        value: String,
        /// The least that would do.
        least: f64,
        /// The most.
        most: f64,
    },
    /// Nothing is left to try.
    #[error("no layout has what was asked for: {0}")]
    Nothing(String),
    /// It does not fit.
    #[error("{0}")]
    Memory(Box<Shortage>),
}

/// What a rank lacks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shortage {
    /// Of which placement.
    pub placement: Placement,
    /// Sequences.
    pub batch: usize,
    /// Positions of each.
    pub context: usize,
    /// What its busiest rank holds.
    #[serde(flatten)]
    pub held: Held,
    /// What it has room for.
    pub memory_bytes: f64,
}

impl Shortage {
    /// Bytes that are missing.
    pub fn bytes(&self) -> f64 {
        self.held.total() - self.memory_bytes
    }

    /// Whether it lacks less; of equals, whether it is the simpler placement.
    pub(crate) fn before(&self, other: &Shortage) -> bool {
        let simplicity = |of: &Shortage| of.placement.simplicity();
        let order = self.bytes().total_cmp(&other.bytes());
        order.then_with(|| simplicity(self).cmp(&simplicity(other))).is_lt()
    }
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shortage { placement, batch, context, held, memory_bytes } = self;
        let gb = |bytes: f64| bytes / 1e9;
        write!(
            f,
            "{placement} with {} of {} is {:.1} GB short: a rank \
             holds {:.1} GB of weights, {:.1} GB of KV and {:.1} GB of activations, and has room \
             for {:.1} GB",
            counted(*batch, "sequence"),
            counted(*context, "position"),
            gb(self.bytes()),
            gb(held.weight_bytes),
            gb(held.kv_bytes),
            gb(held.workspace_bytes),
            gb(*memory_bytes)
        )
    }
}

/// What a placement gives at a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Sequences, in all stages together.
    pub batch: usize,
    /// Seconds from one token of a sequence to its next.
    pub ttl_s: f64,
    /// Tokens per second and rank.
    pub tokens_per_s_rank: f64,
    /// Seconds of the lines, of one micro-batch over all layers.
    pub time: StepTime,
    /// Seconds between stages.
    pub send_s: f64,
}

impl Prediction {
    /// Tokens per second of one sequence: interactivity.
    pub fn tokens_per_s_user(&self) -> f64 {
        1.0 / self.ttl_s
    }
}

/// One placement of a model on a machine, ready to be asked for any batch.
pub(crate) struct Candidate<'a, 'm> {
    costs: Costs<'a>,
    capacity: Capacity,
    timer: &'a Timer<'m>,
    settings: &'a Settings,
    placement: Placement,
}

/// Expected routings that were computed: by groups and tokens.
pub(crate) type Routings = HashMap<(usize, usize), Routing>;

impl<'a, 'm> Candidate<'a, 'm> {
    pub(crate) fn new(
        model: &'a Model,
        timer: &'a Timer<'m>,
        settings: &'a Settings,
        placement: Placement,
    ) -> Candidate<'a, 'm> {
        let share = Share::busiest(&model.shape, &placement.spec);
        let costs = Costs { model, share, choices: placement.choices };
        let capacity = Capacity::new(&costs, settings.context, placement.pp);
        Candidate { costs, capacity, timer, settings, placement }
    }

    /// What the busiest rank holds.
    pub(crate) fn held(&self, batch: usize) -> Held {
        self.capacity.held(batch, self.costs.share.own_sequences(batch))
    }

    /// What a rank has room for.
    pub(crate) fn room(&self) -> f64 {
        self.timer.memory_bytes * (1.0 - self.settings.reserved)
    }

    pub(crate) fn fits(&self, batch: usize) -> bool {
        self.held(batch).total() <= self.room()
    }

    pub(crate) fn shortage(&self, batch: usize) -> Shortage {
        Shortage {
            placement: self.placement,
            batch,
            context: self.settings.context,
            held: self.held(batch),
            memory_bytes: self.room(),
        }
    }

    /// Whether it fits or not: latency and throughput.
    ///
    /// Stages work on a micro-batch each, `batch / pp` sequences, and hand them on together: a
    /// sequence's next token waits for as many turns as there are stages.
    pub(crate) fn predict(&self, batch: usize, routings: &mut Routings) -> Prediction {
        let (model, placement) = (self.costs.model, &self.placement);
        let micro = batch.div_ceil(placement.pp);
        let routing = match &model.shape.moe {
            None => Routing::NONE,
            Some(moe) => {
                let ep = placement.spec.degrees.ep;
                let popularity = self.settings.popularity;
                *routings
                    .entry((ep, micro))
                    .or_insert_with(|| Routing::expected(moe, ep, micro as f64, popularity))
            }
        };
        let load = Load::decode(model, &self.costs.share, micro, self.settings.context, routing);
        let medha = placement.spec.strategy == helix_layout::Strategy::Medha;
        let overlap = Overlap {
            exchange: if placement.hopb { Exchange::Hopb } else { self.settings.unhidden },
            exposed_reduce: if medha { 1.0 } else { self.settings.exposed_reduce },
        };
        let time = self.timer.step(&self.costs, &load, overlap);
        let layers = model.shape.layers;
        let stages = placement.pp as f64;
        let of_stage = layers.div_ceil(placement.pp) as f64 / layers as f64;
        let send_s = match placement.pp {
            1 => 0.0,
            _ => {
                let bytes = micro as f64 * model.shape.hidden as f64 * model.formats.message;
                stages * self.timer.send_s(bytes, self.costs.share.ranks())
            }
        };
        let ttl_s = stages * of_stage * time.layers_s() + time.outside_s() + send_s;
        let tokens_per_s_rank = batch as f64 / ttl_s / placement.ranks() as f64;
        Prediction { batch, ttl_s, tokens_per_s_rank, time, send_s }
    }
}

/// What `placement` gives at `batch`.
///
/// # Errors
/// A setting or the placement is not legal, the machine has no answer, or it does not fit.
pub fn predict(
    model: &Model,
    machine: &Machine,
    placement: Placement,
    batch: usize,
    settings: &Settings,
) -> Result<(Prediction, Held), PlanError> {
    settings.check()?;
    placement.check(&model.shape)?;
    if !(1..=MAX_BATCH).contains(&batch) {
        let (what, value) = ("the batch", batch.to_string());
        return Err(PlanError::Setting { what, value, least: 1.0, most: MAX_BATCH as f64 });
    }
    let timer = Timer::new(machine, model, placement.ranks(), settings.threads)?;
    let candidate = Candidate::new(model, &timer, settings, placement);
    if !candidate.fits(batch) {
        return Err(PlanError::Memory(Box::new(candidate.shortage(batch))));
    }
    Ok((candidate.predict(batch, &mut Routings::new()), candidate.held(batch)))
}

/// A line of a breakdown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Term {
    /// The line of a step, or the way from one pipeline stage to the next.
    pub line: &'static str,
    /// Milliseconds of the latency.
    pub ms: f64,
    /// Part of the latency.
    pub part: f64,
}

impl Prediction {
    /// Where the latency goes, line by line; lines that take nothing are left out.
    pub fn breakdown(&self, placement: &Placement, model: &Model) -> Vec<Term> {
        let layers = model.shape.layers;
        let turns = placement.pp as f64 * layers.div_ceil(placement.pp) as f64 / layers as f64;
        let seconds = |line: Line| match line {
            Line::Embedding | Line::Head | Line::LogitsGather => self.time.of(line),
            _ => self.time.of(line) * turns,
        };
        let lines = Line::ALL.into_iter().map(|line| (line.name(), seconds(line)));
        lines
            .chain([("stage to stage", self.send_s)])
            .filter(|(_, seconds)| *seconds > 0.0)
            .map(|(line, s)| Term { line, ms: s * 1e3, part: s / self.ttl_s })
            .collect()
    }
}
