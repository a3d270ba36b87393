//! Weights as the kernels read them: panels of 16 rows, so that no sum crosses lanes.
//!
//! A sub-block of 32 columns is 8 groups of 4 columns; a group is 64 bytes, byte `4·row + column`.
//! Codes below 16 keep two groups in 64 bytes: group `p` in the low nibbles, `p + 4` in the high
//! ones. Fifth and sixth bits lie in planes beside them. Scales of the 16 rows follow the codes
//! that they scale, so that a panel is read as one stream.

use bytemuck::{Pod, Zeroable};

use super::Dots;
use crate::formats::{Codes, FP4, Format};

/// Rows of a panel.
pub(crate) const ROWS: usize = 16;
/// Bytes of a group: 4 columns of 16 rows.
pub(crate) const GROUP: usize = 64;

type Nibbles = [[u8; GROUP]; 4];

/// One block of 16 rows of a quantised format.
pub(crate) trait Block: Pod {
    /// The format on disk that becomes this.
    const FORMAT: Format;
    /// Sub-blocks of 32 columns.
    const SUBS: usize = 1;
    /// Power of two that is subtracted from each code; `None` for nothing.
    const OFFSET_LOG2: Option<u32> = None;
    /// Whether codes need all 8 bits.
    const WIDE: bool = false;
    /// Whether the two halves of a sub-block have scales of their own.
    const HALVES: bool = false;

    /// Places a row's sub-block into a zeroed block.
    fn set(&mut self, row: usize, sub: usize, codes: &Codes);
    /// Groups `p` and `p + 4` of a sub-block, `p < 4`.
    fn pair<L: Dots>(&self, l: L, sub: usize, p: usize) -> [L::Bytes; 2];
    /// Scales of the two halves; the first is that of both unless `HALVES`.
    fn scales<L: Dots>(&self, l: L, sub: usize) -> [L::F; 2];
    /// What every code of the sub-block has added after scaling.
    #[inline(always)]
    fn min<L: Dots>(&self, _l: L, _sub: usize) -> Option<L::F> {
        None
    }
}

#[inline(always)]
fn halves<L: Dots>(l: L, from: &[u16; ROWS]) -> L::F {
    l.load_f16(bytemuck::cast_ref(from))
}

#[inline(always)]
fn small<L: Dots>(l: L, from: &[i8; ROWS]) -> L::F {
    l.load_i8(bytemuck::cast_ref(from))
}

fn set_nibbles(to: &mut Nibbles, row: usize, codes: &[u8; 32]) {
    for (p, group) in to.iter_mut().enumerate() {
        for c in 0..4 {
            group[4 * row + c] = (codes[4 * p + c] & 15) | (codes[16 + 4 * p + c] << 4);
        }
    }
}

#[inline(always)]
fn nibbles<L: Dots>(l: L, from: &Nibbles, p: usize) -> [L::Bytes; 2] {
    let both = l.bytes(&from[p]);
    [l.and(both, 15), l.and(l.shr(both, 4), 15)]
}

/// Bit `g` of byte `i` is the fifth bit of byte `i` of group `g`.
fn set_fifth(to: &mut [u8; GROUP], row: usize, codes: &[u8; 32]) {
    for (i, c) in codes.iter().enumerate() {
        to[4 * row + i % 4] |= (c >> 4 & 1) << (i / 4);
    }
}

#[inline(always)]
fn fifth<L: Dots>(l: L, plane: &[u8; GROUP], p: usize, [a, b]: [L::Bytes; 2]) -> [L::Bytes; 2] {
    let plane = l.bytes(plane);
    [l.or(a, l.and(l.shl(plane, 4 - p), 16)), l.or(b, l.and(l.shr(plane, p), 16))]
}

/// Bits `2j` and `2j + 1` of byte `i` of plane `h` are the upper two of byte `i` of group `4h + j`.
fn set_sixth(to: &mut [[u8; GROUP]; 2], row: usize, codes: &[u8; 32]) {
    for (i, c) in codes.iter().enumerate() {
        let (group, column) = (i / 4, i % 4);
        to[group / 4][4 * row + column] |= (c >> 4 & 3) << (2 * (group % 4));
    }
}

#[inline(always)]
fn sixth<L: Dots>(
    l: L,
    planes: &[[u8; GROUP]; 2],
    p: usize,
    [a, b]: [L::Bytes; 2],
) -> [L::Bytes; 2] {
    let mut planes = [l.bytes(&planes[0]), l.bytes(&planes[1])];
    for plane in &mut planes {
        let placed = if p < 2 { l.shl(*plane, 4 - 2 * p) } else { l.shr(*plane, 2 * p - 4) };
        *plane = l.and(placed, 0x30);
    }
    [l.or(a, planes[0]), l.or(b, planes[1])]
}

/// Defines the panel block of a format of 32 columns from its fields.
macro_rules! plain_block {
    ($name:ident { $($plane:ident: $kind:ty)?; $($min:ident)? } $($constant:ident = $value:expr),*) => {
        /// 16 rows of the format of the same name.
        #[derive(Clone, Copy, Pod, Zeroable)]
        #[repr(C)]
        pub(crate) struct $name {
            quants: Nibbles,
            $($plane: $kind,)?
            scale: [u16; ROWS],
            $($min: [u16; ROWS],)?
        }

        impl Block for $name {
            const FORMAT: Format = Format::$name;
            $(const $constant: Option<u32> = $value;)*

            fn set(&mut self, row: usize, _sub: usize, codes: &Codes) {
                set_nibbles(&mut self.quants, row, &codes.codes);
                $(set_fifth(&mut self.$plane, row, &codes.codes);)?
                self.scale[row] = codes.d.to_bits().to_le();
                $(self.$min[row] = codes.m.to_bits().to_le();)?
            }

            #[inline(always)]
            fn pair<L: Dots>(&self, l: L, _sub: usize, p: usize) -> [L::Bytes; 2] {
                let pair = nibbles(l, &self.quants, p);
                $(let pair = fifth(l, &self.$plane, p, pair);)?
                pair
            }

            #[inline(always)]
            fn scales<L: Dots>(&self, l: L, _sub: usize) -> [L::F; 2] {
                [halves(l, &self.scale); 2]
            }

            $(
                #[inline(always)]
                fn min<L: Dots>(&self, l: L, _sub: usize) -> Option<L::F> {
                    Some(halves(l, &self.$min))
                }
            )?
        }
    };
}

plain_block!(Q4_0 { ; } OFFSET_LOG2 = Some(3));
plain_block!(Q4_1 { ; min });
plain_block!(Q5_0 { high: [u8; GROUP]; } OFFSET_LOG2 = Some(4));
plain_block!(Q5_1 { high: [u8; GROUP]; min });

/// 16 rows of [`Format::Q8_0`], as `code + 128`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Q8_0 {
    quants: [[u8; GROUP]; 8],
    scale: [u16; ROWS],
}

impl Block for Q8_0 {
    const FORMAT: Format = Format::Q8_0;
    const OFFSET_LOG2: Option<u32> = Some(7);
    const WIDE: bool = true;

    fn set(&mut self, row: usize, _sub: usize, codes: &Codes) {
        for (group, codes) in self.quants.iter_mut().zip(codes.codes.as_chunks::<4>().0) {
            group[4 * row..][..4].copy_from_slice(codes);
        }
        self.scale[row] = codes.d.to_bits().to_le();
    }

    #[inline(always)]
    fn pair<L: Dots>(&self, l: L, _sub: usize, p: usize) -> [L::Bytes; 2] {
        [l.bytes(&self.quants[p]), l.bytes(&self.quants[p + 4])]
    }

    #[inline(always)]
    fn scales<L: Dots>(&self, l: L, _sub: usize) -> [L::F; 2] {
        [halves(l, &self.scale); 2]
    }
}

/// 16 rows of [`Format::Mxfp4`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Mxfp4 {
    quants: Nibbles,
    exponent: [u8; ROWS],
}

impl Block for Mxfp4 {
    const FORMAT: Format = Format::Mxfp4;
    const OFFSET_LOG2: Option<u32> = Some(4);

    fn set(&mut self, row: usize, _sub: usize, codes: &Codes) {
        set_nibbles(&mut self.quants, row, &codes.codes);
        // Zeros under the smallest scale are common, and arithmetic with subnormals is slow.
        let zeros = codes.codes.iter().all(|code| code & 7 == 0);
        self.exponent[row] = if zeros { 128 } else { codes.exponent };
    }

    #[inline(always)]
    fn pair<L: Dots>(&self, l: L, _sub: usize, p: usize) -> [L::Bytes; 2] {
        let [a, b] = nibbles(l, &self.quants, p);
        [l.lookup(a, &FP4), l.lookup(b, &FP4)]
    }

    #[inline(always)]
    fn scales<L: Dots>(&self, l: L, _sub: usize) -> [L::F; 2] {
        // Of doubled numbers.
        [l.mul(l.load_e8m0(&self.exponent), l.splat(0.5)); 2]
    }
}

/// Defines the panel block of a K-format with minimums.
macro_rules! k_block {
    ($name:ident, $sub:ident { $($plane:ident: $kind:ty)? }) => {
        /// 32 columns of a block of 256.
        #[derive(Clone, Copy, Pod, Zeroable)]
        #[repr(C)]
        struct $sub {
            quants: Nibbles,
            $($plane: $kind,)?
            scale: [i8; ROWS],
            min: [i8; ROWS],
        }

        /// 16 rows of the format of the same name.
        #[derive(Clone, Copy, Pod, Zeroable)]
        #[repr(C)]
        pub(crate) struct $name {
            d: [u16; ROWS],
            m: [u16; ROWS],
            subs: [$sub; 8],
        }

        impl Block for $name {
            const FORMAT: Format = Format::$name;
            const SUBS: usize = 8;

            fn set(&mut self, row: usize, sub: usize, codes: &Codes) {
                self.d[row] = codes.d.to_bits().to_le();
                // The sign of a minimum goes with its shared factor: the product is added.
                self.m[row] = (-codes.m).to_bits().to_le();
                let sub = &mut self.subs[sub];
                set_nibbles(&mut sub.quants, row, &codes.codes);
                $(set_fifth(&mut sub.$plane, row, &codes.codes);)?
                sub.scale[row] = codes.scale[0];
                sub.min[row] = codes.sub_min as i8;
            }

            #[inline(always)]
            fn pair<L: Dots>(&self, l: L, sub: usize, p: usize) -> [L::Bytes; 2] {
                let pair = nibbles(l, &self.subs[sub].quants, p);
                $(let pair = fifth(l, &self.subs[sub].$plane, p, pair);)?
                pair
            }

            #[inline(always)]
            fn scales<L: Dots>(&self, l: L, sub: usize) -> [L::F; 2] {
                [l.mul(halves(l, &self.d), small(l, &self.subs[sub].scale)); 2]
            }

            #[inline(always)]
            fn min<L: Dots>(&self, l: L, sub: usize) -> Option<L::F> {
                Some(l.mul(halves(l, &self.m), small(l, &self.subs[sub].min)))
            }
        }
    };
}

k_block!(Q4K, Q4KSub {});
k_block!(Q5K, Q5KSub { high: [u8; GROUP] });

/// 32 columns of a block of [`Q6K`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Q6KSub {
    quants: Nibbles,
    high: [[u8; GROUP]; 2],
    scales: [[i8; ROWS]; 2],
}

/// 16 rows of [`Format::Q6K`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Q6K {
    d: [u16; ROWS],
    subs: [Q6KSub; 8],
}

impl Block for Q6K {
    const FORMAT: Format = Format::Q6K;
    const SUBS: usize = 8;
    const OFFSET_LOG2: Option<u32> = Some(5);
    const HALVES: bool = true;

    fn set(&mut self, row: usize, sub: usize, codes: &Codes) {
        self.d[row] = codes.d.to_bits().to_le();
        let sub = &mut self.subs[sub];
        set_nibbles(&mut sub.quants, row, &codes.codes);
        set_sixth(&mut sub.high, row, &codes.codes);
        for (to, scale) in sub.scales.iter_mut().zip(codes.scale) {
            to[row] = scale;
        }
    }

    #[inline(always)]
    fn pair<L: Dots>(&self, l: L, sub: usize, p: usize) -> [L::Bytes; 2] {
        let sub = &self.subs[sub];
        sixth(l, &sub.high, p, nibbles(l, &sub.quants, p))
    }

    #[inline(always)]
    fn scales<L: Dots>(&self, l: L, sub: usize) -> [L::F; 2] {
        let d = halves(l, &self.d);
        let [low, high] = &self.subs[sub].scales;
        [l.mul(d, small(l, low)), l.mul(d, small(l, high))]
    }
}

/// One column of 16 rows of a float format.
pub(crate) trait Column: Pod {
    fn load<L: Dots>(&self, l: L) -> L::F;
}

macro_rules! column {
    ($name:ident, $element:ty, $load:ident) => {
        /// One column of 16 rows of the format of the same name.
        #[derive(Clone, Copy, Pod, Zeroable)]
        #[repr(C)]
        pub(crate) struct $name([$element; ROWS]);

        impl Column for $name {
            #[inline(always)]
            fn load<L: Dots>(&self, l: L) -> L::F {
                l.$load(bytemuck::cast_ref(&self.0))
            }
        }
    };
}

column!(F32, f32, load);
column!(F16, u16, load_f16);
column!(BF16, u16, load_bf16);
