//! Pages of [`KvType::Q8_0`](super::KvType::Q8_0): codes in the order in which integer dot products
//! take them, four bytes at a time.
//!
//! ```text
//! key scales     [groups][256 tokens]                            binary16
//! key codes      8 blocks of [dims / 4][32 tokens][4 dims]
//! value scales   [groups][256 tokens]
//! value codes    [groups] of [64 quads of tokens][dims][4 tokens]
//! ```
//!
//! A group is 32 dimensions, fewer at the end; the code of `x` is `x / scale`, rounded, plus 128:
//! the products take one factor without a sign. A token's byte in its quad is `[0, 2, 1, 3]` of its
//! place, so that even bytes and odd ones are neighbours. A page of latents ends behind its key
//! codes, and dimensions that fill up a vector have a code there, as values have: that of zero.

use super::{PAGE_TOKENS, PageShape, SCALE_DIMS};

/// Tokens of a block of keys.
pub(crate) const KEY_TOKENS: usize = 32;

/// Bytes that a dot product takes at once.
pub(crate) const QUAD: usize = 4;

/// The place of each byte of a quad of tokens, and each token's byte.
pub(crate) const TOKEN_BYTES: [usize; QUAD] = [0, 2, 1, 3];

/// The code of zero.
const ZERO: u8 = 128;

/// Where the parts of a page lie.
impl PageShape {
    /// Quads of a key's dimensions.
    pub(crate) const fn key_quads(self) -> usize {
        let dims = if self.is_latent() { self.padded_dims() } else { self.head_dim() };
        dims.div_ceil(QUAD)
    }

    /// Where key codes start: behind their scales.
    pub(crate) const fn key_codes(self) -> usize {
        2 * PAGE_TOKENS * self.groups()
    }

    /// Where values' scales start. A latent's are the key's.
    pub(crate) const fn value_scales(self) -> usize {
        if self.is_latent() { 0 } else { self.keys_end() }
    }

    /// Where a group of values' codes starts, and its dimensions, padded.
    pub(crate) const fn value_group(self, group: usize) -> (usize, usize) {
        let (start, left) = (group * SCALE_DIMS, self.padded_dims() - group * SCALE_DIMS);
        let codes = self.keys_end() + 2 * PAGE_TOKENS * self.groups();
        (codes + PAGE_TOKENS * start, if left < SCALE_DIMS { left } else { SCALE_DIMS })
    }

    const fn keys_end(self) -> usize {
        self.key_codes() + PAGE_TOKENS * QUAD * self.key_quads()
    }

    /// Bytes of such a page.
    pub(super) const fn code_bytes(self) -> usize {
        let values = PAGE_TOKENS * (2 * self.groups() + self.padded_dims());
        self.keys_end() + if self.is_latent() { 0 } else { values }
    }
}

/// [`super::append`] to such a page, its arguments checked.
pub(super) fn append(page: &mut [u8], shape: PageShape, slot: usize, k: &[f32], v: &[f32]) {
    let block = KEY_TOKENS * QUAD * shape.key_quads();
    let first = shape.key_codes() + slot / KEY_TOKENS * block + slot % KEY_TOKENS * QUAD;
    let place = |dim: usize| first + dim / QUAD * KEY_TOKENS * QUAD + dim % QUAD;
    write(page, 0, slot, k, QUAD * shape.key_quads(), place);
    if !shape.is_latent() {
        let place = |dim: usize| {
            let (start, dims) = shape.value_group(dim / SCALE_DIMS);
            let quad = slot / QUAD * dims + dim % SCALE_DIMS;
            start + quad * QUAD + TOKEN_BYTES[slot % QUAD]
        };
        write(page, shape.value_scales(), slot, v, shape.padded_dims(), place);
    }
}

/// Writes a token's scales, and a code for each of `dims` dimensions where `place` says.
fn write(
    page: &mut [u8],
    scales: usize,
    slot: usize,
    x: &[f32],
    dims: usize,
    place: impl Fn(usize) -> usize,
) {
    for (group, x) in x.chunks(SCALE_DIMS).enumerate() {
        let scale = scale_of(x);
        page[scales + 2 * (group * PAGE_TOKENS + slot)..][..2]
            .copy_from_slice(&scale.to_le_bytes());
        for (dim, &x) in x.iter().enumerate() {
            page[place(group * SCALE_DIMS + dim)] = code(x, scale);
        }
    }
    for dim in x.len()..dims {
        page[place(dim)] = ZERO;
    }
}

/// The scale that maps the largest magnitude to 127; NaN if a number is, so that it stays visible.
fn scale_of(x: &[f32]) -> half::f16 {
    let larger = |m: f32, x: &f32| if x.abs() > m || x.is_nan() { x.abs() } else { m };
    let largest = x.iter().fold(0.0, larger);
    half::f16::from_f32((largest / 127.0).clamp(0.0, 65504.0))
}

/// The nearest multiple of the scale as it was stored.
fn code(x: f32, scale: half::f16) -> u8 {
    let scale = scale.to_f32();
    let steps = if scale == 0.0 { 0.0 } else { (x / scale).round().clamp(-127.0, 127.0) };
    (steps as i8 as u8).wrapping_add(ZERO)
}
