//! Memory that weights are read from.

use bytemuck::{Pod, Zeroable};

use super::lanes::{Kernel, LANES, Lanes, dispatch};

/// One cache line of weights: a vector of these starts where vector loads are fastest.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([f32; LANES]);

impl Line {
    /// All ones.
    pub const ONES: Line = Line([1.0; LANES]);

    /// `count` lines of zeros, in huge pages where the system lends them.
    pub fn zeroed(count: usize) -> Vec<Line> {
        let lines = bytemuck::zeroed_vec(count);
        advise_huge_pages(&lines);
        lines
    }
}

/// Asks for huge pages behind the lines, which are not touched yet; a refusal changes nothing.
#[cfg(target_os = "linux")]
fn advise_huge_pages(lines: &[Line]) {
    const PAGE: usize = 4096;
    const HUGE_PAGE: usize = 2 << 20;
    const MADV_HUGEPAGE: i32 = 14;
    unsafe extern "C" {
        fn madvise(start: *mut u8, len: usize, advice: i32) -> i32;
    }
    let bytes = size_of_val(lines);
    if bytes >= HUGE_PAGE {
        let start = lines.as_ptr().cast::<u8>();
        let skipped = start.align_offset(PAGE);
        let len = (bytes - skipped) / PAGE * PAGE;
        // SAFETY: whole pages inside the allocation; the advice does not change what they hold.
        unsafe { madvise(start.add(skipped).cast_mut(), len, MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_lines: &[Line]) {}

/// Reads every byte once; the result is there so that reading is not left out.
pub(crate) fn read(lines: &[Line]) -> f32 {
    dispatch(Read(lines))
}

struct Read<'a>(&'a [Line]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f32 {
        const CHAINS: usize = 8;
        let mut sums = [l.splat(0.0); CHAINS];
        let (chunks, rest) = self.0.as_chunks::<CHAINS>();
        for chunk in chunks {
            for (sum, line) in sums.iter_mut().zip(chunk) {
                *sum = l.add(*sum, l.load(&line.0));
            }
        }
        for (sum, line) in sums.iter_mut().zip(rest) {
            *sum = l.add(*sum, l.load(&line.0));
        }
        sums.into_iter().map(|sum| l.sum(sum)).sum()
    }
}
