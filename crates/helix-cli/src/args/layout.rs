//! Which layout: flags to a proof.

use crate::console::Console;
use crate::failure::{Failure, Outcome};
use crate::processes::Ranks;
use crate::setup::read_cost;
use clap::Args;
use helix_comm::Delay;
use helix_kernels::kv::KvType;
use helix_layout::{
    DEFAULT_KV_BLOCK, Degrees, Layout, LayoutSpec, ModelShape, PartialDegrees, Preference, QkvMode,
    ReadCost, Strategy, choose,
};
use helix_model::Model;

/// The layout's flags; without any of them, one rank.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Layout")]
pub struct LayoutArgs {
    /// Ranks; their degrees are chosen by bytes read, and the choice is printed
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
    /// attention's degrees; with experts, chosen by bytes read]
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
    /// gather (each computes a share) [default: chosen by bytes read, and by how long messages
    /// take]
    #[arg(long, value_name = "MODE")]
    qkv: Option<QkvMode>,
}

impl LayoutArgs {
    /// The layout that is asked for, for sequences of about `context` tokens. A choice that the
    /// user left open is explained on the console.
    pub fn resolve(
        &self,
        ranks: &Ranks,
        model: &Model,
        kv_type: KvType,
        context: usize,
        console: &Console,
    ) -> Outcome<Layout> {
        self.resolve_over(None, ranks, model, kv_type, context, console)
    }

    /// As [`LayoutArgs::resolve`], of ranks whose links are emulated if such are given.
    pub fn resolve_over(
        &self,
        links: Option<Delay>,
        ranks: &Ranks,
        model: &Model,
        kv_type: KvType,
        context: usize,
        console: &Console,
    ) -> Outcome<Layout> {
        let latency = match links {
            Some(links) => links.latency,
            None => ranks.latency()?,
        };
        let collective_bytes = ReadCost::collective_bytes_over(latency);
        let cost = ReadCost { collective_bytes, ..read_cost(model, kv_type, context)? };
        let layout = self.with_count(ranks).choose(model, &cost, console)?;
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

    fn choose(&self, model: &Model, cost: &ReadCost, console: &Console) -> Outcome<Layout> {
        let shape = model.shape();
        let named = self.named()?;
        if let (Some(ranks), None, None, None) = (self.ranks, self.kvp, self.tpa, self.dp) {
            let choice = choose(&shape, &self.preference(ranks, named), cost)?;
            if ranks > 1 {
                console.note(&format!("layout: {}", choice.reason));
            }
            return Ok(choice.layout);
        }
        let layout = Layout::new(&shape, self.spec(named, &shape))?;
        if let Some(ranks) = self.ranks.filter(|&ranks| ranks != layout.ranks()) {
            let found = layout.ranks();
            return Err(Failure::request(format!(
                "--ranks {ranks} and the degrees disagree: {layout} has {found} ranks; leave \
                 --ranks out, or the degrees to have them chosen"
            )));
        }
        // Attention's degrees are settled now; what else is open follows the bytes read.
        let Degrees { kvp, tpa, dp, .. } = layout.degrees();
        let settled = PartialDegrees { kvp: Some(kvp), tpa: Some(tpa), dp: Some(dp), ..named };
        Ok(choose(&shape, &self.preference(layout.ranks(), settled), cost)?.layout)
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

    fn preference(&self, ranks: usize, degrees: PartialDegrees) -> Preference {
        let &Self { strategy, kv_block, qkv, .. } = self;
        Preference { ranks, strategy, degrees, kv_block, qkv }
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
