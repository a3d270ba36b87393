//! One rank's KV cache: pages of local tokens, and which sequence holds which.
//!
//! A sequence's positions belong to the ranks of a KVP group block by block; a rank stores its own
//! one behind the other, as local tokens `0..n`. Local order is position order, so what a query at
//! position `p` may see is a prefix: the local tokens below `owned_before(p + 1)`.

use crate::EngineError;
use helix_kernels::kv::{KvView, PAGE_TOKENS, PageShape};
use memmap2::MmapMut;
use std::io;

/// Pages for all layers and KV heads of a rank: `[layer, head, page]`, so that one head's pages lie
/// side by side and a sequence's neighbours mostly do too.
pub(crate) struct KvCache {
    bytes: MmapMut,
    shape: PageShape,
    layers: usize,
    heads: usize,
    pages: usize,
    /// Pages that no sequence holds, the next to be given out last.
    free: Vec<u32>,
    slots: Vec<Slot>,
}

#[derive(Default)]
struct Slot {
    pages: Vec<u32>,
    tokens: usize,
}

impl KvCache {
    /// Bytes of a cache in which each of `slots` sequences has up to `tokens` local tokens.
    pub(crate) fn size(
        shape: PageShape,
        layers: usize,
        heads: usize,
        slots: usize,
        tokens: usize,
    ) -> Option<usize> {
        let pages = slots.checked_mul(tokens.div_ceil(PAGE_TOKENS))?;
        let heads = layers.checked_mul(heads)?;
        pages.checked_mul(heads)?.checked_mul(shape.bytes()).filter(|_| pages < u32::MAX as usize)
    }

    pub(crate) fn new(
        shape: PageShape,
        layers: usize,
        heads: usize,
        slots: usize,
        tokens: usize,
    ) -> Result<KvCache, EngineError> {
        let refused = |source| EngineError::System { what: "memory for the KV cache", source };
        let size = Self::size(shape, layers, heads, slots, tokens)
            .ok_or_else(|| refused(io::Error::other("more than the address space")))?;
        let bytes = MmapMut::map_anon(size.max(1)).map_err(refused)?;
        // Fewer page-table walks where the system offers it; nothing is lost where it does not.
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(memmap2::Advice::HugePage);
        let per_slot = tokens.div_ceil(PAGE_TOKENS);
        let pages = slots * per_slot;
        let slot = || Slot { pages: Vec::with_capacity(per_slot), tokens: 0 };
        Ok(KvCache {
            bytes,
            shape,
            layers,
            heads,
            pages,
            free: (0..pages as u32).rev().collect(),
            slots: (0..slots).map(|_| slot()).collect(),
        })
    }

    /// Local tokens of the sequence in `slot` from here on: pages come and go as it grows and
    /// shrinks. There are always enough: the cache was sized for all sequences at their longest.
    pub(crate) fn resize(&mut self, slot: usize, tokens: usize) {
        let slot = &mut self.slots[slot];
        slot.tokens = tokens;
        let pages = tokens.div_ceil(PAGE_TOKENS);
        while slot.pages.len() > pages {
            self.free.push(slot.pages.pop().expect("the loop's condition"));
        }
        while slot.pages.len() < pages {
            slot.pages.push(self.free.pop().expect("a page for every token of every sequence"));
        }
    }

    /// Bytes of keys and values held, without the unused ends of pages.
    pub(crate) fn bytes_held(&self) -> u64 {
        let tokens: usize = self.slots.iter().map(|slot| slot.tokens).sum();
        self.bytes_read(tokens as u64) * self.layers as u64
    }

    /// Bytes that one layer's attention reads to see `tokens` tokens with every head.
    pub(crate) fn bytes_read(&self, tokens: u64) -> u64 {
        tokens * (self.shape.token_bytes() * self.heads) as u64
    }

    pub(crate) fn shape(&self) -> PageShape {
        self.shape
    }

    fn head_bytes(&self) -> usize {
        self.pages * self.shape.bytes()
    }

    /// What attention reads of one sequence in one layer and head.
    pub(crate) fn view(&self, layer: usize, head: usize, slot: usize) -> KvView<'_> {
        let size = self.head_bytes();
        let start = (layer * self.heads + head) * size;
        KvView {
            pages: &self.bytes[start..start + size],
            table: &self.slots[slot].pages,
            shape: self.shape,
        }
    }

    /// One layer's pages, a run of [`Tables::page`]-indexed pages per head, and where sequences
    /// have theirs.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> (&mut [u8], usize, Tables<'_>) {
        let size = self.head_bytes();
        let start = layer * self.heads * size;
        let tables = Tables { slots: &self.slots, page_bytes: self.shape.bytes() };
        (&mut self.bytes[start..start + self.heads * size], size, tables)
    }
}

/// Finds a sequence's local tokens among a head's pages.
#[derive(Clone, Copy)]
pub(crate) struct Tables<'a> {
    slots: &'a [Slot],
    page_bytes: usize,
}

impl Tables<'_> {
    /// The page that holds a local token, and its place in it.
    pub(crate) fn page<'p>(
        &self,
        head: &'p mut [u8],
        slot: usize,
        local: usize,
    ) -> (&'p mut [u8], usize) {
        let page = self.slots[slot].pages[local / PAGE_TOKENS] as usize;
        (&mut head[page * self.page_bytes..][..self.page_bytes], local % PAGE_TOKENS)
    }
}
