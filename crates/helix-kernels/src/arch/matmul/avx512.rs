//! AVX-512 with VNNI: a group of weights is one register.

use std::arch::asm;
use std::arch::x86_64::*;

use super::panel::GROUP;
use super::{Dots, Job};
use crate::arch::lanes::Avx512;
use crate::kv::codes::QUAD;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn with_features<J: Job>(lanes: Avx512, job: J) {
    job.run(lanes);
}

/// `_mm512_dpwssd_epi32`, of which LLVM makes a product and a sum where two follow each other.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_pairs(mut sum: __m512i, v: __m512i, w: __m512i) -> __m512i {
    // SAFETY: registers alone.
    unsafe {
        asm!(
            "vpdpwssd {sum}, {v}, {w}",
            sum = inout(zmm_reg) sum,
            v = in(zmm_reg) v,
            w = in(zmm_reg) w,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// FP8 in the upper bytes of words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn halves(words: __m512i) -> [__m512; 2] {
    let halves =
        _mm512_and_si512(_mm512_srai_epi16::<1>(words), _mm512_set1_epi16(0xbf80_u16 as i16));
    let (low, high) = (_mm512_castsi512_si256(halves), _mm512_extracti64x4_epi64::<1>(halves));
    [_mm512_cvtph_ps(low), _mm512_cvtph_ps(high)]
}

// SAFETY of every block below: `self` proves that the instructions exist; memory that is read is
// the array behind the reference.
impl Dots for Avx512 {
    type Bytes = __m512i;
    type Ints = __m512i;

    const TOKENS: usize = 8;
    const SUMS: usize = 16;

    fn enter<J: Job>(self, job: J) {
        // SAFETY: see the top of the implementation.
        unsafe { with_features(self, job) }
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; GROUP]) -> __m512i {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn and(self, v: __m512i, mask: u8) -> __m512i {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_and_si512(v, _mm512_set1_epi8(mask as i8)) }
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    fn shl(self, v: __m512i, n: usize) -> __m512i {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_sll_epi16(v, _mm_cvtsi32_si128(n as i32)) }
    }

    #[inline(always)]
    fn shr(self, v: __m512i, n: usize) -> __m512i {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_srl_epi16(v, _mm_cvtsi32_si128(n as i32)) }
    }

    #[inline(always)]
    fn dot(self, sum: __m512i, w: __m512i, x: &[i8; 4]) -> __m512i {
        let x = i32::from_ne_bytes([x[0] as u8, x[1] as u8, x[2] as u8, x[3] as u8]);
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(x)) }
    }

    #[inline(always)]
    fn dot_wide(self, sum: __m512i, w: __m512i, x: &[i8; 4]) -> __m512i {
        self.dot(sum, w, x)
    }

    #[inline(always)]
    fn dot_words(self, sum: __m512i, v: __m512i, w: &[i16; QUAD]) -> __m512i {
        let pairs: *const i32 = w.as_ptr().cast();
        // SAFETY: see the top of the implementation.
        unsafe {
            // Loads of their own, which broadcast: from a register that takes a port of the sums.
            let (a, b) = (pairs.read_unaligned(), pairs.add(1).read_unaligned());
            let (even, odd) =
                (_mm512_and_si512(v, _mm512_set1_epi16(255)), _mm512_srli_epi16::<8>(v));
            dot_pairs(dot_pairs(sum, even, _mm512_set1_epi32(a)), odd, _mm512_set1_epi32(b))
        }
    }

    #[inline(always)]
    fn words(self, sum: __m512i, x: [__m512; 2], to: &mut [[i16; QUAD]; 8]) -> __m512i {
        // SAFETY: see the top of the implementation; what is written is `to`.
        unsafe {
            let [a, b] = x.map(|x| _mm512_cvtps_epi32(x));
            // Packing works on quarters: four lanes of `a` and of `b` in each.
            let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
            let words = _mm512_permutexvar_epi64(order, _mm512_packs_epi32(a, b));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), words);
            _mm512_dpwssd_epi32(sum, words, _mm512_set1_epi16(1))
        }
    }

    #[inline(always)]
    fn turn(self, from: [&[u8; 16]; 4], to: &mut [u8; GROUP]) {
        // SAFETY: see the top of the implementation; what is written is `to`.
        unsafe {
            let [a, b, c, d] = from.map(|x| _mm_loadu_si128(x.as_ptr().cast()));
            let tokens = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(a), b);
            let tokens = _mm512_inserti32x4::<2>(tokens, c);
            let tokens = _mm512_inserti32x4::<3>(tokens, d);
            let order = _mm512_broadcast_i32x4(super::avx2::turned());
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_shuffle_epi8(tokens, order));
        }
    }

    #[inline(always)]
    fn splat_shl(self, x: i32, shift: u32) -> __m512i {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_sll_epi32(_mm512_set1_epi32(x), _mm_cvtsi32_si128(shift as i32)) }
    }

    #[inline(always)]
    fn column(self, w: __m512i, column: usize) -> __m512i {
        // SAFETY: see the top of the implementation.
        unsafe {
            let byte = _mm512_srl_epi32(w, _mm_cvtsi32_si128(8 * column as i32));
            _mm512_and_si512(byte, _mm512_set1_epi32(255))
        }
    }

    #[inline(always)]
    fn to_floats(self, v: __m512i) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_cvtepi32_ps(v) }
    }

    #[inline(always)]
    fn low_bytes(self, v: __m512, to: &mut [i8; 16]) {
        // SAFETY: see the top of the implementation; what is written is `to`.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_castps_si512(v));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        }
    }

    #[inline(always)]
    fn byte_sum(self, codes: &[i8; 16]) -> i32 {
        // SAFETY: see the top of the implementation.
        unsafe { super::avx2::byte_sum(codes) }
    }

    #[inline(always)]
    fn any_nan(self, v: __m512) -> bool {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v) != 0 }
    }

    #[inline(always)]
    fn lookup(self, v: __m512i, table: &[u8; 16]) -> __m512i {
        // SAFETY: see the top of the implementation.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, v)
        }
    }

    #[inline(always)]
    fn load_e8m0(self, from: &[u8; 16]) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe {
            let exponents = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let powers = _mm512_slli_epi32::<23>(exponents);
            _mm512_castsi512_ps(_mm512_max_epu32(powers, _mm512_set1_epi32(1 << 22)))
        }
    }

    #[inline(always)]
    fn even_e4m3(self, from: &[u8; GROUP]) -> [__m512; 2] {
        // SAFETY: see the top of the implementation.
        unsafe { halves(_mm512_slli_epi16::<8>(self.bytes(from))) }
    }

    #[inline(always)]
    fn odd_e4m3(self, from: &[u8; GROUP]) -> [__m512; 2] {
        // SAFETY: see the top of the implementation.
        unsafe { halves(self.bytes(from)) }
    }

    #[inline(always)]
    fn prefetch_far(self, at: *const u8) {
        // SAFETY: see the top of the implementation; prefetching does not access memory.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
