//! Which instruction set the kernels run on: found at run time, never at compile time.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that kernels are written for, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Isa {
    /// Plain Rust: the fallback.
    Scalar,
    /// 64-bit Arm.
    Neon,
    /// 64-bit Arm with the dot-product extension.
    NeonDot,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
}

impl Isa {
    /// Every instruction set, weakest first.
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Neon, Isa::NeonDot, Isa::Avx2, Isa::Avx512];

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => {
                Isa::Neon.is_available() && std::arch::is_aarch64_feature_detected!("dotprod")
            }
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// Those that this processor has, weakest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// Lower-case name, as in `--json` output.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon => "neon",
            Isa::NeonDot => "neon-dot",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Not looked at yet; else the `Isa` in use.
const UNKNOWN: u8 = u8::MAX;
static CHOSEN: AtomicU8 = AtomicU8::new(UNKNOWN);

/// The instruction set in use: the strongest that the processor has, unless [`limit`] lowered it.
pub fn cpu() -> Isa {
    match CHOSEN.load(Ordering::Relaxed) {
        UNKNOWN => limit(Isa::Avx512),
        chosen => Isa::ALL[usize::from(chosen)],
    }
}

/// Uses nothing stronger than `most` from here on, in every thread, and tells what is used.
///
/// For tests and comparisons. Results do not change with it: every kernel gives the same bits on
/// every instruction set.
pub fn limit(most: Isa) -> Isa {
    let chosen = Isa::available().filter(|isa| *isa <= most).last().unwrap_or(Isa::Scalar);
    CHOSEN.store(chosen as u8, Ordering::Relaxed);
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_strongest_below_it() {
        // Only the results: tests beside this one set limits as well.
        assert_eq!(limit(Isa::Scalar), Isa::Scalar);
        assert_eq!(limit(Isa::Avx512), Isa::available().last().unwrap());
        assert!(cpu().is_available());
    }
}
