//! How sixteen keys or values lie in a page, one type for each [`KvType`](crate::kv::KvType) of floats.

use std::marker::PhantomData;

use crate::arch::lanes::{LANES, Lanes};

/// An element type: what turns its bytes to lanes.
pub(super) trait Element {
    /// Bytes of sixteen elements.
    type Row: Copy + 'static;

    /// Whether the bytes are other than those of the lanes.
    const CONVERTS: bool = true;
    /// Whether what is read is to be kept as lanes.
    const KEEPS: bool = false;
    /// Bytes of memory that sixteen elements come from, sooner or later.
    const MEMORY: usize = size_of::<Self::Row>();

    /// Whole rows of a page's part.
    fn rows(bytes: &[u8]) -> &[Self::Row];
    /// Sixteen elements.
    fn load<S: Lanes>(s: S, row: &Self::Row) -> S::F;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;
/// Another element, whose lanes are kept.
pub(super) struct Keeping<E>(PhantomData<E>);
/// Lanes that were kept of elements half as wide.
pub(super) struct Kept;

impl<E: Element> Element for Keeping<E> {
    type Row = E::Row;

    const KEEPS: bool = true;

    #[inline(always)]
    fn rows(bytes: &[u8]) -> &[E::Row] {
        E::rows(bytes)
    }

    #[inline(always)]
    fn load<S: Lanes>(s: S, row: &E::Row) -> S::F {
        E::load(s, row)
    }
}

impl Element for Kept {
    type Row = <F32 as Element>::Row;

    const CONVERTS: bool = false;
    const MEMORY: usize = size_of::<Self::Row>() / 2;

    #[inline(always)]
    fn rows(bytes: &[u8]) -> &[Self::Row] {
        F32::rows(bytes)
    }

    #[inline(always)]
    fn load<S: Lanes>(s: S, row: &Self::Row) -> S::F {
        F32::load(s, row)
    }
}

impl Element for F32 {
    type Row = [u8; 4 * LANES];

    const CONVERTS: bool = false;

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
