//! Attention of a few query rows over pages of the cache.

use super::{Place, ProbeOptions, Sample, team};
use crate::EngineError;
use crate::kv::memory;
use helix_comm::Team;
use helix_kernels::attention::{CHUNK_TOKENS, Scratch, Sees, attend, clear, fold, state_len};
use helix_kernels::kv::{KvType, KvView, PAGE_TOKENS, PageShape, append};
use memmap2::MmapMut;
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use std::sync::Mutex;
use std::time::Instant;

/// How fast attention over one type of keys and values is.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRate {
    /// Of their elements.
    pub kv_type: KvType,
    /// Whether a token is one latent for all heads.
    pub latent: bool,
    /// Where they lay.
    pub place: Place,
    /// Threads of the team.
    pub threads: usize,
    /// Query rows that each key met.
    pub queries: usize,
    /// Bytes of keys and values per second, of all threads.
    pub rate: Sample,
}

/// Head size of most models; and DeepSeek's latent, with its rotary part.
const HEAD: usize = 128;
const LATENT: (usize, usize) = (576, 512);
/// Query rows that share a KV head, and a latent.
const QUERIES: [usize; 6] = [1, 2, 3, 4, 8, 16];
const LATENT_QUERIES: [usize; 5] = [1, 4, 16, 64, 128];
/// Of those, the first so many are measured from memory too.
const FROM_MEMORY: usize = 3;
const ROUNDS: usize = 5;
const REPEATS: usize = 7;
/// Bytes of a stock that are read again and again, per thread.
const CACHED: usize = 1 << 20;

/// Pages of one type.
struct Stock {
    shape: PageShape,
    pages: MmapMut,
    table: Vec<u32>,
}

/// What a thread works with.
struct Lane {
    scratch: Scratch,
    acc: Vec<f32>,
    part: Vec<f32>,
    queries: Vec<f32>,
    sees: Vec<Sees>,
}

/// Rates by type, place, threads and query rows; and seconds that each dimension of a key takes to
/// append where its pages lie in memory.
pub(super) fn measure(
    options: &ProbeOptions,
    progress: &dyn Fn(&str, u64),
) -> Result<(Vec<AttentionRate>, Sample), EngineError> {
    let kinds = KvType::ALL.map(|kv_type| PageShape::new(HEAD, kv_type)).into_iter();
    let latents = KvType::ALL.map(|kv_type| PageShape::latent(LATENT.0, LATENT.1, kv_type));
    let bytes = options.stock_bytes(2 * KvType::ALL.len());
    let mut stocks: Vec<Stock> =
        kinds.chain(latents).map(|shape| Stock::new(shape, bytes)).collect::<Result<_, _>>()?;
    let mut all = Vec::new();
    let threads = options.threads();
    for &count in &threads {
        progress(&format!("attention, {count} threads"), 30 / threads.len() as u64);
        let mut team = team(count)?;
        for index in 0..FROM_MEMORY {
            let mut rates = vec![Vec::new(); stocks.len()];
            for _ in 0..ROUNDS {
                for (stock, rates) in stocks.iter().zip(&mut rates) {
                    let lanes = stock.lanes(count, stock.queries()[index]);
                    rates.push(stock.pass(&mut team, &lanes, stock.table.len()));
                }
            }
            for (stock, rates) in stocks.iter().zip(rates) {
                let queries = stock.queries()[index];
                all.push(stock.rate(Place::Memory, count, queries, rates));
            }
        }
        for stock in &stocks {
            let pages = (CACHED / stock.shape.bytes()).max(1) * count;
            for &queries in stock.queries() {
                let lanes = stock.lanes(count, queries);
                let rates = (0..REPEATS).map(|_| stock.pass(&mut team, &lanes, pages));
                all.push(stock.rate(Place::Cache, count, queries, rates.collect()));
            }
        }
    }
    let index = stocks.iter().position(|stock| stock.shape.kv_type() == KvType::F16);
    let index = index.expect("a type of keys and values");
    let lines = (0..ROUNDS).map(|round| {
        // All but the one are read, so that it comes from memory.
        let (before, rest) = stocks.split_at_mut(index);
        let (stock, after) = rest.split_first_mut().expect("there is one");
        for other in before.iter().chain(&*after) {
            let pages = other.table.len();
            other.pass(&mut team(1)?, &other.lanes(1, 1), pages);
        }
        Ok(stock.append(round))
    });
    let lines = lines.collect::<Result<Vec<_>, EngineError>>()?;
    Ok((all, Sample::of(lines)))
}

impl Stock {
    fn new(shape: PageShape, bytes: usize) -> Result<Stock, EngineError> {
        let mut random = Pcg64::seed_from_u64(5);
        let mut number = || (random.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let mut page = vec![0; shape.bytes()];
        let value_dim = if shape.is_latent() { 0 } else { shape.value_dim() };
        for slot in 0..PAGE_TOKENS {
            let k: Vec<f32> = (0..shape.head_dim()).map(|_| number()).collect();
            let v: Vec<f32> = (0..value_dim).map(|_| number()).collect();
            append(&mut page, shape, slot, &k, &v);
        }
        let count = bytes.div_ceil(page.len());
        let source = |source| EngineError::System { what: "memory for pages", source };
        let mut pages = memory(count * page.len()).map_err(source)?;
        pages.chunks_exact_mut(page.len()).for_each(|copy| copy.copy_from_slice(&page));
        Ok(Stock { shape, pages, table: (0..count as u32).collect() })
    }

    fn queries(&self) -> &'static [usize] {
        if self.shape.is_latent() { &LATENT_QUERIES } else { &QUERIES }
    }

    /// What `threads` threads work with, as warm as a step's: each has met a page.
    fn lanes(&self, threads: usize, queries: usize) -> Vec<Mutex<Lane>> {
        let view = KvView { pages: &self.pages, table: &self.table, shape: self.shape };
        let lane = |thread: usize| {
            let mut lane = Lane::new(self.shape, queries);
            lane.page(&view, thread * self.table.len() / threads);
            Mutex::new(lane)
        };
        (0..threads).map(lane).collect()
    }

    /// Bytes per second of one pass over the first `pages`, each thread over a run of its own.
    fn pass(&self, team: &mut Team, lanes: &[Mutex<Lane>], pages: usize) -> f64 {
        let threads = team.size();
        let view = KvView { pages: &self.pages, table: &self.table, shape: self.shape };
        let begun = Instant::now();
        team.run_all(&|thread| {
            let mut lane = lanes[thread].lock().expect("no thread panicked");
            let run = pages * thread / threads..pages * (thread + 1) / threads;
            run.for_each(|page| lane.page(&view, page));
        });
        (pages * PAGE_TOKENS * self.shape.token_bytes()) as f64 / begun.elapsed().as_secs_f64()
    }

    /// Seconds per dimension of keys that go to one slot of every page.
    fn append(&mut self, slot: usize) -> f64 {
        let (bytes, shape) = (self.shape.bytes(), self.shape);
        let k = vec![0.5; shape.head_dim()];
        let v = vec![0.5; shape.value_dim()];
        let begun = Instant::now();
        for page in self.pages.chunks_exact_mut(bytes) {
            append(page, shape, slot, &k, &v);
        }
        begun.elapsed().as_secs_f64() / (self.table.len() * shape.head_dim()) as f64
    }

    fn rate(&self, place: Place, threads: usize, queries: usize, rates: Vec<f64>) -> AttentionRate {
        AttentionRate {
            kv_type: self.shape.kv_type(),
            latent: self.shape.is_latent(),
            place,
            threads,
            queries,
            rate: Sample::of(rates),
        }
    }
}

impl Lane {
    fn new(shape: PageShape, rows: usize) -> Lane {
        let state = state_len(shape.value_dim());
        let mut acc = vec![0.0; rows * state];
        acc.chunks_exact_mut(state).for_each(clear);
        Lane {
            scratch: Scratch::new(),
            part: vec![0.0; acc.len()],
            acc,
            queries: (0..rows * shape.head_dim()).map(|at| (at % 13) as f32 * 0.01).collect(),
            sees: vec![Sees::below(u32::MAX); rows],
        }
    }

    fn page(&mut self, view: &KvView<'_>, page: usize) {
        let Lane { scratch, acc, part, queries, sees } = self;
        let range = page * CHUNK_TOKENS..(page + 1) * CHUNK_TOKENS;
        attend(part, queries, sees, view, range, scratch);
        let state = part.len() / sees.len();
        for (acc, part) in acc.chunks_exact_mut(state).zip(part.chunks_exact(state)) {
            fold(acc, part);
        }
    }
}
