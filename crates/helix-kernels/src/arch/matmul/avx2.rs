//! AVX2: a group of weights is two registers, and so are sixteen rows.

use std::arch::x86_64::*;

use super::panel::GROUP;
use super::{Dots, Job};
use crate::arch::lanes::Avx2;

#[target_feature(enable = "avx2,fma,f16c")]
fn with_features<J: Job>(lanes: Avx2, job: J) {
    job.run(lanes);
}

type Pair = [__m256i; 2];

// SAFETY of every block below: `self` proves that the instructions exist; memory that is read is
// the array behind the reference.
impl Dots for Avx2 {
    type Bytes = Pair;
    type Ints = Pair;

    const TOKENS: usize = 4;

    fn enter<J: Job>(self, job: J) {
        // SAFETY: see the top of the implementation.
        unsafe { with_features(self, job) }
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; GROUP]) -> Pair {
        let at = from.as_ptr().cast::<__m256i>();
        // SAFETY: see the top of the implementation.
        unsafe { [_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))] }
    }

    #[inline(always)]
    fn and(self, [a, b]: Pair, mask: u8) -> Pair {
        // SAFETY: see the top of the implementation.
        unsafe {
            let mask = _mm256_set1_epi8(mask as i8);
            [_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)]
        }
    }

    #[inline(always)]
    fn or(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see the top of the implementation.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }

    #[inline(always)]
    fn shl(self, [a, b]: Pair, n: usize) -> Pair {
        // SAFETY: see the top of the implementation.
        unsafe {
            let n = _mm_cvtsi32_si128(n as i32);
            [_mm256_sll_epi16(a, n), _mm256_sll_epi16(b, n)]
        }
    }

    #[inline(always)]
    fn shr(self, [a, b]: Pair, n: usize) -> Pair {
        // SAFETY: see the top of the implementation.
        unsafe {
            let n = _mm_cvtsi32_si128(n as i32);
            [_mm256_srl_epi16(a, n), _mm256_srl_epi16(b, n)]
        }
    }

    /// Pairs of products stay below 2·63·127 and so within 16 bits.
    #[inline(always)]
    fn dot(self, sum: Pair, [a, b]: Pair, x: &[i8; 4]) -> Pair {
        let x = i32::from_ne_bytes([x[0] as u8, x[1] as u8, x[2] as u8, x[3] as u8]);
        // SAFETY: see the top of the implementation.
        unsafe {
            let (x, ones) = (_mm256_set1_epi32(x), _mm256_set1_epi16(1));
            let a = _mm256_madd_epi16(_mm256_maddubs_epi16(a, x), ones);
            let b = _mm256_madd_epi16(_mm256_maddubs_epi16(b, x), ones);
            [_mm256_add_epi32(sum[0], a), _mm256_add_epi32(sum[1], b)]
        }
    }

    /// The upper bit of a code apart from the rest, so that pairs of products (2·128·127 at most)
    /// stay within 16 bits.
    #[inline(always)]
    fn dot_wide(self, sum: Pair, w: Pair, x: &[i8; 4]) -> Pair {
        self.dot(self.dot(sum, self.and(w, 0x7f), x), self.and(w, 0x80), x)
    }

    #[inline(always)]
    fn splat_shl(self, x: i32, shift: u32) -> Pair {
        // SAFETY: see the top of the implementation.
        unsafe { [_mm256_set1_epi32(x << shift); 2] }
    }

    #[inline(always)]
    fn column(self, [a, b]: Pair, column: usize) -> Pair {
        // SAFETY: see the top of the implementation.
        unsafe {
            let n = _mm_cvtsi32_si128(8 * column as i32);
            let mask = _mm256_set1_epi32(255);
            let (a, b) = (_mm256_srl_epi32(a, n), _mm256_srl_epi32(b, n));
            [_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)]
        }
    }

    #[inline(always)]
    fn to_floats(self, [a, b]: Pair) -> [__m256; 2] {
        // SAFETY: see the top of the implementation.
        unsafe { [_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)] }
    }

    #[inline(always)]
    fn low_bytes(self, [a, b]: [__m256; 2], to: &mut [i8; 16]) {
        // SAFETY: see the top of the implementation; what is written is `to`.
        unsafe {
            let low = _mm256_set1_epi32(255);
            let a = _mm256_and_si256(_mm256_castps_si256(a), low);
            let b = _mm256_and_si256(_mm256_castps_si256(b), low);
            // Packing works on halves: lanes 0..4 of both, then lanes 4..8 of both.
            let words = _mm256_packus_epi32(a, b);
            let bytes = _mm256_packus_epi16(words, words);
            let order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
            let bytes = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        }
    }

    #[inline(always)]
    fn prefetch_far(self, at: *const u8) {
        // SAFETY: see the top of the implementation; prefetching does not access memory.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
