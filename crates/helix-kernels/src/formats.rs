//! Weight formats as they lie on disk in GGUF and safetensors files.
//!
//! Source of the layouts: ggml's `ggml-common.h` and `gguf.md`; OCP's specifications of FP8 and of
//! microscaling formats. All numbers are little-endian.

mod codes;
pub(crate) mod e4m3;
mod quantize;
mod search;

use std::fmt;

pub(crate) use codes::{Codes, FP4, decode};
pub use quantize::{quantize, quantize_e4m3};
pub use search::quantize_searched;

/// How the elements of a weight matrix are stored.
///
/// The `Q` formats store blocks of consecutive columns of one row; a K-format's block of 256 is
/// made of sub-blocks of 32 (16 for the scales of [`Format::Q6K`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
    /// OCP's FP8 with 4 bits of exponent. Its scales, one per block of rows and columns, are a
    /// tensor of their own: [`Scales`](crate::Scales).
    F8E4M3,
    /// 32 × `d·q`, q in −128..=127.
    Q8_0,
    /// 32 × `d·(q − 8)`, q in 0..16.
    Q4_0,
    /// 32 × `d·q + m`, q in 0..16.
    Q4_1,
    /// 32 × `d·(q − 16)`, q in 0..32.
    Q5_0,
    /// 32 × `d·q + m`, q in 0..32.
    Q5_1,
    /// 8 × 32 × `(d·s)·q − dmin·m`, q in 0..16, s and m in 0..64.
    Q4K,
    /// 8 × 32 × `(d·s)·q − dmin·m`, q in 0..32, s and m in 0..64.
    Q5K,
    /// 16 × 16 × `(d·s)·(q − 32)`, q in 0..64, s in −128..=127.
    Q6K,
    /// OCP's microscaling FP4: 32 × `2^(e − 127)·q`, q one of 0, ½, 1, 1½, 2, 3, 4, 6 or minus
    /// that.
    Mxfp4,
}

/// Columns that share one activation scale, and the step in which every quantised format is read.
pub(crate) const SUB_BLOCK: usize = 32;

impl Format {
    /// Every format.
    pub const ALL: [Format; 13] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::F8E4M3,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::Mxfp4,
    ];

    /// Those that GGUF files hold.
    pub const GGML: [Format; 12] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::Mxfp4,
    ];

    /// Elements in a block: the granularity at which a row may be cut.
    pub const fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 | Format::F8E4M3 => 1,
            Format::Q8_0 | Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 => 32,
            Format::Mxfp4 => 32,
            Format::Q4K | Format::Q5K | Format::Q6K => 256,
        }
    }

    /// Bytes of a block on disk.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::F8E4M3 => 1,
            Format::Q8_0 => 34,
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q4K => 144,
            Format::Q5K => 176,
            Format::Q6K => 210,
            Format::Mxfp4 => 17,
        }
    }

    /// Bytes of a row of `cols` elements on disk; `None` when `cols` is not a whole number of
    /// blocks, or the bytes overflow.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// The name that GGUF tools print, or safetensors files hold.
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::BF16 => "BF16",
            Format::F8E4M3 => "F8_E4M3",
            Format::Q8_0 => "Q8_0",
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q5_0 => "Q5_0",
            Format::Q5_1 => "Q5_1",
            Format::Q4K => "Q4_K",
            Format::Q5K => "Q5_K",
            Format::Q6K => "Q6_K",
            Format::Mxfp4 => "MXFP4",
        }
    }

    /// Whether elements are integer codes with shared scales.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Blocks to numbers: `out[i]` is element `i` of `data`, to the bit as ggml has it. Those of
/// [`Format::F8E4M3`] still want their scales.
///
/// # Panics
/// When `out` is not a whole number of blocks, or `data` is not exactly its bytes.
pub fn dequantize(format: Format, data: &[u8], out: &mut [f32]) {
    assert_eq!(Some(data.len()), format.row_bytes(out.len()), "{format}: bytes against elements");
    match format {
        Format::F32 => {
            for (o, b) in out.iter_mut().zip(data.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
        Format::F16 => {
            for (o, b) in out.iter_mut().zip(data.as_chunks::<2>().0) {
                *o = half::f16::from_le_bytes(*b).to_f32();
            }
        }
        Format::BF16 => {
            for (o, b) in out.iter_mut().zip(data.as_chunks::<2>().0) {
                *o = half::bf16::from_le_bytes(*b).to_f32();
            }
        }
        Format::F8E4M3 => {
            for (o, b) in out.iter_mut().zip(data) {
                *o = e4m3::to_f32(*b);
            }
        }
        _ => {
            let blocks = data.chunks_exact(format.block_bytes());
            for (block, out) in blocks.zip(out.chunks_exact_mut(format.block_len())) {
                for (i, out) in out.as_chunks_mut::<SUB_BLOCK>().0.iter_mut().enumerate() {
                    decode(format, block, i).values(format, out);
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
