//! The arithmetic of [`attend`](super::attend) and [`fold`](super::fold), for any instruction set.
//!
//! A tile of query rows goes through a page: keys give scores, scores give probabilities,
//! probabilities weigh values. Memory is read in ascending order, a little ahead of its use.

// Register tiles are arrays: an index names the same row or page in several of them.
#![allow(clippy::needless_range_loop)]

use std::marker::PhantomData;
use std::ops::Range;

use super::element::{BF16, Element, F16, F32, Q8_0};
use super::{CHUNK_TOKENS, Scratch, TILE_ROWS, state_len};
use crate::arch::lanes::{Kernel, LANES, Lanes, exp2_falling};
use crate::kv::{BLOCK_TOKENS, KvType, KvView, PAGE_TOKENS, PageShape, SCALE_DIMS};

/// The scores of one row against a chunk, then their probabilities.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Row(pub [f32; CHUNK_TOKENS]);

/// Vectors that hold a number for each token of a block of keys.
const BLOCK_VECTORS: usize = BLOCK_TOKENS / LANES;

/// How far ahead of its use memory is asked for, in bytes.
const AHEAD: usize = 8192;

/// [`super::attend`], its arguments checked.
pub(super) struct Attend<'a> {
    pub state: &'a mut [f32],
    pub q: &'a [f32],
    pub limits: &'a [u32],
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
            KvType::Q8_0 => self.tiles::<S, Q8_0>(s),
        }
    }
}

impl Attend<'_> {
    /// Cuts the rows in tiles that fit the registers: as even a cut as the tiles allow.
    #[inline(always)]
    fn tiles<S: Lanes, E: Element>(self, s: S) {
        if self.range.is_empty() {
            self.state.chunks_exact_mut(state_len(self.kv.shape.head_dim())).for_each(super::clear);
            return;
        }
        let head_dim = self.kv.shape.head_dim();
        let len = state_len(head_dim);
        let index = self.range.start / PAGE_TOKENS;
        let page = Page {
            shape: self.kv.shape,
            bytes: self.kv.page(index),
            next: self.kv.page((index + 1).min(self.kv.table.len() - 1)),
        };
        let mut row = 0;
        while row < self.limits.len() {
            let left = self.limits.len() - row;
            let rows = if left > S::ROWS && left < 2 * S::ROWS { left.div_ceil(2) } else { left };
            let rows = rows.min(S::ROWS);
            let mut seen = [0; TILE_ROWS];
            for (seen, limit) in seen.iter_mut().zip(&self.limits[row..row + rows]) {
                *seen = (*limit as usize).min(self.range.end).saturating_sub(self.range.start);
            }
            let tile = Tile {
                page,
                seen: &seen[..rows],
                q: &self.q[row * head_dim..(row + rows) * head_dim],
                scores: &mut self.scratch.scores[..rows],
                states: &mut self.state[row * len..(row + rows) * len],
            };
            tile.attend::<S, E>(s);
            row += rows;
        }
    }
}

/// A chunk's page, and the one that is read after it.
#[derive(Clone, Copy)]
struct Page<'a> {
    shape: PageShape,
    bytes: &'a [u8],
    next: &'a [u8],
}

/// Some query rows against one chunk.
struct Tile<'a> {
    page: Page<'a>,
    /// How many of the chunk's tokens each row sees.
    seen: &'a [usize],
    q: &'a [f32],
    scores: &'a mut [Row],
    states: &'a mut [f32],
}

impl Tile<'_> {
    #[inline(always)]
    fn attend<S: Lanes, E: Element>(mut self, s: S) {
        let most = self.seen.iter().copied().max().unwrap_or(0);
        let least = self.seen.iter().copied().min().unwrap_or(0);
        self.score::<S, E>(s, most.div_ceil(LANES));
        let states = self.states.chunks_exact_mut(state_len(self.page.shape.head_dim()));
        for ((state, scores), seen) in states.zip(self.scores.iter_mut()).zip(self.seen) {
            let (o, sums) = state.split_last_chunk_mut().expect("a state");
            o.fill(0.0);
            *sums = probabilities(s, scores, *seen);
        }
        // Together as far as all rows see; then each by itself, so that none reads past its limit.
        self.weigh::<S, E>(s, 0..self.seen.len(), 0..least);
        for row in 0..self.seen.len() {
            self.weigh::<S, E>(s, row..row + 1, least..self.seen[row]);
        }
    }

    /// Scores against the chunk's first tokens, 16 in each of `vectors`.
    #[inline(always)]
    fn score<S: Lanes, E: Element>(&mut self, s: S, vectors: usize) {
        match (S::ROWS, self.seen.len()) {
            (1, _) => self.score_blocks::<S, E, 1, 1>(s, vectors),
            (_, 1) => self.score_blocks::<S, E, 1, 4>(s, vectors),
            (3, 2) => self.score_blocks::<S, E, 2, 2>(s, vectors),
            (3, _) => self.score_blocks::<S, E, 3, 2>(s, vectors),
            (_, 2) => self.score_blocks::<S, E, 2, 4>(s, vectors),
            (_, 3) => self.score_blocks::<S, E, 3, 4>(s, vectors),
            _ => self.score_blocks::<S, E, 4, 4>(s, vectors),
        }
    }

    #[inline(always)]
    fn score_blocks<S: Lanes, E: Element, const R: usize, const P: usize>(
        &mut self,
        s: S,
        vectors: usize,
    ) {
        let mut vector = 0;
        while vector < vectors {
            let (page, q, scores) = (self.page, self.q, &mut *self.scores);
            let element = PhantomData;
            if vector + P <= vectors {
                s.run(Score::<E, R, P> { page, q, scores, vector, element });
                vector += P;
            } else {
                s.run(Score::<E, R, 1> { page, q, scores, vector, element });
                vector += 1;
            }
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
        let len = state_len(self.page.shape.head_dim());
        let vectors = self.page.shape.padded_dims() / LANES;
        let mut vector = 0;
        while vector < vectors {
            let (page, tokens, element) = (self.page, tokens.clone(), PhantomData);
            let scores = &self.scores[rows.clone()];
            let states = &mut self.states[rows.start * len..rows.end * len];
            if vector + N <= vectors {
                s.run(Weigh::<E, R, N> { page, scores, states, vector, tokens, element });
                vector += N;
            } else {
                s.run(Weigh::<E, R, 1> { page, scores, states, vector, tokens, element });
                vector += 1;
            }
        }
    }
}

/// Scores of `R` rows against `16·P` tokens of one block, in registers.
struct Score<'a, E, const R: usize, const P: usize> {
    page: Page<'a>,
    q: &'a [f32],
    scores: &'a mut [Row],
    /// The first vector of tokens in the chunk.
    vector: usize,
    element: PhantomData<E>,
}

impl<E: Element, const R: usize, const P: usize> Kernel for Score<'_, E, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let shape = self.page.shape;
        let dims = shape.head_dim();
        let q: [&[f32]; R] = std::array::from_fn(|r| &self.q[r * dims..][..dims]);
        let (block, vector) = (self.vector / BLOCK_VECTORS, self.vector % BLOCK_VECTORS);
        let mut at = block * shape.key_block_bytes();
        let mut sums = [[s.splat(0.0); P]; R];
        let group = if E::SCALED { SCALE_DIMS } else { dims };
        for start in (0..dims).step_by(group) {
            let mut scales = [s.splat(1.0); P];
            if E::SCALED {
                let (lines, _) = self.page.bytes[at..].as_chunks();
                for p in 0..P {
                    scales[p] = s.load_f16(&lines[vector + p]);
                }
                at += 2 * BLOCK_TOKENS;
            }
            let count = group.min(dims - start);
            let keys = &block_rows::<E>(&self.page.bytes[at..])[..count];
            let ahead = self.page.bytes.get(at + AHEAD..).unwrap_or(&[]);
            let ahead = block_rows::<E>(ahead).get(..count).unwrap_or(keys);
            let q: [&[f32]; R] = std::array::from_fn(|r| &q[r][start..][..count]);
            at += size_of_val(keys);
            for d in 0..count {
                for row in (0..BLOCK_VECTORS).step_by(E::ROWS_PER_LINE) {
                    s.prefetch(&ahead[d][row]);
                }
                let mut k = [s.splat(0.0); P];
                let row: &[E::Row; P] = keys[d][vector..].first_chunk().expect("a block");
                for p in 0..P {
                    k[p] = E::load(s, &row[p]);
                    if E::SCALED {
                        k[p] = s.mul(k[p], scales[p]);
                    }
                }
                for r in 0..R {
                    let q = s.splat(q[r][d]);
                    for p in 0..P {
                        sums[r][p] = s.fma(q, k[p], sums[r][p]);
                    }
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

/// Keys of a block, dimension by dimension.
#[inline(always)]
fn block_rows<E: Element>(bytes: &[u8]) -> &[[E::Row; BLOCK_VECTORS]] {
    E::rows(bytes).as_chunks().0
}

/// Adds probability times value to `16·N` outputs of `R` rows, in registers.
struct Weigh<'a, E, const R: usize, const N: usize> {
    page: Page<'a>,
    scores: &'a [Row],
    states: &'a mut [f32],
    /// The first vector of dimensions.
    vector: usize,
    /// Tokens of the chunk.
    tokens: Range<usize>,
    element: PhantomData<E>,
}

impl<E: Element, const R: usize, const N: usize> Kernel for Weigh<'_, E, R, N> {
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
        let vectors = shape.padded_dims() / LANES;
        let (scales, _) = self.page.bytes[shape.value_scales()..].as_chunks();
        let values = &E::rows(&self.page.bytes[shape.values()..])[self.vector..];
        let p: &[Row; R] = self.scores.first_chunk().expect("a whole tile");
        // What is asked for lies in this page, then in the next.
        let distance = (AHEAD / size_of::<E::Row>() / vectors).min(PAGE_TOKENS);
        let turn = (PAGE_TOKENS - distance).clamp(self.tokens.start, self.tokens.end);
        // A page that ends before that, as small heads' in q8_0 do, has nothing to ask for here.
        let here = values.get(distance * vectors..).unwrap_or(&[]);
        let next = &E::rows(self.page.next)[self.vector..];
        for (tokens, ahead, from) in [
            (self.tokens.start..turn, here, 0),
            (turn..self.tokens.end, next, PAGE_TOKENS - distance),
        ] {
            for token in tokens {
                let value: &[E::Row; N] =
                    values[token * vectors..].first_chunk().expect("a whole tile");
                for n in (0..N).step_by(E::ROWS_PER_LINE) {
                    s.prefetch(&ahead[(token - from) * vectors + n]);
                }
                let mut v = [s.splat(0.0); N];
                for n in 0..N {
                    v[n] = E::load(s, &value[n]);
                    if E::SCALED {
                        let group = (self.vector + n) * LANES / SCALE_DIMS;
                        let scale = scales[token * shape.groups() + group];
                        v[n] = s.mul(v[n], s.splat(half::f16::from_le_bytes(scale).to_f32()));
                    }
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
                s.store(sums[r][n], &mut o[self.vector + n]);
            }
        }
    }
}

/// Turns the first `seen` scores of a row to probabilities, the rest of the last vector to zeros;
/// gives the largest score, in base 2, and the sum.
#[inline(always)]
fn probabilities<S: Lanes>(s: S, scores: &mut Row, seen: usize) -> [f32; 2] {
    if seen == 0 {
        return [f32::NEG_INFINITY, 0.0];
    }
    let nothing = s.splat(f32::NEG_INFINITY);
    let scores = &mut scores.0.as_chunks_mut().0[..seen.div_ceil(LANES)];
    let tail = seen - (scores.len() - 1) * LANES;
    if let Some(last) = scores.last_mut() {
        let x = s.first(tail, s.load(last), nothing);
        s.store(x, last);
    }
    let mut top = nothing;
    for x in scores.iter() {
        top = s.max(top, s.load(x));
    }
    // Adding zero leaves one zero of the two.
    let m = s.largest(top) * std::f32::consts::LOG2_E + 0.0;
    let base = s.splat(if m == f32::NEG_INFINITY { 0.0 } else { -m });
    let mut sum = s.splat(0.0);
    for x in scores {
        let shifted = s.fma(s.load(x), s.splat(std::f32::consts::LOG2_E), base);
        let p = exp2_falling(s, shifted);
        s.store(p, x);
        sum = s.add(sum, p);
    }
    [m, s.sum(sum)]
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
