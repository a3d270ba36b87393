//! Products of weights with a few tokens.

use super::{Place, ProbeOptions, Sample, team};
use crate::EngineError;
use crate::lanes::{Lane, Lanes};
use crate::projection::{max_cuts, project};
use helix_kernels::attention::Scratch;
use helix_kernels::{
    Activations, Format, Forms, Matrix, Precision, Scales, Weights, quantize, quantize_e4m3,
};
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use std::hint::black_box;
use std::time::Instant;

/// How fast products with one format are.
#[derive(Clone, Copy, Debug)]
pub struct ProductRate {
    /// Of the weights.
    pub format: Format,
    /// Where they lay.
    pub place: Place,
    /// Threads of the team.
    pub threads: usize,
    /// That each weight met.
    pub tokens: usize,
    /// Bytes of weights per second, of all threads.
    pub rate: Sample,
}

/// Rows and columns of each matrix: those of a model of some billions of weights.
const SHAPE: (usize, usize) = (2048, 2048);
/// Tokens whose products are bound by memory or nearly, and by arithmetic.
const FEW_TOKENS: [usize; 4] = [1, 2, 4, 8];
const TOKENS: [usize; 6] = [1, 2, 4, 8, 16, 64];
/// Passes over everything from memory, and over a matrix from the cache.
const ROUNDS: usize = 5;
const REPEATS: usize = 7;
/// Passes until a cache holds what it will.
const WARM_ROUNDS: usize = 4;

/// Matrices of one format.
struct Stock {
    format: Format,
    matrices: Vec<Matrix>,
}

/// A team, and what it works with.
struct Bench {
    lanes: Lanes,
    input: Activations,
    out: Vec<f32>,
    cuts: Vec<usize>,
}

/// How much of what all threads go through again and again comes from memory.
#[derive(Clone, Copy, Debug)]
pub struct Missed {
    /// Bytes of matrices.
    pub bytes: usize,
    /// The part of them: 0 if they take as long as from the cache, 1 if as from memory.
    pub part: Sample,
}

/// Rates, and what a cache keeps of footprints.
pub(super) fn measure(
    options: &ProbeOptions,
    progress: &dyn Fn(&str, u64),
) -> Result<(Vec<ProductRate>, Vec<Missed>), EngineError> {
    let bytes = options.stock_bytes(Format::ALL.len());
    let stocks: Vec<Stock> =
        Format::ALL.into_iter().map(|format| Stock::new(format, bytes)).collect();
    let mut all = Vec::new();
    let threads = options.threads();
    for &count in &threads {
        progress(&format!("products, {count} threads"), 40 / threads.len() as u64);
        let mut bench = Bench::new(count)?;
        for tokens in FEW_TOKENS {
            all.extend(bench.uncached(&stocks, tokens));
        }
        for tokens in TOKENS {
            all.extend(bench.cached(&stocks, tokens));
        }
    }
    let mut bench = Bench::new(options.cores)?;
    let missed = super::FOOTPRINTS
        .map(|(part, of)| bench.missed(&stocks, &all, options.cache_bytes / of * part));
    Ok((all, missed.to_vec()))
}

impl Stock {
    fn new(format: Format, bytes: usize) -> Stock {
        let (rows, cols) = SHAPE;
        let mut random = Pcg64::seed_from_u64(3);
        let mut number = || (random.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let row: Vec<f32> = (0..cols).map(|_| number()).collect();
        let values: Vec<f32> = row.iter().cycle().take(rows * cols).copied().collect();
        let mut data = vec![0; rows * format.row_bytes(cols).expect("whole blocks")];
        let mut of_scales = Vec::new();
        if format == Format::F8E4M3 {
            (data, of_scales) = quantize_e4m3(&values, cols);
        } else {
            // Rows are alike: one is quantised, and copied.
            let bytes = data.len() / rows;
            quantize(format, &row, &mut data[..bytes]);
            (1..rows).for_each(|at| data.copy_within(..bytes, at * bytes));
        }
        let scales = Scales { values: &of_scales, block: (128, 128) };
        let scales = (format == Format::F8E4M3).then_some(scales);
        let weights = Weights { format, data: &data, cols, scales };
        let pack =
            || Matrix::pack(weights, 0..rows, 0..cols, Precision::Fast).expect("finite weights");
        let first = pack();
        let count = bytes.div_ceil(first.bytes());
        Stock { format, matrices: (1..count).map(|_| pack()).chain([first]).collect() }
    }
}

impl Bench {
    fn new(threads: usize) -> Result<Bench, EngineError> {
        let lane = |thread| Lane {
            thread,
            attention: Scratch::new(),
            states: Vec::new(),
            queries: Vec::new(),
            sees: Vec::new(),
            row: Vec::new(),
            lse: Vec::new(),
        };
        let most = TOKENS[TOKENS.len() - 1];
        Ok(Bench {
            lanes: Lanes::new(team(threads)?, lane),
            input: Activations::new(most, SHAPE.1, Forms::BOTH),
            out: vec![0.0; most * SHAPE.0],
            cuts: Vec::with_capacity(max_cuts(threads)),
        })
    }

    fn load(&mut self, tokens: usize) {
        let values: Vec<f32> = (0..tokens * SHAPE.1).map(|at| (at % 89) as f32 - 44.0).collect();
        self.input.load(&values, tokens, SHAPE.1);
    }

    /// Bytes per second of one pass over `matrices`.
    fn pass(&mut self, matrices: &[Matrix]) -> f64 {
        let Bench { lanes, input, out, cuts } = self;
        let begun = Instant::now();
        let bytes: u64 =
            matrices.iter().map(|matrix| project(lanes, out, &*input, &[matrix], cuts)).sum();
        black_box(out);
        bytes as f64 / begun.elapsed().as_secs_f64()
    }

    /// All stocks in turn: by the time one is read again, the others have taken its place.
    fn uncached(&mut self, stocks: &[Stock], tokens: usize) -> Vec<ProductRate> {
        self.load(tokens);
        let mut rates = vec![Vec::new(); stocks.len()];
        for _ in 0..ROUNDS {
            for (stock, rates) in stocks.iter().zip(&mut rates) {
                rates.push(self.pass(&stock.matrices));
            }
        }
        self.rates(stocks, Place::Memory, tokens, rates)
    }

    /// One matrix of each stock, again and again.
    fn cached(&mut self, stocks: &[Stock], tokens: usize) -> Vec<ProductRate> {
        self.load(tokens);
        let mut rates = Vec::new();
        for stock in stocks {
            let one = &stock.matrices[..1];
            self.pass(one);
            rates.push((0..REPEATS).map(|_| self.pass(one)).collect());
        }
        self.rates(stocks, Place::Cache, tokens, rates)
    }

    /// Goes through `bytes` of matrices again and again, one token each.
    fn missed(&mut self, stocks: &[Stock], rates: &[ProductRate], bytes: usize) -> Missed {
        self.load(1);
        let threads = self.lanes.threads();
        let rate = |format, place| {
            let of = |rate: &&ProductRate| {
                (rate.format, rate.place, rate.threads, rate.tokens) == (format, place, threads, 1)
            };
            rates.iter().find(of).expect("it was measured").rate.median
        };
        // Where arithmetic is the limit, a cache's misses don't show.
        let shows = |stock: &&Stock| {
            rate(stock.format, Place::Cache) >= 2.0 * rate(stock.format, Place::Memory)
        };
        let mut telling: Vec<&Stock> = stocks.iter().filter(shows).collect();
        if telling.is_empty() {
            telling.extend(stocks);
        }
        let (mut taken, mut cached, mut memory) = (0, 0.0, 0.0);
        // As many of each format as of the others, so that no format's rate decides.
        let counts: Vec<usize> = telling
            .iter()
            .map(|stock| {
                let each = stock.matrices[0].bytes();
                let count = (bytes / telling.len()).div_ceil(each).min(stock.matrices.len());
                taken += count * each;
                cached += (count * each) as f64 / rate(stock.format, Place::Cache);
                memory += (count * each) as f64 / rate(stock.format, Place::Memory);
                count
            })
            .collect();
        let mut round = || {
            let begun = Instant::now();
            for (stock, &count) in telling.iter().zip(&counts) {
                self.pass(&stock.matrices[..count]);
            }
            begun.elapsed().as_secs_f64()
        };
        (0..WARM_ROUNDS).for_each(|_| {
            round();
        });
        let part = |_| ((round() - cached) / (memory - cached).max(1e-9)).clamp(0.0, 1.0);
        Missed { bytes: taken, part: Sample::of((0..REPEATS).map(part).collect()) }
    }

    fn rates(
        &self,
        stocks: &[Stock],
        place: Place,
        tokens: usize,
        rates: Vec<Vec<f64>>,
    ) -> Vec<ProductRate> {
        let threads = self.lanes.threads();
        let rate = |(stock, rates): (&Stock, Vec<f64>)| {
            let (format, rate) = (stock.format, Sample::of(rates));
            ProductRate { format, place, threads, tokens, rate }
        };
        stocks.iter().zip(rates).map(rate).collect()
    }
}
