//! What the parts of a step take on this machine, measured through the code that a step runs:
//! products by `projection.rs`, attention by the kernels on pages of the cache, collectives by the
//! ranks' communicator. `helix probe` writes it down for the planner, which never runs a model.
//!
//! It lives here because no other crate has all three at hand.

mod attention;
pub(crate) mod collectives;
mod overheads;
mod products;
mod sample;

use crate::EngineError;
pub use attention::AttentionRate;
pub use collectives::{CollectiveTime, ProcessTimes};
use helix_comm::{Team, World};
use helix_kernels::probe::read_bandwidth;
pub use overheads::{FORKED, OPERATIONS, Overheads};
pub use products::{Missed, ProductRate};
pub use sample::Sample;
use std::time::Duration;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct ProbeOptions {
    /// Cores that may be used.
    pub cores: usize,
    /// Bytes of all last-level caches that they use.
    pub cache_bytes: usize,
    /// Bytes of memory that the probe may take.
    pub memory_bytes: usize,
}

/// Where what is read lay before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory: several caches' worth was read since.
    Memory,
    /// In a cache: it was read just before.
    Cache,
}

/// A rate of reading alone.
#[derive(Clone, Copy, Debug)]
pub struct ReadRate {
    /// Threads that read, each its own part.
    pub threads: usize,
    /// Bytes that they read over and over.
    pub bytes: usize,
    /// Bytes per second, of all of them.
    pub rate: Sample,
}

/// Everything that was measured.
#[derive(Clone, Debug)]
pub struct Findings {
    /// By threads and bytes, both ascending.
    pub reads: Vec<ReadRate>,
    /// By format, place, threads and tokens.
    pub products: Vec<ProductRate>,
    /// By bytes, of all threads.
    pub missed: Vec<Missed>,
    /// Seconds that each dimension of a key takes to append to a page in memory: a line of the
    /// cache each.
    pub line: Sample,
    /// By type, place, threads and query rows.
    pub attention: Vec<AttentionRate>,
    /// By threads.
    pub overheads: Overheads,
    /// Between ranks.
    pub collectives: Collectives,
}

/// How long collectives take, between what.
#[derive(Clone, Debug)]
pub enum Collectives {
    /// Threads of one process: by kind, ranks and bytes.
    Threads(Vec<CollectiveTime>),
    /// Processes.
    Processes(ProcessTimes),
}

impl Collectives {
    /// Of ranks 0 and on, by kind, ranks and bytes.
    pub fn groups(&self) -> &[CollectiveTime] {
        match self {
            Collectives::Threads(times) => times,
            Collectives::Processes(times) => &times.groups,
        }
    }
}

/// Bytes that are read over and over, as parts of the caches: from well inside to well outside.
const FOOTPRINTS: [(usize, usize); 7] = [(1, 16), (1, 4), (1, 2), (3, 4), (1, 1), (3, 2), (3, 1)];
/// Seconds of one reading, and how many.
const READING: (f64, usize) = (0.04, 3);

impl ProbeOptions {
    /// Bytes of the stocks that are gone through in turn, so that each comes from memory.
    fn stock_bytes(&self, stocks: usize) -> usize {
        let wanted = (4 * self.cache_bytes).max(stocks * self.cores * (16 << 20));
        wanted.min(self.memory_bytes) / stocks
    }

    /// Numbers of threads that rates are measured for: one, half of the cores, all.
    fn threads(&self) -> Vec<usize> {
        let mut counts = vec![1, self.cores.div_ceil(2), self.cores];
        counts.dedup();
        counts
    }
}

/// Measures all parts; `progress` is told what comes next, and how many parts of [`PARTS`] it is.
/// Collectives are measured between the processes of a world, of which this one is rank 0 and the
/// others [`follow`](crate::follow), if there is one; otherwise between threads.
///
/// # Errors
/// There is no memory for what is to be read, the system refuses a thread, or processes lost each
/// other.
pub fn run(
    options: &ProbeOptions,
    world: Option<(&dyn World, Duration)>,
    progress: &dyn Fn(&str, u64),
) -> Result<Findings, EngineError> {
    progress("reads", 0);
    let reads = reads(options);
    progress("overheads", 5);
    let overheads = overheads::measure(options)?;
    progress("collectives", 5);
    let collectives = match world {
        None => Collectives::Threads(collectives::measure(options)?),
        Some((world, patience)) => Collectives::Processes(collectives::lead(world, patience)?),
    };
    progress("products: packing", 10);
    let (products, missed) = products::measure(options, progress)?;
    progress("attention: filling", 10);
    let (attention, line) = attention::measure(options, progress)?;
    Ok(Findings { reads, products, missed, line, attention, overheads, collectives })
}

/// Steps that [`run`] tells of in all.
pub const PARTS: u64 = 100;

fn reads(options: &ProbeOptions) -> Vec<ReadRate> {
    let mut all = Vec::new();
    for threads in options.threads() {
        for (part, of) in FOOTPRINTS {
            let bytes = (options.cache_bytes / of * part).min(options.memory_bytes);
            let bytes = bytes.max(threads << 16);
            let readings = (0..READING.1).map(|_| read_bandwidth(threads, bytes, READING.0));
            all.push(ReadRate { threads, bytes, rate: Sample::of(readings.collect()) });
        }
    }
    all
}

/// A team of `size` threads.
fn team(size: usize) -> Result<Team, EngineError> {
    Team::new("helix-probe", size)
        .map_err(|source| EngineError::System { what: "a thread", source })
}
