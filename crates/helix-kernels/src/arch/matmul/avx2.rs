//! AVX2: a group of weights is two registers, and so are sixteen rows.

use std::arch::x86_64::*;

use super::panel::GROUP;
use super::{Dots, Job};
use crate::arch::lanes::Avx2;
use crate::kv::codes::QUAD;

#[target_feature(enable = "avx2,fma,f16c")]
fn with_features<J: Job>(lanes: Avx2, job: J) {
    job.run(lanes);
}

type Pair = [__m256i; 2];

/// FP8 in the upper bytes of words.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn halves(words: __m256i) -> [__m256; 2] {
    let halves =
        _mm256_and_si256(_mm256_srai_epi16::<1>(words), _mm256_set1_epi16(0xbf80_u16 as i16));
    let (low, high) = (_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
    [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
}

/// `sum + Σ_c w[4·row + c]·x[c]`; of `x` the even words, then the odd ones, in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_split(sum: Pair, w: Pair, x: [__m256i; 2]) -> Pair {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn one(sum: __m256i, w: __m256i, x: [__m256i; 2]) -> __m256i {
        let (even, odd) = (_mm256_and_si256(w, _mm256_set1_epi16(255)), _mm256_srli_epi16::<8>(w));
        let (even, odd) = (_mm256_madd_epi16(even, x[0]), _mm256_madd_epi16(odd, x[1]));
        _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
    }
    [one(sum[0], w[0], x), one(sum[1], w[1], x)]
}

/// How [`Dots::turn`] orders sixteen bytes: a dimension's four tokens, then the next one's.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn turned() -> __m128i {
    _mm_setr_epi8(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15)
}

/// [`Dots::byte_sum`]: of the codes plus 128, which are unsigned, less what that adds.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn byte_sum(codes: &[i8; 16]) -> i32 {
    // SAFETY: what is read is `codes`.
    let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
    let unsigned = _mm_xor_si128(codes, _mm_set1_epi8(i8::MIN));
    let halves = _mm_sad_epu8(unsigned, _mm_setzero_si128());
    _mm_cvtsi128_si32(_mm_add_epi32(halves, _mm_unpackhi_epi64(halves, halves))) - 16 * 128
}

// SAFETY of every block below: `self` proves that the instructions exist; memory that is read is
// the array behind the reference.
impl Dots for Avx2 {
    type Bytes = Pair;
    type Ints = Pair;

    const TOKENS: usize = 4;
    const SUMS: usize = 4;

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

    /// Even and odd columns apart, as words: pairs of products of bytes would not fit 16 bits.
    #[inline(always)]
    fn dot_wide(self, sum: Pair, w: Pair, x: &[i8; 4]) -> Pair {
        let x = i32::from_ne_bytes([x[0] as u8, x[1] as u8, x[2] as u8, x[3] as u8]);
        // SAFETY: see the top of the implementation.
        unsafe {
            let x = _mm256_set1_epi32(x);
            let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
            dot_split(sum, w, [even, _mm256_srai_epi16::<8>(x)])
        }
    }

    #[inline(always)]
    fn dot_words(self, sum: Pair, v: Pair, w: &[i16; QUAD]) -> Pair {
        let pairs: *const i32 = w.as_ptr().cast();
        // SAFETY: see the top of the implementation.
        unsafe {
            let (a, b) = (pairs.read_unaligned(), pairs.add(1).read_unaligned());
            dot_split(sum, v, [_mm256_set1_epi32(a), _mm256_set1_epi32(b)])
        }
    }

    #[inline(always)]
    fn words(self, sum: Pair, x: [[__m256; 2]; 2], to: &mut [[i16; QUAD]; 8]) -> Pair {
        let to: *mut __m256i = to.as_mut_ptr().cast();
        let mut sum = sum;
        // SAFETY: see the top of the implementation; what is written is `to`.
        unsafe {
            for (i, x) in x.into_iter().enumerate() {
                let [a, b] = x.map(|x| _mm256_cvtps_epi32(x));
                // Packing works on halves: four lanes of `a` and of `b` in each.
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
                _mm256_storeu_si256(to.add(i), words);
                let pairs = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
                sum[i] = _mm256_add_epi32(sum[i], pairs);
            }
        }
        sum
    }

    #[inline(always)]
    fn turn(self, from: [&[u8; 16]; 4], to: &mut [u8; GROUP]) {
        let to: *mut __m256i = to.as_mut_ptr().cast();
        // SAFETY: see the top of the implementation; what is written is `to`.
        unsafe {
            let [a, b, c, d] = from.map(|x| _mm_loadu_si128(x.as_ptr().cast()));
            let order = _mm256_broadcastsi128_si256(turned());
            let low = _mm256_shuffle_epi8(_mm256_set_m128i(b, a), order);
            let high = _mm256_shuffle_epi8(_mm256_set_m128i(d, c), order);
            _mm256_storeu_si256(to, low);
            _mm256_storeu_si256(to.add(1), high);
        }
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
    fn byte_sum(self, codes: &[i8; 16]) -> i32 {
        // SAFETY: see the top of the implementation.
        unsafe { byte_sum(codes) }
    }

    #[inline(always)]
    fn any_nan(self, [a, b]: [__m256; 2]) -> bool {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, b)) != 0 }
    }

    #[inline(always)]
    fn lookup(self, [a, b]: Pair, table: &[u8; 16]) -> Pair {
        // SAFETY: see the top of the implementation.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, a), _mm256_shuffle_epi8(table, b)]
        }
    }

    #[inline(always)]
    fn load_e8m0(self, from: &[u8; 16]) -> [__m256; 2] {
        // SAFETY: see the top of the implementation.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let least = _mm256_set1_epi32(1 << 22);
            [bytes, _mm_srli_si128::<8>(bytes)].map(|eight| {
                let powers = _mm256_slli_epi32::<23>(_mm256_cvtepu8_epi32(eight));
                _mm256_castsi256_ps(_mm256_max_epu32(powers, least))
            })
        }
    }

    #[inline(always)]
    fn even_e4m3(self, from: &[u8; GROUP]) -> [[__m256; 2]; 2] {
        let [a, b] = self.bytes(from);
        // SAFETY: see the top of the implementation.
        unsafe { [halves(_mm256_slli_epi16::<8>(a)), halves(_mm256_slli_epi16::<8>(b))] }
    }

    #[inline(always)]
    fn odd_e4m3(self, from: &[u8; GROUP]) -> [[__m256; 2]; 2] {
        let [a, b] = self.bytes(from);
        // SAFETY: see the top of the implementation.
        unsafe { [halves(a), halves(b)] }
    }

    #[inline(always)]
    fn prefetch_far(self, at: *const u8) {
        // SAFETY: see the top of the implementation; prefetching does not access memory.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
