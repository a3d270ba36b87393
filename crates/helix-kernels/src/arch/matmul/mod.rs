//! Matrix kernels: written once over [`Dots`], compiled for every instruction set and format.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod fp8;
mod kernel;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod panel;
mod peak;
mod scalar;

#[cfg(target_arch = "aarch64")]
use super::lanes::Neon;
#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::lanes::{Lanes, Scalar};
use crate::isa::Isa;
use crate::kv::codes::QUAD;
use panel::GROUP;

pub(crate) use kernel::{Operand, multiply};
pub(crate) use peak::spin_dots;

/// Work that runs on some instruction set.
///
/// `run` must be `#[inline(always)]`, and so must all that it calls in the inner loop: only then
/// does the compiler place it inside the function for which [`Dots::enter`] turned features on.
pub(crate) trait Job {
    fn run<L: Dots>(self, l: L);
}

/// Work that is given an instruction set.
pub(crate) trait Visit {
    fn visit<L: Dots>(self, l: L);
}

/// Gives `visitor` the lanes of `isa`, or [`Scalar`] where the processor does not have it.
pub(crate) fn dispatch<V: Visit>(isa: Isa, visitor: V) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => {
            if let Some(l) = Avx512::detect() {
                return visitor.visit(l);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            if let Some(l) = Avx2::detect() {
                return visitor.visit(l);
            }
        }
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot => {
            if let Some(l) = Neon::<true>::detect() {
                return visitor.visit(l);
            }
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => {
            if let Some(l) = Neon::<false>::detect() {
                return visitor.visit(l);
            }
        }
        _ => {}
    }
    visitor.visit(Scalar);
}

/// Whether a product with one token is faster when it asks for its weights ahead: on Intel's
/// processors, whose prefetchers stop at every 4 KB and keep fewer lines in flight than memory could
/// deliver. On Zen 4 it costs a quarter.
fn asks_ahead_for_one() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::sync::OnceLock;
        static INTEL: OnceLock<bool> = OnceLock::new();
        *INTEL.get_or_init(|| {
            // SAFETY: every x86-64 processor has the instruction. Newer compilers know.
            #[allow(unused_unsafe)]
            let vendor = unsafe { std::arch::x86_64::__cpuid(0) };
            [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened()
                == b"GenuineIntel"
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Integer dot products of 16 rows at once, beside the sixteen floats of [`Lanes`].
///
/// An FP8 number is an f16 over 256 whose exponent lacks the upper bit: two shifts, and the
/// processor's own conversion, which is exact of subnormals too.
///
/// `Bytes` are a group of 4 columns of 16 rows: byte `4·row + column`. `Ints` has a lane for each
/// row. All of it is exact, so that a kernel over `Dots` gives the same bits whichever the
/// instruction set.
pub(crate) trait Dots: Lanes {
    type Bytes: Copy;
    type Ints: Copy;

    /// Most tokens whose accumulators fit the registers beside the weights: 8, 4, 2 or 1.
    const TOKENS: usize;
    /// Most sums of floats that fit the registers beside the weights: 16 or 4.
    const SUMS: usize;

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
    /// `sum + Σ_i w[i]·v[4·row + TOKEN_BYTES[i]]`: codes of four tokens, and their weights.
    fn dot_words(self, sum: Self::Ints, v: Self::Bytes, w: &[i16; QUAD]) -> Self::Ints;
    /// Rounds 32 numbers to words, ties to even; what fits none becomes the nearest one, and NaN any.
    /// Adds them to `sum`, each to some lane.
    fn words(self, sum: Self::Ints, x: [Self::F; 2], to: &mut [[i16; QUAD]; 8]) -> Self::Ints;
    /// Sixteen dimensions of four tokens, from `[token][dimension]` four dimensions at a time, to
    /// `[dimension][token]`, tokens in the order of [`TOKEN_BYTES`](crate::kv::codes::TOKEN_BYTES).
    fn turn(self, from: [&[u8; 16]; 4], to: &mut [u8; GROUP]);
    /// `x << shift` in every lane.
    fn splat_shl(self, x: i32, shift: u32) -> Self::Ints;
    /// Byte `column` of each row's four.
    fn column(self, w: Self::Bytes, column: usize) -> Self::Ints;
    fn to_floats(self, v: Self::Ints) -> Self::F;
    /// Element `v` of `table` for each byte; bytes are below 16.
    fn lookup(self, v: Self::Bytes, table: &[u8; 16]) -> Self::Bytes;
    /// `2^(e − 127)` from bytes `e`; the smallest is a subnormal.
    fn load_e8m0(self, from: &[u8; 16]) -> Self::F;
    /// Numbers of FP8 E4M3 over 256, from the even bytes of each half of `from`.
    fn even_e4m3(self, from: &[u8; GROUP]) -> [Self::F; 2];
    /// Numbers of FP8 E4M3 over 256, from the odd bytes of each half of `from`.
    fn odd_e4m3(self, from: &[u8; GROUP]) -> [Self::F; 2];
    /// The lowest byte of each lane's bits.
    fn low_bytes(self, v: Self::F, to: &mut [i8; 16]);
    fn byte_sum(self, codes: &[i8; 16]) -> i32;
    /// Whether a lane is NaN; the others must be finite, and so their sum.
    #[inline(always)]
    fn any_nan(self, v: Self::F) -> bool {
        self.sum(v).is_nan()
    }

    /// Asks for the cache line at `at`, which may lie anywhere, in the second-level cache.
    #[inline(always)]
    fn prefetch_far(self, _at: *const u8) {}
}
