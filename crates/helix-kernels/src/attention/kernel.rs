//! The arithmetic of [`attend`](super::attend) and [`fold`](super::fold), for any instruction set.
//!
//! A tile of query rows goes through the chunk three times: keys give scores, scores give
//! probabilities, probabilities weigh values. While keys are read the values of the same pages are
//! fetched, and while values are read the keys of the next chunk, so that memory is never idle.

// Register tiles are arrays: an index names the same row or page in several of them.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::element::{BF16, Element, F16, F32, Q8_0};
use super::{CHUNK_PAGES, CHUNK_TOKENS, Scratch, TILE_ROWS, state_len};
use crate::arch::lanes::{Kernel, LANES, Lanes, Line, exp2_falling};
use crate::kv::{KvType, KvView, PAGE_TOKENS};

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
    /// Cuts the rows in tiles that fit the registers.
    #[inline(always)]
    fn tiles<S: Lanes, E: Element>(self, s: S) {
        let head_dim = self.kv.shape.head_dim();
        let mut limits = self.limits;
        let mut q = self.q.chunks_exact(head_dim);
        let mut states = self.state.chunks_exact_mut(state_len(head_dim));
        while !limits.is_empty() {
            let rows = tile_rows::<S>(limits.len());
            let mut tile = Tile {
                kv: self.kv,
                range: self.range.clone(),
                seen: [0; TILE_ROWS],
                scores: &mut self.scratch.scores,
                q: &mut self.scratch.q,
            };
            for (row, limit) in limits[..rows].iter().enumerate() {
                tile.seen[row] =
                    (*limit as usize).min(tile.range.end).saturating_sub(tile.range.start);
                let q = q.next().expect("as many queries as limits");
                tile.load_query(row, q);
            }
            if S::ROWS == 6 {
                match rows {
                    1 => tile.attend::<S, E, 1, 4, 4>(s, &mut states),
                    2 => tile.attend::<S, E, 2, 4, 4>(s, &mut states),
                    3 => tile.attend::<S, E, 3, 4, 4>(s, &mut states),
                    4 => tile.attend::<S, E, 4, 4, 4>(s, &mut states),
                    _ => tile.attend::<S, E, 6, 4, 4>(s, &mut states),
                }
            } else if S::ROWS == 3 {
                match rows {
                    1 => tile.attend::<S, E, 1, 4, 4>(s, &mut states),
                    2 => tile.attend::<S, E, 2, 2, 2>(s, &mut states),
                    _ => tile.attend::<S, E, 3, 2, 2>(s, &mut states),
                }
            } else {
                tile.attend::<S, E, 1, 1, 1>(s, &mut states);
            }
            limits = &limits[rows..];
        }
    }
}

/// Rows of the next tile when `left` are left: as even a cut as the tiles allow.
#[inline(always)]
fn tile_rows<S: Lanes>(left: usize) -> usize {
    match left {
        5 if S::ROWS == 6 => 3,
        7 | 8 if S::ROWS == 6 => 4,
        _ => left.min(S::ROWS),
    }
}

/// Some query rows against one chunk.
struct Tile<'a> {
    kv: &'a KvView<'a>,
    range: Range<usize>,
    /// How many of the chunk's tokens each row sees.
    seen: [usize; TILE_ROWS],
    scores: &'a mut [[Line; CHUNK_PAGES]; TILE_ROWS],
    q: &'a mut [f32],
}

impl Tile<'_> {
    /// Copies a row's query, in base 2.
    #[inline(always)]
    fn load_query(&mut self, row: usize, q: &[f32]) {
        for (to, q) in self.q[row * q.len()..][..q.len()].iter_mut().zip(q) {
            *to = q * std::f32::consts::LOG2_E;
        }
    }

    /// `R` rows, `P` pages of keys and `N` vectors of values at a time.
    #[inline(always)]
    fn attend<'s, S: Lanes, E: Element, const R: usize, const P: usize, const N: usize>(
        &mut self,
        s: S,
        states: &mut impl Iterator<Item = &'s mut [f32]>,
    ) {
        let head_dim = self.kv.shape.head_dim();
        let mut states: [&mut [f32]; R] = std::array::from_fn(|_| states.next().expect("state"));
        let most = self.seen[..R].iter().copied().max().unwrap_or(0);
        let pages = most.div_ceil(PAGE_TOKENS);
        for page in (0..pages / P).map(|group| group * P) {
            self.scores::<S, E, R, P>(s, page);
        }
        for page in pages - pages % P..pages {
            self.scores::<S, E, R, 1>(s, page);
        }
        for row in 0..R {
            let (m, l) = probabilities(s, &mut self.scores[row], self.seen[row]);
            states[row][head_dim] = m;
            states[row][head_dim + 1] = l;
        }
        let vectors = self.kv.shape.padded_dims() / LANES;
        for at in (0..vectors / N).map(|group| group * N) {
            self.outputs::<S, E, R, N>(s, at, &mut states);
        }
        for at in vectors - vectors % N..vectors {
            self.outputs::<S, E, R, 1>(s, at, &mut states);
        }
    }

    /// Scores of `R` rows and `P` pages, from `page` of the chunk on.
    #[inline(always)]
    fn scores<S: Lanes, E: Element, const R: usize, const P: usize>(&mut self, s: S, page: usize) {
        let dims = self.kv.shape.head_dim();
        let parts = self.kv.shape.parts();
        let first = self.range.start / PAGE_TOKENS + page;
        let q: [&[f32]; R] = std::array::from_fn(|r| &self.q[r * dims..][..dims]);
        let pages: [&[u8]; P] = std::array::from_fn(|p| self.kv.page(first + p));
        let keys: [&[E::Row]; P] =
            std::array::from_fn(|p| &E::rows(&pages[p][parts.keys.clone()])[..dims]);
        let values: [&[u8]; P] = std::array::from_fn(|p| &pages[p][parts.values.clone()]);
        let mut acc = [[s.splat(0.0); P]; R];
        let mut start = 0;
        while start < dims {
            let end = if E::SCALE_DIMS == 0 { dims } else { dims.min(start + E::SCALE_DIMS) };
            let mut scales = [s.splat(1.0); P];
            if E::SCALE_DIMS != 0 {
                for p in 0..P {
                    let scale = &pages[p][parts.key_scales.clone()];
                    let (scale, _) = scale.as_chunks::<{ 2 * LANES }>();
                    scales[p] = s.load_f16(&scale[start / E::SCALE_DIMS]);
                }
            }
            for d in start..end {
                if d % E::ROWS_PER_LINE == 0 {
                    for p in 0..P {
                        s.prefetch(&values[p][d * size_of::<E::Row>()]);
                    }
                }
                let mut k = [s.splat(0.0); P];
                for p in 0..P {
                    k[p] = E::load(s, &keys[p][d]);
                    if E::SCALE_DIMS != 0 {
                        k[p] = s.mul(k[p], scales[p]);
                    }
                }
                for r in 0..R {
                    let q = s.splat(q[r][d]);
                    for p in 0..P {
                        acc[r][p] = s.fma(q, k[p], acc[r][p]);
                    }
                }
            }
            start = end;
        }
        for r in 0..R {
            for p in 0..P {
                s.store(acc[r][p], &mut self.scores[r][page + p].0);
            }
        }
    }

    /// Outputs of `R` rows and `16·N` dimensions, from vector `at` on, to their states.
    #[inline(always)]
    fn outputs<S: Lanes, E: Element, const R: usize, const N: usize>(
        &mut self,
        s: S,
        at: usize,
        states: &mut [&mut [f32]; R],
    ) {
        let mut acc = [[s.splat(0.0); N]; R];
        // Together as far as all rows see; then each by itself, so that none reads past its limit.
        let least = self.seen[..R].iter().copied().min().unwrap_or(0);
        self.weigh::<S, E, R, N>(s, at, 0, 0..least, &mut acc);
        let head_dim = self.kv.shape.head_dim();
        for r in 0..R {
            for n in 0..N {
                let mut rest = [[acc[r][n]]];
                self.weigh::<S, E, 1, 1>(s, at + n, r, least..self.seen[r], &mut rest);
                let [[acc]] = rest;
                let start = (at + n) * LANES;
                let out = &mut states[r][start..head_dim.min(start + LANES)];
                match out.try_into() {
                    Ok(out) => s.store(acc, out),
                    Err(_) => {
                        let mut whole = [0.0; LANES];
                        s.store(acc, &mut whole);
                        out.copy_from_slice(&whole[..out.len()]);
                    }
                }
            }
        }
    }

    /// Adds probability times value for the chunk's `tokens`, in order; rows from `row` on.
    #[inline(always)]
    fn weigh<S: Lanes, E: Element, const R: usize, const N: usize>(
        &self,
        s: S,
        at: usize,
        row: usize,
        tokens: Range<usize>,
        acc: &mut [[S::F; N]; R],
    ) {
        let shape = self.kv.shape;
        let parts = shape.parts();
        let vectors = shape.padded_dims() / LANES;
        let first = self.range.start / PAGE_TOKENS;
        let mut token = tokens.start;
        while token < tokens.end {
            let index = token / PAGE_TOKENS;
            let slots = token % PAGE_TOKENS..PAGE_TOKENS.min(tokens.end - index * PAGE_TOKENS);
            let page = self.kv.page(first + index);
            let ahead = first + index + CHUNK_PAGES;
            let next = if ahead < self.kv.table.len() { self.kv.page(ahead) } else { page };
            let values = E::rows(&page[parts.values.clone()]);
            let (scales, _) = page[parts.value_scales.clone()].as_chunks::<2>();
            for slot in slots.clone() {
                let value = &values[slot * vectors..][..vectors];
                let value = value[at..].first_chunk::<N>().expect("a whole tile");
                for n in 0..N {
                    if n % E::ROWS_PER_LINE == 0 {
                        let line = (slot * vectors + at + n) * size_of::<E::Row>();
                        s.prefetch(&next[line.min(parts.keys.end - 1)]);
                    }
                }
                let mut p = [s.splat(0.0); R];
                for r in 0..R {
                    p[r] = s.splat(self.scores[row + r][index].0[slot]);
                }
                for n in 0..N {
                    let mut v = E::load(s, &value[n]);
                    if E::SCALE_DIMS != 0 {
                        let scale =
                            scales[slot * shape.blocks() + (at + n) * LANES / E::SCALE_DIMS];
                        v = s.mul(v, s.splat(half::f16::from_le_bytes(scale).to_f32()));
                    }
                    for r in 0..R {
                        acc[r][n] = s.fma(p[r], v, acc[r][n]);
                    }
                }
            }
            token = index * PAGE_TOKENS + slots.end;
        }
    }
}

/// Turns the first `seen` scores of a row to probabilities, the rest of the last vector to zeros;
/// gives the largest score and the sum.
#[inline(always)]
fn probabilities<S: Lanes>(s: S, scores: &mut [Line; CHUNK_PAGES], seen: usize) -> (f32, f32) {
    debug_assert!(seen <= CHUNK_TOKENS);
    if seen == 0 {
        return (f32::NEG_INFINITY, 0.0);
    }
    let nothing = s.splat(f32::NEG_INFINITY);
    let lines = &mut scores[..seen.div_ceil(LANES)];
    let tail = seen - (lines.len() - 1) * LANES;
    if let Some(last) = lines.last_mut() {
        let x = s.first(tail, s.load(&last.0), nothing);
        s.store(x, &mut last.0);
    }
    let mut top = nothing;
    for line in lines.iter() {
        top = s.max(top, s.load(&line.0));
    }
    // Adding zero leaves one zero of the two.
    let m = s.largest(top) + 0.0;
    let base = s.splat(if m == f32::NEG_INFINITY { 0.0 } else { m });
    let mut sum = s.splat(0.0);
    for line in lines {
        let p = exp2_falling(s, s.sub(s.load(&line.0), base));
        s.store(p, &mut line.0);
        sum = s.add(sum, p);
    }
    (m, s.sum(sum))
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
        let (acc, acc_rest) = acc.as_chunks_mut::<LANES>();
        let (part, part_rest) = part.as_chunks::<LANES>();
        for (acc, part) in acc.iter_mut().zip(part) {
            let scaled = s.mul(s.splat(old), s.load(acc));
            s.store(s.fma(s.splat(new), s.load(part), scaled), acc);
        }
        for (acc, part) in acc_rest.iter_mut().zip(part_rest) {
            *acc = new.mul_add(*part, old * *acc);
        }
    }
}
