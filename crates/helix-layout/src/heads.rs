//! How attention's heads are cut into slices.

use std::ops::Range;

use crate::{ModelShape, split};

/// One of the slices that attention's heads are cut into.
pub(crate) struct HeadSlice {
    pub q: Range<usize>,
    /// The KV heads that `q` reads, and no others.
    pub kv: Range<usize>,
}

impl HeadSlice {
    /// Slice `index` of `slices`. Up to K slices, KV heads are cut and query heads follow theirs.
    /// Past K, slices are dealt to KV heads, and those that got the same one part its queries:
    /// so no slice ever reads more than ceil(K / slices) KV heads.
    pub fn of(shape: &ModelShape, slices: usize, index: usize) -> Self {
        let (kv_heads, group) = (shape.kv_heads, shape.group());
        if slices <= kv_heads {
            let kv = split(kv_heads, slices, 1, index);
            return Self { q: kv.start * group..kv.end * group, kv };
        }
        let mut dealt = (0..kv_heads).map(|head| (head, split(slices, kv_heads, 1, head)));
        let (head, sharers) =
            dealt.find(|(_, sharers)| sharers.contains(&index)).expect("a slice of some head");
        let part = split(group, sharers.len(), 1, index - sharers.start);
        let kv = if part.is_empty() { head + 1..head + 1 } else { head..head + 1 };
        Self { q: head * group + part.start..head * group + part.end, kv }
    }
}
