//! Pages of keys and values: sixteen consecutive local tokens of one KV head of one layer.
//!
//! ```text
//! keys     [head_dim][16 tokens]       a score of sixteen tokens is one vector; no sums across lanes
//! values   [16 tokens][padded dims]    an output accumulates whole vectors of dimensions
//! ```
//!
//! `padded dims` is `head_dim` rounded up to sixteen; the padding is zero. With [`KvType::Q8_0`]
//! a scale (binary16) for every 32 dimensions of a token follows each part: `[blocks][16 tokens]`
//! after the keys, `[16 tokens][blocks]` after the values. Keys and values start at multiples of
//! 64 bytes. With a head of 64 dimensions in `f16` a page is 4096 bytes.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Tokens in a page.
pub const PAGE_TOKENS: usize = 16;

/// The largest head that the kernels take, in elements.
pub const MAX_HEAD_DIM: usize = 1024;

/// Dimensions that share a scale.
pub(crate) const SCALE_DIMS: usize = 32;

/// Element type of keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvType {
    /// 32-bit floats: exact.
    F32,
    /// Binary16; values beyond ±65504 are stored as ±65504.
    #[default]
    F16,
    /// Bfloat16: the range of `f32`, 8 bits of precision.
    BF16,
    /// Signed bytes, a binary16 scale for every 32 dimensions of a token.
    Q8_0,
}

impl KvType {
    /// Every type.
    pub const ALL: [KvType; 4] = [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0];

    /// Lower-case name, as on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::BF16 => "bf16",
            KvType::Q8_0 => "q8_0",
        }
    }

    const fn element_bytes(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::F16 | KvType::BF16 => 2,
            KvType::Q8_0 => 1,
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no [`KvType`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKvType(pub String);

impl fmt::Display for UnknownKvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown KV type '{}'; use f32, f16, bf16 or q8_0", self.0)
    }
}

impl std::error::Error for UnknownKvType {}

impl FromStr for KvType {
    type Err = UnknownKvType;

    fn from_str(name: &str) -> Result<KvType, UnknownKvType> {
        let found = KvType::ALL.into_iter().find(|t| t.name() == name);
        found.ok_or_else(|| UnknownKvType(name.to_owned()))
    }
}

/// Size and element type of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    head_dim: usize,
    kv_type: KvType,
}

/// Where the parts of a page lie, in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub keys: Range<usize>,
    pub key_scales: Range<usize>,
    pub values: Range<usize>,
    pub value_scales: Range<usize>,
}

impl PageShape {
    /// Pages for heads of `head_dim` elements.
    ///
    /// # Panics
    /// When `head_dim` is zero or above [`MAX_HEAD_DIM`].
    #[must_use]
    pub const fn new(head_dim: usize, kv_type: KvType) -> PageShape {
        assert!(head_dim >= 1 && head_dim <= MAX_HEAD_DIM, "head_dim must be 1..=1024");
        PageShape { head_dim, kv_type }
    }

    /// Elements of a head.
    #[must_use]
    pub const fn head_dim(self) -> usize {
        self.head_dim
    }

    /// Element type.
    #[must_use]
    pub const fn kv_type(self) -> KvType {
        self.kv_type
    }

    /// Bytes of one page, keys and values; a multiple of 64.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.key_bytes() + self.value_bytes()
    }

    /// Bytes that attending to one token needs: its keys, values and scales, no padding.
    #[must_use]
    pub const fn token_bytes(self) -> usize {
        2 * (self.head_dim * self.kv_type.element_bytes() + 2 * self.blocks())
    }

    /// Elements of a value row.
    pub(crate) const fn padded_dims(self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    /// Scales of one token's keys.
    pub(crate) const fn blocks(self) -> usize {
        match self.kv_type {
            KvType::Q8_0 => self.head_dim.div_ceil(SCALE_DIMS),
            _ => 0,
        }
    }

    const fn scale_bytes(self) -> usize {
        2 * PAGE_TOKENS * self.blocks()
    }

    const fn key_bytes(self) -> usize {
        let keys = self.head_dim * PAGE_TOKENS * self.kv_type.element_bytes();
        (keys + self.scale_bytes()).next_multiple_of(64)
    }

    const fn value_bytes(self) -> usize {
        let values = self.padded_dims() * PAGE_TOKENS * self.kv_type.element_bytes();
        (values + self.scale_bytes()).next_multiple_of(64)
    }

    pub(crate) fn parts(self) -> Parts {
        let element = self.kv_type.element_bytes() * PAGE_TOKENS;
        let keys = 0..self.head_dim * element;
        let start = self.key_bytes();
        let values = start..start + self.padded_dims() * element;
        Parts {
            key_scales: keys.end..keys.end + self.scale_bytes(),
            keys,
            value_scales: values.end..values.end + self.scale_bytes(),
            values,
        }
    }
}

/// The pages of one sequence, one layer and one KV head.
#[derive(Clone, Copy, Debug)]
pub struct KvView<'a> {
    /// Every page of this layer and KV head, of any sequence, one after the other.
    pub pages: &'a [u8],
    /// The sequence's pages: local tokens `16·i..16·(i + 1)` are in page `table[i]`.
    ///
    /// Attention asks the memory for the tokens after the ones it computes: cut the table where
    /// the tokens end that this thread will visit.
    pub table: &'a [u32],
    /// Size and element type of each page.
    pub shape: PageShape,
}

impl<'a> KvView<'a> {
    /// The bytes of the sequence's page `index`.
    ///
    /// # Panics
    /// When the table is shorter, or its entry lies past `pages`.
    #[inline]
    pub(crate) fn page(&self, index: usize) -> &'a [u8] {
        let bytes = self.shape.bytes();
        let start = self.table[index] as usize * bytes;
        &self.pages[start..start + bytes]
    }
}

/// Stores the key and value `[head_dim]` of the token in `slot` of a page.
///
/// # Panics
/// When `slot` is 16 or more, or a length does not fit `shape`.
pub fn append(page: &mut [u8], shape: PageShape, slot: usize, k: &[f32], v: &[f32]) {
    assert_eq!(page.len(), shape.bytes(), "append: page bytes");
    assert!(slot < PAGE_TOKENS, "append: slot {slot} of {PAGE_TOKENS}");
    assert_eq!(k.len(), shape.head_dim, "append: elements of k");
    assert_eq!(v.len(), shape.head_dim, "append: elements of v");
    match shape.kv_type {
        KvType::F32 => append_plain(page, shape, slot, k, v, f32::to_le_bytes),
        KvType::F16 => append_plain(page, shape, slot, k, v, f16_bytes),
        KvType::BF16 => append_plain(page, shape, slot, k, v, bf16_bytes),
        KvType::Q8_0 => append_q8_0(page, shape, slot, k, v),
    }
}

fn f16_bytes(x: f32) -> [u8; 2] {
    half::f16::from_f32(x.clamp(-65504.0, 65504.0)).to_le_bytes()
}

fn bf16_bytes(x: f32) -> [u8; 2] {
    half::bf16::from_f32(x).to_le_bytes()
}

fn append_plain<const N: usize>(
    page: &mut [u8],
    shape: PageShape,
    slot: usize,
    k: &[f32],
    v: &[f32],
    bytes: impl Fn(f32) -> [u8; N],
) {
    let parts = shape.parts();
    let (keys, _) = page[parts.keys].as_chunks_mut::<N>();
    for (key, &x) in keys[slot..].iter_mut().step_by(PAGE_TOKENS).zip(k) {
        *key = bytes(x);
    }
    let (values, _) = page[parts.values].as_chunks_mut::<N>();
    let row = &mut values[slot * shape.padded_dims()..][..shape.padded_dims()];
    let (row, padding) = row.split_at_mut(v.len());
    for (value, &x) in row.iter_mut().zip(v) {
        *value = bytes(x);
    }
    padding.fill([0; N]);
}

fn append_q8_0(page: &mut [u8], shape: PageShape, slot: usize, k: &[f32], v: &[f32]) {
    let parts = shape.parts();
    for (block, x) in k.chunks(SCALE_DIMS).enumerate() {
        let scale = scale_of(x);
        let at = parts.key_scales.start + 2 * (block * PAGE_TOKENS + slot);
        page[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        let keys = &mut page[parts.keys.clone()][block * SCALE_DIMS * PAGE_TOKENS + slot..];
        for (key, &x) in keys.iter_mut().step_by(PAGE_TOKENS).zip(x) {
            *key = quantise(x, scale);
        }
    }
    for (block, x) in v.chunks(SCALE_DIMS).enumerate() {
        let scale = scale_of(x);
        let at = parts.value_scales.start + 2 * (slot * shape.blocks() + block);
        page[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        let row = &mut page[parts.values.clone()][slot * shape.padded_dims()..];
        let row = &mut row[block * SCALE_DIMS..shape.padded_dims()];
        let (row, padding) = row.split_at_mut(x.len());
        for (value, &x) in row.iter_mut().zip(x) {
            *value = quantise(x, scale);
        }
        if block + 1 == shape.blocks() {
            padding.fill(0);
        }
    }
}

/// The scale that maps the largest magnitude to 127.
fn scale_of(x: &[f32]) -> half::f16 {
    let largest = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    half::f16::from_f32((largest / 127.0).min(65504.0))
}

/// To the nearest multiple of the scale as it was stored.
fn quantise(x: f32, scale: half::f16) -> u8 {
    let scale = scale.to_f32();
    if scale == 0.0 { 0 } else { (x / scale).round().clamp(-127.0, 127.0) as i8 as u8 }
}
