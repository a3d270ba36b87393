//! NEON, with dot products or without: a group of weights is four registers, and so are sixteen
//! rows.

use std::arch::aarch64::*;
use std::arch::asm;

use super::panel::GROUP;
use super::{Dots, Job};
use crate::arch::lanes::{Neon, widen_f16};
use crate::kv::codes::QUAD;

#[inline(never)]
#[target_feature(enable = "neon,dotprod")]
fn with_dots<J: Job, const DOT: bool>(lanes: Neon<DOT>, job: J) {
    job.run(lanes);
}

#[inline(never)]
#[target_feature(enable = "neon")]
fn without_dots<J: Job, const DOT: bool>(lanes: Neon<DOT>, job: J) {
    job.run(lanes);
}

type Bytes = [uint8x16_t; 4];
type Ints = [int32x4_t; 4];

/// `sum + Σ_c w[c]·x[c]` in each lane's four bytes, all of them signed: the intrinsic,
/// `vdotq_s32`, is not stable yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(mut sum: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: registers alone.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// The same of baseline instructions, for `x` in −127..=127: the sum of two products fits 16 bits.
#[inline]
#[target_feature(enable = "neon")]
fn dot_in_words(sum: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
    let w = vreinterpretq_s8_u8(w);
    let (low, high) = (vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x));
    vpadalq_s16(sum, vpaddq_s16(low, high))
}

/// # Safety
///
/// With `DOT` the processor has the dot products.
#[inline(always)]
unsafe fn one_dot<const DOT: bool>(sum: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: as the caller promises.
    unsafe { if DOT { dot(sum, w, x) } else { dot_in_words(sum, w, x) } }
}

/// # Safety
///
/// As that of [`one_dot`].
#[inline(always)]
unsafe fn dots<const DOT: bool>(sum: Ints, w: Bytes, x: int8x16_t) -> Ints {
    // SAFETY: as the caller promises.
    unsafe {
        [
            one_dot::<DOT>(sum[0], w[0], x),
            one_dot::<DOT>(sum[1], w[1], x),
            one_dot::<DOT>(sum[2], w[2], x),
            one_dot::<DOT>(sum[3], w[3], x),
        ]
    }
}

/// `x` in every lane.
#[inline]
#[target_feature(enable = "neon")]
fn broadcast(x: &[i8; 4]) -> int8x16_t {
    vreinterpretq_s8_s32(vdupq_n_s32(i32::from_ne_bytes([
        x[0] as u8, x[1] as u8, x[2] as u8, x[3] as u8,
    ])))
}

/// The even bytes as the upper ones of words.
#[inline]
#[target_feature(enable = "neon")]
fn vshl_even(bytes: uint8x16_t) -> int16x8_t {
    vshlq_n_s16::<8>(vreinterpretq_s16_u8(bytes))
}

/// FP8 in the upper bytes of words, over 256: binary16 but for the exponent's upper bit.
#[inline]
#[target_feature(enable = "neon")]
fn floats(a: int16x8_t, b: int16x8_t) -> [float32x4_t; 4] {
    let halves = |words| {
        let shifted = vreinterpretq_u16_s16(vshrq_n_s16::<1>(words));
        widen_f16(vandq_u16(shifted, vdupq_n_u16(0xbf80)))
    };
    let ([a, b], [c, d]) = (halves(a), halves(b));
    [a, b, c, d]
}

// SAFETY of every block below: `self` proves that the instructions exist; memory that is read or
// written is the array behind the reference.
impl<const DOT: bool> Dots for Neon<DOT> {
    type Bytes = Bytes;
    type Ints = Ints;

    const TOKENS: usize = 4;
    const SUMS: usize = 4;

    fn enter<J: Job>(self, job: J) {
        // SAFETY: see the top of the implementation.
        unsafe { if DOT { with_dots(self, job) } else { without_dots(self, job) } }
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; GROUP]) -> Bytes {
        let at = from.as_ptr();
        // SAFETY: see the top of the implementation.
        unsafe { [vld1q_u8(at), vld1q_u8(at.add(16)), vld1q_u8(at.add(32)), vld1q_u8(at.add(48))] }
    }

    #[inline(always)]
    fn and(self, [a, b, c, d]: Bytes, mask: u8) -> Bytes {
        // SAFETY: see the top of the implementation.
        unsafe {
            let m = vdupq_n_u8(mask);
            [vandq_u8(a, m), vandq_u8(b, m), vandq_u8(c, m), vandq_u8(d, m)]
        }
    }

    #[inline(always)]
    fn or(self, a: Bytes, b: Bytes) -> Bytes {
        // SAFETY: see the top of the implementation.
        unsafe {
            [vorrq_u8(a[0], b[0]), vorrq_u8(a[1], b[1]), vorrq_u8(a[2], b[2]), vorrq_u8(a[3], b[3])]
        }
    }

    #[inline(always)]
    fn shl(self, [a, b, c, d]: Bytes, n: usize) -> Bytes {
        // SAFETY: see the top of the implementation.
        unsafe {
            let n = vdupq_n_s8(n as i8);
            [vshlq_u8(a, n), vshlq_u8(b, n), vshlq_u8(c, n), vshlq_u8(d, n)]
        }
    }

    #[inline(always)]
    fn shr(self, [a, b, c, d]: Bytes, n: usize) -> Bytes {
        // SAFETY: see the top of the implementation. A negative count shifts right.
        unsafe {
            let n = vdupq_n_s8(-(n as i8));
            [vshlq_u8(a, n), vshlq_u8(b, n), vshlq_u8(c, n), vshlq_u8(d, n)]
        }
    }

    #[inline(always)]
    fn dot(self, sum: Ints, w: Bytes, x: &[i8; 4]) -> Ints {
        // SAFETY: see the top of the implementation.
        unsafe { dots::<DOT>(sum, w, broadcast(x)) }
    }

    /// Codes are signed to the instruction, so they lose 128 first, and all sums get it back.
    #[inline(always)]
    fn dot_wide(self, sum: Ints, w: Bytes, x: &[i8; 4]) -> Ints {
        // SAFETY: see the top of the implementation.
        unsafe {
            let (x, half, offset) = (broadcast(x), vdupq_n_u8(64), vdupq_n_u8(128));
            let lost = one_dot::<DOT>(one_dot::<DOT>(vdupq_n_s32(0), half, x), half, x);
            let w = [
                veorq_u8(w[0], offset),
                veorq_u8(w[1], offset),
                veorq_u8(w[2], offset),
                veorq_u8(w[3], offset),
            ];
            let [a, b, c, d] = dots::<DOT>(sum, w, x);
            [vaddq_s32(a, lost), vaddq_s32(b, lost), vaddq_s32(c, lost), vaddq_s32(d, lost)]
        }
    }

    #[inline(always)]
    fn dot_words(self, sum: Ints, v: Bytes, w: &[i16; QUAD]) -> Ints {
        #[inline]
        #[target_feature(enable = "neon")]
        fn one(sum: int32x4_t, v: uint8x16_t, w: &[i16; QUAD]) -> int32x4_t {
            let v = vreinterpretq_u16_u8(v);
            let even = vreinterpretq_s16_u16(vandq_u16(v, vdupq_n_u16(255)));
            let odd = vreinterpretq_s16_u16(vshrq_n_u16::<8>(v));
            vaddq_s32(vaddq_s32(sum, pairs(even, w[0], w[1])), pairs(odd, w[2], w[3]))
        }
        /// The sums of neighbours, the first of each times `x`, the second times `y`.
        #[inline]
        #[target_feature(enable = "neon")]
        fn pairs(v: int16x8_t, x: i16, y: i16) -> int32x4_t {
            let w = vtrn1q_s16(vdupq_n_s16(x), vdupq_n_s16(y));
            vpaddq_s32(vmull_s16(vget_low_s16(v), vget_low_s16(w)), vmull_high_s16(v, w))
        }
        // SAFETY: see the top of the implementation.
        unsafe {
            [one(sum[0], v[0], w), one(sum[1], v[1], w), one(sum[2], v[2], w), one(sum[3], v[3], w)]
        }
    }

    #[inline(always)]
    fn words(self, sum: Ints, x: [[float32x4_t; 4]; 2], to: &mut [[i16; QUAD]; 8]) -> Ints {
        #[inline]
        #[target_feature(enable = "neon")]
        fn narrow(a: float32x4_t, b: float32x4_t) -> int16x8_t {
            vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(a)), vqmovn_s32(vcvtnq_s32_f32(b)))
        }
        let to: *mut i16 = to.as_mut_ptr().cast();
        let mut sum = sum;
        // SAFETY: see the top of the implementation.
        unsafe {
            for (i, sum) in sum.iter_mut().enumerate() {
                let x = &x[i / 2][i % 2 * 2..];
                let words = narrow(x[0], x[1]);
                vst1q_s16(to.add(8 * i), words);
                *sum = vpadalq_s16(*sum, words);
            }
        }
        sum
    }

    #[inline(always)]
    fn turn(self, from: [&[u8; 16]; 4], to: &mut [u8; GROUP]) {
        const ORDER: [u8; 16] = [0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15];
        // SAFETY: see the top of the implementation.
        unsafe {
            let order = vld1q_u8(ORDER.as_ptr());
            for (from, to) in from.into_iter().zip(to.as_chunks_mut::<16>().0) {
                vst1q_u8(to.as_mut_ptr(), vqtbl1q_u8(vld1q_u8(from.as_ptr()), order));
            }
        }
    }

    #[inline(always)]
    fn splat_shl(self, x: i32, shift: u32) -> Ints {
        // SAFETY: see the top of the implementation.
        unsafe { [vdupq_n_s32(x << shift); 4] }
    }

    #[inline(always)]
    fn column(self, [a, b, c, d]: Bytes, column: usize) -> Ints {
        #[inline]
        #[target_feature(enable = "neon")]
        fn one(w: uint8x16_t, shift: i32) -> int32x4_t {
            let byte = vshlq_u32(vreinterpretq_u32_u8(w), vdupq_n_s32(-shift));
            vreinterpretq_s32_u32(vandq_u32(byte, vdupq_n_u32(255)))
        }
        let shift = 8 * column as i32;
        // SAFETY: see the top of the implementation.
        unsafe { [one(a, shift), one(b, shift), one(c, shift), one(d, shift)] }
    }

    #[inline(always)]
    fn to_floats(self, [a, b, c, d]: Ints) -> [float32x4_t; 4] {
        // SAFETY: see the top of the implementation.
        unsafe { [vcvtq_f32_s32(a), vcvtq_f32_s32(b), vcvtq_f32_s32(c), vcvtq_f32_s32(d)] }
    }

    #[inline(always)]
    fn low_bytes(self, v: [float32x4_t; 4], to: &mut [i8; 16]) {
        #[inline]
        #[target_feature(enable = "neon")]
        fn narrow(a: float32x4_t, b: float32x4_t) -> uint8x8_t {
            let a = vmovn_u32(vreinterpretq_u32_f32(a));
            let b = vmovn_u32(vreinterpretq_u32_f32(b));
            vmovn_u16(vcombine_u16(a, b))
        }
        // SAFETY: see the top of the implementation.
        unsafe {
            let bytes = vcombine_u8(narrow(v[0], v[1]), narrow(v[2], v[3]));
            vst1q_s8(to.as_mut_ptr(), vreinterpretq_s8_u8(bytes));
        }
    }

    #[inline(always)]
    fn byte_sum(self, codes: &[i8; 16]) -> i32 {
        // SAFETY: see the top of the implementation.
        unsafe { i32::from(vaddlvq_s8(vld1q_s8(codes.as_ptr()))) }
    }

    #[inline(always)]
    fn lookup(self, [a, b, c, d]: Bytes, table: &[u8; 16]) -> Bytes {
        // SAFETY: see the top of the implementation.
        unsafe {
            let t = vld1q_u8(table.as_ptr());
            [vqtbl1q_u8(t, a), vqtbl1q_u8(t, b), vqtbl1q_u8(t, c), vqtbl1q_u8(t, d)]
        }
    }

    #[inline(always)]
    fn load_e8m0(self, from: &[u8; 16]) -> [float32x4_t; 4] {
        #[inline]
        #[target_feature(enable = "neon")]
        fn power(e: uint16x4_t) -> float32x4_t {
            let power = vshlq_n_u32::<23>(vmovl_u16(e));
            vreinterpretq_f32_u32(vmaxq_u32(power, vdupq_n_u32(1 << 22)))
        }
        // SAFETY: see the top of the implementation.
        unsafe {
            let bytes = vld1q_u8(from.as_ptr());
            let (a, b) = (vmovl_u8(vget_low_u8(bytes)), vmovl_u8(vget_high_u8(bytes)));
            [
                power(vget_low_u16(a)),
                power(vget_high_u16(a)),
                power(vget_low_u16(b)),
                power(vget_high_u16(b)),
            ]
        }
    }

    #[inline(always)]
    fn even_e4m3(self, from: &[u8; GROUP]) -> [[float32x4_t; 4]; 2] {
        let [a, b, c, d] = self.bytes(from);
        // SAFETY: see the top of the implementation.
        unsafe { [floats(vshl_even(a), vshl_even(b)), floats(vshl_even(c), vshl_even(d))] }
    }

    #[inline(always)]
    fn odd_e4m3(self, from: &[u8; GROUP]) -> [[float32x4_t; 4]; 2] {
        let [a, b, c, d] = self.bytes(from);
        // SAFETY: see the top of the implementation.
        unsafe {
            [
                floats(vreinterpretq_s16_u8(a), vreinterpretq_s16_u8(b)),
                floats(vreinterpretq_s16_u8(c), vreinterpretq_s16_u8(d)),
            ]
        }
    }
}
