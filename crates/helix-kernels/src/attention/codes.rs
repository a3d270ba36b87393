//! [`attend`](super::attend) over [`KvType::Q8_0`](crate::kv::KvType::Q8_0), in integers: a byte's
//! worth of multiply-adds costs a quarter of those in `f32`, and nothing is converted.
//!
//! ```text
//! score     Σ_g s_q[g]·s_k[g]·Σ_d q[d]·k[d]        q: bytes, 32 dimensions share a scale, as k
//! output    s[g]·Σ_t w[t]·v[t]                     w: words, rounded from p[t]·s_v[t, g] / s[g]
//! ```
//!
//! A score's sums over the 32 dimensions of a group `g` are exact, and groups are added in order.
//! The tokens' scales are in the weights, so that an output's sum over the chunk's tokens is exact
//! as well: `s[g]` is the largest scale of the tokens that the row sees, over [`WEIGHT`].
//!
//! Keys are read once, some tokens for all rows, then values group by group, which stay in the
//! first-level cache from one tile of rows to the next. In between all of it asks for the next page,
//! little by little. Values of latents are turned from their keys, a group at a time.

// Register tiles are arrays: an index names the same row or token in several of them.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::ahead::{NextPage, fetch_near};
use super::kernel::{Row, largest, probabilities};
use super::{CHUNK_TOKENS, Sees, Span, state_len};
use crate::activations::Sub;
use crate::arch::lanes::LANES;
use crate::arch::matmul::{Dots, Job, Visit};
use crate::kv::codes::{KEY_TOKENS, QUAD};
use crate::kv::{KvView, MAX_HEAD_DIM, PAGE_TOKENS, PageShape, SCALE_DIMS};

/// Query rows that go through a page together, at most.
const BATCH_ROWS: usize = 16;

/// Rows of a tile of values, at most.
const TILE_ROWS: usize = 8;

const MAX_GROUPS: usize = MAX_HEAD_DIM / SCALE_DIMS;

/// Quads of dimensions in a group.
const GROUP_QUADS: usize = SCALE_DIMS / QUAD;
/// Quads that a tile multiplies between two looks at what memory is to be asked for.
const ASK_QUADS: usize = 4;

/// The weight of a probability of one at the largest scale. What rounding adds to either leaves it
/// a word, and 32767·255 of [`CHUNK_TOKENS`] tokens fit a lane.
const WEIGHT: f32 = 32256.0;

const _: () = assert!(i16::MAX as usize * 255 * CHUNK_TOKENS <= i32::MAX as usize);

/// Codes of a vector of quads.
type Codes = [u8; QUAD * LANES];

/// A row's query. A run of chunks has the same ones: what was quantised is kept.
#[derive(Clone, Copy, Debug)]
struct Query {
    dim: usize,
    x: [f32; MAX_HEAD_DIM],
    subs: [Sub; MAX_GROUPS],
}

impl Query {
    #[inline(always)]
    fn set<L: Dots>(&mut self, l: L, q: &[f32]) {
        let bits = bytemuck::cast_slice::<f32, u8>;
        if bits(&self.x[..self.dim]) == bits(q) {
            return;
        }
        self.dim = q.len();
        self.x[..q.len()].copy_from_slice(q);
        for (x, sub) in q.chunks(SCALE_DIMS).zip(&mut self.subs) {
            let mut group = [0.0; SCALE_DIMS];
            group[..x.len()].copy_from_slice(x);
            *sub = Sub::of(l, &group);
        }
    }
}

/// A row's weights.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Weights([[i16; QUAD]; CHUNK_TOKENS / QUAD]);

/// The values of a group, `[quads of tokens][dims / 16]`, turned from a latent's keys.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Turned([Codes; CHUNK_TOKENS / QUAD * SCALE_DIMS / LANES]);

/// What goes between the steps.
#[derive(Clone, Debug)]
pub(super) struct Scratch {
    queries: Box<[Query; BATCH_ROWS]>,
    scores: Box<[Row; BATCH_ROWS]>,
    /// A group's scales, as weights.
    factors: Box<Row>,
    weights: Box<[Weights; TILE_ROWS]>,
    turned: Box<Turned>,
}

impl Scratch {
    pub(super) fn new() -> Scratch {
        const ROW: Row = Row([0.0; CHUNK_TOKENS]);
        let weights = [const { Weights([[0; QUAD]; CHUNK_TOKENS / QUAD]) }; TILE_ROWS];
        let query = Query { dim: 0, x: [0.0; MAX_HEAD_DIM], subs: [Sub::default(); MAX_GROUPS] };
        Scratch {
            queries: Box::new([query; BATCH_ROWS]),
            scores: Box::new([ROW; BATCH_ROWS]),
            factors: Box::new(ROW),
            weights: Box::new(weights),
            turned: Box::new(Turned([[0; QUAD * LANES]; _])),
        }
    }
}

/// [`super::attend`] over codes, its arguments checked.
pub(super) struct Attend<'a> {
    pub state: &'a mut [f32],
    pub q: &'a [f32],
    pub sees: &'a [Sees],
    pub kv: &'a KvView<'a>,
    pub range: Range<usize>,
    pub scratch: &'a mut Scratch,
}

impl Visit for Attend<'_> {
    fn visit<L: Dots>(self, l: L) {
        l.enter(self);
    }
}

impl Job for Attend<'_> {
    #[inline(always)]
    fn run<L: Dots>(self, l: L) {
        let shape = self.kv.shape;
        let index = self.range.start / PAGE_TOKENS;
        let page = Page { shape, bytes: self.kv.page(index) };
        let size = even(self.sees.len(), BATCH_ROWS);
        let mut ahead = NextPage::new(self.kv, index, units::<L>(shape, self.sees.len(), size));
        let rows = self.sees.chunks(size).zip(self.q.chunks(size * shape.head_dim()));
        let states = self.state.chunks_mut(size * state_len(shape.value_dim()));
        for ((sees, q), states) in rows.zip(states) {
            let mut seen = [Span::NONE; BATCH_ROWS];
            for (seen, sees) in seen.iter_mut().zip(sees) {
                *seen = sees.within(&self.range);
            }
            let seen = &seen[..sees.len()];
            let scratch = &mut *self.scratch;
            Batch { page, q, seen, states, scratch, ahead: &mut ahead }.attend(l);
        }
    }
}

/// Rows of each of the fewest tiles of up to `most`.
fn even(rows: usize, most: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// Most rows and vectors of tokens of a tile of scores: sums of integers, and of floats beside them.
const fn score_tile<L: Dots>() -> (usize, usize) {
    match L::TOKENS {
        8 => (4, 2),
        1 => (1, 1),
        _ => (2, 1),
    }
}

/// A chunk's page.
#[derive(Clone, Copy)]
struct Page<'a> {
    shape: PageShape,
    bytes: &'a [u8],
}

impl<'a> Page<'a> {
    /// The codes of a block's keys: for each quad of dimensions those of [`KEY_TOKENS`] tokens.
    fn keys(self, block: usize) -> &'a [[Codes; KEY_TOKENS / LANES]] {
        let quads = self.shape.key_quads();
        let (vectors, _) = self.bytes[self.shape.key_codes()..].as_chunks();
        &vectors.as_chunks().0[block * quads..][..quads]
    }

    /// The scales of a group of keys.
    fn key_scales(self, group: usize) -> &'a [[u8; 2 * LANES]] {
        &self.bytes[2 * PAGE_TOKENS * group..].as_chunks().0[..PAGE_TOKENS / LANES]
    }

    /// The scales of a group of values.
    fn value_scales(self, group: usize) -> &'a [[u8; 2 * LANES]] {
        let start = self.shape.value_scales() + 2 * PAGE_TOKENS * group;
        &self.bytes[start..].as_chunks().0[..PAGE_TOKENS / LANES]
    }

    /// Vectors of an output that come from a group of values.
    fn vectors(self, group: usize) -> usize {
        let all = self.shape.value_dim().div_ceil(LANES);
        (all - group * SCALE_DIMS / LANES).min(SCALE_DIMS / LANES)
    }
}

/// What `rows`, in batches of `size`, do between asking for what is read next: quads of dimensions, or
/// of tokens, that a tile of rows multiplies with a vector of the other.
fn units<L: Dots>(shape: PageShape, rows: usize, size: usize) -> usize {
    let scores = shape.groups() * GROUP_QUADS * CHUNK_TOKENS / LANES;
    let values = shape.value_dim().div_ceil(LANES) * CHUNK_TOKENS / QUAD;
    let tiles = size.div_ceil(score_tile::<L>().0) * scores + size.div_ceil(L::TOKENS) * values;
    rows.div_ceil(size).max(1) * tiles
}

/// Some query rows against one chunk.
struct Batch<'a, 'page> {
    page: Page<'page>,
    q: &'a [f32],
    /// The chunk's tokens that each row sees.
    seen: &'a [Span],
    states: &'a mut [f32],
    scratch: &'a mut Scratch,
    ahead: &'a mut NextPage<'page>,
}

impl Batch<'_, '_> {
    #[inline(always)]
    fn attend<L: Dots>(mut self, l: L) {
        let shape = self.page.shape;
        for (q, query) in self.q.chunks(shape.head_dim()).zip(&mut self.scratch.queries[..]) {
            query.set(l, q);
        }
        let hull = Span::hull(self.seen);
        self.score(l, hull);
        self.normalise(l, hull);
        for group in 0..shape.value_dim().div_ceil(SCALE_DIMS) {
            self.weigh(l, hull, group);
        }
    }

    #[inline(always)]
    fn score<L: Dots>(&mut self, l: L, hull: Span) {
        let (most, vectors) = score_tile::<L>();
        let rows = self.seen.len();
        for vector in
            (hull.from / LANES / vectors * vectors..hull.to.div_ceil(LANES)).step_by(vectors)
        {
            let size = even(rows, most);
            for first in (0..rows).step_by(size) {
                let rows = first..rows.min(first + size);
                let (queries, scores) =
                    (&self.scratch.queries[rows.clone()], &mut self.scratch.scores[rows]);
                let (page, ahead) = (self.page, &mut *self.ahead);
                let tile = Scores { page, queries, scores, vector, ahead };
                match (most, queries.len()) {
                    (4, 1) => l.enter(Score::<1, 2>(tile)),
                    (4, 2) => l.enter(Score::<2, 2>(tile)),
                    (4, 3) => l.enter(Score::<3, 2>(tile)),
                    (4, _) => l.enter(Score::<4, 2>(tile)),
                    (2, 2) => l.enter(Score::<2, 1>(tile)),
                    _ => l.enter(Score::<1, 1>(tile)),
                }
            }
        }
    }

    /// Turns scores to probabilities, zero in the rest of the hull, and starts the states.
    #[inline(always)]
    fn normalise<L: Dots>(&mut self, l: L, hull: Span) {
        let len = state_len(self.page.shape.value_dim());
        let rows = self.states.chunks_exact_mut(len).zip(&mut self.scratch.scores[..]);
        for ((state, scores), seen) in rows.zip(self.seen) {
            let top = largest(l, scores, *seen);
            let (o, sums) = state.split_last_chunk_mut().expect("a state");
            o.fill(0.0);
            *sums = [top, probabilities(l, scores, *seen, top, || ())];
            let (before, after) = (seen.from / LANES * LANES, seen.to.next_multiple_of(LANES));
            let whole = whole(hull);
            scores.0[whole.start.min(before)..before].fill(0.0);
            scores.0[after..whole.end.max(after)].fill(0.0);
        }
    }

    /// Outputs of a group of dimensions.
    #[inline(always)]
    fn weigh<L: Dots>(&mut self, l: L, hull: Span, group: usize) {
        let (page, rows) = (self.page, self.seen.len());
        let Scratch { scores, factors, weights, turned, .. } = &mut *self.scratch;
        let codes = if page.shape.is_latent() {
            l.enter(Turn { page, group, tokens: whole(hull), to: &mut turned.0 });
            &turned.0[..]
        } else {
            let (start, dims) = page.shape.value_group(group);
            page.bytes[start..start + PAGE_TOKENS * dims].as_chunks().0
        };
        let stride = codes.len() * QUAD / PAGE_TOKENS;
        let len = state_len(page.shape.value_dim());
        let size = even(rows, L::TOKENS);
        for first in (0..rows).step_by(size) {
            let rows = first..rows.min(first + size);
            let states = &mut self.states[rows.start * len..rows.end * len];
            let (seen, p) = (&self.seen[rows.clone()], &scores[rows]);
            let prepare = Prepare { page, group, seen, p, states, hull, factors, weights };
            let scales = prepare.run(l);
            let tile = Values {
                codes,
                stride,
                weights: &weights[..seen.len()],
                scales,
                states,
                vector: group * SCALE_DIMS / LANES,
                vectors: page.vectors(group),
                tokens: whole(hull),
                ahead: &mut *self.ahead,
            };
            match (L::TOKENS, seen.len()) {
                (8, 1) => l.enter(Weigh::<1, 2>(tile)),
                (8, 2) => l.enter(Weigh::<2, 2>(tile)),
                (8, 3) => l.enter(Weigh::<3, 2>(tile)),
                (8, 4) => l.enter(Weigh::<4, 2>(tile)),
                (8, 5) => l.enter(Weigh::<5, 2>(tile)),
                (8, 6) => l.enter(Weigh::<6, 2>(tile)),
                (8, 7) => l.enter(Weigh::<7, 2>(tile)),
                (8, _) => l.enter(Weigh::<8, 2>(tile)),
                (_, 1) => l.enter(Weigh::<1, 1>(tile)),
                (_, 2) => l.enter(Weigh::<2, 1>(tile)),
                (_, 3) => l.enter(Weigh::<3, 1>(tile)),
                _ => l.enter(Weigh::<4, 1>(tile)),
            }
        }
    }
}

/// The tokens of whole pairs of vectors that a span lies in.
fn whole(span: Span) -> Range<usize> {
    span.from / (2 * LANES) * (2 * LANES)..span.to.next_multiple_of(2 * LANES)
}

/// What [`Score`] takes.
struct Scores<'a, 'page> {
    page: Page<'page>,
    queries: &'a [Query],
    scores: &'a mut [Row],
    /// The first vector of tokens in the chunk.
    vector: usize,
    ahead: &'a mut NextPage<'page>,
}

/// Scores of `R` rows against `16·P` tokens of one block, in registers.
struct Score<'a, 'page, const R: usize, const P: usize>(Scores<'a, 'page>);

impl<const R: usize, const P: usize> Job for Score<'_, '_, R, P> {
    #[inline(always)]
    fn run<L: Dots>(self, l: L) {
        let Scores { page, queries, scores, vector, ahead } = self.0;
        let queries: &[_; R] = queries.try_into().expect("a tile of R rows");
        let keys = page.keys(vector * LANES / KEY_TOKENS);
        let within = vector % (KEY_TOKENS / LANES);
        let mut totals = [[l.splat(0.0); P]; R];
        for (group, keys) in keys.chunks(GROUP_QUADS).take(page.shape.groups()).enumerate() {
            // Each code of a key is 128 too large.
            let mut sums = [[l.splat_shl(0, 0); P]; R];
            for r in 0..R {
                sums[r] = [l.splat_shl(queries[r].subs[group].minus_sum, 7); P];
            }
            for (quad, key) in keys.iter().enumerate() {
                if quad.is_multiple_of(ASK_QUADS) {
                    ahead.ask(l, ASK_QUADS * P);
                }
                let key: &[_; P] = key[within..].first_chunk().expect("P divides a block");
                fetch_near(l, key);
                let k = key.each_ref().map(|key| l.bytes(key));
                for r in 0..R {
                    for p in 0..P {
                        sums[r][p] =
                            l.dot_wide(sums[r][p], k[p], &queries[r].subs[group].codes[quad]);
                    }
                }
            }
            let scales: &[_; P] = page.key_scales(group)[vector..].first_chunk().expect("a page");
            let scales = scales.each_ref().map(|scales| l.load_f16(scales));
            for r in 0..R {
                let scale = l.splat(queries[r].subs[group].scale);
                for p in 0..P {
                    let sum = l.to_floats(sums[r][p]);
                    totals[r][p] = l.fma(sum, l.mul(scale, scales[p]), totals[r][p]);
                }
            }
        }
        for r in 0..R {
            let (scores, _) = scores[r].0.as_chunks_mut();
            for p in 0..P {
                l.store(totals[r][p], &mut scores[vector + p]);
            }
        }
    }
}

/// Turns a group of a latent's dimensions to values.
struct Turn<'a> {
    page: Page<'a>,
    group: usize,
    /// Whole blocks.
    tokens: Range<usize>,
    to: &'a mut [Codes],
}

impl Job for Turn<'_> {
    #[inline(always)]
    fn run<L: Dots>(self, l: L) {
        const STRIDE: usize = SCALE_DIMS / LANES;
        let vectors = self.page.vectors(self.group);
        for block in self.tokens.start / KEY_TOKENS..self.tokens.end / KEY_TOKENS {
            let keys = &self.page.keys(block)[self.group * GROUP_QUADS..];
            let to = &mut self.to[block * KEY_TOKENS / QUAD * STRIDE..];
            for (quad, to) in to.chunks_mut(STRIDE).take(KEY_TOKENS / QUAD).enumerate() {
                for (to, keys) in to.iter_mut().zip(keys.as_chunks::<QUAD>().0).take(vectors) {
                    // Four tokens, a quad of dimensions each.
                    let keys = keys.each_ref().map(|keys| &keys.as_flattened().as_chunks().0[quad]);
                    l.turn(keys, to);
                }
            }
        }
    }
}

/// Makes weights of a tile of rows.
struct Prepare<'a> {
    page: Page<'a>,
    group: usize,
    seen: &'a [Span],
    p: &'a [Row],
    states: &'a [f32],
    hull: Span,
    factors: &'a mut Row,
    weights: &'a mut [Weights; TILE_ROWS],
}

/// What a row's sums start with and are multiplied by.
#[derive(Clone, Copy, Default)]
struct Scale {
    /// `−Σ w`: what a code's offset is multiplied with.
    minus_sum: i32,
    scale: f32,
}

impl Prepare<'_> {
    #[inline(always)]
    fn run<L: Dots>(self, l: L) -> [Scale; TILE_ROWS] {
        let tokens = whole(self.hull);
        let mut totals = [l.splat(0.0); LANES];
        let mut scales = [0.0; TILE_ROWS];
        for (r, seen) in self.seen.iter().enumerate() {
            scales[r] = if r == 0 || *seen != self.seen[r - 1] {
                let scales = self.page.value_scales(self.group);
                factors(l, scales, *seen, &tokens, self.factors)
            } else {
                scales[r - 1]
            };
            let (p, _) = self.p[r].0.as_chunks::<LANES>();
            let (factors, _) = self.factors.0.as_chunks();
            let (weights, _) = self.weights[r].0.as_chunks_mut();
            let mut sum = l.splat_shl(0, 0);
            for pair in tokens.start / (2 * LANES)..tokens.end / (2 * LANES) {
                let one = |i: usize| l.mul(l.load(&p[i]), l.load(&factors[i]));
                sum = l.words(sum, [one(2 * pair), one(2 * pair + 1)], &mut weights[pair]);
            }
            totals[r] = l.to_floats(sum);
        }
        // Integers below 2^24: sums of floats are exact.
        let mut sums = [0.0; LANES];
        l.store(l.sums(&totals, self.seen.len()), &mut sums);
        let len = self.states.len() / self.seen.len();
        std::array::from_fn(|r| {
            // A sum of probabilities that is no number shows in the output.
            let sum = self.states.get((r + 1) * len - 1).map_or(0.0, |sum| 0.0 * sum);
            Scale { minus_sum: -(sums[r] as i32), scale: scales[r] + sum }
        })
    }
}

/// What probabilities are multiplied with, of the `seen` among some `tokens`, zero for others; and
/// what goes back to numbers. NaN if a scale is.
#[inline(always)]
fn factors<L: Dots>(
    l: L,
    scales: &[[u8; 2 * LANES]],
    seen: Span,
    tokens: &Range<usize>,
    to: &mut Row,
) -> f32 {
    to.0[tokens.clone()].fill(0.0);
    let (to, _) = to.0.as_chunks_mut();
    let vectors = seen.from / LANES..seen.to.div_ceil(LANES);
    let (mut most, mut nan) = (l.splat(0.0), l.splat(0.0));
    for i in vectors.clone() {
        let scale = super::kernel::within(l, l.load_f16(&scales[i]), i, seen, 0.0);
        most = l.max(scale, most);
        nan = l.fma(scale, l.splat(0.0), nan);
        l.store(scale, &mut to[i]);
    }
    let most = l.largest(most) + l.sum(nan);
    let inverse = l.splat(if most == 0.0 { 0.0 } else { WEIGHT / most });
    for i in vectors {
        l.store(l.mul(l.load(&to[i]), inverse), &mut to[i]);
    }
    most / WEIGHT
}

/// What [`Weigh`] takes.
struct Values<'a, 'page> {
    /// `[quads of tokens][stride]`.
    codes: &'a [Codes],
    stride: usize,
    weights: &'a [Weights],
    scales: [Scale; TILE_ROWS],
    states: &'a mut [f32],
    /// The group's first vector of an output, and how many.
    vector: usize,
    vectors: usize,
    /// Whole pairs of vectors.
    tokens: Range<usize>,
    ahead: &'a mut NextPage<'page>,
}

/// Sums weight times value to outputs of `R` rows, `16·N` at a time in registers.
struct Weigh<'a, 'page, const R: usize, const N: usize>(Values<'a, 'page>);

impl<const R: usize, const N: usize> Job for Weigh<'_, '_, R, N> {
    #[inline(always)]
    fn run<L: Dots>(self, l: L) {
        let mut values = self.0;
        let whole = values.vectors / N * N;
        for first in (0..whole).step_by(N) {
            values.weigh::<L, R, N>(l, first);
        }
        for first in whole..values.vectors {
            values.weigh::<L, R, 1>(l, first);
        }
    }
}

impl Values<'_, '_> {
    #[inline(always)]
    fn weigh<L: Dots, const R: usize, const N: usize>(&mut self, l: L, first: usize) {
        let weights: &[Weights; R] = self.weights.try_into().expect("a tile of R rows");
        let mut sums = [[l.splat_shl(0, 0); N]; R];
        for r in 0..R {
            sums[r] = [l.splat_shl(self.scales[r].minus_sum, 7); N];
        }
        for some in (self.tokens.start / QUAD..self.tokens.end / QUAD).step_by(ASK_QUADS) {
            self.ahead.ask(l, ASK_QUADS * N);
            for quad in some..(self.tokens.end / QUAD).min(some + ASK_QUADS) {
                let codes = &self.codes[quad * self.stride + first..];
                let v: &[_; N] = codes.first_chunk().expect("N vectors");
                fetch_near(l, v);
                let v = v.each_ref().map(|v| l.bytes(v));
                for r in 0..R {
                    for n in 0..N {
                        sums[r][n] = l.dot_words(sums[r][n], v[n], &weights[r].0[quad]);
                    }
                }
            }
        }
        let len = self.states.len() / R;
        for r in 0..R {
            let (o, _) = self.states[r * len..][..len].as_chunks_mut();
            let scale = l.splat(self.scales[r].scale);
            for n in 0..N {
                l.store(l.mul(l.to_floats(sums[r][n]), scale), &mut o[self.vector + first + n]);
            }
        }
    }
}
