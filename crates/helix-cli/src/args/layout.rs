//! Which layout: flags to a proof.

use super::{EngineArgs, MlaUpArg};
use crate::console::Console;
use crate::failure::{Failure, Outcome};
use crate::processes::Ranks;
use crate::{hardware, planning, setup};
use clap::Args;
use helix_comm::Delay;
use helix_engine::{EngineOptions, MlaUp};
use helix_layout::{
    DEFAULT_KV_BLOCK, Degrees, Layout, LayoutSpec, ModelShape, PartialDegrees, Preference, QkvMode,
    Strategy,
};
use helix_model::Model;
use helix_plan::{Decode, Machine, choose};
use std::path::PathBuf;

/// The layout's flags; without any of them, one rank.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Layout")]
pub struct LayoutArgs {
    /// Ranks; the planner chooses their degrees by the time that it predicts for a token, and the
    /// choice is printed with the runner-up
    #[arg(long, value_name = "N")]
    ranks: Option<usize>,
    /// Shards of the KV sequence
    #[arg(long, value_name = "N")]
    kvp: Option<usize>,
    /// Slices of the attention heads
    #[arg(long, value_name = "N")]
    tpa: Option<usize>,
    /// Attention groups with sequences of their own (dp-ep)
    #[arg(long, value_name = "N")]
    dp: Option<usize>,
    /// Slices of the FFN's or of each expert's columns [default: what the strategy makes of
    /// attention's degrees; with experts, chosen by the planner]
    #[arg(long, value_name = "N")]
    tpf: Option<usize>,
    /// Groups of experts; 1 for a dense model
    #[arg(long, value_name = "N")]
    ep: Option<usize>,
    /// helix: KV cut by position and head, FFN over all ranks; tp: tensor parallelism, which
    /// duplicates KV past the KV heads; medha: KV cut by position, FFN on the first tpa ranks;
    /// dp-ep: every rank has all of attention for its own sequences, experts dealt to all ranks
    #[arg(long, value_name = "NAME", default_value = "helix")]
    strategy: Strategy,
    /// Consecutive positions that one KVP rank stores before the next one's turn
    #[arg(long, value_name = "N", default_value_t = DEFAULT_KV_BLOCK)]
    kv_block: usize,
    /// How ranks that need the same Q, K and V come by them: replicate (each computes all) or
    /// gather (each computes a share) [default: chosen by the planner]
    #[arg(long, value_name = "MODE")]
    qkv: Option<QkvMode>,
    /// The machine that the planner chooses for, as helix plan takes it [default: this one as helix
    /// probe has measured it, or else a typical processor]
    #[arg(long, value_name = "NAME|FILE")]
    hardware: Option<PathBuf>,
}

/// What a command is about to run, as far as a layout is chosen for it.
#[derive(Clone, Copy)]
pub struct Expected {
    /// Sequences that decode one token each in a step.
    pub batch: usize,
    /// Positions of each, about.
    pub context: usize,
    /// Links between ranks, where they are emulated.
    pub links: Option<Delay>,
}

impl Expected {
    /// One sequence, over links as they are.
    pub fn one(context: usize) -> Expected {
        Expected { batch: 1, context, links: None }
    }
}

impl LayoutArgs {
    /// The layout that is asked for, for what is to be run; `engine` is told where latents become
    /// values. A choice that the user left open is explained on the console.
    pub fn resolve(
        &self,
        ranks: &Ranks,
        model: &Model,
        engine: &mut EngineArgs,
        expected: Expected,
        console: &Console,
    ) -> Outcome<Layout> {
        let layout = self.choose(ranks, model, engine, expected, console)?;
        // Between threads bytes sent cost less than bytes read (decision 9).
        let has_links = expected.links.is_some() || ranks.world().is_some();
        let is_open = model.config.mla.is_some() && engine.mla_up() == MlaUp::Auto;
        if is_open && has_links && layout.degrees().kvp > 1 {
            let machine =
                hardware::at_hand(self.hardware.as_deref(), expected.links, ranks, console)?;
            engine.mla_up = Some(faster_mla_up(ranks, model, engine, &layout, expected, &machine)?);
        }
        Ok(layout)
    }

    fn choose(
        &self,
        ranks: &Ranks,
        model: &Model,
        engine: &EngineArgs,
        Expected { batch, context, links }: Expected,
        console: &Console,
    ) -> Outcome<Layout> {
        let asked = self.with_count(ranks);
        let layouts = asked.preference(&model.shape())?.layouts(&model.shape())?;
        let layout = match (&layouts[..], asked.ranks) {
            ([one], None | Some(1)) => *one,
            _ => {
                let machine = hardware::at_hand(self.hardware.as_deref(), links, ranks, console)?;
                let planned = planning::model(model, engine.kv_type())?;
                let step = LayoutArgs::step(ranks, engine, &layouts, (batch, context));
                let choice = choose(&planned, &machine, &layouts, &step);
                let choice = choice.map_err(Failure::request)?;
                console.note(&format!("layout: {}", choice.reason()));
                choice.best.layout
            }
        };
        match ranks.count() {
            Some(count) if count != layout.ranks() => Err(Failure::request(format!(
                "{layout} has {} ranks, and {count} processes were started: start as many, or \
                 leave degrees out",
                layout.ranks()
            ))),
            _ => Ok(layout),
        }
    }

    /// Where ranks are processes, there are as many as were started, unless the flags say.
    fn with_count(&self, ranks: &Ranks) -> LayoutArgs {
        let settled = self.dp.is_some() || (self.kvp.is_some() && self.tpa.is_some());
        let count = ranks.count().filter(|_| !settled);
        LayoutArgs { ranks: self.ranks.or(count), ..self.clone() }
    }

    /// What was fixed: degrees that were named, and those of attention that follow from them.
    fn preference(&self, shape: &ModelShape) -> Outcome<Preference> {
        let &Self { strategy, kv_block, qkv, .. } = self;
        let named = self.named()?;
        let fixed = |ranks, degrees| Preference { ranks, strategy, degrees, kv_block, qkv };
        if let (Some(ranks), None, None, None) = (self.ranks, self.kvp, self.tpa, self.dp) {
            return Ok(fixed(ranks, named));
        }
        let layout = Layout::new(shape, self.spec(named, shape))?;
        if let Some(ranks) = self.ranks.filter(|&ranks| ranks != layout.ranks()) {
            let found = layout.ranks();
            return Err(Failure::request(format!(
                "--ranks {ranks} and the degrees disagree: {layout} has {found} ranks; leave \
                 --ranks out, or the degrees to have them chosen"
            )));
        }
        let Degrees { kvp, tpa, dp, .. } = layout.degrees();
        let settled = PartialDegrees { kvp: Some(kvp), tpa: Some(tpa), dp: Some(dp), ..named };
        Ok(fixed(layout.ranks(), settled))
    }

    /// A step of the engine that is to run one of `layouts`, for the planner.
    fn step(
        ranks: &Ranks,
        engine: &EngineArgs,
        layouts: &[Layout],
        shape: (usize, usize),
    ) -> Decode {
        let options = EngineOptions {
            threads_per_rank: setup::threads(ranks, engine, layouts[0].ranks()),
            mla_up: engine.mla_up(),
            ffn_reduce: engine.ffn_reduce(),
            hopb: engine.hopb,
            reduce_slices: engine.reduce_slices,
            ..EngineOptions::default()
        };
        planning::decode(&options, shape)
    }

    /// The degrees that were given, and the one of attention's two that follows from `--ranks`.
    fn named(&self) -> Outcome<PartialDegrees> {
        let &Self { mut kvp, mut tpa, dp, tpf, ep, .. } = self;
        match (self.ranks, kvp, tpa, dp) {
            (Some(ranks), Some(degree), None, None) => {
                tpa = Some(self.share(ranks, "kvp", degree)?);
            }
            (Some(ranks), None, Some(degree), None) => {
                kvp = Some(self.share(ranks, "tpa", degree)?);
            }
            _ => {}
        }
        Ok(PartialDegrees { kvp, tpa, dp, tpf, ep })
    }

    fn spec(&self, named: PartialDegrees, shape: &ModelShape) -> LayoutSpec {
        let &Self { strategy, kv_block, .. } = self;
        let degrees = strategy.complete(named, shape);
        LayoutSpec { degrees, strategy, kv_block, qkv: self.qkv.unwrap_or(QkvMode::Replicate) }
    }

    /// The other degree of attention, when `ranks` and one of them are given.
    fn share(&self, ranks: usize, name: &str, degree: usize) -> Outcome<usize> {
        match ranks.checked_div(degree) {
            Some(share) if share * degree == ranks && share > 0 => Ok(share),
            _ => Err(Failure::request(format!(
                "--{name} {degree} does not divide --ranks {ranks}: leave one of them out, or \
                 choose --{name} among the divisors of {ranks}"
            ))),
        }
    }
}

/// Where latents become values in less time, as predicted for `layout`; `after` of equals.
fn faster_mla_up(
    ranks: &Ranks,
    model: &Model,
    engine: &EngineArgs,
    layout: &Layout,
    Expected { batch, context, .. }: Expected,
    machine: &Machine,
) -> Outcome<MlaUpArg> {
    let planned = planning::model(model, engine.kv_type())?;
    let seconds = |mla_up| -> Outcome<f64> {
        let mut engine = engine.clone();
        engine.mla_up = Some(mla_up);
        let step = LayoutArgs::step(ranks, &engine, &[*layout], (batch, context));
        let choice = choose(&planned, machine, &[*layout], &step).map_err(Failure::request)?;
        Ok(choice.best.ttl_s())
    };
    match seconds(MlaUpArg::Before)? < seconds(MlaUpArg::After)? {
        true => Ok(MlaUpArg::Before),
        false => Ok(MlaUpArg::After),
    }
}
