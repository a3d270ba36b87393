//! From flags to an engine: what every command that runs a model does first.

use crate::args::EngineArgs;
use crate::console::{Console, Unit};
use crate::failure::{Failure, Outcome};
use crate::location;
use helix_engine::{Engine, EngineOptions};
use helix_kernels::kv::{KvType, PageShape};
use helix_layout::{Layout, LayoutSpec, Rank, ReadCost, Reads, Strategy};
use helix_model::{Model, rank_bytes};
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;

/// The most threads of all ranks together.
const MAX_THREADS: usize = 1024;

/// Finds and opens a model.
pub fn open(model: &Path) -> Outcome<Arc<Model>> {
    Ok(Arc::new(Model::open(&location::find(model)?)?))
}

/// Processors that this process may use.
pub fn cores() -> usize {
    available_parallelism().map_or(1, NonZero::get)
}

/// The engine's options that follow from the flags; sizes are the command's to set.
pub fn options(args: &EngineArgs, layout: &Layout, console: &Console) -> Outcome<EngineOptions> {
    let (ranks, cores) = (layout.ranks(), cores());
    let threads = args.threads.unwrap_or((cores / ranks).max(1));
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
        precision: args.precision(),
        kv_type: args.kv_type(),
        ..EngineOptions::default()
    })
}

/// Loads the ranks' weights, with a progress bar.
pub fn start(
    model: &Arc<Model>,
    layout: Layout,
    options: EngineOptions,
    console: &Console,
) -> Outcome<Engine> {
    let bytes = layout.all_ranks().map(|rank| rank_bytes(model, &layout, rank));
    let total = bytes.sum::<Result<u64, _>>()?;
    let bar = console.bar("loading", total, Unit::Bytes);
    Ok(Engine::new(Arc::clone(model), layout, options, &|bytes| bar.add(bytes))?)
}

/// What layouts of `model` are chosen by, for sequences of about `context` tokens.
pub fn read_cost(model: &Model, kv_type: KvType, context: usize) -> Outcome<ReadCost> {
    let whole = Layout::new(&model.shape(), LayoutSpec::new(Strategy::Helix, 1, 1))?;
    let held = Reads::held(&whole, Rank(0), 0);
    let head = model.tensor(model.head_name())?.data.len() as u64;
    let layers = rank_bytes(model, &whole, Rank(0))?.saturating_sub(head);
    let bits = |bytes: u64, elements: u64| bytes as f64 * 8.0 / elements as f64;
    let head_dim = model.config.head_dim;
    Ok(ReadCost {
        weight_bits: bits(layers, held.layer_weights()),
        head_bits: bits(head, held.head),
        kv_bits: bits(PageShape::new(head_dim, kv_type).token_bytes() as u64, 2 * head_dim as u64),
        context,
        collective_bytes: ReadCost::IN_PROCESS_COLLECTIVE_BYTES,
    })
}
