//! AVX-512: one register is a vector.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Lanes};
use crate::isa::Isa;

/// Proof that the processor has what [`Isa::Avx512`] names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn detect() -> Option<Avx512> {
        Isa::Avx512.is_available().then_some(Avx512(()))
    }
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn with_features<K: Kernel>(lanes: Avx512, kernel: K) -> K::Output {
    kernel.run(lanes)
}

/// Halves of all vectors are added at once, two vectors in one at each step: the same pairs that
/// [`Lanes::sum`] adds. What stays in its place is blended, so that one shuffle is enough for two
/// vectors: a single port has them.
#[inline]
#[target_feature(enable = "avx512f")]
fn sums16(x: &[__m512; LANES]) -> __m512 {
    let four = [fours(x, 0), fours(x, 1), fours(x, 2), fours(x, 3)];
    let two = [twos(four[0], four[1]), twos(four[2], four[3])];
    let even = _mm512_shuffle_ps::<0x88>(two[0], two[1]);
    _mm512_add_ps(even, _mm512_shuffle_ps::<0xdd>(two[0], two[1]))
}

/// Four lanes of each of `x[i]`, `x[i + 4]`, `x[i + 8]`, `x[i + 12]`.
#[inline]
#[target_feature(enable = "avx512f")]
fn fours(x: &[__m512; LANES], i: usize) -> __m512 {
    let (a, b) = (eights(x[i], x[i + 4]), eights(x[i + 8], x[i + 12]));
    let low = _mm512_shuffle_f32x4::<0x88>(a, b);
    _mm512_add_ps(low, _mm512_shuffle_f32x4::<0xdd>(a, b))
}

/// Eight lanes of each of two vectors.
#[inline]
#[target_feature(enable = "avx512f")]
fn eights(a: __m512, b: __m512) -> __m512 {
    let stay = _mm512_mask_blend_ps(0xff00, a, b);
    _mm512_add_ps(stay, _mm512_shuffle_f32x4::<0x4e>(a, b))
}

/// Two lanes of each of eight vectors, of which `a` and `b` have four.
#[inline]
#[target_feature(enable = "avx512f")]
fn twos(a: __m512, b: __m512) -> __m512 {
    let stay = _mm512_mask_blend_ps(0xcccc, a, b);
    _mm512_add_ps(stay, _mm512_shuffle_ps::<0x4e>(a, b))
}

// SAFETY of every block below: `self` exists, so the instructions do; the memory read or written
// is exactly the array behind the reference.
impl Lanes for Avx512 {
    type F = __m512;
    const ROWS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 4 * LANES]) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_loadu_ps(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe {
            // Not `_mm512_cvtph_ps`: it suppresses exceptions, which no operand in memory allows,
            // and conversions from memory cost half as much.
            let halves = _mm256_loadu_si256(from.as_ptr().cast());
            _mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(halves)
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; LANES]) {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn if_less(self, a: __m512, b: __m512, then: __m512, other: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), other, then) }
    }

    #[inline(always)]
    fn first(self, count: usize, x: __m512, other: __m512) -> __m512 {
        let mask = ((1_u32 << count.min(LANES)) - 1) as u16;
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_mask_blend_ps(mask, other, x) }
    }

    #[inline(always)]
    fn shift_exponent(self, x: __m512, shifted: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe {
            let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), power))
        }
    }

    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        // SAFETY: see the top of the implementation.
        unsafe {
            let (low, high) = (_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            super::avx2::sum8(_mm256_add_ps(low, high))
        }
    }

    #[inline(always)]
    fn sums(self, x: &[__m512; LANES], _: usize) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { sums16(x) }
    }

    #[inline(always)]
    fn largest(self, x: __m512) -> f32 {
        // SAFETY: see the top of the implementation.
        unsafe {
            let (low, high) = (_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            super::avx2::largest8(_mm256_max_ps(low, high))
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // SAFETY: a prefetch cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    fn prefetch_near<T>(self, at: *const T) {
        // SAFETY: a prefetch cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` exists, so the features do.
        unsafe { with_features(self, kernel) }
    }
}
