//! NEON: four registers are a vector.
//!
//! Baseline instructions alone: the dot products that some processors add are a matter of
//! `arch/matmul/neon.rs`. Run under emulation (`cargo x arm`), not yet on Arm hardware.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Kernel, LANES, Lanes};
use crate::isa::Isa;

/// Proof that the processor has what [`Isa::Neon`] names, and with `DOT` what [`Isa::NeonDot`] does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon<const DOT: bool>(());

impl<const DOT: bool> Neon<DOT> {
    pub(crate) fn detect() -> Option<Neon<DOT>> {
        let isa = if DOT { Isa::NeonDot } else { Isa::Neon };
        isa.is_available().then_some(Neon(()))
    }
}

#[inline(never)]
#[target_feature(enable = "neon")]
fn with_features<K: Kernel, const DOT: bool>(lanes: Neon<DOT>, kernel: K) -> K::Output {
    kernel.run(lanes)
}

type F = [float32x4_t; 4];

/// A register from an operation on its number.
#[inline(always)]
fn each(f: impl Fn(usize) -> float32x4_t) -> F {
    [f(0), f(1), f(2), f(3)]
}

/// Eight binary16 numbers to binary32, exactly: the intrinsics, `vcvt_f32_f16` and its like, are not
/// stable yet.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn widen_f16(halves: uint16x8_t) -> [float32x4_t; 2] {
    let (low, high);
    // SAFETY: registers alone.
    unsafe {
        asm!(
            "fcvtl {low:v}.4s, {halves:v}.4h",
            "fcvtl2 {high:v}.4s, {halves:v}.8h",
            low = out(vreg) low,
            high = lateout(vreg) high,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    [low, high]
}

/// The sums of four vectors, each as [`Lanes::sum`] has it.
#[inline]
#[target_feature(enable = "neon")]
fn sums4(x: &[F]) -> float32x4_t {
    let two = |a: F, b: F| {
        let a = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
        let b = vaddq_f32(vaddq_f32(b[0], b[2]), vaddq_f32(b[1], b[3]));
        let low = vcombine_f32(vget_low_f32(a), vget_low_f32(b));
        vaddq_f32(low, vcombine_f32(vget_high_f32(a), vget_high_f32(b)))
    };
    vpaddq_f32(two(x[0], x[1]), two(x[2], x[3]))
}

// SAFETY of every block below: `self` exists, so the instructions do; the memory read or written
// is exactly the array behind the reference.
impl<const DOT: bool> Lanes for Neon<DOT> {
    type F = F;
    const ROWS: usize = 3;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        // SAFETY: see the top of the implementation.
        each(|_| unsafe { vdupq_n_f32(x) })
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        // SAFETY: see the top of the implementation.
        each(|i| unsafe { vld1q_f32(from.as_ptr().add(4 * i)) })
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 4 * LANES]) -> F {
        // SAFETY: see the top of the implementation.
        each(|i| unsafe { vreinterpretq_f32_u8(vld1q_u8(from.as_ptr().add(16 * i))) })
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> F {
        let at = from.as_ptr();
        // SAFETY: see the top of the implementation.
        unsafe {
            let [a, b] = widen_f16(vreinterpretq_u16_u8(vld1q_u8(at)));
            let [c, d] = widen_f16(vreinterpretq_u16_u8(vld1q_u8(at.add(16))));
            [a, b, c, d]
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> F {
        // SAFETY: see the top of the implementation.
        each(|i| unsafe {
            let halves = vreinterpret_u16_u8(vld1_u8(from.as_ptr().add(8 * i)));
            vreinterpretq_f32_u32(vshll_n_u16::<16>(halves))
        })
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> F {
        // SAFETY: see the top of the implementation.
        unsafe {
            let bytes = vreinterpretq_s8_u8(vld1q_u8(from.as_ptr()));
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes)));
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(high))),
            ]
        }
    }

    #[inline(always)]
    fn store(self, x: F, to: &mut [f32; LANES]) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: see the top of the implementation.
            unsafe { vst1q_f32(to.as_mut_ptr().add(4 * i), x) }
        }
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        // SAFETY: see the top of the implementation.
        each(|i| unsafe { vaddq_f32(a[i], b[i]) })
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        // SAFETY: see the top of the implementation.
        each(|i| unsafe { vsubq_f32(a[i], b[i]) })
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        // SAFETY: see the top of the implementation.
        each(|i| unsafe { vmulq_f32(a[i], b[i]) })
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        // SAFETY: see the top of the implementation.
        each(|i| unsafe { vdivq_f32(a[i], b[i]) })
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        // SAFETY: see the top of the implementation.
        each(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        // SAFETY: see the top of the implementation.
        each(|i| unsafe { vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]) })
    }

    #[inline(always)]
    fn if_less(self, a: F, b: F, then: F, other: F) -> F {
        // SAFETY: see the top of the implementation.
        each(|i| unsafe { vbslq_f32(vcltq_f32(a[i], b[i]), then[i], other[i]) })
    }

    #[inline(always)]
    fn first(self, count: usize, x: F, other: F) -> F {
        let index: [f32; LANES] = std::array::from_fn(|i| i as f32);
        self.if_less(self.load(&index), self.splat(count as f32), x, other)
    }

    #[inline(always)]
    fn shift_exponent(self, x: F, shifted: F) -> F {
        // SAFETY: see the top of the implementation.
        each(|i| unsafe {
            let power = vshlq_n_u32::<23>(vreinterpretq_u32_f32(shifted[i]));
            vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(x[i]), power))
        })
    }

    #[inline(always)]
    fn sum(self, x: F) -> f32 {
        // SAFETY: see the top of the implementation.
        unsafe {
            let x = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
            let x = vadd_f32(vget_low_f32(x), vget_high_f32(x));
            vget_lane_f32::<0>(x) + vget_lane_f32::<1>(x)
        }
    }

    #[inline(always)]
    fn sums(self, x: &[F; LANES], count: usize) -> F {
        // SAFETY: see the top of the implementation.
        each(|i| unsafe { if 4 * i < count { sums4(&x[4 * i..]) } else { vdupq_n_f32(0.0) } })
    }

    #[inline(always)]
    fn largest(self, x: F) -> f32 {
        // SAFETY: see the top of the implementation.
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(x[0], x[2]), vmaxnmq_f32(x[1], x[3]))) }
    }

    /// Left to the processor, whose prefetchers follow the pages' lines.
    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}

    #[inline(always)]
    fn prefetch_near<T>(self, _: *const T) {}

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` exists, so the features do.
        unsafe { with_features(self, kernel) }
    }
}
