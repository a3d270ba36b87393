//! Which layout: flags to a proof.

use crate::console::Console;
use crate::failure::{Failure, Outcome};
use crate::setup::read_cost;
use clap::Args;
use helix_kernels::kv::KvType;
use helix_layout::{
    DEFAULT_KV_BLOCK, Layout, LayoutSpec, Preference, QkvMode, ReadCost, Reads, Strategy, choose,
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
    /// Slices of the FFN [default: what the strategy makes of --kvp and --tpa]
    #[arg(long, value_name = "N")]
    tpf: Option<usize>,
    /// Groups of experts; 1 for the dense models that run today
    #[arg(long, value_name = "N")]
    ep: Option<usize>,
    /// helix: KV cut by position and head, FFN over all ranks; tp: tensor parallelism, which
    /// duplicates KV past the KV heads; medha: KV cut by position, FFN on the first tpa ranks
    #[arg(long, value_name = "NAME", default_value = "helix")]
    strategy: Strategy,
    /// Consecutive positions that one KVP rank stores before the next one's turn
    #[arg(long, value_name = "N", default_value_t = DEFAULT_KV_BLOCK)]
    kv_block: usize,
    /// How ranks that need the same Q, K and V come by them: replicate (each computes all) or
    /// gather (each computes a share) [default: chosen by bytes read]
    #[arg(long, value_name = "MODE")]
    qkv: Option<QkvMode>,
}

impl LayoutArgs {
    /// The layout that is asked for, for sequences of about `context` tokens. A choice that the
    /// user left open is explained on the console.
    pub fn resolve(
        &self,
        model: &Model,
        kv_type: KvType,
        context: usize,
        console: &Console,
    ) -> Outcome<Layout> {
        let cost = read_cost(model, kv_type, context)?;
        if let (Some(ranks), None, None) = (self.ranks, self.kvp, self.tpa) {
            let &Self { strategy, kv_block, qkv, .. } = self;
            let preference = Preference { ranks, strategy, kv_block, qkv };
            let choice = choose(&model.shape(), &preference, &cost)?;
            if ranks > 1 {
                console.note(&format!("layout: {}", choice.reason));
            }
            let spec = self.with_ffn(choice.layout.spec());
            return Ok(Layout::new(&model.shape(), spec)?);
        }
        let spec = self.spec()?;
        let layout = Layout::new(&model.shape(), spec)?;
        if let Some(ranks) = self.ranks.filter(|&ranks| ranks != layout.ranks()) {
            let found = layout.ranks();
            return Err(Failure::request(format!(
                "--ranks {ranks} and the degrees disagree: {layout} has {found} ranks; leave \
                 --ranks out, or the degrees to have them chosen"
            )));
        }
        match self.qkv {
            None if spec.degrees.kvp > 1 => cheaper_qkv(model, spec, &cost),
            _ => Ok(layout),
        }
    }

    /// The degrees that are named, and what follows from them.
    fn spec(&self) -> Outcome<LayoutSpec> {
        let (kvp, tpa) = match (self.ranks, self.kvp, self.tpa) {
            (Some(ranks), Some(kvp), None) => (kvp, self.share(ranks, "kvp", kvp)?),
            (Some(ranks), None, Some(tpa)) => (self.share(ranks, "tpa", tpa)?, tpa),
            (_, kvp, tpa) => (kvp.unwrap_or(1), tpa.unwrap_or(1)),
        };
        let mut spec = LayoutSpec::new(self.strategy, kvp, tpa);
        spec.kv_block = self.kv_block;
        spec.qkv = self.qkv.unwrap_or(QkvMode::Replicate);
        Ok(self.with_ffn(spec))
    }

    /// `spec` with the degrees of the FFN that were asked for.
    fn with_ffn(&self, mut spec: LayoutSpec) -> LayoutSpec {
        spec.degrees.tpf = self.tpf.unwrap_or(spec.degrees.tpf);
        spec.degrees.ep = self.ep.unwrap_or(spec.degrees.ep);
        spec
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

/// `spec` with the QKV mode whose busiest rank has least to read.
fn cheaper_qkv(model: &Model, spec: LayoutSpec, cost: &ReadCost) -> Outcome<Layout> {
    let mut best: Option<(f64, Layout)> = None;
    for qkv in QkvMode::ALL {
        let layout = Layout::new(&model.shape(), LayoutSpec { qkv, ..spec })?;
        let bytes = bytes_per_token(&layout, cost);
        if best.is_none_or(|(least, _)| bytes < least) {
            best = Some((bytes, layout));
        }
    }
    Ok(best.expect("there is a QKV mode").1)
}

/// What `helix_layout::choose` compares: bytes that the busiest rank reads for a token, and what
/// the collectives count for.
fn bytes_per_token(layout: &Layout, cost: &ReadCost) -> f64 {
    let busiest = layout.all_ranks().map(|rank| {
        let reads = Reads::of(layout, rank, cost.context);
        let layers = (reads.qkv + reads.out + reads.ffn) as f64;
        let weights = layers * cost.weight_bits + reads.head as f64 * cost.head_bits;
        (weights + reads.kv as f64 * cost.kv_bits) / 8.0
    });
    let collectives = layout.shape().layers * layout.collectives_per_layer();
    busiest.fold(0.0, f64::max) + collectives as f64 * cost.collective_bytes
}
