//! How sixteen keys or values lie in a page, one type for each [`KvType`](crate::kv::KvType) of floats.

use crate::arch::lanes::{LANES, Lanes};

/// An element type: what turns its bytes to lanes.
pub(super) trait Element {
    /// Bytes of sixteen elements.
    type Row: Copy + 'static;

    /// Whole rows of a page's part.
    fn rows(bytes: &[u8]) -> &[Self::Row];
    /// Sixteen elements.
    fn load<S: Lanes>(s: S, row: &Self::Row) -> S::F;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;

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
