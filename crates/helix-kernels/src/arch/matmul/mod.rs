//! Matrix kernels: written once over [`Dots`], compiled for every instruction set and format.

mod kernel;
pub(crate) mod panel;
mod scalar;

use super::lanes::Lanes;
use panel::GROUP;

pub(crate) use kernel::{Operand, multiply};

/// Work that runs on some instruction set.
///
/// `run` must be `#[inline(always)]`, and so must all that it calls in the inner loop: only then
/// does the compiler place it inside the function for which [`Dots::enter`] turned features on.
pub(crate) trait Job {
    fn run<L: Dots>(self, l: L);
}

/// Integer dot products of 16 rows at once, beside the sixteen floats of [`Lanes`].
///
/// `Bytes` are a group of 4 columns of 16 rows: byte `4·row + column`. `Ints` has a lane for each
/// row. All of it is exact, so that a kernel over `Dots` gives the same bits whichever the
/// instruction set.
pub(crate) trait Dots: Lanes {
    type Bytes: Copy;
    type Ints: Copy;

    /// Most tokens whose accumulators fit the registers beside the weights: 8, 4 or 2.
    const TOKENS: usize;

    /// Runs `job` with this instruction set's features turned on.
    fn enter<J: Job>(self, job: J);

    fn bytes(self, from: &[u8; GROUP]) -> Self::Bytes;
    fn and(self, v: Self::Bytes, mask: u8) -> Self::Bytes;
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Shifts left by `n` < 8; bits that come from a neighbouring byte are the caller's to mask.
    fn shl(self, v: Self::Bytes, n: usize) -> Self::Bytes;
    /// Shifts right by `n` < 8; bits that come from a neighbouring byte are the caller's to mask.
    fn shr(self, v: Self::Bytes, n: usize) -> Self::Bytes;

    /// `sum + Σ_c w[4·row + c]·x[c]` for codes below 64.
    fn dot(self, sum: Self::Ints, w: Self::Bytes, x: &[i8; 4]) -> Self::Ints;
    /// `sum + Σ_c w[4·row + c]·x[c]` for codes of all 8 bits.
    fn dot_wide(self, sum: Self::Ints, w: Self::Bytes, x: &[i8; 4]) -> Self::Ints;
    /// `x << shift` in every lane.
    fn splat_shl(self, x: i32, shift: u32) -> Self::Ints;
    /// Byte `column` of each row's four.
    fn column(self, w: Self::Bytes, column: usize) -> Self::Ints;
    fn to_floats(self, v: Self::Ints) -> Self::F;
}
