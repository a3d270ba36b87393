//! AVX2 with FMA and F16C: two registers are a vector.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Lanes};
use crate::isa::Isa;

/// Proof that the processor has what [`Isa::Avx2`] names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Avx2> {
        Isa::Avx2.is_available().then_some(Avx2(()))
    }
}

#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn with_features<K: Kernel>(lanes: Avx2, kernel: K) -> K::Output {
    kernel.run(lanes)
}

/// Halves added to each other until one is left.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum8(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

/// The largest of eight.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn largest8(x: __m256) -> f32 {
    let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
}

type F = [__m256; 2];

// SAFETY of every block below: `self` exists, so the instructions do; the memory read or written
// is exactly the array behind the reference.
impl Lanes for Avx2 {
    type F = F;
    const ROWS: usize = 3;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        // SAFETY: see the top of the implementation.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        let p = from.as_ptr();
        // SAFETY: see the top of the implementation.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 4 * LANES]) -> F {
        let p = from.as_ptr().cast();
        // SAFETY: see the top of the implementation.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> F {
        let p = from.as_ptr().cast::<__m128i>();
        // SAFETY: see the top of the implementation.
        unsafe {
            let (low, high) = (_mm_loadu_si128(p), _mm_loadu_si128(p.add(1)));
            [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> F {
        let p = from.as_ptr().cast::<__m128i>();
        // SAFETY: see the top of the implementation.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(1)));
            [low, high].map(|x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x)))
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> F {
        // SAFETY: see the top of the implementation.
        unsafe {
            let x = _mm_loadu_si128(from.as_ptr().cast());
            let (low, high) =
                (_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(x)));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }

    #[inline(always)]
    fn store(self, x: F, to: &mut [f32; LANES]) {
        let p = to.as_mut_ptr();
        // SAFETY: see the top of the implementation.
        unsafe {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        // SAFETY: see the top of the implementation.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        // SAFETY: see the top of the implementation.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        // SAFETY: see the top of the implementation.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        // SAFETY: see the top of the implementation.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        // SAFETY: see the top of the implementation.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        // SAFETY: see the top of the implementation.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn if_less(self, a: F, b: F, then: F, other: F) -> F {
        // SAFETY: see the top of the implementation.
        unsafe {
            let low = _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]);
            let high = _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1]);
            [_mm256_blendv_ps(other[0], then[0], low), _mm256_blendv_ps(other[1], then[1], high)]
        }
    }

    #[inline(always)]
    fn first(self, count: usize, x: F, other: F) -> F {
        // SAFETY: see the top of the implementation.
        unsafe {
            let index = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0);
            let indices = [index, _mm256_add_ps(index, _mm256_set1_ps(8.0))];
            self.if_less(indices, self.splat(count as f32), x, other)
        }
    }

    #[inline(always)]
    fn shift_exponent(self, x: F, shifted: F) -> F {
        // SAFETY: see the top of the implementation.
        unsafe {
            let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted[0]));
            let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted[1]));
            let low = _mm256_add_epi32(_mm256_castps_si256(x[0]), low);
            let high = _mm256_add_epi32(_mm256_castps_si256(x[1]), high);
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }

    #[inline(always)]
    fn sum(self, x: F) -> f32 {
        // SAFETY: see the top of the implementation.
        unsafe { sum8(_mm256_add_ps(x[0], x[1])) }
    }

    #[inline(always)]
    fn largest(self, x: F) -> f32 {
        // SAFETY: see the top of the implementation.
        unsafe { largest8(_mm256_max_ps(x[0], x[1])) }
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
