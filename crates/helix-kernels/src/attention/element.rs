//! How sixteen keys or values lie in a page, one type for each [`KvType`](crate::kv::KvType).

use crate::arch::lanes::{LANES, Lanes};

/// An element type: what turns its bytes to lanes.
pub(super) trait Element {
    /// Bytes of sixteen elements.
    type Row: Copy + 'static;
    /// Whether groups of [`SCALE_DIMS`](crate::kv::SCALE_DIMS) dimensions have a scale.
    const SCALED: bool = false;

    /// Rows in a cache line of 64 bytes.
    const ROWS_PER_LINE: usize = 64 / size_of::<Self::Row>();

    /// Whole rows of a page's part.
    fn rows(bytes: &[u8]) -> &[Self::Row];
    /// Sixteen elements, not scaled.
    fn load<S: Lanes>(s: S, row: &Self::Row) -> S::F;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;
pub(super) struct Q8_0;

impl Element for F32 {
    type Row = [u8; 4 * LANES];

    #[inline(always)]
    fn rows(bytes: &[u8]) -> &[Self::Row] {
        bytes.as_chunks().0
    }

    #[inline(always)]
    fn load<S: Lanes>(s: S, row: &Self::Row) -> S::F {
        s.load_f32(row)
    }
}

impl Element for F16 {
    type Row = [u8; 2 * LANES];

    #[inline(always)]
    fn rows(bytes: &[u8]) -> &[Self::Row] {
        bytes.as_chunks().0
    }

    #[inline(always)]
    fn load<S: Lanes>(s: S, row: &Self::Row) -> S::F {
        s.load_f16(row)
    }
}

impl Element for BF16 {
    type Row = [u8; 2 * LANES];

    #[inline(always)]
    fn rows(bytes: &[u8]) -> &[Self::Row] {
        bytes.as_chunks().0
    }

    #[inline(always)]
    fn load<S: Lanes>(s: S, row: &Self::Row) -> S::F {
        s.load_bf16(row)
    }
}

impl Element for Q8_0 {
    type Row = [u8; LANES];
    const SCALED: bool = true;

    #[inline(always)]
    fn rows(bytes: &[u8]) -> &[Self::Row] {
        bytes.as_chunks().0
    }

    #[inline(always)]
    fn load<S: Lanes>(s: S, row: &Self::Row) -> S::F {
        s.load_i8(row)
    }
}
