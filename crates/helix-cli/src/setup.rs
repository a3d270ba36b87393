//! From flags to an engine: what every command that runs a model does first.

use crate::args::EngineArgs;
use crate::console::{Console, Unit};
use crate::failure::{Failure, Outcome};
use crate::location;
use crate::processes::Ranks;
use helix_engine::{Engine, EngineOptions, FfnReduce, HopB, MlaUp};
use helix_kernels::kv::{KvType, PageShape};
use helix_layout::{Layout, LayoutSpec, Rank, Reads, Strategy};
use helix_model::{Holdings, Model, rank_bytes};
use serde::Serialize;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;

/// The most threads of all ranks together.
const MAX_THREADS: usize = 1024;

/// Positions that sequences of unknown length have room for, where the user and the model set no
/// other.
pub const DEFAULT_CONTEXT: usize = 8192;

/// Finds and opens a model, which `args` then say how to run; all ranks must have the same one.
pub fn open(
    ranks: &Ranks,
    model: &Path,
    args: &EngineArgs,
    console: &Console,
) -> Outcome<Arc<Model>> {
    let model = open_one(model, args, console)?;
    ranks.agree(&model)?;
    Ok(model)
}

/// As [`open`], for this process alone.
pub fn open_one(model: &Path, args: &EngineArgs, console: &Console) -> Outcome<Arc<Model>> {
    let mut model = Model::open(&location::find(model, console)?)?;
    check_choices(args, &model)?;
    if let Some(format) = args.weights.format() {
        model.quantise_at_load(format);
        let whole = Layout::new(&model.shape(), LayoutSpec::new(Strategy::Helix, 1, 1))?;
        let held = Holdings::of(&model, &whole, Rank(0))?.total();
        if held == rank_bytes(&model, &whole, Rank(0))? {
            console.note(&format!(
                "note: --weights {} changes nothing: this model stores no matrix as floats whose \
                 rows are whole blocks",
                args.weights.name()
            ));
        }
    }
    Ok(Arc::new(model))
}

/// Refuses choices between ways that the model has none of.
fn check_choices(args: &EngineArgs, model: &Model) -> Outcome {
    let arch = model.config.arch.name();
    if args.mla_up.is_some() && model.config.mla.is_none() {
        return Err(Failure::request(format!(
            "--mla-up is about latent attention (MLA), which {arch} models do not have: leave it \
             out"
        )));
    }
    if args.ffn_reduce.is_some() && model.config.moe.is_none() {
        return Err(Failure::request(format!(
            "--ffn-reduce is about experts, which this {arch} model does not have: leave it out"
        )));
    }
    Ok(())
}

/// How a model is run, beside its layout: fields of every JSON document.
#[derive(Clone, Debug, Serialize)]
pub struct Choices {
    /// Format of matrices in memory, or `as-is`.
    weights: &'static str,
    /// Of models with latent attention: `before` or `after` the all-to-all.
    #[serde(skip_serializing_if = "Option::is_none")]
    mla_up: Option<&'static str>,
    /// Pieces that HOP-B cuts a batch into at most, `off` or `auto`.
    hopb: String,
    /// Slices that sums over ranks are cut into at most.
    reduce_slices: usize,
    /// Of models with experts: `world` or `grid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    ffn_reduce: Option<&'static str>,
}

impl Choices {
    /// Those that `args` made for `model`.
    pub fn new(args: &EngineArgs, model: &Model) -> Choices {
        Choices {
            weights: args.weights.name(),
            hopb: match args.hopb {
                HopB::Off => "off".into(),
                HopB::Pieces(pieces) => pieces.to_string(),
                HopB::Auto => "auto".into(),
            },
            reduce_slices: args.reduce_slices,
            mla_up: model.config.mla.map(|_| match args.mla_up() {
                MlaUp::Before => "before",
                MlaUp::After | MlaUp::Auto => "after",
            }),
            ffn_reduce: model.config.moe.as_ref().map(|_| match args.ffn_reduce() {
                FfnReduce::World => "world",
                FfnReduce::Grid => "grid",
            }),
        }
    }
}

/// Positions to make room for: as many as the user says, or else `wanted`, if the model was
/// trained for so many.
pub fn context(asked: Option<usize>, model: &Model, wanted: usize, console: &Console) -> usize {
    let trained = model.config.context;
    let context = asked.unwrap_or(trained.min(wanted));
    if context > trained {
        console.warn(&format!(
            "the model was trained for {trained} positions: text past them is not to be trusted"
        ));
    }
    context
}

/// What is said of more positions than the model was trained for, where only their time counts.
pub fn untrained(positions: usize, trained: usize) -> Option<String> {
    (positions > trained).then(|| {
        format!(
            "{positions} positions are past the {trained} that the model was trained for, which \
             changes what it would say and not how fast"
        )
    })
}

/// Processors that this process may use.
pub fn cores() -> usize {
    available_parallelism().map_or(1, NonZero::get)
}

/// Threads of each of `count` ranks.
pub fn threads(ranks: &Ranks, args: &EngineArgs, count: usize) -> usize {
    let (ranks, cores) = ranks.on_host(count);
    args.threads.unwrap_or((cores / ranks.max(1)).max(1))
}

/// Tokens of a prompt that a thread reads at a time: what a layer computes of them stays near it.
/// Two ranks of a thread each read SmolLM2's prompts 3 to 6 % faster by 256 than by 512, where
/// they would be two threads' share.
const TOKENS_PER_THREAD: usize = 256;
/// Tokens of a step at most, however many threads.
const MAX_STEP_TOKENS: usize = 512;

/// The engine's options that follow from the flags; sizes are the command's to set.
pub fn options(
    ranks: &Ranks,
    args: &EngineArgs,
    layout: &Layout,
    console: &Console,
) -> Outcome<EngineOptions> {
    let threads = threads(ranks, args, layout.ranks());
    let (ranks, cores) = ranks.on_host(layout.ranks());
    let total = ranks.saturating_mul(threads);
    if total > MAX_THREADS {
        return Err(Failure::request(format!(
            "{ranks} ranks of {threads} threads are {total} threads, and one process runs at most \
             {MAX_THREADS}: lower -t or the ranks"
        )));
    }
    if total > cores {
        console.warn(&format!(
            "{ranks} ranks of {threads} threads take turns on {cores} processors: expect less \
             speed than from {cores} threads in all"
        ));
    }
    Ok(EngineOptions {
        threads_per_rank: threads,
        max_step_tokens: (TOKENS_PER_THREAD * threads).min(MAX_STEP_TOKENS),
        precision: args.precision(),
        kv_type: args.kv_type(),
        mla_up: args.mla_up(),
        ffn_reduce: args.ffn_reduce(),
        hopb: args.hopb,
        reduce_slices: args.reduce_slices,
        deadline: args.transport.deadline(),
        pin: args.pin,
        ..EngineOptions::default()
    })
}

/// Loads the weights of this process's ranks, with a progress bar.
pub fn start(
    ranks: &Ranks,
    model: &Arc<Model>,
    layout: Layout,
    options: EngineOptions,
    console: &Console,
) -> Outcome<Engine> {
    let own = layout.all_ranks().take(if ranks.world().is_some() { 1 } else { layout.ranks() });
    let bytes = own.map(|rank| rank_bytes(model, &layout, rank));
    let total = bytes.sum::<Result<u64, _>>()?;
    let bar = console.bar("loading", total, Unit::Bytes);
    let progress = |bytes| bar.add(bytes);
    let model = Arc::clone(model);
    Ok(match ranks.world() {
        None => Engine::new(model, layout, options, &progress)?,
        Some(world) => Engine::lead(world, model, layout, options, &progress)?,
    })
}

/// Bits that the elements of a model take, on average.
#[derive(Clone, Copy, Debug)]
pub struct Widths {
    /// Of the layers' matrices, scales included (5.0 for Q4_1).
    pub weights: f64,
    /// Of keys and values.
    pub kv: f64,
}

impl Widths {
    /// Those of `model`, with keys and values of `kv_type`.
    pub fn of(model: &Model, kv_type: KvType) -> Outcome<Widths> {
        let whole = Layout::new(&model.shape(), LayoutSpec::new(Strategy::Helix, 1, 1))?;
        let elements = Reads::held(&whole, Rank(0), 1);
        let held = Holdings::of(model, &whole, Rank(0))?;
        let bits = |bytes: u64, elements: u64| bytes as f64 * 8.0 / elements as f64;
        let token =
            model.config.layers * model.config.kv_heads * page(model, kv_type).token_bytes();
        Ok(Widths {
            weights: bits(held.total() - held.head, elements.layer_weights()),
            kv: bits(token as u64, elements.kv),
        })
    }
}

/// What a page of `model`'s cache holds.
pub fn page(model: &Model, kv_type: KvType) -> PageShape {
    let head_dim = model.config.head_dim;
    match &model.config.mla {
        Some(mla) => PageShape::latent(head_dim, mla.kv_lora, kv_type),
        None => PageShape::new(head_dim, kv_type),
    }
}
