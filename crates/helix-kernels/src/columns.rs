//! How the threads of a team share one output without locks: a counter gives each tile out once.
//!
//! One of the crate's two homes of `unsafe`: disjointness is proved here, so that callers stay safe.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Elements borrowed exclusively from `&'a mut [T]`, to be given out in disjoint parts.
struct Borrowed<'a, T> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Borrowed` stands for an exclusive borrow of `[T]`. Every part of it is given out to
// at most one thread (see each caller), which is sending a `&mut [T]`: sound for `T: Send`.
unsafe impl<T: Send> Send for Borrowed<'_, T> {}
// SAFETY: as above; through a shared `Borrowed` a thread gets only parts that no other has.
unsafe impl<T: Send> Sync for Borrowed<'_, T> {}

impl<'a, T> Borrowed<'a, T> {
    fn new(all: &'a mut [T]) -> Self {
        Borrowed { start: all.as_mut_ptr(), len: all.len(), owner: PhantomData }
    }

    /// # Safety
    /// No part that overlaps `range` may be given out while the result lives.
    unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part outside the whole");
        // SAFETY: inside the borrowed slice by the assertion; not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// `&mut [f32]` of shape `[tokens, row_len]`, given out as tiles of columns.
///
/// Any thread may ask for the [`next`](SharedColumns::next) tile; each is given out once.
pub struct SharedColumns<'a> {
    out: Borrowed<'a, f32>,
    tokens: usize,
    row_len: usize,
    tile: usize,
    cuts: &'a [usize],
    taken: AtomicUsize,
}

impl<'a> SharedColumns<'a> {
    /// Tiles of `tile` columns, from column 0; the last may be narrower.
    ///
    /// # Panics
    /// When `out` is not a whole number of rows, or `tile` is 0.
    pub fn new(out: &'a mut [f32], row_len: usize, tile: usize) -> Self {
        Self::with_cuts(out, row_len, tile, &[])
    }

    /// As [`new`](SharedColumns::new), but tiling starts anew at each of `cuts`, so that no tile
    /// crosses one: for an output whose columns come from several matrices.
    ///
    /// # Panics
    /// As `new`; and when `cuts` do not ascend or one is past `row_len`.
    pub fn with_cuts(out: &'a mut [f32], row_len: usize, tile: usize, cuts: &'a [usize]) -> Self {
        assert!(tile > 0, "tiles of no columns");
        let tokens = out.len().checked_div(row_len).unwrap_or(0);
        assert_eq!(tokens * row_len, out.len(), "output is not whole rows of {row_len}");
        assert!(cuts.is_sorted(), "cuts do not ascend: {cuts:?}");
        assert!(cuts.last().is_none_or(|&c| c <= row_len), "cut past {row_len}: {cuts:?}");
        let out = Borrowed::new(out);
        SharedColumns { out, tokens, row_len, tile, cuts, taken: AtomicUsize::new(0) }
    }

    /// A tile that nobody has had, or `None` when all are given out.
    pub fn next(&self) -> Option<Columns<'_>> {
        let mut index = self.taken.fetch_add(1, Ordering::Relaxed);
        let mut start = 0;
        for end in self.cuts.iter().copied().chain([self.row_len]) {
            let tiles = (end - start).div_ceil(self.tile);
            if index < tiles {
                let first = start + index * self.tile;
                let range = first..end.min(first + self.tile);
                return Some(Columns { shared: self, range });
            }
            index -= tiles;
            start = end;
        }
        None
    }
}

/// Some columns of every row of an output, exclusively.
pub struct Columns<'a> {
    shared: &'a SharedColumns<'a>,
    range: Range<usize>,
}

impl Columns<'_> {
    /// Which columns these are.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Rows of the output.
    pub fn tokens(&self) -> usize {
        self.shared.tokens
    }

    /// These columns of row `token`.
    ///
    /// # Panics
    /// When there is no such row.
    #[inline]
    pub fn row(&mut self, token: usize) -> &mut [f32] {
        assert!(token < self.shared.tokens, "row {token} of {}", self.shared.tokens);
        let start = token * self.shared.row_len;
        // SAFETY: `taken` gives every tile out once and tiles do not overlap, so these columns are
        // reached only through this `Columns`, which is borrowed mutably while the row lives.
        unsafe { self.shared.out.part(start + self.range.start..start + self.range.end) }
    }
}

/// `&mut [T]` given out as chunks of equal length, each once, to any thread.
pub struct SharedRows<'a, T> {
    all: Borrowed<'a, T>,
    chunk: usize,
    taken: AtomicUsize,
}

impl<'a, T> SharedRows<'a, T> {
    /// Chunks of `chunk` elements; the last may be shorter.
    ///
    /// # Panics
    /// When `chunk` is 0.
    pub fn new(all: &'a mut [T], chunk: usize) -> Self {
        assert!(chunk > 0, "chunks of nothing");
        SharedRows { all: Borrowed::new(all), chunk, taken: AtomicUsize::new(0) }
    }

    /// A chunk that nobody has had, with its index, or `None` when all are given out.
    pub fn next(&self) -> Option<(usize, &'a mut [T])> {
        let index = self.taken.fetch_add(1, Ordering::Relaxed);
        let start = index.checked_mul(self.chunk).filter(|&start| start < self.all.len)?;
        // SAFETY: `taken` gives every index out once, and chunks of two indices do not overlap.
        Some((index, unsafe { self.all.part(start..self.all.len.min(start + self.chunk)) }))
    }
}

/// `&mut [T]` given out in parts of any length, each once, to any thread.
pub struct SharedParts<'a, T> {
    all: Borrowed<'a, T>,
    ends: &'a [usize],
    taken: AtomicUsize,
}

impl<'a, T> SharedParts<'a, T> {
    /// Part `i` ends before element `ends[i]`, where part `i + 1` starts.
    ///
    /// # Panics
    /// When `ends` do not ascend, or one is past the end.
    pub fn new(all: &'a mut [T], ends: &'a [usize]) -> Self {
        assert!(ends.is_sorted(), "ends do not ascend");
        assert!(ends.last().is_none_or(|&end| end <= all.len()), "an end past {}", all.len());
        SharedParts { all: Borrowed::new(all), ends, taken: AtomicUsize::new(0) }
    }

    /// As [`new`](SharedParts::new), but only `parts` of them are given out.
    ///
    /// # Panics
    /// As `new`; and when there are fewer.
    pub fn some(all: &'a mut [T], ends: &'a [usize], parts: Range<usize>) -> Self {
        let mut some = SharedParts::new(all, &ends[..parts.end]);
        some.taken = AtomicUsize::new(parts.start);
        some
    }

    /// A part that nobody has had, with its index, or `None` when all are given out.
    pub fn next(&self) -> Option<(usize, &'a mut [T])> {
        let index = self.taken.fetch_add(1, Ordering::Relaxed);
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        // SAFETY: `taken` gives every index out once, and parts of two indices do not overlap,
        // for their ends ascend.
        Some((index, unsafe { self.all.part(start..end) }))
    }
}

/// `&mut [T]` given out in parts of any length, each once: every thread has a region of its own, whose
/// parts it takes in ascending order, and then helps with the others'.
pub struct SharedRegions<'a, T> {
    all: Borrowed<'a, T>,
    ends: &'a [usize],
    taken: &'a [AtomicUsize],
}

impl<'a, T> SharedRegions<'a, T> {
    /// Part `i` ends before element `ends[i]`, where part `i + 1` starts; a region for each counter
    /// in `taken`, whatever they hold, and as many parts in one region as in another.
    ///
    /// # Panics
    /// When `ends` do not ascend, are not as many for each region, or one is past the end.
    pub fn new(all: &'a mut [T], ends: &'a [usize], taken: &'a mut [AtomicUsize]) -> Self {
        assert!(ends.is_sorted(), "ends do not ascend");
        assert!(ends.last().is_none_or(|&end| end <= all.len()), "an end past {}", all.len());
        assert_eq!(ends.len().checked_rem(taken.len()), Some(0), "regions of different sizes");
        taken.iter_mut().for_each(|taken| *taken.get_mut() = 0);
        SharedRegions { all: Borrowed::new(all), ends, taken }
    }

    /// A part that nobody has had, with its index, or `None` when all are given out; of region
    /// `thread`, if it has one.
    pub fn next(&self, thread: usize) -> Option<(usize, &'a mut [T])> {
        let parts = self.ends.len() / self.taken.len();
        for region in (thread..self.taken.len()).chain(0..thread.min(self.taken.len())) {
            let part = self.taken[region].fetch_add(1, Ordering::Relaxed);
            if part < parts {
                let index = region * parts + part;
                let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
                // SAFETY: a region's counter gives every part of it out once, and parts of two
                // indices do not overlap, for their ends ascend.
                return Some((index, unsafe { self.all.part(start..self.ends[index]) }));
            }
        }
        None
    }
}

/// Two slices given out together: rows of `lens.0` and `lens.1` elements under one index.
pub(crate) struct SharedPairs<'a, A, B> {
    first: Borrowed<'a, A>,
    second: Borrowed<'a, B>,
    lens: (usize, usize),
    rows: usize,
    taken: AtomicUsize,
}

impl<'a, A, B> SharedPairs<'a, A, B> {
    /// `rows` rows of each, which must be exactly as long as that.
    pub fn new(first: &'a mut [A], second: &'a mut [B], rows: usize, lens: (usize, usize)) -> Self {
        assert_eq!(Some(first.len()), rows.checked_mul(lens.0), "first of the pair");
        assert_eq!(Some(second.len()), rows.checked_mul(lens.1), "second of the pair");
        let (first, second) = (Borrowed::new(first), Borrowed::new(second));
        SharedPairs { first, second, lens, rows, taken: AtomicUsize::new(0) }
    }

    /// A row that nobody has had, with its index, or `None` when all are given out.
    pub fn next(&self) -> Option<(usize, &'a mut [A], &'a mut [B])> {
        let row = self.taken.fetch_add(1, Ordering::Relaxed);
        if row >= self.rows {
            return None;
        }
        let (a, b) = self.lens;
        // SAFETY: `taken` gives every row out once, and two rows do not overlap.
        unsafe {
            let first = self.first.part(row * a..(row + 1) * a);
            Some((row, first, self.second.part(row * b..(row + 1) * b)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_is_given_out_once_and_no_tile_crosses_a_cut() {
        for tokens in [0, 1, 3] {
            for row_len in [0, 1, 15, 16, 17, 100] {
                for cuts in [&[][..], &[0], &[row_len / 3, row_len / 2], &[row_len]] {
                    let mut out = vec![0.0; tokens * row_len];
                    let shared = SharedColumns::with_cuts(&mut out, row_len, 16, cuts);
                    let mut seen = 0;
                    while let Some(mut columns) = shared.next() {
                        let range = columns.range();
                        assert_eq!(range.start, seen);
                        assert!(!range.is_empty() && range.len() <= 16);
                        assert!(!cuts.iter().any(|c| range.start < *c && *c < range.end));
                        seen = range.end;
                        for t in 0..columns.tokens() {
                            columns.row(t).iter_mut().for_each(|v| *v += 1.0);
                        }
                    }
                    assert_eq!(seen, row_len);
                    assert!(shared.next().is_none());
                    assert!(out.iter().all(|v| *v == 1.0));
                }
            }
        }
    }

    #[test]
    fn threads_share_chunks() {
        let mut all = vec![0usize; 1001];
        let shared = SharedRows::new(&mut all, 10);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    while let Some((index, chunk)) = shared.next() {
                        chunk.iter_mut().for_each(|v| *v += index + 1);
                    }
                });
            }
        });
        assert!(all.iter().enumerate().all(|(i, v)| *v == i / 10 + 1));
    }

    #[test]
    fn parts_of_any_length_tile_the_whole() {
        let mut all = vec![0usize; 10];
        let ends = [3, 3, 4, 9];
        let shared = SharedParts::new(&mut all, &ends);
        while let Some((index, part)) = shared.next() {
            part.iter_mut().for_each(|v| *v += index + 1);
        }
        assert_eq!(all, [1, 1, 1, 3, 4, 4, 4, 4, 4, 0]);
        let shared = SharedParts::some(&mut all, &ends, 2..3);
        assert!(matches!(shared.next(), Some((2, [3]))));
        assert!(shared.next().is_none());
    }

    #[test]
    fn a_thread_takes_its_region_in_order_and_then_helps_the_others() {
        let mut all = vec![0usize; 10];
        let ends = [2, 3, 5, 6, 6, 9];
        let mut taken = [const { AtomicUsize::new(7) }; 3];
        let shared = SharedRegions::new(&mut all, &ends, &mut taken);
        let mut order = Vec::new();
        for thread in [1, 1, 0, 2, 1, 1, 1] {
            order.extend(shared.next(thread).map(|(index, part)| {
                part.iter_mut().for_each(|v| *v += index + 1);
                index
            }));
        }
        assert_eq!(order, [2, 3, 0, 4, 5, 1]);
        assert_eq!(all, [1, 1, 2, 3, 3, 4, 6, 6, 6, 0]);
    }

    #[test]
    fn pairs_come_together() {
        let (mut a, mut b) = (vec![0; 12], vec![0.0; 20]);
        let shared = SharedPairs::new(&mut a, &mut b, 4, (3, 5));
        while let Some((row, a, b)) = shared.next() {
            assert_eq!((a.len(), b.len()), (3, 5));
            a.fill(row + 1);
            b.fill(row as f32 + 1.0);
        }
        assert!(a.iter().enumerate().all(|(i, v)| *v == i / 3 + 1));
        assert!(b.iter().enumerate().all(|(i, v)| *v == (i / 5 + 1) as f32));
    }
}
