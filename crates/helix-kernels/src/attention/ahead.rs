//! What memory is asked for while a chunk is worked on, so that it never rests.
//!
//! Lines come from memory at an even rate, and no faster after a pause. So they are asked for
//! evenly over a chunk's work: scores, probabilities (which read no memory at all) and values, and
//! over all tiles of rows that go through the chunk one after another. How much is asked for does
//! not depend on what a chunk's rows see.

use std::slice::{ChunksExact, Iter};

use super::CHUNK_TOKENS;
use super::element::Element;
use crate::arch::lanes::{LANES, Lanes};
use crate::kv::{BLOCK_TOKENS, KvView};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Bytes between what is asked for and what is read. 8 KiB measured best of 4 to 32 on Sapphire
/// Rapids, into the second-level cache.
const LEAD: usize = 8 << 10;

/// Bytes between what is read and what is fetched into the first-level cache, where it has come to
/// the second: a read that goes to the second waits behind what comes from memory. 2 KiB measured
/// best of 1/4 to 3.
const NEAR: usize = 2 << 10;

/// Lines asked for while 16 probabilities are computed.
const LINES_PER_VECTOR: usize = 1;

/// Vectors that are asked for together: a row of a block's keys, or of a tile of values.
const ROW_VECTORS: usize = BLOCK_TOKENS / LANES;

/// A chunk's page and the next one, as one run of bytes, and where asking has come to.
pub(super) struct Ahead<'a> {
    here: &'a [u8],
    next: &'a [u8],
    at: usize,
    /// What each tile of rows asks for, in bytes.
    share: usize,
    /// Vectors of keys that a page holds, and as many of values.
    vectors: usize,
}

impl<'a> Ahead<'a> {
    /// Before so many tiles of rows go through page `index`.
    #[inline(always)]
    pub(super) fn new(kv: &KvView<'a>, index: usize, tiles: usize) -> Ahead<'a> {
        let here = kv.page(index);
        let next = kv.table.get(index + 1).map_or(&[][..], |_| kv.page(index + 1));
        let share = here.len() / tiles;
        // The first tile reads all of the page.
        let at = (here.len() - share + LEAD).next_multiple_of(LINE);
        let vectors = CHUNK_TOKENS * kv.shape.padded_dims() / LANES;
        Ahead { here, next, at, share, vectors }
    }

    /// For a tile's work of so many steps on `vectors` of keys, or of values, each; what they read
    /// starts at byte `from` of the page, `stride` vectors for each step.
    #[inline(always)]
    pub(super) fn products<E: Element>(
        &mut self,
        rows: usize,
        (steps, vectors): (usize, usize),
        (from, stride): (usize, usize),
    ) -> Asks<'a, E> {
        let left = self.share - self.per_row(rows) * rows;
        let mut asks = self.take(left / 2 * (steps * vectors) / self.vectors, steps);
        asks.near = E::rows(self.here.get(from + NEAR..).unwrap_or(&[])).chunks_exact(stride);
        asks.reads = vectors;
        asks
    }

    /// For the probabilities of one of a tile's rows: a step is a vector.
    #[inline(always)]
    pub(super) fn probabilities<E: Element>(&mut self, rows: usize) -> Asks<'a, E> {
        self.take(self.per_row(rows), CHUNK_TOKENS / LANES)
    }

    /// Bytes for the probabilities of one of a tile's rows; for all of them, half a page at most.
    fn per_row(&self, rows: usize) -> usize {
        (CHUNK_TOKENS / LANES * LINES_PER_VECTOR * LINE).min(self.share / (2 * rows))
    }

    /// The next `bytes`, or a little more, over so many steps.
    #[inline(always)]
    fn take<E: Element>(&mut self, bytes: usize, steps: usize) -> Asks<'a, E> {
        let rows = bytes.div_ceil(ROW_VECTORS * size_of::<E::Row>());
        let (from, here) = (self.at, self.here.len());
        self.at += rows * ROW_VECTORS * size_of::<E::Row>();
        let part = |page: &'a [u8], from: usize, to: usize| {
            let part = &page[from.min(page.len())..to.min(page.len())];
            E::rows(part).as_chunks().0.iter()
        };
        Asks {
            here: part(self.here, from, self.at),
            next: part(self.next, from.saturating_sub(here), self.at.saturating_sub(here)),
            near: [].chunks_exact(1),
            reads: 0,
            every: steps / rows.clamp(1, steps.max(1)),
            wait: 0,
        }
    }
}

/// All of the next page, little by little over a chunk's work: where every tile of rows goes through
/// the whole chunk several times, it is long in the second-level cache by then.
pub(super) struct NextPage<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bytes at a time.
    step: usize,
}

impl<'a> NextPage<'a> {
    /// While page `index` is worked on, so many times.
    pub(super) fn new(kv: &KvView<'a>, index: usize, times: usize) -> NextPage<'a> {
        let bytes = kv.table.get(index + 1).map_or(&[][..], |_| kv.page(index + 1));
        NextPage { bytes, at: 0, step: bytes.len().div_ceil(times) }
    }

    #[inline(always)]
    pub(super) fn ask<S: Lanes>(&mut self, s: S) {
        let end = self.bytes.len().min(self.at + self.step);
        for line in (self.at.next_multiple_of(LINE)..end).step_by(LINE) {
            s.prefetch(&self.bytes[line]);
        }
        self.at = end;
    }
}

/// Rows to ask for, one every so many steps.
pub(super) struct Asks<'a, E: Element> {
    here: Iter<'a, [E::Row; ROW_VECTORS]>,
    next: Iter<'a, [E::Row; ROW_VECTORS]>,
    /// What is read soon, step by step.
    near: ChunksExact<'a, E::Row>,
    /// Vectors of those that are.
    reads: usize,
    every: usize,
    wait: usize,
}

impl<E: Element> Asks<'_, E> {
    /// Before each step.
    #[inline(always)]
    pub(super) fn step<S: Lanes>(&mut self, s: S) {
        if let Some(row) = self.near.next() {
            for vector in (0..self.reads).step_by(E::ROWS_PER_LINE) {
                s.prefetch_near(&row[vector]);
            }
        }
        if self.wait > 0 {
            self.wait -= 1;
            return;
        }
        self.wait = self.every - 1;
        if let Some(row) = self.here.next().or_else(|| self.next.next()) {
            for vector in (0..ROW_VECTORS).step_by(E::ROWS_PER_LINE) {
                s.prefetch(&row[vector]);
            }
        }
    }
}
