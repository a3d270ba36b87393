//! [`attend`](super::attend) over latents, for any instruction set: many query rows share one row
//! per token that is key and value both, so arithmetic is the limit, not memory.
//!
//! 16 heads of 576 dimensions do 16 multiply-adds with each element as key, and 14 as value. What
//! limits is the rate of multiply-adds; converting an element from `f16` takes the same execution
//! ports two operations, so a chunk is converted once, to `f32` scratch that stays in the
//! second-level cache (576 KiB). From there register tiles read it for each tile of rows:
//!
//! ```text
//! scores    lanes are dimensions: rows x tokens accumulators, whose lanes are added up at the end
//! values    lanes are dimensions: rows x vectors accumulators, a probability for all lanes
//! ```
//!
//! so one orientation of the scratch serves both: the tree that adds up 16 accumulators costs less
//! than turning the chunk unless rows are very many. With 8 rows by 2 vectors an AVX-512 core loads
//! 10 vectors for 16 multiply-adds, 2 of them from the second-level cache. The first tile of rows
//! converts as it goes, and all of them ask for the next page, little by little.

// Register tiles are arrays: an index names the same row or token in several of them.
#![allow(clippy::needless_range_loop)]

use std::marker::PhantomData;
use std::ops::Range;

use super::ahead::NextPage;
use super::element::{BF16, Element, F16, F32};
use super::kernel::{Row, largest, probabilities};
use super::{CHUNK_TOKENS, Sees, Span, state_len};
use crate::arch::lanes::{Kernel, LANES, Lanes};
use crate::arch::memory::Buffer;
use crate::kv::{KvType, KvView, MAX_HEAD_DIM, PAGE_TOKENS, PageShape};

/// Query rows that share the scratch's way to the registers, at most.
const TILE_ROWS: usize = 8;

/// Vectors of a token's dimensions that lie side by side.
const LINE_VECTORS: usize = 4;

/// A few dimensions of one token, or of one query.
type Line = [[f32; LANES]; LINE_VECTORS];

/// The same dimensions of a chunk's tokens, and a gap, so that one token's lines are not all in the
/// same sets of the first-level cache. A page of memory holds 16 of its tokens: from rows of
/// all dimensions, the products with values would need a new translation for every other token.
type Panel = [Line; CHUNK_TOKENS + 2];

/// The same dimensions of a tile's queries.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Queries([Line; TILE_ROWS]);

/// Tokens of a few values between two looks at what memory is to be asked for.
const ASK_TOKENS: usize = 4;

const MAX_PANELS: usize = MAX_HEAD_DIM / (LANES * LINE_VECTORS);

/// What goes between the steps: a chunk in `f32`, a tile's queries and scores.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Up to [`MAX_PANELS`]; takes no memory before it is used.
    chunk: Buffer,
    queries: Box<[Queries; MAX_PANELS]>,
    scores: Box<[Row; TILE_ROWS]>,
}

impl Scratch {
    pub(super) fn new() -> Scratch {
        let bytes = MAX_PANELS * size_of::<Panel>();
        Scratch {
            chunk: Buffer::zeroed(bytes).unwrap_or_else(|e| panic!("scratch of a thread: {e}")),
            queries: Box::new([Queries([[[0.0; LANES]; LINE_VECTORS]; TILE_ROWS]); MAX_PANELS]),
            scores: Box::new([const { Row([0.0; CHUNK_TOKENS]) }; TILE_ROWS]),
        }
    }
}

impl Clone for Scratch {
    /// Another thread's: nothing in it outlives a call.
    fn clone(&self) -> Scratch {
        Scratch::new()
    }
}

/// The panels of a chunk's scratch.
fn panels_mut(chunk: &mut [u8]) -> &mut [Panel] {
    let floats: &mut [f32] = bytemuck::cast_slice_mut(chunk);
    floats.as_chunks_mut().0.as_chunks_mut().0.as_chunks_mut().0
}

/// [`super::attend`] over latents, its arguments checked.
pub(super) struct Attend<'a> {
    pub state: &'a mut [f32],
    pub q: &'a [f32],
    pub sees: &'a [Sees],
    pub kv: &'a KvView<'a>,
    pub range: Range<usize>,
    pub scratch: &'a mut Scratch,
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let index = self.range.start / PAGE_TOKENS;
        let page = Page { shape: self.kv.shape, bytes: self.kv.page(index), left: self.hull() };
        self.tiles(s, page, index);
    }
}

impl<'a> Attend<'a> {
    /// The chunk's tokens that some row sees.
    fn hull(&self) -> Range<usize> {
        let spans = self.sees.iter().map(|sees| sees.within(&self.range));
        let hull = spans.fold(Span::NONE, |hull, span| Span::hull(&[hull, span]));
        hull.range()
    }

    /// Cuts the rows in tiles that fit the registers: as even a cut as the tiles allow.
    #[inline(always)]
    fn tiles<S: Lanes>(self, s: S, mut page: Page<'a>, index: usize) {
        let shape = self.kv.shape;
        let len = state_len(shape.value_dim());
        let most = match S::ROWS {
            4 => TILE_ROWS,
            3 => 6,
            _ => 1,
        };
        let tiles = self.sees.len().div_ceil(most);
        let size = self.sees.len().div_ceil(tiles.max(1)).max(1);
        let mut ahead = NextPage::new(self.kv, index, units(shape, tiles));
        let rows = self.sees.chunks(size).zip(self.q.chunks(size * shape.head_dim()));
        for ((sees, q), states) in rows.zip(self.state.chunks_mut(size * len)) {
            let mut seen = [Span::NONE; TILE_ROWS];
            for (seen, sees) in seen.iter_mut().zip(sees) {
                *seen = sees.within(&self.range);
            }
            for (row, q) in q.chunks_exact(shape.head_dim()).enumerate() {
                spread(&mut self.scratch.queries[..], row, q);
            }
            let tile = Tile {
                page: &mut page,
                chunk: &mut panels_mut(&mut self.scratch.chunk)[..count_panels(shape)],
                seen: &seen[..sees.len()],
                queries: &self.scratch.queries[..count_panels(shape)],
                scores: &mut self.scratch.scores,
                states,
                ahead: &mut ahead,
            };
            tile.dispatch(s);
        }
    }
}

/// Panels of a key's dimensions.
fn count_panels(shape: PageShape) -> usize {
    shape.head_dim().div_ceil(LANES * LINE_VECTORS)
}

/// Puts a query among its tile's; zeros where its last panel has no dimensions.
fn spread(queries: &mut [Queries], row: usize, q: &[f32]) {
    for (part, panel) in q.chunks(LANES * LINE_VECTORS).zip(queries) {
        let line = panel.0[row].as_flattened_mut();
        line[..part.len()].copy_from_slice(part);
        line[part.len()..].fill(0.0);
    }
}

/// A chunk's page, whose tokens are converted as the first tile of rows comes to them: between its
/// multiply-adds the scratch's way to the second-level cache costs little.
struct Page<'a> {
    shape: PageShape,
    bytes: &'a [u8],
    /// Tokens that some row sees and that are not converted yet.
    left: Range<usize>,
}

impl Page<'_> {
    /// Converts what is left of the tokens below `end`.
    #[inline(always)]
    fn convert<S: Lanes>(&mut self, s: S, chunk: &mut [Panel], end: usize) {
        let tokens = self.left.start..end.min(self.left.end);
        if tokens.is_empty() {
            return;
        }
        self.left.start = tokens.end;
        let (shape, page) = (self.shape, self.bytes);
        match shape.kv_type() {
            KvType::F32 => s.run(Convert::<F32> { chunk, shape, page, tokens, of: PhantomData }),
            KvType::F16 => s.run(Convert::<F16> { chunk, shape, page, tokens, of: PhantomData }),
            KvType::BF16 => s.run(Convert::<BF16> { chunk, shape, page, tokens, of: PhantomData }),
            KvType::Q8_0 => unreachable!("`codes` has them"),
        }
    }
}

/// Writes a page's tokens as `f32`, panel by panel; zeros where the last has no dimensions.
struct Convert<'a, E> {
    chunk: &'a mut [Panel],
    shape: PageShape,
    page: &'a [u8],
    tokens: Range<usize>,
    of: PhantomData<E>,
}

impl<E: Element> Kernel for Convert<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let Convert { chunk, shape, page, tokens, .. } = self;
        let vectors = shape.padded_dims() / LANES;
        let rows = E::rows(&page[shape.values()..]);
        for token in tokens {
            let row = &rows[token * vectors..][..vectors];
            for (row, panel) in row.chunks(LINE_VECTORS).zip(&mut *chunk) {
                for (i, to) in panel[token].iter_mut().enumerate() {
                    s.store(row.get(i).map_or(s.splat(0.0), |row| E::load(s, row)), to);
                }
            }
        }
    }
}

/// What `tiles` of rows do between asking for what is read next: vectors of tokens that they multiply.
fn units(shape: PageShape, tiles: usize) -> usize {
    let vectors = count_panels(shape) * LINE_VECTORS + shape.value_dim().div_ceil(LANES);
    tiles.max(1) * CHUNK_TOKENS * vectors
}

/// Some query rows against one chunk.
struct Tile<'a, 'page> {
    page: &'a mut Page<'page>,
    chunk: &'a mut [Panel],
    /// The chunk's tokens that each row sees.
    seen: &'a [Span],
    queries: &'a [Queries],
    scores: &'a mut [Row; TILE_ROWS],
    states: &'a mut [f32],
    ahead: &'a mut NextPage<'page>,
}

impl Tile<'_, '_> {
    /// Register tiles: rows by vectors of values, or by tokens.
    #[inline(always)]
    fn dispatch<S: Lanes>(self, s: S) {
        match (S::ROWS, self.seen.len()) {
            (4, 1) => self.attend::<S, 1, 4>(s),
            (4, 2) => self.attend::<S, 2, 4>(s),
            (4, 3) => self.attend::<S, 3, 4>(s),
            (4, 4) => self.attend::<S, 4, 4>(s),
            (4, 5) => self.attend::<S, 5, 2>(s),
            (4, 6) => self.attend::<S, 6, 2>(s),
            (4, 7) => self.attend::<S, 7, 2>(s),
            (4, _) => self.attend::<S, 8, 2>(s),
            (3, 1) => self.attend::<S, 1, 4>(s),
            (3, 2) => self.attend::<S, 2, 2>(s),
            (3, 3) => self.attend::<S, 3, 1>(s),
            (3, 4) => self.attend::<S, 4, 1>(s),
            (3, 5) => self.attend::<S, 5, 1>(s),
            (3, _) => self.attend::<S, 6, 1>(s),
            _ => self.attend::<S, 1, 1>(s),
        }
    }

    #[inline(always)]
    fn attend<S: Lanes, const R: usize, const N: usize>(self, s: S) {
        let Tile { page, chunk, seen, queries, scores, states, ahead } = self;
        let shape = page.shape;
        let seen: &[Span; R] = seen.try_into().expect("a tile of R rows");
        let len = state_len(shape.value_dim());
        let (hull, common) = (Span::hull(seen), Span::common(seen));
        let tokens = hull.range();
        s.run(Score::<R, N> { page, chunk, queries, scores, tokens, ahead: &mut *ahead });
        page.convert(s, chunk, CHUNK_TOKENS);
        normalise(s, seen, scores, states, len);
        let vectors = shape.value_dim().div_ceil(LANES);
        let mut weigh = |rows: Range<usize>, tokens: Range<usize>| {
            let scores = &scores[rows.clone()];
            let states = &mut states[rows.start * len..rows.end * len];
            let weigh = Values { chunk, scores, states, vectors, tokens, ahead: &mut *ahead };
            match rows.len() {
                1 => s.run(Weigh::<1, 4>(weigh)),
                _ => s.run(Weigh::<R, N>(weigh)),
            }
        };
        // Together what all rows see; before and after it each by itself, so that none reads what
        // it doesn't see.
        for (row, span) in seen.iter().enumerate() {
            weigh(row..row + 1, span.from..span.to.min(common.from));
        }
        weigh(0..R, common.range());
        for (row, span) in seen.iter().enumerate() {
            weigh(row..row + 1, span.from.max(common.to)..span.to);
        }
    }
}

/// Turns scores to probabilities, and starts the states.
#[inline(always)]
fn normalise<S: Lanes, const R: usize>(
    s: S,
    seen: &[Span; R],
    scores: &mut [Row; TILE_ROWS],
    states: &mut [f32],
    len: usize,
) {
    let mut tops = [f32::NEG_INFINITY; R];
    for r in 0..R {
        tops[r] = largest(s, &scores[r], seen[r]);
    }
    for (r, state) in states.chunks_exact_mut(len).enumerate() {
        let (o, sums) = state.split_last_chunk_mut().expect("a state");
        o.fill(0.0);
        *sums = [tops[r], probabilities(s, &mut scores[r], seen[r], tops[r], || ())];
    }
}

/// Scores of `R` rows against `tokens`, `T` at a time in registers, and a few beside them.
struct Score<'a, 'page, const R: usize, const T: usize> {
    page: &'a mut Page<'page>,
    chunk: &'a mut [Panel],
    queries: &'a [Queries],
    scores: &'a mut [Row; TILE_ROWS],
    tokens: Range<usize>,
    ahead: &'a mut NextPage<'page>,
}

impl<const R: usize, const T: usize> Kernel for Score<'_, '_, R, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        const { assert!(R * T <= LANES && CHUNK_TOKENS.is_multiple_of(T)) };
        let mut totals = [0.0; LANES];
        for token in (self.tokens.start / T * T..self.tokens.end).step_by(T) {
            self.page.convert(s, self.chunk, token + T);
            let mut sums = [[s.splat(0.0); T]; R];
            for (panel, queries) in self.chunk.iter().zip(self.queries) {
                self.ahead.ask(s, T * LINE_VECTORS);
                let keys: &[Line; T] = panel[token..].first_chunk().expect("a tile of tokens");
                for i in 0..LINE_VECTORS {
                    let mut k = [s.splat(0.0); T];
                    for t in 0..T {
                        k[t] = s.load(&keys[t][i]);
                    }
                    for r in 0..R {
                        let q = s.load(&queries.0[r][i]);
                        for t in 0..T {
                            sums[r][t] = s.fma(q, k[t], sums[r][t]);
                        }
                    }
                }
            }
            let mut all = [s.splat(0.0); LANES];
            for r in 0..R {
                all[r * T..(r + 1) * T].copy_from_slice(&sums[r]);
            }
            s.store(s.sums(&all, R * T), &mut totals);
            for r in 0..R {
                self.scores[r].0[token..token + T].copy_from_slice(&totals[r * T..(r + 1) * T]);
            }
        }
    }
}

/// What [`Weigh`] takes.
struct Values<'a, 'page> {
    chunk: &'a [Panel],
    scores: &'a [Row],
    states: &'a mut [f32],
    /// Of a value.
    vectors: usize,
    tokens: Range<usize>,
    ahead: &'a mut NextPage<'page>,
}

/// Adds probability times value to the outputs of `R` rows, `16·N` at a time in registers.
struct Weigh<'a, 'page, const R: usize, const N: usize>(Values<'a, 'page>);

impl<const R: usize, const N: usize> Kernel for Weigh<'_, '_, R, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        const { assert!(LINE_VECTORS.is_multiple_of(N)) };
        let mut values = self.0;
        if values.tokens.is_empty() {
            return;
        }
        let whole = values.vectors / N * N;
        for vector in (0..whole).step_by(N) {
            values.weigh::<S, R, N>(s, vector);
        }
        for vector in whole..values.vectors {
            values.weigh::<S, R, 1>(s, vector);
        }
    }
}

impl Values<'_, '_> {
    #[inline(always)]
    fn weigh<S: Lanes, const R: usize, const N: usize>(&mut self, s: S, vector: usize) {
        let len = self.states.len() / R;
        let (panel, offset) = (&self.chunk[vector / LINE_VECTORS], vector % LINE_VECTORS);
        let p: &[Row; R] = self.scores.first_chunk().expect("a tile of R rows");
        let mut sums = [[s.splat(0.0); N]; R];
        for r in 0..R {
            let (o, _) = self.states[r * len..][..len].as_chunks();
            for n in 0..N {
                sums[r][n] = s.load(&o[vector + n]);
            }
        }
        for first in self.tokens.clone().step_by(ASK_TOKENS) {
            self.ahead.ask(s, ASK_TOKENS * N);
            for token in first..self.tokens.end.min(first + ASK_TOKENS) {
                let value: &[_; N] = panel[token][offset..].first_chunk().expect("N divides");
                let mut v = [s.splat(0.0); N];
                for n in 0..N {
                    v[n] = s.load(&value[n]);
                }
                for r in 0..R {
                    let p = s.splat(p[r].0[token]);
                    for n in 0..N {
                        sums[r][n] = s.fma(p, v[n], sums[r][n]);
                    }
                }
            }
        }
        for r in 0..R {
            let (o, _) = self.states[r * len..][..len].as_chunks_mut();
            for n in 0..N {
                s.store(sums[r][n], &mut o[vector + n]);
            }
        }
    }
}
