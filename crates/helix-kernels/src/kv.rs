//! Pages of keys and values: 256 consecutive local tokens of one KV head of one layer.
//!
//! ```text
//! keys     4 blocks of [head_dim][64 tokens]   a score of 16 tokens is a vector: no sums across lanes
//! values   tiles of [256 tokens][64 dims]      an output accumulates whole vectors of dimensions
//! ```
//!
//! Values are padded with zeros to 16 dimensions, and the last tile may be narrower than 64. Pages of
//! [`KvType::Q8_0`], where each 32 dimensions of a token share a scale (binary16), are laid out for
//! integer arithmetic: see `codes`.
//!
//! A page of latents ([`PageShape::latent`]) has no separate keys: each token is one row
//! `[padded dims]`, whose first elements are the value and all of which are the key.
//!
//! Attention reads a page from its first byte to its last: that is why values of long heads lie in
//! tiles, as wide as the kernel's registers take at a time. That, and its size (64 KiB for 64
//! dimensions in `f16`), is what a processor's prefetchers are good at: with pages of 16 tokens,
//! all keys of a chunk read before its values, a core drew 14 GB/s from memory that gives it 35.
//! Zen 4 crosses 4 KiB boundaries of one ascending stream without a pause, and starts each new one
//! from nothing.

pub(crate) mod codes;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::fmt;
use std::str::FromStr;

/// Tokens in a page.
pub const PAGE_TOKENS: usize = 256;

/// Tokens whose keys lie side by side, dimension by dimension.
pub(crate) const BLOCK_TOKENS: usize = 64;

/// The largest head that the kernels take, in elements.
pub const MAX_HEAD_DIM: usize = 1024;

/// Dimensions that share a scale.
pub(crate) const SCALE_DIMS: usize = 32;

/// Dimensions of a tile of values.
pub(crate) const VALUE_TILE: usize = 64;

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
    /// Elements of a value; of a latent, how many of the key's.
    value_dim: usize,
    /// Whether a token is stored once, and its value is the start of its key.
    latent: bool,
    kv_type: KvType,
}

impl PageShape {
    /// Pages for heads of `head_dim` elements.
    ///
    /// # Panics
    /// When `head_dim` is zero or above [`MAX_HEAD_DIM`].
    #[must_use]
    pub const fn new(head_dim: usize, kv_type: KvType) -> PageShape {
        assert!(head_dim >= 1 && head_dim <= MAX_HEAD_DIM, "head_dim must be 1..=1024");
        PageShape { head_dim, value_dim: head_dim, latent: false, kv_type }
    }

    /// Pages for latents of multi-head latent attention: keys of `key_dim` elements, whose first
    /// `value_dim` are the value too. A token is stored once.
    ///
    /// Source: DeepSeek-V2, arXiv 2405.04434, section 2.1, with its projections absorbed.
    ///
    /// # Panics
    /// When `key_dim` is zero or above [`MAX_HEAD_DIM`], or `value_dim` is zero or above `key_dim`.
    #[must_use]
    pub const fn latent(key_dim: usize, value_dim: usize, kv_type: KvType) -> PageShape {
        assert!(key_dim >= 1 && key_dim <= MAX_HEAD_DIM, "key_dim must be 1..=1024");
        assert!(value_dim >= 1 && value_dim <= key_dim, "value_dim must be 1..=key_dim");
        PageShape { head_dim: key_dim, value_dim, latent: true, kv_type }
    }

    /// Elements of a head's key, and of a query.
    #[must_use]
    pub const fn head_dim(self) -> usize {
        self.head_dim
    }

    /// Elements of a value, and of an output.
    #[must_use]
    pub const fn value_dim(self) -> usize {
        self.value_dim
    }

    /// Whether a token is stored once: [`append`] takes no value.
    #[must_use]
    pub const fn is_latent(self) -> bool {
        self.latent
    }

    /// Element type.
    #[must_use]
    pub const fn kv_type(self) -> KvType {
        self.kv_type
    }

    /// Bytes of one page, keys and values; a multiple of 64.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self.kv_type {
            KvType::Q8_0 => self.code_bytes(),
            kv_type => self.values() + PAGE_TOKENS * self.padded_dims() * kv_type.element_bytes(),
        }
    }

    /// Bytes that attending to one token needs: its keys, values and scales, no padding. A latent
    /// counts once.
    #[must_use]
    pub const fn token_bytes(self) -> usize {
        let row = self.head_dim * self.kv_type.element_bytes() + 2 * self.groups();
        if self.latent { row } else { 2 * row }
    }

    /// Elements of a value's row, or a latent's.
    pub(crate) const fn padded_dims(self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    /// Groups of dimensions that share a scale; none where there are no scales.
    pub(crate) const fn groups(self) -> usize {
        match self.kv_type {
            KvType::Q8_0 => self.head_dim.div_ceil(SCALE_DIMS),
            _ => 0,
        }
    }

    /// A tile of values: the elements before it in the page's values, and its dimensions. A latent
    /// is one tile, however wide.
    pub(crate) const fn value_tile(self, tile: usize) -> (usize, usize) {
        if self.latent {
            return (0, self.padded_dims());
        }
        let (first, left) = (tile * VALUE_TILE, self.padded_dims() - tile * VALUE_TILE);
        (first * PAGE_TOKENS, if left < VALUE_TILE { left } else { VALUE_TILE })
    }

    /// Where the dimensions of a token's row lie among the page's values, tile by tile.
    fn value_rows(self, slot: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let tiles = if self.latent { 1 } else { self.padded_dims().div_ceil(VALUE_TILE) };
        (0..tiles).map(move |tile| {
            let (before, dims) = self.value_tile(tile);
            before + slot * dims..before + (slot + 1) * dims
        })
    }

    /// Bytes of the keys of [`BLOCK_TOKENS`] tokens; none apart from latents.
    pub(crate) const fn key_block_bytes(self) -> usize {
        if self.latent { 0 } else { BLOCK_TOKENS * self.head_dim * self.kv_type.element_bytes() }
    }

    /// Where the values start.
    pub(crate) const fn values(self) -> usize {
        PAGE_TOKENS / BLOCK_TOKENS * self.key_block_bytes()
    }
}

/// The pages of one sequence, one layer and one KV head.
#[derive(Clone, Copy, Debug)]
pub struct KvView<'a> {
    /// Every page of this layer and KV head, of any sequence, one after the other.
    pub pages: &'a [u8],
    /// The sequence's pages: local tokens `256·i..256·(i + 1)` are in page `table[i]`.
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

/// Stores the key and value `[head_dim]` of the token in `slot` of a page; where values are parts
/// of keys ([`PageShape::latent`]), `v` is empty.
///
/// # Panics
/// When `slot` is [`PAGE_TOKENS`] or more, or a length does not fit `shape`.
pub fn append(page: &mut [u8], shape: PageShape, slot: usize, k: &[f32], v: &[f32]) {
    assert_eq!(page.len(), shape.bytes(), "append: page bytes");
    assert!(slot < PAGE_TOKENS, "append: slot {slot} of {PAGE_TOKENS}");
    assert_eq!(k.len(), shape.head_dim, "append: elements of k");
    let value_dim = if shape.latent { 0 } else { shape.value_dim };
    assert_eq!(v.len(), value_dim, "append: elements of v");
    match shape.kv_type {
        KvType::F32 => append_plain(page, shape, slot, k, v, |x| x.map(f32::to_le_bytes)),
        KvType::F16 => append_plain(page, shape, slot, k, v, f16_bytes),
        KvType::BF16 => append_plain(page, shape, slot, k, v, bf16_bytes),
        KvType::Q8_0 => codes::append(page, shape, slot, k, v),
    }
}

/// Elements that are converted together.
const TOGETHER: usize = 16;

fn f16_bytes(x: [f32; TOGETHER]) -> [[u8; 2]; TOGETHER] {
    let mut to = [f16::ZERO; TOGETHER];
    to.convert_from_f32_slice(&x.map(|x| x.clamp(-65504.0, 65504.0)));
    to.map(f16::to_le_bytes)
}

fn bf16_bytes(x: [f32; TOGETHER]) -> [[u8; 2]; TOGETHER] {
    let mut to = [bf16::ZERO; TOGETHER];
    to.convert_from_f32_slice(&x);
    to.map(bf16::to_le_bytes)
}

/// A row in pieces that are converted together; zeros behind its end.
fn pieces(row: &[f32]) -> impl Iterator<Item = [f32; TOGETHER]> {
    row.chunks(TOGETHER).map(|piece| {
        let mut padded = [0.0; TOGETHER];
        padded[..piece.len()].copy_from_slice(piece);
        padded
    })
}

fn append_plain<const N: usize>(
    page: &mut [u8],
    shape: PageShape,
    slot: usize,
    k: &[f32],
    v: &[f32],
    bytes: impl Fn([f32; TOGETHER]) -> [[u8; N]; TOGETHER],
) {
    if !shape.latent {
        let block = &mut page[slot / BLOCK_TOKENS * shape.key_block_bytes()..];
        let (keys, _) = block.as_chunks_mut::<N>();
        let column = keys[slot % BLOCK_TOKENS..].iter_mut().step_by(BLOCK_TOKENS);
        for (key, x) in column.take(k.len()).zip(pieces(k).flat_map(&bytes)) {
            *key = x;
        }
    }
    let x = if shape.latent { k } else { v };
    let (values, _) = page[shape.values()..].as_chunks_mut::<N>();
    let places = shape.value_rows(slot).flat_map(|tile| tile.step_by(TOGETHER));
    for (place, x) in places.zip(pieces(x).chain(std::iter::repeat([0.0; TOGETHER]))) {
        values[place..place + TOGETHER].copy_from_slice(&bytes(x));
    }
}
