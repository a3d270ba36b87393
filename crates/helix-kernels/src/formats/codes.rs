//! One view of every quantised format: 32 integer codes and the numbers that scale them.

use half::f16;

use super::{Format, SUB_BLOCK};

/// Bytes in which a K-format packs eight 6-bit scales and eight 6-bit minimums.
const K_SCALES: usize = 12;

/// Twice the number of each FP4 code (E2M1: sign, 2 bits of exponent, 1 of mantissa), plus
/// [`FP4_OFFSET`].
pub(crate) const FP4: [u8; 16] = [16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4];
const FP4_OFFSET: u8 = 16;

/// 32 consecutive weights of one row:
/// `w[i] = (codes[i] − offset)·(d·scale[i / 16]) + min`, where `min` is `m` for the `_1` formats,
/// `−m·sub_min` for those of K with minimums, and 0 for the rest. For [`Format::Mxfp4`] codes are
/// indices of [`FP4`], and `d` is `2^(exponent − 128)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Codes {
    pub codes: [u8; SUB_BLOCK],
    pub d: f16,
    pub m: f16,
    /// Integer scales of the two halves; 1 where the format has none.
    pub scale: [i8; 2],
    pub sub_min: u8,
    /// OCP's E8M0.
    pub exponent: u8,
}

/// What is subtracted from a code.
pub(crate) const fn offset(format: Format) -> u8 {
    match format {
        Format::Q4_0 => 8,
        Format::Q5_0 => 16,
        Format::Mxfp4 => FP4_OFFSET,
        Format::Q6K => 32,
        Format::Q8_0 => 128,
        _ => 0,
    }
}

impl Codes {
    /// Whether every factor is a number, and every number fits an `f32`.
    pub fn is_finite(&self) -> bool {
        // 6·2^125 is the largest FP4; the exponent 255 is no number.
        self.d.is_finite() && self.m.is_finite() && self.exponent <= 252
    }

    /// What is added to each of the 32.
    pub fn min(&self, format: Format) -> f32 {
        match format {
            Format::Q4_1 | Format::Q5_1 => self.m.to_f32(),
            Format::Q4K | Format::Q5K => -(self.m.to_f32() * f32::from(self.sub_min)),
            _ => 0.0,
        }
    }

    /// The 32 weights.
    pub fn values(&self, format: Format, out: &mut [f32; SUB_BLOCK]) {
        if format == Format::Mxfp4 {
            let scale = half_e8m0(self.exponent);
            for (o, &c) in out.iter_mut().zip(&self.codes) {
                *o = (f32::from(FP4[usize::from(c)]) - f32::from(FP4_OFFSET)) * scale;
            }
            return;
        }
        let min = self.min(format);
        for (half, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = self.d.to_f32() * f32::from(self.scale[half]);
            for (o, &c) in out.iter_mut().zip(&self.codes[16 * half..]) {
                *o = (f32::from(c) - f32::from(offset(format))) * scale + min;
            }
        }
    }
}

/// `2^(exponent − 128)`; NaN for the exponent that is none.
pub(super) fn half_e8m0(exponent: u8) -> f32 {
    match exponent {
        0xff => f32::NAN,
        0 | 1 => f32::from_bits(0x0020_0000 << exponent), // subnormal
        _ => f32::from_bits((u32::from(exponent) - 1) << 23),
    }
}

/// Bits `4·high..` of each of `packed`.
fn nibbles<const N: usize>(packed: &[u8], high: bool) -> [u8; N] {
    std::array::from_fn(|i| if high { packed[i] >> 4 } else { packed[i] & 15 })
}

/// Columns 0..16 from the low nibbles, 16..32 from the high ones.
fn split_nibbles(packed: &[u8]) -> [u8; SUB_BLOCK] {
    std::array::from_fn(|i| if i < 16 { packed[i] & 15 } else { packed[i - 16] >> 4 })
}

/// Scale and minimum of sub-block `i` of a K-format: 6 bits each, the last four sub-blocks'
/// upper 2 bits in the upper bits of the first eight bytes.
fn k_scale(packed: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        return (packed[i] & 63, packed[i + 4] & 63);
    }
    let low = packed[i + 4];
    ((low & 15) | ((packed[i - 4] >> 6) << 4), (low >> 4) | ((packed[i] >> 6) << 4))
}

/// Sub-block `index` of one block on disk.
///
/// # Panics
/// For float formats, and when `block` is shorter than a block.
#[inline]
pub(crate) fn decode(format: Format, block: &[u8], index: usize) -> Codes {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
    let plain = Codes { d: half(0), scale: [1; 2], ..Codes::default() };
    match format {
        Format::Q8_0 => Codes { codes: std::array::from_fn(|i| block[2..34][i] ^ 0x80), ..plain },
        Format::Q4_0 => Codes { codes: split_nibbles(&block[2..18]), ..plain },
        Format::Q4_1 => Codes { codes: split_nibbles(&block[4..20]), m: half(2), ..plain },
        Format::Q5_0 => Codes { codes: fifth_bit(&block[2..6], &block[6..22]), ..plain },
        Format::Q5_1 => {
            Codes { codes: fifth_bit(&block[4..8], &block[8..24]), m: half(2), ..plain }
        }
        Format::Q4K | Format::Q5K => decode_k(format, block, index),
        Format::Q6K => decode_q6k(block, index),
        Format::Mxfp4 => Codes {
            codes: split_nibbles(&block[1..17]),
            scale: [1; 2],
            exponent: block[0],
            ..Codes::default()
        },
        Format::F32 | Format::F16 | Format::BF16 | Format::F8E4M3 => {
            panic!("{format} has no codes")
        }
    }
}

fn fifth_bit(high: &[u8], packed: &[u8]) -> [u8; SUB_BLOCK] {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    let mut codes = split_nibbles(packed);
    for (i, c) in codes.iter_mut().enumerate() {
        *c |= ((high >> i & 1) as u8) << 4;
    }
    codes
}

fn decode_k(format: Format, block: &[u8], index: usize) -> Codes {
    let (scale, sub_min) = k_scale(&block[4..4 + K_SCALES], index);
    let rest = &block[4 + K_SCALES..];
    let high = if format == Format::Q5K { SUB_BLOCK } else { 0 };
    let packed = &rest[high + index / 2 * SUB_BLOCK..][..SUB_BLOCK];
    let mut codes = nibbles::<SUB_BLOCK>(packed, index % 2 == 1);
    for (c, h) in codes.iter_mut().zip(&rest[..high]) {
        *c |= (h >> index & 1) << 4;
    }
    Codes {
        codes,
        d: f16::from_le_bytes([block[0], block[1]]),
        m: f16::from_le_bytes([block[2], block[3]]),
        scale: [scale as i8; 2],
        sub_min,
        exponent: 0,
    }
}

fn decode_q6k(block: &[u8], index: usize) -> Codes {
    let (half, quarter) = (index / 4, index % 4);
    let low = &block[half * 64 + quarter % 2 * SUB_BLOCK..][..SUB_BLOCK];
    let high = &block[128 + half * SUB_BLOCK..][..SUB_BLOCK];
    let mut codes = nibbles::<SUB_BLOCK>(low, quarter >= 2);
    for (c, h) in codes.iter_mut().zip(high) {
        *c |= (h >> (2 * quarter) & 3) << 4;
    }
    let scales = &block[192 + 2 * index..];
    Codes {
        codes,
        d: f16::from_le_bytes([block[208], block[209]]),
        scale: [scales[0] as i8, scales[1] as i8],
        ..Codes::default()
    }
}

/// Writes sub-block `index` of a zeroed block: [`decode`]'s inverse.
pub(crate) fn encode(format: Format, codes: &Codes, block: &mut [u8], index: usize) {
    let c = &codes.codes;
    let d = codes.d.to_le_bytes();
    let m = codes.m.to_le_bytes();
    let pack = |out: &mut [u8]| {
        for i in 0..16 {
            out[i] = (c[i] & 15) | ((c[i + 16] & 15) << 4);
        }
    };
    let high = || (0..SUB_BLOCK).fold(0u32, |bits, i| bits | u32::from(c[i] >> 4) << i);
    if !matches!(format, Format::Q6K | Format::Mxfp4) {
        block[..2].copy_from_slice(&d);
    }
    match format {
        Format::Q8_0 => block[2..34].copy_from_slice(&c.map(|c| c ^ 0x80)),
        Format::Q4_0 => pack(&mut block[2..18]),
        Format::Q4_1 => {
            block[2..4].copy_from_slice(&m);
            pack(&mut block[4..20]);
        }
        Format::Q5_0 => {
            block[2..6].copy_from_slice(&high().to_le_bytes());
            pack(&mut block[6..22]);
        }
        Format::Q5_1 => {
            block[2..4].copy_from_slice(&m);
            block[4..8].copy_from_slice(&high().to_le_bytes());
            pack(&mut block[8..24]);
        }
        Format::Q4K | Format::Q5K => encode_k(format, codes, block, index),
        Format::Q6K => encode_q6k(codes, block, index),
        Format::Mxfp4 => {
            block[0] = codes.exponent;
            pack(&mut block[1..17]);
        }
        Format::F32 | Format::F16 | Format::BF16 | Format::F8E4M3 => {
            panic!("{format} has no codes")
        }
    }
}

fn encode_k(format: Format, codes: &Codes, block: &mut [u8], index: usize) {
    block[2..4].copy_from_slice(&codes.m.to_le_bytes());
    let (head, rest) = block.split_at_mut(4 + K_SCALES);
    let (packed, scale, min) = (&mut head[4..], codes.scale[0] as u8, codes.sub_min);
    if index < 4 {
        packed[index] |= scale;
        packed[index + 4] |= min;
    } else {
        packed[index + 4] = (scale & 15) | (min << 4);
        packed[index - 4] |= (scale >> 4) << 6;
        packed[index] |= (min >> 4) << 6;
    }
    let high = if format == Format::Q5K { SUB_BLOCK } else { 0 };
    let (high, rest) = rest.split_at_mut(high);
    let low = &mut rest[index / 2 * SUB_BLOCK..];
    for (i, &c) in codes.codes.iter().enumerate() {
        low[i] |= (c & 15) << (4 * (index % 2));
        if let Some(high) = high.get_mut(i) {
            *high |= (c >> 4) << index;
        }
    }
}

fn encode_q6k(codes: &Codes, block: &mut [u8], index: usize) {
    let (half, quarter) = (index / 4, index % 4);
    for (i, &c) in codes.codes.iter().enumerate() {
        block[half * 64 + quarter % 2 * SUB_BLOCK + i] |= (c & 15) << (quarter / 2 * 4);
        block[128 + half * SUB_BLOCK + i] |= (c >> 4) << (2 * quarter);
    }
    block[192 + 2 * index] = codes.scale[0] as u8;
    block[193 + 2 * index] = codes.scale[1] as u8;
    block[208..].copy_from_slice(&codes.d.to_le_bytes());
}
