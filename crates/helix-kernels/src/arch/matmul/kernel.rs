//! Panels times tokens.
//!
//! Order of every output's sum, whatever the instruction set, tile and batch: sub-blocks of 32
//! columns from left to right, each one's value `v` fused into `sum`.
//! * Integer: `v` is the exact integer dot of the (half) sub-block with the activations' codes,
//!   times `scale·x.scale`; then the minimum times the activations' sum.
//! * Float: `v` is a chain of fused multiply-adds over the columns of the sub-block, from 0.
//! * FP8: as float, but sub-blocks are the runs of [`panel::F8Chunk`], and the scale of each is
//!   multiplied with its value as that is fused into `sum`.

use std::marker::PhantomData;

use super::panel::{self, Block, Column, F8_RUNS, GROUP, ROWS};
use super::{Dots, Job, Visit, dispatch};
use crate::activations::{ActivationRows, Sub};
use crate::columns::Columns;
use crate::formats::{Format, SUB_BLOCK};
use crate::isa::Isa;

/// Weights of one matrix, repacked.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub format: Format,
    /// Whether codes meet the activations' codes, rather than their values.
    pub integer: bool,
    /// All panels, one after the other.
    pub bytes: &'a [u8],
    pub cols: usize,
    /// Columns between a boundary of scales and the first column: FP8 alone has such boundaries.
    pub lead: usize,
}

/// Weights that are read through before the next tokens' turn: they stay in the second-level
/// cache, and the tokens' activations in the first.
const PASS_BYTES: usize = 192 << 10;

/// `out[t][c] = Σ_k w[first_row + c][k]·x[t][k]` for the columns of `out`; `first_row` is a
/// multiple of 16, and `w` and `x` have the same columns, at least one.
pub(crate) fn multiply(
    isa: Isa,
    out: &mut Columns<'_>,
    first_row: usize,
    w: Operand<'_>,
    x: ActivationRows<'_>,
) {
    debug_assert!(first_row.is_multiple_of(ROWS) && w.cols > 0);
    dispatch(isa, Product { out, first_row, w, x });
}

struct Product<'a, 'o> {
    out: &'a mut Columns<'o>,
    first_row: usize,
    w: Operand<'a>,
    x: ActivationRows<'a>,
}

impl Visit for Product<'_, '_> {
    /// Picks the rule for the weights' format.
    fn visit<L: Dots>(self, l: L) {
        match (self.w.format, self.w.integer) {
            (Format::F32, _) => passes::<L, Float<panel::F32>>(l, self),
            (Format::F16, _) => passes::<L, Float<panel::F16>>(l, self),
            (Format::BF16, _) => passes::<L, Float<panel::BF16>>(l, self),
            (Format::F8E4M3, _) => passes::<L, F8>(l, self),
            (Format::Q8_0, true) => passes::<L, Integer<panel::Q8_0>>(l, self),
            (Format::Q4_0, true) => passes::<L, Integer<panel::Q4_0>>(l, self),
            (Format::Q4_1, true) => passes::<L, Integer<panel::Q4_1>>(l, self),
            (Format::Q5_0, true) => passes::<L, Integer<panel::Q5_0>>(l, self),
            (Format::Q5_1, true) => passes::<L, Integer<panel::Q5_1>>(l, self),
            (Format::Q4K, true) => passes::<L, Integer<panel::Q4K>>(l, self),
            (Format::Q5K, true) => passes::<L, Integer<panel::Q5K>>(l, self),
            (Format::Q6K, true) => passes::<L, Integer<panel::Q6K>>(l, self),
            (Format::Mxfp4, true) => passes::<L, Integer<panel::Mxfp4>>(l, self),
            (Format::Q8_0, false) => passes::<L, Exact<panel::Q8_0>>(l, self),
            (Format::Q4_0, false) => passes::<L, Exact<panel::Q4_0>>(l, self),
            (Format::Q4_1, false) => passes::<L, Exact<panel::Q4_1>>(l, self),
            (Format::Q5_0, false) => passes::<L, Exact<panel::Q5_0>>(l, self),
            (Format::Q5_1, false) => passes::<L, Exact<panel::Q5_1>>(l, self),
            (Format::Q4K, false) => passes::<L, Exact<panel::Q4K>>(l, self),
            (Format::Q5K, false) => passes::<L, Exact<panel::Q5K>>(l, self),
            (Format::Q6K, false) => passes::<L, Exact<panel::Q6K>>(l, self),
            (Format::Mxfp4, false) => passes::<L, Exact<panel::Mxfp4>>(l, self),
        }
    }
}

/// How far ahead of their use weights are asked for, when several tokens keep the processor busy.
///
/// Tuned on Zen 4. One token is bound by memory and is fastest without. Eight gain up to 80 %, most
/// of it because the second-level cache is asked, whose queue of misses is longer.
const AHEAD: usize = 8192;

/// Asks for what lies [`AHEAD`] of part `part` of `parts` of `weights`.
#[inline(always)]
fn prefetch<L: Dots, W: ?Sized>(l: L, weights: &W, part: usize, parts: usize) {
    let bytes = size_of_val(weights) / parts;
    let start = std::ptr::from_ref(weights).cast::<u8>().wrapping_add(part * bytes + AHEAD);
    for line in 0..bytes.div_ceil(GROUP) {
        l.prefetch_far(start.wrapping_add(line * GROUP));
    }
}

/// How the blocks of a panel meet activations.
trait Rule {
    type Block: bytemuck::Pod;
    type Input;

    /// Whether small batches are worth kernels of their own.
    const EVERY_TILE: bool = true;

    /// Blocks of a panel.
    fn blocks(w: &Operand<'_>) -> usize;
    /// All tokens' inputs.
    fn inputs<'a>(x: ActivationRows<'a>) -> &'a [Self::Input];
    /// A panel's 16 rows times `T` tokens; `lead` is the operand's.
    fn sums<L: Dots, const T: usize>(
        l: L,
        panel: &[Self::Block],
        x: [&[Self::Input]; T],
        lead: usize,
    ) -> [L::F; T];
}

/// Codes of blocks `B` meet codes.
struct Integer<B>(PhantomData<B>);

impl<B: Block> Rule for Integer<B> {
    type Block = B;
    type Input = Sub;

    fn blocks(w: &Operand<'_>) -> usize {
        w.cols / (SUB_BLOCK * B::SUBS)
    }

    fn inputs<'a>(x: ActivationRows<'a>) -> &'a [Sub] {
        x.subs()
    }

    #[inline(always)]
    fn sums<L: Dots, const T: usize>(l: L, panel: &[B], x: [&[Sub]; T], _lead: usize) -> [L::F; T] {
        let mut sums = [l.splat(0.0); T];
        for (i, block) in panel.iter().enumerate() {
            for sub in 0..B::SUBS {
                if T > 1 {
                    prefetch(l, block, sub, B::SUBS);
                }
                let x = at(x, i * B::SUBS + sub);
                integer_sub(l, block, sub, x, &mut sums);
            }
        }
        sums
    }
}

/// Element `i` of each token's inputs.
#[inline(always)]
fn at<X, const T: usize>(x: [&[X]; T], i: usize) -> [&X; T] {
    x.map(|x| &x[i])
}

/// Elements from `start` of each token's inputs.
#[inline(always)]
fn chunk<X, const T: usize>(x: [&[X]; T], start: usize, len: usize) -> [&[X]; T] {
    x.map(|x| &x[start..start + len])
}

// Loops below are written out over `0..T`: closures and `array::map` are functions of their own, in
// which the instruction set's features are off.
#[inline(always)]
fn integer_sub<L: Dots, B: Block, const T: usize>(
    l: L,
    block: &B,
    sub: usize,
    x: [&Sub; T],
    sums: &mut [L::F; T],
) {
    let mut low = [l.splat_shl(0, 0); T];
    let mut high = low;
    if let Some(log2) = B::OFFSET_LOG2 {
        for t in 0..T {
            if B::HALVES {
                low[t] = l.splat_shl(x[t].minus_low, log2);
                high[t] = l.splat_shl(x[t].minus_sum - x[t].minus_low, log2);
            } else {
                low[t] = l.splat_shl(x[t].minus_sum, log2);
            }
        }
    }
    pair::<L, B, T, 0>(l, block, sub, x, &mut low, &mut high);
    pair::<L, B, T, 1>(l, block, sub, x, &mut low, &mut high);
    pair::<L, B, T, 2>(l, block, sub, x, &mut low, &mut high);
    pair::<L, B, T, 3>(l, block, sub, x, &mut low, &mut high);
    let scales = block.scales(l, sub);
    let min = block.min(l, sub);
    for t in 0..T {
        let scale = l.splat(x[t].scale);
        sums[t] = l.fma(l.to_floats(low[t]), l.mul(scales[0], scale), sums[t]);
        if B::HALVES {
            sums[t] = l.fma(l.to_floats(high[t]), l.mul(scales[1], scale), sums[t]);
        }
        if let Some(min) = min {
            sums[t] = l.fma(min, l.splat(x[t].weighted_sum), sums[t]);
        }
    }
}

/// Groups `P` and `P + 4`.
#[inline(always)]
fn pair<L: Dots, B: Block, const T: usize, const P: usize>(
    l: L,
    block: &B,
    sub: usize,
    x: [&Sub; T],
    low: &mut [L::Ints; T],
    high: &mut [L::Ints; T],
) {
    let groups = block.pair(l, sub, P);
    for t in 0..T {
        low[t] = dot::<L, B>(l, low[t], groups[0], &x[t].codes[P]);
    }
    for t in 0..T {
        let sum = if B::HALVES { &mut high[t] } else { &mut low[t] };
        *sum = dot::<L, B>(l, *sum, groups[1], &x[t].codes[P + 4]);
    }
}

#[inline(always)]
fn dot<L: Dots, B: Block>(l: L, sum: L::Ints, w: L::Bytes, x: &[i8; 4]) -> L::Ints {
    if B::WIDE { l.dot_wide(sum, w, x) } else { l.dot(sum, w, x) }
}

/// Codes of blocks `B`, made numbers, meet values.
struct Exact<B>(PhantomData<B>);

impl<B: Block> Rule for Exact<B> {
    type Block = B;
    type Input = f32;

    const EVERY_TILE: bool = false;

    fn blocks(w: &Operand<'_>) -> usize {
        w.cols / (SUB_BLOCK * B::SUBS)
    }

    fn inputs<'a>(x: ActivationRows<'a>) -> &'a [f32] {
        x.values()
    }

    #[inline(always)]
    fn sums<L: Dots, const T: usize>(l: L, panel: &[B], x: [&[f32]; T], _lead: usize) -> [L::F; T] {
        let mut sums = [l.splat(0.0); T];
        for (i, block) in panel.iter().enumerate() {
            for sub in 0..B::SUBS {
                let columns = dequantize(l, block, sub);
                let x = chunk(x, (i * B::SUBS + sub) * SUB_BLOCK, SUB_BLOCK);
                let mut chain = [l.splat(0.0); T];
                for (c, w) in columns.iter().enumerate() {
                    for t in 0..T {
                        chain[t] = l.fma(*w, l.splat(x[t][c]), chain[t]);
                    }
                }
                for t in 0..T {
                    sums[t] = l.add(sums[t], chain[t]);
                }
            }
        }
        sums
    }
}

/// The 32 columns of a sub-block, as [`crate::formats::dequantize`] has them.
#[inline(always)]
fn dequantize<L: Dots, B: Block>(l: L, block: &B, sub: usize) -> [L::F; SUB_BLOCK] {
    let scales = block.scales(l, sub);
    let min = match block.min(l, sub) {
        Some(min) => min,
        None => l.splat(0.0),
    };
    let offset = l.splat(match B::OFFSET_LOG2 {
        Some(log2) => (1u32 << log2) as f32,
        None => 0.0,
    });
    let mut columns = [l.splat(0.0); SUB_BLOCK];
    for p in 0..4 {
        let groups = block.pair(l, sub, p);
        for half in 0..2 {
            let scale = scales[if B::HALVES { half } else { 0 }];
            for c in 0..4 {
                let code = l.sub(l.to_floats(l.column(groups[half], c)), offset);
                columns[16 * half + 4 * p + c] = l.fma(code, scale, min);
            }
        }
    }
    columns
}

/// Values of a float format meet values.
struct Float<C>(PhantomData<C>);

impl<C: Column> Rule for Float<C> {
    type Block = C;
    type Input = f32;

    fn blocks(w: &Operand<'_>) -> usize {
        w.cols
    }

    fn inputs<'a>(x: ActivationRows<'a>) -> &'a [f32] {
        x.values()
    }

    #[inline(always)]
    fn sums<L: Dots, const T: usize>(l: L, panel: &[C], x: [&[f32]; T], _lead: usize) -> [L::F; T] {
        let mut sums = [l.splat(0.0); T];
        let mut start = 0;
        while start < panel.len() {
            // Chains that run at once hide each other's latency.
            start += match panel.len() - start {
                FOUR.. if const { L::SUMS / T >= 4 } => {
                    chains::<L, C, T, 4>(l, &panel[start..start + FOUR], x, start, &mut sums)
                }
                rest => {
                    let rest = &panel[start..start + rest.min(SUB_BLOCK)];
                    chains::<L, C, T, 1>(l, rest, x, start, &mut sums)
                }
            };
        }
        sums
    }
}

/// Columns of four sub-blocks.
const FOUR: usize = 4 * SUB_BLOCK;

/// `K` sub-blocks of equal length, from column `start` of `x`; returns their columns.
#[inline(always)]
fn chains<L: Dots, C: Column, const T: usize, const K: usize>(
    l: L,
    columns: &[C],
    x: [&[f32]; T],
    start: usize,
    sums: &mut [L::F; T],
) -> usize {
    if T > 1 {
        prefetch(l, columns, 0, 1);
    }
    let len = columns.len() / K;
    let mut chains = [[l.splat(0.0); T]; K];
    for c in 0..len {
        for k in 0..K {
            let w = columns[k * len + c].load(l);
            for t in 0..T {
                chains[k][t] = l.fma(w, l.splat(x[t][start + k * len + c]), chains[k][t]);
            }
        }
    }
    for chain in &chains {
        for t in 0..T {
            sums[t] = l.add(sums[t], chain[t]);
        }
    }
    columns.len()
}

/// FP8 meets values.
struct F8;

impl Rule for F8 {
    type Block = [u8; GROUP];
    type Input = f32;

    fn blocks(w: &Operand<'_>) -> usize {
        panel::f8_units(w.lead, w.cols)
    }

    fn inputs<'a>(x: ActivationRows<'a>) -> &'a [f32] {
        x.values()
    }

    #[inline(always)]
    fn sums<L: Dots, const T: usize>(
        l: L,
        panel: &[[u8; GROUP]],
        x: [&[f32]; T],
        lead: usize,
    ) -> [L::F; T] {
        let mut sums = [l.splat(0.0); T];
        for at in panel::f8_chunks(lead, x[0].len()) {
            let scale = l.load_f32(&panel[at.unit]);
            let units = &panel[at.unit + 1..][..at.run()];
            if T > 1 {
                prefetch(l, units, 0, 1);
            }
            if at.len == F8_RUNS * at.run() {
                f8_chunk(l, units, scale, chunk(x, at.start, at.len), &mut sums);
            } else {
                // Zeros meet the columns that are not there.
                let mut whole = [[0.0; F8_RUNS * SUB_BLOCK]; T];
                for t in 0..T {
                    whole[t][..at.len].copy_from_slice(&x[t][at.start..at.start + at.len]);
                }
                f8_chunk(l, units, scale, whole.each_ref().map(|x| &x[..]), &mut sums);
            }
        }
        sums
    }
}

/// Adds a chunk's units times `x`, which holds at least as many columns.
#[inline(always)]
fn f8_chunk<L: Dots, const T: usize>(
    l: L,
    units: &[[u8; GROUP]],
    scale: L::F,
    x: [&[f32]; T],
    sums: &mut [L::F; T],
) {
    let run = units.len();
    let mut chains = [[l.splat(0.0); T]; F8_RUNS];
    // As many runs at once as the registers hold chains.
    if const { L::SUMS / T >= 4 } {
        for (c, unit) in units.iter().enumerate() {
            let ([a, b], [c0, d]) = (l.even_e4m3(unit), l.odd_e4m3(unit));
            for (r, w) in [a, b, c0, d].into_iter().enumerate() {
                for t in 0..T {
                    chains[r][t] = l.fma(w, l.splat(x[t][r * run + c]), chains[r][t]);
                }
            }
        }
    } else {
        f8_runs::<L, T, 0>(l, units, x, &mut chains);
        f8_runs::<L, T, 2>(l, units, x, &mut chains);
    }
    for chain in &chains {
        for t in 0..T {
            sums[t] = l.fma(chain[t], scale, sums[t]);
        }
    }
}

/// Runs `R` and `R + 1` alone.
#[inline(always)]
fn f8_runs<L: Dots, const T: usize, const R: usize>(
    l: L,
    units: &[[u8; GROUP]],
    x: [&[f32]; T],
    chains: &mut [[L::F; T]; F8_RUNS],
) {
    let run = units.len();
    let load = |unit| if R == 0 { l.even_e4m3(unit) } else { l.odd_e4m3(unit) };
    if const { L::SUMS / T >= 2 } {
        for (c, unit) in units.iter().enumerate() {
            let [a, b] = load(unit);
            for t in 0..T {
                chains[R][t] = l.fma(a, l.splat(x[t][R * run + c]), chains[R][t]);
                chains[R + 1][t] = l.fma(b, l.splat(x[t][(R + 1) * run + c]), chains[R + 1][t]);
            }
        }
    } else {
        for (c, unit) in units.iter().enumerate() {
            let a = load(unit)[0];
            for t in 0..T {
                chains[R][t] = l.fma(a, l.splat(x[t][R * run + c]), chains[R][t]);
            }
        }
        for (c, unit) in units.iter().enumerate() {
            let b = load(unit)[1];
            for t in 0..T {
                chains[R + 1][t] = l.fma(b, l.splat(x[t][(R + 1) * run + c]), chains[R + 1][t]);
            }
        }
    }
}

/// Whether there is a kernel for tiles of `tokens`: each costs time to compile.
const fn has_tile<L: Dots, R: Rule>(tokens: usize) -> bool {
    tokens == L::TOKENS || (tokens < L::TOKENS && R::EVERY_TILE)
}

/// Cuts the panels into passes and each pass's tokens into tiles.
fn passes<L: Dots, R: Rule>(l: L, Product { out, first_row, w, x }: Product<'_, '_>) {
    let (tokens, columns) = (out.tokens(), out.range().len());
    let blocks = R::blocks(&w);
    let panels = first_row / ROWS..(first_row + columns).div_ceil(ROWS);
    let all: &[R::Block] = bytemuck::cast_slice(w.bytes);
    let all = &all[panels.start * blocks..panels.end * blocks];
    let inputs = R::inputs(x);
    let width = inputs.len() / tokens;
    let pass = (PASS_BYTES / (blocks * size_of::<R::Block>())).max(1);
    for (i, panels) in all.chunks(pass * blocks).enumerate() {
        let mut token = 0;
        while token < tokens {
            let inputs = &inputs[token * width..];
            let column = i * pass * ROWS;
            let lead = w.lead;
            let tile =
                Tile::<R> { panels, blocks, lead, inputs, width, token, column, out: &mut *out };
            token += match tokens - token {
                8.. if const { has_tile::<L, R>(8) } => tile.enter::<L, 8>(l),
                4.. if const { has_tile::<L, R>(4) } => tile.enter::<L, 4>(l),
                2.. if const { has_tile::<L, R>(2) } => tile.enter::<L, 2>(l),
                _ => tile.enter::<L, 1>(l),
            };
        }
    }
}

/// Some panels, to be multiplied with some tokens.
struct Tile<'a, 'o, R: Rule> {
    panels: &'a [R::Block],
    /// Of a panel.
    blocks: usize,
    lead: usize,
    /// From the first token on.
    inputs: &'a [R::Input],
    /// Inputs of a token.
    width: usize,
    token: usize,
    /// Where the first panel's rows go, from the start of `out`'s range.
    column: usize,
    out: &'a mut Columns<'o>,
}

impl<'a, 'o, R: Rule> Tile<'a, 'o, R> {
    fn enter<L: Dots, const T: usize>(self, l: L) -> usize {
        l.enter(Tokens::<R, T>(self));
        T
    }
}

/// A tile of `T` tokens.
struct Tokens<'a, 'o, R: Rule, const T: usize>(Tile<'a, 'o, R>);

impl<R: Rule, const T: usize> Job for Tokens<'_, '_, R, T> {
    #[inline(always)]
    fn run<L: Dots>(self, l: L) {
        let Tile { panels, blocks, lead, inputs, width, token, column, out } = self.0;
        let x: [&[R::Input]; T] = std::array::from_fn(|t| &inputs[t * width..][..width]);
        for (i, panel) in panels.chunks_exact(blocks).enumerate() {
            let sums = R::sums(l, panel, x, lead);
            for (t, sum) in sums.iter().enumerate() {
                let row = &mut out.row(token + t)[column + i * ROWS..];
                if let Some(row) = row.first_chunk_mut() {
                    l.store(*sum, row);
                } else {
                    let mut all = [0.0; ROWS];
                    l.store(*sum, &mut all);
                    row.copy_from_slice(&all[..row.len()]);
                }
            }
        }
    }
}
