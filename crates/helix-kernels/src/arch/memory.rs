//! Memory that is streamed through: cache-line aligned, in huge pages where the system lends them.
//!
//! Reading through 4 KB pages costs a third of the bandwidth on some machines; a model's matrices
//! are often smaller than a huge page, and so share them.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use thiserror::Error;

use super::lanes::{Kernel, LANES, Lanes, dispatch};

/// Buffers start at a multiple of this: a cache line, and the widest vector.
const ALIGN: usize = 64;
/// What the processor maps with one entry when it can: 2 MB on x86-64, and on Arm with 4 KB pages.
const HUGE_PAGE: usize = 2 << 20;
/// Buffers up to this size share it. Pages that nobody touches take no memory.
const SLAB: usize = 32 << 20;

/// The system refused memory.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the system refused {bytes} bytes of memory")]
pub struct OutOfMemory {
    /// How much was asked for.
    pub bytes: usize,
}

/// Bytes, zero at first, that are to be streamed through: weights and KV pages.
///
/// Untouched pages take no memory. Buffers that one thread makes lie one after the other.
pub struct Buffer {
    pages: Arc<Pages>,
    range: Range<usize>,
}

thread_local! {
    /// Where this thread's next buffer goes: pages, and how many of their bytes are taken.
    static CURRENT: RefCell<Option<(Arc<Pages>, usize)>> = const { RefCell::new(None) };
}

impl Buffer {
    /// `len` bytes of zeros.
    ///
    /// # Errors
    /// When the system refuses them.
    pub fn zeroed(len: usize) -> Result<Buffer, OutOfMemory> {
        if len > SLAB {
            return Ok(Buffer { pages: Arc::new(Pages::map(len)?), range: 0..len });
        }
        CURRENT.with_borrow_mut(|current| {
            let (pages, start) = match current.take() {
                Some((pages, taken)) if len <= SLAB - taken => (pages, taken),
                _ => (Arc::new(Pages::map(SLAB)?), 0),
            };
            let end = start + len;
            *current = Some((Arc::clone(&pages), end.next_multiple_of(ALIGN)));
            Ok(Buffer { pages, range: start..end })
        })
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `range` lies inside the pages, and was given to this buffer alone: `zeroed` moves
        // past it before anyone else sees the pages.
        unsafe { std::slice::from_raw_parts(self.pages.start.add(self.range.start), self.len()) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len();
        // SAFETY: as in `deref`; the buffer is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.pages.start.add(self.range.start), len) }
    }
}

impl Buffer {
    /// Bytes.
    #[expect(clippy::len_without_is_empty, reason = "the slice has it")]
    pub fn len(&self) -> usize {
        self.range.len()
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len())
    }
}

/// Zeroed memory from the system, aligned to huge pages.
struct Pages {
    start: *mut u8,
    /// As the system gave it: start and bytes.
    mapped: (*mut u8, usize),
}

// SAFETY: plain memory, reached only through the disjoint ranges of buffers.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

#[cfg(target_os = "linux")]
mod system {
    unsafe extern "C" {
        fn mmap(at: *mut u8, len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
        fn munmap(at: *mut u8, len: usize) -> i32;
        fn madvise(at: *mut u8, len: usize, advice: i32) -> i32;
    }

    const PROT_READ_WRITE: i32 = 3;
    const MAP_PRIVATE_ANONYMOUS: i32 = 0x22;
    const MADV_HUGEPAGE: i32 = 14;

    /// Zeroed pages; null when refused.
    pub fn map(len: usize) -> *mut u8 {
        // SAFETY: a new private mapping, wherever the system likes, touches nothing that exists.
        let at = unsafe {
            mmap(std::ptr::null_mut(), len, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0)
        };
        if at.addr() == usize::MAX { std::ptr::null_mut() } else { at }
    }

    /// # Safety
    /// `at` and `len` are of one `map`, which nobody uses any more.
    pub unsafe fn unmap(at: *mut u8, len: usize) {
        // SAFETY: the caller's promise.
        unsafe { munmap(at, len) };
    }

    /// # Safety
    /// The range lies in pages of one `map`.
    pub unsafe fn advise_huge_pages(at: *mut u8, len: usize) {
        // SAFETY: the caller's promise; the advice does not change what memory holds. A refusal
        // means small pages.
        unsafe { madvise(at, len, MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    fn layout(len: usize) -> Option<Layout> {
        Layout::from_size_align(len, 4096).ok()
    }

    /// Zeroed pages; null when refused.
    pub fn map(len: usize) -> *mut u8 {
        // SAFETY: `len` is never 0.
        layout(len).map_or(std::ptr::null_mut(), |layout| unsafe { alloc_zeroed(layout) })
    }

    /// # Safety
    /// `at` and `len` are of one `map`, which nobody uses any more.
    pub unsafe fn unmap(at: *mut u8, len: usize) {
        if let Some(layout) = layout(len) {
            // SAFETY: allocated with the same layout, by the caller's promise.
            unsafe { dealloc(at, layout) };
        }
    }

    /// # Safety
    /// None is needed.
    pub unsafe fn advise_huge_pages(_at: *mut u8, _len: usize) {}
}

impl Pages {
    fn map(len: usize) -> Result<Pages, OutOfMemory> {
        let refused = OutOfMemory { bytes: len };
        let room = len.checked_next_multiple_of(HUGE_PAGE).and_then(|l| l.checked_add(HUGE_PAGE));
        let room = room.filter(|&room| isize::try_from(room).is_ok()).ok_or(refused.clone())?;
        let at = system::map(room);
        if at.is_null() {
            return Err(refused);
        }
        let skipped = at.align_offset(HUGE_PAGE);
        assert!(skipped < HUGE_PAGE, "a pointer to bytes can be aligned");
        // SAFETY: `skipped` is less than the huge page that `room` has to spare.
        let start = unsafe { at.add(skipped) };
        // SAFETY: whole huge pages inside the mapping.
        unsafe { system::advise_huge_pages(start, room - HUGE_PAGE) };
        Ok(Pages { start, mapped: (at, room) })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: as mapped; the last buffer that held these pages is gone.
        unsafe { system::unmap(self.mapped.0, self.mapped.1) };
    }
}

/// Asks for every cache line of `bytes` in the second-level cache.
pub(crate) fn prefetch(bytes: &[u8]) {
    dispatch(Prefetch(bytes));
}

struct Prefetch<'a>(&'a [u8]);

impl Kernel for Prefetch<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for line in self.0.chunks(ALIGN) {
            l.prefetch(&line[0]);
        }
    }
}

/// Reads every whole vector of `from` once; the result is there so that reading is not left out.
pub(crate) fn read(from: &[u8]) -> f32 {
    dispatch(Read(from.as_chunks().0))
}

struct Read<'a>(&'a [[u8; 4 * LANES]]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f32 {
        const CHAINS: usize = 8;
        let mut sums = [l.splat(0.0); CHAINS];
        let (chunks, rest) = self.0.as_chunks::<CHAINS>();
        for chunk in chunks {
            for (sum, line) in sums.iter_mut().zip(chunk) {
                *sum = l.add(*sum, l.load_f32(line));
            }
        }
        for (sum, line) in sums.iter_mut().zip(rest) {
            *sum = l.add(*sum, l.load_f32(line));
        }
        let mut total = 0.0;
        for sum in sums {
            total += l.sum(sum);
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zero_aligned_and_their_own() {
        let sizes = [0, 1, 63, 64, 65, 4096, SLAB - 1, SLAB, SLAB + 1, 100];
        let mut all: Vec<Buffer> = sizes.iter().map(|&len| Buffer::zeroed(len).unwrap()).collect();
        for (i, buffer) in all.iter_mut().enumerate() {
            assert_eq!(buffer.len(), sizes[i]);
            assert_eq!(buffer.as_ptr().addr() % ALIGN, 0);
            assert!(buffer.iter().all(|b| *b == 0));
            buffer.fill(i as u8 + 1);
        }
        for (i, buffer) in all.iter().enumerate() {
            assert!(buffer.iter().all(|b| *b == i as u8 + 1));
        }
    }

    #[test]
    fn absurd_sizes_are_refused() {
        for bytes in [usize::MAX, isize::MAX as usize, 1 << 60] {
            assert_eq!(Buffer::zeroed(bytes).unwrap_err(), OutOfMemory { bytes });
        }
    }
}
