//! Partial attention against its roofs: read bandwidth when decoding, multiply-adds when
//! prefilling.
//!
//! ```text
//! cargo bench -p helix-kernels --bench attention [-- decode | window | prefill | rows | latent | small | avx2]
//! ```
//!
//! Decode: one query over a shard of `depth` tokens, 3 KV heads of 64 dimensions, `group` query
//! heads each; moves `2·64·bytes` per token and head. The cache is several times the last-level
//! cache and is read layer after layer, as a decode step does. The read bandwidth beside each
//! figure was measured in turns with it.
//!
//! Rows: many query heads on one KV head. Latent: DeepSeek's shape, a key of 576 whose first 512 are
//! the value, shared by all query heads; `2·(576 + 512)` operations per token and head. Their roof is
//! the rate of multiply-adds from registers, `f32` ones or, for `q8_0`, those of bytes; or it is
//! reading. `avx2`, or the name of another instruction set, limits to it.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use helix_kernels::attention::{
    CHUNK_TOKENS, Scratch, Sees, attend, clear, finish, fold, state_len,
};
use helix_kernels::elementwise::{RopeStyle, RopeTable, add_in_place, rms_norm, swiglu};
use helix_kernels::kv::{KvType, KvView, PAGE_TOKENS, PageShape, append};
use helix_kernels::probe::{float_peak, integer_peak, read_bandwidth};
use helix_kernels::{Isa, isa};

const HEAD_DIM: usize = 64;
const KV_HEADS: usize = 3;
const CACHE_BYTES: usize = 512 << 20;
const SAMPLE_BYTES: usize = 24 << 20;
const ROUNDS: usize = 11;

fn main() {
    let mut chosen: Vec<String> =
        std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for isa in Isa::ALL {
        let words = chosen.len();
        chosen.retain(|word| word != isa.name());
        if chosen.len() < words {
            isa::limit(isa);
        }
    }
    let wants = |name: &str| chosen.is_empty() || chosen.iter().any(|c| c == name);
    println!("instruction set: {}", helix_kernels::cpu());
    if wants("decode") {
        decode();
    }
    if wants("window") {
        window();
    }
    if wants("rows") {
        rows();
    }
    if wants("latent") {
        latent();
    }
    if wants("prefill") {
        prefill();
    }
    if wants("small") {
        small();
    }
}

/// Layers of a KV cache, `[layer, head, page]`, one sequence.
struct Cache {
    bytes: memmap2::MmapMut,
    shape: PageShape,
    depth: usize,
    layers: usize,
    table: Vec<u32>,
}

impl Cache {
    fn new(kv_type: KvType, depth: usize, size: usize) -> Cache {
        let shape = PageShape::new(HEAD_DIM, kv_type);
        let pages = depth.div_ceil(PAGE_TOKENS);
        let head = pages * shape.bytes();
        let layers = (size / (KV_HEADS * head)).max(1);
        let mut bytes = memmap2::MmapMut::map_anon(layers * KV_HEADS * head).expect("memory");
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(memmap2::Advice::HugePage);
        let mut page = vec![0; shape.bytes()];
        let mut random = Random(7);
        for slot in 0..PAGE_TOKENS {
            append(&mut page, shape, slot, &random.numbers(HEAD_DIM), &random.numbers(HEAD_DIM));
        }
        for to in bytes.chunks_exact_mut(page.len()) {
            to.copy_from_slice(&page);
        }
        Cache { bytes, shape, depth, layers, table: (0..pages as u32).collect() }
    }

    fn view(&self, layer: usize, head: usize) -> KvView<'_> {
        let size = self.table.len() * self.shape.bytes();
        let start = (layer * KV_HEADS + head) * size;
        KvView { pages: &self.bytes[start..start + size], table: &self.table, shape: self.shape }
    }

    /// GB/s of one sample after the other: a few layers each, enough for a millisecond, so that
    /// a moment's interruption spoils one sample only. Every thread takes a run of each layer's
    /// (head, chunk) pairs.
    fn speeds(&self, threads: usize, group: usize) -> Vec<f64> {
        let layer_bytes = KV_HEADS * self.depth * self.shape.token_bytes();
        let layers = SAMPLE_BYTES.div_ceil(layer_bytes).min(self.layers);
        let samples = self.layers / layers;
        let gate = Gate::new(threads);
        let work = |thread: usize| {
            let mut worker = Worker::new(thread, group, self.depth);
            let mut seconds = Vec::with_capacity(samples);
            for sample in 0..samples {
                gate.meet();
                let start = Instant::now();
                for layer in sample * layers..(sample + 1) * layers {
                    worker.layer(self, layer, threads);
                }
                gate.meet();
                seconds.push(start.elapsed().as_secs_f64());
            }
            seconds
        };
        let seconds = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads)
                .map(|thread| (thread, &work))
                .map(|(t, w)| scope.spawn(move || w(t)))
                .collect();
            let seconds = work(0);
            others.into_iter().for_each(|other| drop(other.join().expect("no panic")));
            seconds
        });
        seconds.into_iter().map(|s| (layers * layer_bytes) as f64 / s / 1e9).collect()
    }
}

/// One thread's share of a layer's attention.
struct Worker {
    thread: usize,
    q: Vec<f32>,
    sees: Vec<Sees>,
    scratch: Scratch,
    acc: Vec<f32>,
    part: Vec<f32>,
}

impl Worker {
    fn new(thread: usize, group: usize, depth: usize) -> Worker {
        let states = vec![0.0; group * state_len(HEAD_DIM)];
        Worker {
            thread,
            q: Random(thread as u64).numbers(group * HEAD_DIM),
            sees: vec![Sees::below(depth as u32); group],
            scratch: Scratch::new(),
            acc: states.clone(),
            part: states,
        }
    }

    fn layer(&mut self, cache: &Cache, layer: usize, threads: usize) {
        let len = state_len(HEAD_DIM);
        let chunks = cache.depth.div_ceil(CHUNK_TOKENS);
        let items = KV_HEADS * chunks;
        self.acc.chunks_exact_mut(len).for_each(clear);
        for item in items * self.thread / threads..items * (self.thread + 1) / threads {
            let start = item % chunks * CHUNK_TOKENS;
            let range = start..cache.depth.min(start + CHUNK_TOKENS);
            let view = cache.view(layer, item / chunks);
            attend(&mut self.part, &self.q, &self.sees, &view, range, &mut self.scratch);
            for (acc, part) in self.acc.chunks_exact_mut(len).zip(self.part.chunks_exact(len)) {
                fold(acc, part);
            }
        }
        black_box(&self.acc);
    }
}

/// A barrier that costs less than a sample's measuring error.
struct Gate {
    threads: usize,
    arrived: AtomicUsize,
}

impl Gate {
    fn new(threads: usize) -> Gate {
        Gate { threads, arrived: AtomicUsize::new(0) }
    }

    fn meet(&self) {
        let ticket = self.arrived.fetch_add(1, Ordering::AcqRel);
        let all = (ticket / self.threads + 1) * self.threads;
        while self.arrived.load(Ordering::Acquire) < all {
            std::thread::yield_now();
        }
    }
}

fn decode() {
    println!("\npartial attention, one query token: GB/s median (best), of read bandwidth");
    println!("{:>6} {:>7} {:>5} {:>7}", "kv", "depth", "group", "threads");
    let depths = [512, 2048, 8192, 32768, 131_072];
    let f16 = depths.iter().map(|depth| (KvType::F16, *depth, &[3][..]));
    let groups = [(KvType::F16, 32768, &[1, 4, 8][..])];
    let types = [KvType::F32, KvType::BF16, KvType::Q8_0].map(|kv_type| (kv_type, 32768, &[3][..]));
    for (kv_type, depth, groups) in f16.chain(groups).chain(types) {
        let cache = Cache::new(kv_type, depth, CACHE_BYTES);
        for &group in groups {
            for threads in [1, 2] {
                let (mut speeds, mut roofs) = (Vec::new(), Vec::new());
                for _ in 0..3 {
                    roofs.push(read_bandwidth(threads, 256 << 20, 0.05) / 1e9);
                    speeds.extend(cache.speeds(threads, group));
                }
                let (median, best) = median_and_best(&mut speeds);
                let (roof, best_roof) = median_and_best(&mut roofs);
                println!(
                    "{kv_type:>6} {depth:>7} {group:>5} {threads:>7}  {median:6.1} ({best:5.1}) of \
                     {roof:6.1} ({best_roof:5.1}): {:3.0} %",
                    100.0 * median / roof
                );
            }
        }
    }
}

/// One query token that sees the last `window` tokens, as Gemma's and gpt-oss's local layers do.
fn window() {
    println!("\npartial attention, a window of 32768 tokens, one thread: ns median (best), GB/s");
    let cache = Cache::new(KvType::F16, 32768, CACHE_BYTES);
    let (group, len) = (3, state_len(HEAD_DIM));
    let q = Random(3).numbers(group * HEAD_DIM);
    let mut scratch = Scratch::new();
    let (mut acc, mut part) = (vec![0.0; group * len], vec![0.0; group * len]);
    for window in [128, 512, 1024] {
        // Starts inside a chunk, and ends inside one.
        let to = 32768 - 100;
        let from = to - window;
        let sees = vec![Sees { from: from as u32, to: to as u32 }; group];
        let mut times = Vec::new();
        for (layer, head) in (0..cache.layers).flat_map(|l| (0..KV_HEADS).map(move |h| (l, h))) {
            let begun = Instant::now();
            acc.chunks_exact_mut(len).for_each(clear);
            for start in (from / CHUNK_TOKENS * CHUNK_TOKENS..to).step_by(CHUNK_TOKENS) {
                let range = start..to.min(start + CHUNK_TOKENS);
                attend(&mut part, &q, &sees, &cache.view(layer, head), range, &mut scratch);
                for (acc, part) in acc.chunks_exact_mut(len).zip(part.chunks_exact(len)) {
                    fold(acc, part);
                }
            }
            times.push(-begun.elapsed().as_secs_f64() * 1e9);
        }
        let (median, best) = median_and_best(&mut times);
        let speed = (window * cache.shape.token_bytes()) as f64 / -median;
        println!("{window:>6}: {:9.0} ({:9.0}), {speed:5.1}", -median, -best);
    }
}

/// Query heads that share a KV head.
fn rows() {
    println!("\nattention of many query heads over one KV head, one query token, one thread:");
    let types = [KvType::F16, KvType::Q8_0];
    let shapes = [(256, 1), (256, 4), (256, 8), (128, 8), (64, 8), (64, 32)];
    for (kv_type, (dim, heads)) in types.into_iter().flat_map(|t| shapes.map(|shape| (t, shape))) {
        One::new(PageShape::new(dim, kv_type)).report(heads);
    }
}

/// Query heads over a sequence of latents that comes from memory.
fn latent() {
    println!("\nattention over latents of 576, value 512, one query token, one thread:");
    let cases = [1, 2, 4, 8, 16, 32, 64, 128].map(|heads| (KvType::F16, heads));
    let types = [KvType::F32, KvType::BF16].map(|kv_type| (kv_type, 16));
    let codes = [1, 4, 8, 16, 128].map(|heads| (KvType::Q8_0, heads));
    for (kv_type, heads) in cases.into_iter().chain(types).chain(codes) {
        One::new(PageShape::latent(576, 512, kv_type)).report(heads);
    }
}

/// One sequence of one KV head, several times as large as the last-level cache may be.
struct One {
    bytes: memmap2::MmapMut,
    shape: PageShape,
    table: Vec<u32>,
}

impl One {
    fn new(shape: PageShape) -> One {
        let pages = (CACHE_BYTES / 2).div_ceil(shape.bytes());
        let mut bytes = memmap2::MmapMut::map_anon(pages * shape.bytes()).expect("memory");
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(memmap2::Advice::HugePage);
        let mut page = vec![0; shape.bytes()];
        let mut random = Random(7);
        let value_dim = if shape.is_latent() { 0 } else { shape.value_dim() };
        for slot in 0..PAGE_TOKENS {
            let (k, v) = (random.numbers(shape.head_dim()), random.numbers(value_dim));
            append(&mut page, shape, slot, &k, &v);
        }
        bytes.chunks_exact_mut(page.len()).for_each(|to| to.copy_from_slice(&page));
        One { bytes, shape, table: (0..pages as u32).collect() }
    }

    /// Operations for one token and one query head.
    fn ops(&self) -> usize {
        2 * (self.shape.head_dim() + self.shape.value_dim())
    }

    fn report(&self, heads: usize) {
        let peak_of = if self.shape.kv_type() == KvType::Q8_0 { integer_peak } else { float_peak };
        let (mut speeds, mut peaks, mut roofs) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..3 {
            peaks.push(peak_of(0.05) / 1e9);
            roofs.push(read_bandwidth(1, 256 << 20, 0.05) / 1e9);
            speeds.extend(self.speeds(heads));
        }
        let (median, best) = median_and_best(&mut speeds);
        let (peak, _) = median_and_best(&mut peaks);
        let (roof, _) = median_and_best(&mut roofs);
        let read = median * self.shape.token_bytes() as f64 / (heads * self.ops()) as f64;
        println!(
            "{:>6} {heads:>4} heads of {:>3}: {median:6.1} ({best:6.1}) of {peak:6.1} Gop/s: {:3.0} %, \
             {read:5.1} of {roof:5.1} GB/s: {:3.0} %",
            self.shape.kv_type(),
            self.shape.head_dim(),
            100.0 * median / peak,
            100.0 * read / roof
        );
    }

    /// 10^9 operations per second, of samples of about as many.
    fn speeds(&self, heads: usize) -> Vec<f64> {
        let view = KvView { pages: &self.bytes, table: &self.table, shape: self.shape };
        let (dim, len) = (self.shape.head_dim(), state_len(self.shape.value_dim()));
        let tokens = self.table.len() * PAGE_TOKENS;
        let scale = 1.0 / (dim as f32).sqrt();
        let q: Vec<f32> = Random(3).numbers(heads * dim).iter().map(|q| q * scale).collect();
        let sees = vec![Sees::below(tokens as u32); heads];
        let mut scratch = Scratch::new();
        let (mut acc, mut part) = (vec![0.0; heads * len], vec![0.0; heads * len]);
        acc.chunks_exact_mut(len).for_each(clear);
        let sample = (1_000_000_000 / (heads * self.ops() * PAGE_TOKENS)).clamp(4, 128);
        let mut speeds = Vec::new();
        for first in (0..self.table.len() / sample * sample).step_by(sample).take(ROUNDS) {
            let begun = Instant::now();
            for chunk in first..first + sample {
                let range = chunk * CHUNK_TOKENS..(chunk + 1) * CHUNK_TOKENS;
                attend(&mut part, &q, &sees, &view, range, &mut scratch);
                for (acc, part) in acc.chunks_exact_mut(len).zip(part.chunks_exact(len)) {
                    fold(acc, part);
                }
            }
            let ops = sample * CHUNK_TOKENS * heads * self.ops();
            speeds.push(ops as f64 / begun.elapsed().as_secs_f64() / 1e9);
        }
        black_box(&acc);
        speeds
    }
}

fn prefill() {
    println!("\npartial attention, 512 query tokens x 3 heads, one thread: GFLOP/s median (best)");
    for (kv_type, depth) in [(KvType::F16, 512), (KvType::F16, 4096), (KvType::Q8_0, 4096)] {
        let cache = Cache::new(kv_type, depth, 0);
        let (tokens, group, tile) = (512, 3, 32);
        let rows = tile * group;
        let len = state_len(HEAD_DIM);
        let q = Random(3).numbers(rows * HEAD_DIM);
        let mut scratch = Scratch::new();
        let (mut acc, mut part) = (vec![0.0; rows * len], vec![0.0; rows * len]);
        let mut out = [0.0; HEAD_DIM];
        let mut speeds = Vec::new();
        let mut pairs = 0;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            pairs = 0;
            for first in (depth - tokens..depth).step_by(tile) {
                let sees: Vec<Sees> =
                    (0..rows).map(|r| Sees::below((first + r / group + 1) as u32)).collect();
                pairs += sees.iter().map(|sees| sees.to as usize).sum::<usize>();
                acc.chunks_exact_mut(len).for_each(clear);
                let end = first + tile;
                for start in (0..end).step_by(CHUNK_TOKENS) {
                    let range = start..end.min(start + CHUNK_TOKENS);
                    attend(&mut part, &q, &sees, &cache.view(0, 0), range, &mut scratch);
                    for (acc, part) in acc.chunks_exact_mut(len).zip(part.chunks_exact(len)) {
                        fold(acc, part);
                    }
                }
                for acc in acc.chunks_exact(len) {
                    black_box(finish(&mut out, acc));
                }
            }
            speeds.push((4 * HEAD_DIM * pairs) as f64 / start.elapsed().as_secs_f64() / 1e9);
        }
        let (median, best) = median_and_best(&mut speeds);
        println!("{kv_type:>6} {depth:>7}: {median:6.1} ({best:5.1}), {pairs} pairs");
    }
}

fn small() {
    println!("\none token's elementwise work: ns median (best)");
    let x = Random(1).numbers(1536);
    let y = Random(2).numbers(1536);
    let mut out = vec![0.0; 1536];
    let frequencies: Vec<f32> = (0..32).map(|i| 1e5_f32.powf(-(i as f32) / 32.0)).collect();
    let rope = RopeTable::new(RopeStyle::Interleaved, &frequencies, 1.0);
    let half = RopeTable::new(RopeStyle::Half, &frequencies, 1.0);
    let mut turn = vec![0.0; rope.turn_len()];
    rope.turn(12345, &mut turn);
    report("rms_norm 576", || rms_norm(&mut out[..576], &x[..576], &y[..576], 1e-5));
    report("add_in_place 576", || add_in_place(&mut out[..576], &x[..576]));
    report("swiglu 1536", || swiglu(&mut out, &x, &y));
    report("rope interleaved 12x64", || rope.apply(&mut out[..768], 64, &turn));
    report("rope half 12x64", || half.apply(&mut out[..768], 64, &turn));
    report("rope angles 32", || rope.turn(black_box(999_999), &mut turn));
    let shape = PageShape::new(HEAD_DIM, KvType::F16);
    let mut page = vec![0; shape.bytes()];
    report("append f16 64", || append(&mut page, shape, 5, &x[..64], &y[..64]));
}

fn report(name: &str, mut f: impl FnMut()) {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..2000 {
                f();
            }
            -start.elapsed().as_secs_f64() / 2000.0 * 1e9
        })
        .collect();
    let (median, best) = median_and_best(&mut times);
    println!("{name:>24}: {:7.1} ({:7.1})", -median, -best);
}

/// Of figures where more is better.
fn median_and_best(x: &mut [f64]) -> (f64, f64) {
    x.sort_by(f64::total_cmp);
    (x[x.len() / 2], x[x.len() - 1])
}

/// A seeded generator (splitmix64).
struct Random(u64);

impl Random {
    fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.number()).collect()
    }

    fn number(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32 - 0.5
    }
}
