//! Sixteen `f32` lanes, the one vector that attention and the elementwise kernels are written for.
//!
//! A kernel is written once, over [`Lanes`], and compiled for every instruction set. Each
//! operation is an IEEE one (multiply-adds fused), and horizontal reductions have one order, so
//! every instruction set gives the same bits: the scalar [`Scalar`] is the others' oracle.
//!
//! A value of an implementing type is the proof that its instructions exist on this processor:
//! that is why the methods are safe to call.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod peak;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::{Neon, widen_f16};
pub(crate) use peak::spin_multiply_adds;
pub(crate) use scalar::Scalar;

use crate::isa::{self, Isa};

/// Lanes in a vector.
pub(crate) const LANES: usize = 16;

/// Sixteen `f32` lanes on one instruction set.
pub(crate) trait Lanes: Copy {
    /// Sixteen `f32`.
    type F: Copy;

    /// Rows of a register tile: 4 (of 4 vectors each), 3 (of 2), or 1.
    const ROWS: usize;

    /// Every lane `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Lanes from memory.
    fn load(self, from: &[f32; LANES]) -> Self::F;
    /// Lanes from the bytes of `f32` values, little-endian as all that follow.
    fn load_f32(self, from: &[u8; 4 * LANES]) -> Self::F;
    /// Lanes from binary16 values.
    fn load_f16(self, from: &[u8; 2 * LANES]) -> Self::F;
    /// Lanes from bfloat16 values.
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> Self::F;
    /// Lanes from signed bytes.
    fn load_i8(self, from: &[u8; LANES]) -> Self::F;
    /// Lanes to memory.
    fn store(self, x: Self::F, to: &mut [f32; LANES]);

    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a − b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a` where `a > b`, else `b`.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `then` where `a < b`, else `other`.
    fn if_less(self, a: Self::F, b: Self::F, then: Self::F, other: Self::F) -> Self::F;
    /// The first `count` lanes of `x`, then those of `other`.
    fn first(self, count: usize, x: Self::F, other: Self::F) -> Self::F;
    /// `x · 2^n` by adding `n`, the low bits of `shifted`, to the exponent; neither `x` nor the
    /// result may be subnormal.
    fn shift_exponent(self, x: Self::F, shifted: Self::F) -> Self::F;

    /// The sum of the lanes: halves are added to each other until one is left.
    fn sum(self, x: Self::F) -> f32;
    /// The [`Lanes::sum`] of each of the first `count` vectors, in its lane; any value in others.
    #[inline(always)]
    fn sums(self, x: &[Self::F; LANES], count: usize) -> Self::F {
        let mut sums = [0.0; LANES];
        for (sum, x) in sums.iter_mut().zip(&x[..count]) {
            *sum = self.sum(*x);
        }
        self.load(&sums)
    }
    /// The largest lane; of values that are not NaN.
    fn largest(self, x: Self::F) -> f32;

    /// Asks for the cache line where `at` starts, soon, in the second-level cache. It may lie anywhere.
    fn prefetch<T>(self, at: *const T);

    /// Asks for the cache line where `at` starts, very soon, in the first-level cache. It may lie
    /// anywhere.
    fn prefetch_near<T>(self, at: *const T);

    /// Runs a kernel with this instruction set's code generation.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;
}

/// A computation written over [`Lanes`].
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// The computation; always inlined into the function that enables the instructions.
    fn run<S: Lanes>(self, lanes: S) -> Self::Output;
}

/// Runs `kernel` on the instruction set in use.
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    dispatch_on(isa::cpu(), kernel)
}

/// Runs `kernel` on `isa`, or as plain Rust where the processor has not got it.
pub(crate) fn dispatch_on<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Avx512, Some(lanes)) = (isa, Avx512::detect()) {
        return lanes.run(kernel);
    } else if let (Isa::Avx2, Some(lanes)) = (isa, Avx2::detect()) {
        return lanes.run(kernel);
    }
    #[cfg(target_arch = "aarch64")]
    if let (Isa::NeonDot | Isa::Neon, Some(lanes)) = (isa, Neon::<false>::detect()) {
        return lanes.run(kernel);
    }
    let _ = isa;
    Scalar.run(kernel)
}

const ROUND: f32 = 12_582_912.0; // 1.5·2^23: adding it rounds to an integer, left in the low bits

/// 2^f on [−½, ½], relative error 2.6e-9 before rounding; minimax, with 2^0 exactly 1.
const EXP2: [f32; 7] = [
    1.0,
    std::f32::consts::LN_2,
    0.240_226_53,
    0.055_503_106,
    0.009_617_693,
    0.001_340_664_4,
    0.000_155_946_81,
];

/// The fraction's polynomial times the integer power.
#[inline(always)]
fn exp2_parts<S: Lanes>(s: S, fraction: S::F, shifted: S::F) -> S::F {
    let mut y = s.splat(EXP2[6]);
    for i in (0..6).rev() {
        y = s.fma(y, fraction, s.splat(EXP2[i]));
    }
    s.shift_exponent(y, shifted)
}

/// `2^x` for `x ≤ 0`, within 1e-7 of it relative; 2^−126 for all that is less, −∞ too.
#[inline(always)]
pub(crate) fn exp2_falling<S: Lanes>(s: S, x: S::F) -> S::F {
    let x = s.max(s.splat(-126.0), x);
    let shifted = s.add(x, s.splat(ROUND));
    let fraction = s.sub(x, s.sub(shifted, s.splat(ROUND)));
    exp2_parts(s, fraction, shifted)
}

/// `e^x`, within 1.2e-7 of it relative; saturates outside ±87.
#[inline(always)]
pub(crate) fn exp<S: Lanes>(s: S, x: S::F) -> S::F {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LOG2_E_REST: f32 = (std::f64::consts::LOG2_E - LOG2_E as f64) as f32;
    let (low, high) = (s.splat(-87.0), s.splat(87.0));
    let x = s.max(low, s.if_less(high, x, high, x));
    let shifted = s.fma(x, s.splat(LOG2_E), s.splat(ROUND));
    let n = s.sub(shifted, s.splat(ROUND));
    let fraction = s.fma(x, s.splat(LOG2_E), s.sub(s.splat(0.0), n));
    exp2_parts(s, s.fma(x, s.splat(LOG2_E_REST), fraction), shifted)
}

#[cfg(test)]
mod tests;
