//! The arithmetic of [`attend`](super::attend) and [`fold`](super::fold), for any instruction set.
//!
//! A tile of query rows goes through a page: keys give scores, scores give probabilities,
//! probabilities weigh values. Memory is read in ascending order, a little ahead of its use.
//!
//! Converting a vector to `f32` takes the execution ports as long as two multiply-adds of it. Where
//! several tiles of rows see the same tokens, the first one keeps what it converts, and the others
//! read that from the second-level cache ([`Converted`]).

// Register tiles are arrays: an index names the same row or page in several of them.
#![allow(clippy::needless_range_loop)]

use std::marker::PhantomData;
use std::ops::Range;

use super::ahead::{Ahead, fetch_near};
use super::element::{BF16, Element, F16, F32, Keeping, Kept};
use super::{CHUNK_TOKENS, Scratch, Sees, Span, TILE_ROWS, state_len};
use crate::arch::lanes::{Kernel, LANES, Lanes, exp2_falling};
use crate::arch::memory::Buffer;
use crate::kv::{BLOCK_TOKENS, KvType, KvView, PAGE_TOKENS, PageShape, VALUE_TILE};

/// The scores of one row against a chunk, then their probabilities.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Row(pub [f32; CHUNK_TOKENS]);

/// Vectors that hold a number for each token of a block of keys.
const BLOCK_VECTORS: usize = BLOCK_TOKENS / LANES;

/// Bytes that a chunk's keys and values may take as `f32` to be worth keeping: more would push out of
/// the second-level cache what was asked for ahead.
const KEPT_BYTES: usize = 512 << 10;

/// A chunk's keys and values in `f32`, where a page of [`KvType::F32`] has them: those of the tokens
/// that its rows see.
#[derive(Debug)]
pub(super) struct Converted(Buffer);

impl Converted {
    /// Takes no memory before it is used.
    pub(super) fn new() -> Converted {
        let buffer = Buffer::zeroed(KEPT_BYTES);
        Converted(buffer.unwrap_or_else(|e| panic!("scratch of a thread: {e}")))
    }
}

impl Clone for Converted {
    /// Another thread's: nothing in it outlives a call.
    fn clone(&self) -> Converted {
        Converted::new()
    }
}

/// [`super::attend`], its arguments checked.
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
        match self.kv.shape.kv_type() {
            KvType::F32 => self.tiles::<S, F32>(s),
            KvType::F16 => self.tiles::<S, F16>(s),
            KvType::BF16 => self.tiles::<S, BF16>(s),
            KvType::Q8_0 => unreachable!("`codes` has them"),
        }
    }
}

impl Attend<'_> {
    #[inline(always)]
    fn tiles<S: Lanes, E: Element>(self, s: S) {
        let Attend { state, q, sees, kv, range, scratch } = self;
        let index = range.start / PAGE_TOKENS;
        let page = Page { shape: kv.shape, bytes: kv.page(index) };
        let most = most_rows::<S>();
        let ahead = Ahead::new(kv, index, sees.len().div_ceil(most).max(1));
        let scores = &mut scratch.scores[..];
        let mut rows = Rows { state, q, sees, head_dim: kv.shape.head_dim(), range, scores, ahead };
        let shape = PageShape::new(kv.shape.head_dim(), KvType::F32);
        let several = S::ROWS > 1 && sees.len() > most && rows.see_the_same();
        if E::CONVERTS && several && shape.bytes() <= KEPT_BYTES {
            let kept = &mut scratch.kept.0[..shape.bytes()];
            rows.tile(page, 0..most, kept).attend::<S, Keeping<E>>(s);
            rows.tiles::<S, Kept>(s, Page { shape, bytes: kept }, most);
        } else {
            rows.tiles::<S, E>(s, page, 0);
        }
    }
}

/// Query rows that a tile has at most.
const fn most_rows<S: Lanes>() -> usize {
    if S::ROWS == 4 { TILE_ROWS } else { S::ROWS }
}

/// All query rows, to be cut in tiles.
struct Rows<'a, 'page> {
    state: &'a mut [f32],
    q: &'a [f32],
    sees: &'a [Sees],
    head_dim: usize,
    /// The chunk.
    range: Range<usize>,
    scores: &'a mut [Row],
    ahead: Ahead<'page>,
}

impl<'page> Rows<'_, 'page> {
    /// Whether all rows see the same tokens of the chunk.
    fn see_the_same(&self) -> bool {
        let mut seen = self.sees.iter().map(|sees| sees.within(&self.range));
        let first = seen.next();
        seen.all(|span| Some(span) == first)
    }

    /// Cuts the rows from `row` on in tiles that fit the registers: as even a cut as tiles allow.
    #[inline(always)]
    fn tiles<S: Lanes, E: Element>(&mut self, s: S, page: Page<'_>, mut row: usize) {
        while row < self.sees.len() {
            let left = self.sees.len() - row;
            let rows = match left {
                _ if left >= most_rows::<S>() => most_rows::<S>(),
                _ if left > S::ROWS && left < 2 * S::ROWS => left.div_ceil(2),
                _ => left.min(S::ROWS),
            };
            self.tile(page, row..row + rows, &mut []).attend::<S, E>(s);
            row += rows;
        }
    }

    #[inline(always)]
    fn tile<'t>(
        &'t mut self,
        page: Page<'t>,
        rows: Range<usize>,
        kept: &'t mut [u8],
    ) -> Tile<'t, 'page> {
        let len = state_len(self.head_dim);
        let mut seen = [Span::NONE; TILE_ROWS];
        for (seen, sees) in seen.iter_mut().zip(&self.sees[rows.clone()]) {
            *seen = sees.within(&self.range);
        }
        Tile {
            page,
            q: &self.q[rows.start * self.head_dim..rows.end * self.head_dim],
            scores: &mut self.scores[..rows.len()],
            seen,
            states: &mut self.state[rows.start * len..rows.end * len],
            ahead: &mut self.ahead,
            kept,
        }
    }
}

/// A chunk's page.
#[derive(Clone, Copy)]
struct Page<'a> {
    shape: PageShape,
    bytes: &'a [u8],
}

/// Some query rows against one chunk.
struct Tile<'a, 'page> {
    page: Page<'a>,
    q: &'a [f32],
    /// One for each row.
    scores: &'a mut [Row],
    /// The chunk's tokens that each row sees.
    seen: [Span; TILE_ROWS],
    states: &'a mut [f32],
    ahead: &'a mut Ahead<'page>,
    /// Where [`Keeping`] leaves what it converts.
    kept: &'a mut [u8],
}

impl Tile<'_, '_> {
    #[inline(always)]
    fn attend<S: Lanes, E: Element>(mut self, s: S) {
        let (rows, seen) = (self.scores.len(), self.seen);
        let seen = &seen[..rows];
        let (hull, common) = (Span::hull(seen), Span::common(seen));
        self.score::<S, E>(s, hull.from / LANES..hull.to.div_ceil(LANES));
        self.normalise::<S, E>(s);
        // Together what all rows see; before and after it each by itself, so that none reads what
        // it doesn't see.
        for (row, &Span { from, to }) in seen.iter().enumerate() {
            self.weigh::<S, E>(s, row..row + 1, from..to.min(common.from));
        }
        self.weigh::<S, E>(s, 0..rows, common.range());
        for (row, &Span { from, to }) in seen.iter().enumerate() {
            self.weigh::<S, E>(s, row..row + 1, from.max(common.to)..to);
        }
    }

    /// Scores against the chunk's tokens, 16 in each of `vectors`, and a few before them.
    #[inline(always)]
    fn score<S: Lanes, E: Element>(&mut self, s: S, vectors: Range<usize>) {
        match (S::ROWS, self.scores.len()) {
            (1, _) => self.score_blocks::<S, E, 1, 1>(s, vectors),
            (_, 1) => self.score_blocks::<S, E, 1, 4>(s, vectors),
            (3, 2) => self.score_blocks::<S, E, 2, 2>(s, vectors),
            (3, _) => self.score_blocks::<S, E, 3, 2>(s, vectors),
            (_, 2) => self.score_blocks::<S, E, 2, 4>(s, vectors),
            (_, 3) => self.score_blocks::<S, E, 3, 4>(s, vectors),
            (_, TILE_ROWS) => self.score_blocks::<S, E, TILE_ROWS, 2>(s, vectors),
            _ => self.score_blocks::<S, E, 4, 4>(s, vectors),
        }
    }

    #[inline(always)]
    fn score_blocks<S: Lanes, E: Element, const R: usize, const P: usize>(
        &mut self,
        s: S,
        vectors: Range<usize>,
    ) {
        // Tiles do not cross blocks.
        let mut vector = vectors.start / P * P;
        while vector < vectors.end {
            let (page, q, scores) = (self.page, self.q, &mut *self.scores);
            let (ahead, kept, of) = (&mut *self.ahead, &mut *self.kept, PhantomData);
            if vector + P <= vectors.end {
                s.run(Score::<E, R, P> { page, q, scores, vector, ahead, kept, of });
                vector += P;
            } else {
                s.run(Score::<E, R, 1> { page, q, scores, vector, ahead, kept, of });
                vector += 1;
            }
        }
    }

    /// Turns scores to probabilities, and starts the states: all rows' maxima, then all sums, so
    /// that one row's latencies hide behind another's work.
    #[inline(always)]
    fn normalise<S: Lanes, E: Element>(&mut self, s: S) {
        let len = state_len(self.page.shape.head_dim());
        let mut tops = [f32::NEG_INFINITY; TILE_ROWS];
        for ((top, scores), seen) in tops.iter_mut().zip(&*self.scores).zip(self.seen) {
            *top = largest(s, scores, seen);
        }
        let count = self.scores.len();
        let rows = self.states.chunks_exact_mut(len).zip(self.scores.iter_mut());
        for (((state, scores), seen), top) in rows.zip(self.seen).zip(tops) {
            let (o, sums) = state.split_last_chunk_mut().expect("a state");
            o.fill(0.0);
            let mut ahead = self.ahead.probabilities(count);
            *sums = [top, probabilities(s, scores, seen, top, || ahead.step(s))];
        }
    }

    /// Adds up the chunk's `tokens` for some rows, a few vectors of dimensions at a time.
    #[inline(always)]
    fn weigh<S: Lanes, E: Element>(&mut self, s: S, rows: Range<usize>, tokens: Range<usize>) {
        if tokens.is_empty() {
            return;
        }
        match (S::ROWS, rows.len()) {
            (1, _) => self.weigh_vectors::<S, E, 1, 1>(s, rows, tokens),
            (_, 1) => self.weigh_vectors::<S, E, 1, 4>(s, rows, tokens),
            (3, 2) => self.weigh_vectors::<S, E, 2, 2>(s, rows, tokens),
            (3, _) => self.weigh_vectors::<S, E, 3, 2>(s, rows, tokens),
            (_, 2) => self.weigh_vectors::<S, E, 2, 4>(s, rows, tokens),
            (_, 3) => self.weigh_vectors::<S, E, 3, 4>(s, rows, tokens),
            (_, TILE_ROWS) => self.weigh_vectors::<S, E, TILE_ROWS, 2>(s, rows, tokens),
            _ => self.weigh_vectors::<S, E, 4, 4>(s, rows, tokens),
        }
    }

    #[inline(always)]
    fn weigh_vectors<S: Lanes, E: Element, const R: usize, const N: usize>(
        &mut self,
        s: S,
        rows: Range<usize>,
        tokens: Range<usize>,
    ) {
        let vectors = self.page.shape.padded_dims() / LANES;
        // A tile of values is left before the next one is read, and a block of its tokens where
        // it takes more than one pass.
        for tile in (0..vectors).step_by(VALUE_TILE / LANES) {
            let tile = tile..vectors.min(tile + VALUE_TILE / LANES);
            let size = if N < tile.len() { BLOCK_TOKENS } else { CHUNK_TOKENS };
            for block in tokens.start / size..tokens.end.div_ceil(size) {
                let tokens = tokens.start.max(block * size)..tokens.end.min((block + 1) * size);
                self.weigh_tile::<S, E, R, N>(s, rows.clone(), tokens, tile.clone());
            }
        }
    }

    #[inline(always)]
    fn weigh_tile<S: Lanes, E: Element, const R: usize, const N: usize>(
        &mut self,
        s: S,
        rows: Range<usize>,
        tokens: Range<usize>,
        vectors: Range<usize>,
    ) {
        let len = state_len(self.page.shape.head_dim());
        let mut vector = vectors.start;
        while vector < vectors.end {
            let (page, tokens, of) = (self.page, tokens.clone(), PhantomData);
            let (scores, ahead) = (&self.scores[rows.clone()], &mut *self.ahead);
            let states = &mut self.states[rows.start * len..rows.end * len];
            let kept = &mut *self.kept;
            if vector + N <= vectors.end {
                s.run(Weigh::<E, R, N> { page, scores, states, vector, tokens, ahead, kept, of });
                vector += N;
            } else {
                s.run(Weigh::<E, R, 1> { page, scores, states, vector, tokens, ahead, kept, of });
                vector += 1;
            }
        }
    }
}

/// Scores of `R` rows against `16·P` tokens of one block, in registers.
struct Score<'a, 'page, E, const R: usize, const P: usize> {
    page: Page<'a>,
    q: &'a [f32],
    scores: &'a mut [Row],
    /// The first vector of tokens in the chunk.
    vector: usize,
    ahead: &'a mut Ahead<'page>,
    kept: &'a mut [u8],
    of: PhantomData<E>,
}

impl<E: Element, const R: usize, const P: usize> Kernel for Score<'_, '_, E, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let shape = self.page.shape;
        let dims = shape.head_dim();
        let q: [&[f32]; R] = std::array::from_fn(|r| &self.q[r * dims..][..dims]);
        let (block, vector) = (self.vector / BLOCK_VECTORS, self.vector % BLOCK_VECTORS);
        let at = block * shape.key_block_bytes();
        let keys = &block_rows::<E>(&self.page.bytes[at..])[..dims];
        let kept = match E::KEEPS {
            true => {
                let at = block * BLOCK_TOKENS * dims;
                let (rows, _) = floats(self.kept)[at..at + BLOCK_TOKENS * dims].as_chunks_mut();
                rows.as_chunks_mut::<BLOCK_VECTORS>().0
            }
            false => &mut [],
        };
        let mut ahead = self.ahead.products::<E>(R, dims, P);
        let mut sums = [[s.splat(0.0); P]; R];
        for d in 0..dims {
            ahead.step(s);
            let mut k = [s.splat(0.0); P];
            let row: &[E::Row; P] = keys[d][vector..].first_chunk().expect("a block");
            fetch_near(s, row);
            for p in 0..P {
                k[p] = E::load(s, &row[p]);
                if E::KEEPS {
                    s.store(k[p], &mut kept[d][vector + p]);
                }
            }
            for r in 0..R {
                let q = s.splat(q[r][d]);
                for p in 0..P {
                    sums[r][p] = s.fma(q, k[p], sums[r][p]);
                }
            }
        }
        for r in 0..R {
            let (scores, _) = self.scores[r].0.as_chunks_mut();
            for p in 0..P {
                s.store(sums[r][p], &mut scores[self.vector + p]);
            }
        }
    }
}

/// The numbers of [`Converted`].
#[inline(always)]
fn floats(kept: &mut [u8]) -> &mut [f32] {
    bytemuck::cast_slice_mut(kept)
}

/// Keys of a block, dimension by dimension.
#[inline(always)]
fn block_rows<E: Element>(bytes: &[u8]) -> &[[E::Row; BLOCK_VECTORS]] {
    E::rows(bytes).as_chunks().0
}

/// Adds probability times value to `16·N` outputs of `R` rows, in registers.
struct Weigh<'a, 'page, E, const R: usize, const N: usize> {
    page: Page<'a>,
    scores: &'a [Row],
    states: &'a mut [f32],
    /// The first vector of dimensions.
    vector: usize,
    /// Tokens of the chunk.
    tokens: Range<usize>,
    ahead: &'a mut Ahead<'page>,
    kept: &'a mut [u8],
    of: PhantomData<E>,
}

impl<E: Element, const R: usize, const N: usize> Kernel for Weigh<'_, '_, E, R, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let shape = self.page.shape;
        let len = state_len(shape.head_dim());
        let mut sums = [[s.splat(0.0); N]; R];
        for r in 0..R {
            let (o, _) = self.states[r * len..][..len].as_chunks();
            for n in 0..N {
                sums[r][n] = s.load(&o[self.vector + n]);
            }
        }
        let (before, dims) = shape.value_tile(self.vector * LANES / VALUE_TILE);
        let (vectors, within) = (dims / LANES, self.vector % (VALUE_TILE / LANES));
        let tile = &E::rows(&self.page.bytes[shape.values()..])[before / LANES..];
        let values = &tile[within..];
        let kept = match E::KEEPS {
            true => {
                let at = PAGE_TOKENS * shape.head_dim() + before;
                &mut floats(self.kept)[at..].as_chunks_mut().0[within..]
            }
            false => &mut [],
        };
        let p: &[Row; R] = self.scores.first_chunk().expect("a whole tile");
        let mut ahead = self.ahead.products::<E>(R, self.tokens.len(), N);
        for token in self.tokens.clone() {
            ahead.step(s);
            let value: &[E::Row; N] = values[token * vectors..].first_chunk().expect("a tile");
            fetch_near(s, value);
            let mut v = [s.splat(0.0); N];
            for n in 0..N {
                v[n] = E::load(s, &value[n]);
                if E::KEEPS {
                    s.store(v[n], &mut kept[token * vectors + n]);
                }
            }
            for r in 0..R {
                let p = s.splat(p[r].0[token]);
                for n in 0..N {
                    sums[r][n] = s.fma(p, v[n], sums[r][n]);
                }
            }
        }
        for r in 0..R {
            let (o, _) = self.states[r * len..][..len].as_chunks_mut();
            for n in 0..N {
                s.store(sums[r][n], &mut o[self.vector + n]);
            }
        }
    }
}

/// Vector `i` of a row, with `other` in place of what lies outside `span`.
#[inline(always)]
pub(super) fn within<S: Lanes>(s: S, x: S::F, i: usize, span: Span, other: f32) -> S::F {
    let (start, mut x) = (i * LANES, x);
    if start < span.from {
        x = s.first(span.from - start, s.splat(other), x);
    }
    if start + LANES > span.to {
        x = s.first(span.to - start, x, s.splat(other));
    }
    x
}

/// The largest score of a row in `span`, in base 2; −∞ of none.
#[inline(always)]
pub(super) fn largest<S: Lanes>(s: S, scores: &Row, span: Span) -> f32 {
    let (scores, _) = scores.0.as_chunks();
    let mut top = s.splat(f32::NEG_INFINITY);
    for i in span.from / LANES..span.to.div_ceil(LANES) {
        let x = within(s, s.load(&scores[i]), i, span, f32::NEG_INFINITY);
        top = s.max(x, top);
    }
    // Adding zero leaves one zero of the two.
    s.largest(top) * std::f32::consts::LOG2_E + 0.0
}

/// Turns the scores of a row in `span` to probabilities `2^(s − top)`, and gives their sum.
#[inline(always)]
pub(super) fn probabilities<S: Lanes>(
    s: S,
    scores: &mut Row,
    span: Span,
    top: f32,
    mut each: impl FnMut(),
) -> f32 {
    let (scores, _) = scores.0.as_chunks_mut();
    let base = s.splat(if top == f32::NEG_INFINITY { 0.0 } else { -top });
    let mut sum = s.splat(0.0);
    for i in span.from / LANES..span.to.div_ceil(LANES) {
        each();
        let x = s.fma(s.load(&scores[i]), s.splat(std::f32::consts::LOG2_E), base);
        let p = within(s, exp2_falling(s, x), i, span, 0.0);
        s.store(p, &mut scores[i]);
        sum = s.add(sum, p);
    }
    s.sum(sum)
}

/// [`super::fold`], its arguments checked.
pub(super) struct Fold<'a> {
    pub acc: &'a mut [f32],
    pub part: &'a [f32],
}

impl Kernel for Fold<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let (acc, [m, l]) = self.acc.split_last_chunk_mut().expect("a state");
        let (part, &[part_m, part_l]) = self.part.split_last_chunk().expect("a state");
        if part_l == 0.0 {
            return;
        }
        if *l == 0.0 {
            acc.copy_from_slice(part);
            (*m, *l) = (part_m, part_l);
            return;
        }
        let top = m.max(part_m);
        let mut weights = [f32::NEG_INFINITY; LANES];
        (weights[0], weights[1]) = (*m - top, part_m - top);
        let shifted = s.load(&weights);
        s.store(exp2_falling(s, shifted), &mut weights);
        let [old, new, ..] = weights;
        (*m, *l) = (top, new.mul_add(part_l, old * *l));
        let (acc, _) = acc.as_chunks_mut::<LANES>();
        let (part, _) = part.as_chunks::<LANES>();
        for (acc, part) in acc.iter_mut().zip(part) {
            let scaled = s.mul(s.splat(old), s.load(acc));
            s.store(s.fma(s.splat(new), s.load(part), scaled), acc);
        }
    }
}
