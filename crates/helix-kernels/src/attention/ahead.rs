//! What memory is asked for while a chunk is worked on, so that it never rests.
//!
//! Lines come from memory at an even rate, and no faster after a pause. So they are asked for
//! evenly over a chunk's work: scores, probabilities (which read no memory at all) and values, and
//! over all tiles of rows that go through the chunk one after another. How much is asked for does
//! not depend on what a chunk's rows see.

use super::CHUNK_TOKENS;
use super::element::Element;
use crate::arch::lanes::{LANES, Lanes};
use crate::kv::KvView;

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

/// Behind all memory.
const NOWHERE: *const u8 = std::ptr::without_provenance(usize::MAX);

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
        // Behind the last page comes nothing: what is here already is asked for again.
        let next = kv.table.get(index + 1).map_or(here, |_| kv.page(index + 1));
        let share = here.len() / tiles;
        // The first tile reads all of the page.
        let at = (here.len() - share + LEAD).next_multiple_of(LINE);
        let vectors = CHUNK_TOKENS * kv.shape.padded_dims() / LANES;
        Ahead { here, next, at, share, vectors }
    }

    /// For a tile's work of so many steps on `vectors` of keys, or of values, each.
    #[inline(always)]
    pub(super) fn products<E: Element>(
        &mut self,
        rows: usize,
        steps: usize,
        vectors: usize,
    ) -> Asks {
        let left = self.share - self.per_row(rows) * rows;
        let bytes = left / 2 * (steps * vectors) / self.vectors;
        self.take(bytes, steps, (vectors * E::MEMORY).div_ceil(LINE))
    }

    /// For the probabilities of one of a tile's rows: a step is a vector.
    #[inline(always)]
    pub(super) fn probabilities(&mut self, rows: usize) -> Asks {
        self.take(self.per_row(rows), CHUNK_TOKENS / LANES, LINES_PER_VECTOR)
    }

    /// Bytes for the probabilities of one of a tile's rows; for all of them, half a page at most.
    fn per_row(&self, rows: usize) -> usize {
        (CHUNK_TOKENS / LANES * LINES_PER_VECTOR * LINE).min(self.share / (2 * rows))
    }

    /// The next `bytes`, or a little more, over so many steps, so many `lines` at a time.
    #[inline(always)]
    fn take(&mut self, bytes: usize, steps: usize, lines: usize) -> Asks {
        let every = steps / bytes.div_ceil(lines * LINE).clamp(1, steps.max(1));
        let (here, next) = (self.here.as_ptr_range(), self.next.as_ptr());
        let (at, end) = match self.at.checked_sub(self.here.len()) {
            None => (here.start.wrapping_add(self.at), here.end),
            Some(at) => (next.wrapping_add(at), NOWHERE),
        };
        self.at += steps / every.max(1) * lines * LINE;
        Asks { at, end, next, lines, every, wait: 0 }
    }
}

/// Fetches what is read [`NEAR`] bytes behind some that are read together.
#[inline(always)]
pub(super) fn fetch_near<S: Lanes, T, const N: usize>(s: S, read: &[T; N]) {
    let at = read.as_ptr().cast::<u8>().wrapping_add(NEAR);
    for line in (0..size_of::<[T; N]>()).step_by(LINE) {
        s.prefetch_near(at.wrapping_add(line));
    }
}

/// All of the next page, little by little over a chunk's work: where every tile of rows goes through
/// the whole chunk several times, it is long in the second-level cache by then.
pub(super) struct NextPage<'a> {
    bytes: &'a [u8],
    /// Bytes that are asked for, and those that should be: in 256ths.
    at: usize,
    due: usize,
    /// For a unit of the chunk's work, in 256ths of bytes.
    unit: usize,
}

impl<'a> NextPage<'a> {
    /// While page `index` is worked on, which is so many units of work.
    pub(super) fn new(kv: &KvView<'a>, index: usize, units: usize) -> NextPage<'a> {
        let bytes = kv.table.get(index + 1).map_or(&[][..], |_| kv.page(index + 1));
        NextPage { bytes, at: 0, due: 0, unit: (256 * bytes.len()).div_ceil(units) }
    }

    /// Before so many units of work.
    #[inline(always)]
    pub(super) fn ask<S: Lanes>(&mut self, s: S, units: usize) {
        self.due += units * self.unit;
        let end = self.bytes.len().min(self.due / 256);
        while self.at < end {
            s.prefetch(self.bytes.as_ptr().wrapping_add(self.at));
            self.at += LINE;
        }
    }
}

/// Lines to ask for, some every so many steps.
pub(super) struct Asks {
    at: *const u8,
    /// Where the page that is worked on ends, and the next one starts, which is not left.
    end: *const u8,
    next: *const u8,
    lines: usize,
    every: usize,
    wait: usize,
}

impl Asks {
    /// Before each step.
    #[inline(always)]
    pub(super) fn step<S: Lanes>(&mut self, s: S) {
        if self.wait > 0 {
            self.wait -= 1;
            return;
        }
        self.wait = self.every - 1;
        if self.at >= self.end {
            (self.at, self.end) = (self.next, NOWHERE);
        }
        for line in 0..self.lines {
            s.prefetch(self.at.wrapping_add(line * LINE));
        }
        self.at = self.at.wrapping_add(self.lines * LINE);
    }
}
