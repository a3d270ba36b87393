//! Panels times tokens.
//!
//! Order of every output's sum, whatever the instruction set, tile and batch: sub-blocks of 32
//! columns from left to right, each one's value `v` fused into `sum`.
//! * Integer: `v` is the exact integer dot of the (half) sub-block with the activations' codes,
//!   times `scale·x.scale`; then the minimum times the activations' sum.
//! * Float: `v` is a chain of fused multiply-adds over the columns of the sub-block, from 0.
//! * FP8: as float, but sub-blocks are the runs of [`super::fp8::Chunk`], and the scale of each is
//!   multiplied with its value as that is fused into `sum`.

use std::marker::PhantomData;

use super::fp8::Fp8;
use super::panel::{self, Block, Column, GROUP, ROWS};
use super::{Dots, Job, Visit, asks_ahead_for_one, dispatch};
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
            (Format::F8E4M3, _) => passes::<L, Fp8>(l, self),
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

/// How far ahead of their use weights are asked for, in the second-level cache, whose queue of
/// misses is longer. Where memory is the bound, requests are spread evenly over the arithmetic: in
/// bursts they wait for each other, and what is read now waits for them.
///
/// Tuned on Zen 4, where eight tokens gain up to 80 %, and one is fastest without; and on Sapphire
/// Rapids, where one token gains as much.
const AHEAD: usize = 8192;

/// [`AHEAD`], or 0, which asks for what is being read anyway, where nothing is better.
fn ahead(tokens: usize) -> usize {
    if tokens > 1 || asks_ahead_for_one() { AHEAD } else { 0 }
}

/// Asks for line `line` of what lies `ahead` of `from`.
#[inline(always)]
pub(super) fn ask<L: Dots, W: ?Sized>(l: L, from: &W, line: usize, ahead: usize) {
    l.prefetch_far(std::ptr::from_ref(from).cast::<u8>().wrapping_add(ahead + line * GROUP));
}

/// Asks for what lies [`AHEAD`] of part `part` of `parts` of `weights`: integers of several tokens
/// are bound by arithmetic, of which requests in between would take a fifth.
#[inline(always)]
fn ask_at_once<L: Dots, W>(l: L, weights: &W, part: usize, parts: usize) {
    let bytes = size_of::<W>() / parts;
    for line in 0..bytes.div_ceil(GROUP) {
        ask(l, weights, line, AHEAD + part * bytes);
    }
}

/// What a panel's product needs to know beside its weights and inputs.
#[derive(Clone, Copy)]
pub(crate) struct How {
    /// The operand's.
    pub lead: usize,
    /// How far ahead to ask for weights.
    pub ahead: usize,
}

/// How the blocks of a panel meet activations.
pub(super) trait Rule {
    type Block: bytemuck::Pod;
    type Input;

    /// Whether small batches are worth kernels of their own.
    const EVERY_TILE: bool = true;

    /// Blocks of a panel.
    fn blocks(w: &Operand<'_>) -> usize;
    /// All tokens' inputs.
    fn inputs<'a>(x: ActivationRows<'a>) -> &'a [Self::Input];
    /// A panel's 16 rows times `T` tokens.
    fn sums<L: Dots, const T: usize>(
        l: L,
        panel: &[Self::Block],
        x: [&[Self::Input]; T],
        how: How,
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
    fn sums<L: Dots, const T: usize>(l: L, panel: &[B], x: [&[Sub]; T], how: How) -> [L::F; T] {
        let mut sums = [l.splat(0.0); T];
        for (i, block) in panel.iter().enumerate() {
            for sub in 0..B::SUBS {
                if T > 1 {
                    ask_at_once(l, block, sub, B::SUBS);
                }
                let x = at(x, i * B::SUBS + sub);
                integer_sub(l, block, sub, x, &mut sums, how);
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
    how: How,
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
    pair::<L, B, T, 0>(l, block, sub, x, &mut low, &mut high, how);
    pair::<L, B, T, 1>(l, block, sub, x, &mut low, &mut high, how);
    pair::<L, B, T, 2>(l, block, sub, x, &mut low, &mut high, how);
    pair::<L, B, T, 3>(l, block, sub, x, &mut low, &mut high, how);
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
    how: How,
) {
    if T == 1 {
        let lines = size_of::<B>().div_ceil(GROUP);
        let first = (4 * sub + P) * lines / (4 * B::SUBS);
        for line in first..(4 * sub + P + 1) * lines / (4 * B::SUBS) {
            ask(l, block, line, how.ahead);
        }
    }
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
    fn sums<L: Dots, const T: usize>(l: L, panel: &[B], x: [&[f32]; T], _how: How) -> [L::F; T] {
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
    fn sums<L: Dots, const T: usize>(l: L, panel: &[C], x: [&[f32]; T], how: How) -> [L::F; T] {
        let mut sums = [l.splat(0.0); T];
        for (i, columns) in panel.chunks(SUB_BLOCK).enumerate() {
            let x = chunk(x, i * SUB_BLOCK, columns.len());
            let mut chain = [l.splat(0.0); T];
            for (c, w) in columns.iter().enumerate() {
                if c % (GROUP / size_of::<C>()) == 0 {
                    ask(l, w, 0, how.ahead);
                }
                let w = w.load(l);
                for t in 0..T {
                    chain[t] = l.fma(w, l.splat(x[t][c]), chain[t]);
                }
            }
            for t in 0..T {
                sums[t] = l.add(sums[t], chain[t]);
            }
        }
        sums
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
    let how = How { lead: w.lead, ahead: ahead(tokens) };
    let inputs = R::inputs(x);
    let width = inputs.len() / tokens;
    let pass = (PASS_BYTES / (blocks * size_of::<R::Block>())).max(1);
    for (i, panels) in all.chunks(pass * blocks).enumerate() {
        let mut token = 0;
        while token < tokens {
            let inputs = &inputs[token * width..];
            let column = i * pass * ROWS;
            let tile =
                Tile::<R> { panels, blocks, how, inputs, width, token, column, out: &mut *out };
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
    how: How,
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
        let Tile { panels, blocks, how, inputs, width, token, column, out } = self.0;
        let x: [&[R::Input]; T] = std::array::from_fn(|t| &inputs[t * width..][..width]);
        for (i, panel) in panels.chunks_exact(blocks).enumerate() {
            let sums = R::sums(l, panel, x, how);
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
