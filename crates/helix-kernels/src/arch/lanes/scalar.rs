//! Plain Rust: the reference of every other instruction set, and the fallback where none is known.

use super::{Kernel, LANES, Lanes};

/// One lane after the other. `mul_add` keeps the single rounding, at the price of a library call
/// on processors without the instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

type F = [f32; LANES];

#[inline(always)]
fn map(f: impl Fn(usize) -> f32) -> F {
    std::array::from_fn(f)
}

/// Halves combined until one lane is left.
#[inline(always)]
fn reduce(mut x: F, f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            x[i] = f(x[i], x[i + half]);
        }
    }
    x[0]
}

impl Lanes for Scalar {
    type F = F;
    const ROWS: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        *from
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 4 * LANES]) -> F {
        let (values, _) = from.as_chunks();
        map(|i| f32::from_le_bytes(values[i]))
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> F {
        map(|i| half::f16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> F {
        map(|i| f32::from_bits(u32::from_le_bytes([0, 0, from[2 * i], from[2 * i + 1]])))
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> F {
        map(|i| f32::from(from[i] as i8))
    }

    #[inline(always)]
    fn store(self, x: F, to: &mut [f32; LANES]) {
        *to = x;
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        map(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        map(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        map(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        map(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        map(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        map(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn if_less(self, a: F, b: F, then: F, other: F) -> F {
        map(|i| if a[i] < b[i] { then[i] } else { other[i] })
    }

    #[inline(always)]
    fn first(self, count: usize, x: F, other: F) -> F {
        map(|i| if i < count { x[i] } else { other[i] })
    }

    #[inline(always)]
    fn shift_exponent(self, x: F, shifted: F) -> F {
        map(|i| f32::from_bits(x[i].to_bits().wrapping_add(shifted[i].to_bits() << 23)))
    }

    #[inline(always)]
    fn sum(self, x: F) -> f32 {
        reduce(x, |a, b| a + b)
    }

    #[inline(always)]
    fn largest(self, x: F) -> f32 {
        reduce(x, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}

    #[inline(always)]
    fn prefetch_near<T>(self, _: *const T) {}

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
}
