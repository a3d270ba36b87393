//! One rank's KV cache: pages of local tokens, and which sequence holds which.
//!
//! A sequence's positions belong to the ranks of a KVP group block by block; a rank stores its own
//! one behind the other, as local tokens `0..n`. Local order is position order, so what a query at
//! position `p` may see is a run that ends below `owned_before(p + 1)`.
//!
//! Layers that see everything and layers with a sliding window have a [`Pool`] each: a window's
//! pages are given back as soon as no query can see them any more.

use crate::EngineError;
use helix_kernels::kv::{KvView, PAGE_TOKENS, PageShape};
use memmap2::MmapMut;
use std::io;

/// What a cache is sized for.
#[derive(Clone, Debug)]
pub(crate) struct KvSizes {
    pub(crate) shape: PageShape,
    /// KV heads of the rank.
    pub(crate) heads: usize,
    /// Sequences.
    pub(crate) slots: usize,
    /// For each pool: its layers, and the local tokens of a sequence that it holds at most.
    pub(crate) pools: Vec<(usize, usize)>,
}

impl KvSizes {
    /// Bytes of all pools, if they can be addressed.
    pub(crate) fn bytes(&self) -> Option<usize> {
        self.pools.iter().try_fold(0usize, |sum, &(layers, tokens)| {
            let pages = self.slots.checked_mul(tokens.div_ceil(PAGE_TOKENS))?;
            let heads = layers.checked_mul(self.heads)?;
            let size = pages.checked_mul(heads)?.checked_mul(self.shape.bytes())?;
            sum.checked_add(size).filter(|_| pages < u32::MAX as usize)
        })
    }
}

/// A rank's keys and values.
pub(crate) struct KvCache {
    shape: PageShape,
    heads: usize,
    pools: Vec<Pool>,
    /// The pool of each layer, and the layer's index there.
    of_layer: Vec<(usize, usize)>,
}

/// Pages of the layers that see alike, `[layer, head, page]`, so that one head's pages lie side by
/// side and a sequence's neighbours mostly do too.
struct Pool {
    bytes: MmapMut,
    layers: usize,
    pages: usize,
    /// Pages that no sequence holds, the next to be given out last.
    free: Vec<u32>,
    slots: Vec<Slot>,
}

#[derive(Default)]
struct Slot {
    /// Of local tokens from page `first` on.
    pages: Vec<u32>,
    first: usize,
    tokens: usize,
}

impl KvCache {
    /// `pool_of[layer]` says where each layer belongs. `slots` numbers sequences, of which the
    /// rank holds no more than it was sized for.
    pub(crate) fn new(
        sizes: &KvSizes,
        slots: usize,
        pool_of: &[usize],
    ) -> Result<KvCache, EngineError> {
        let refused = |source| EngineError::System { what: "memory for the KV cache", source };
        if sizes.bytes().is_none() {
            return Err(refused(io::Error::other("more than the address space")));
        }
        let mut before = vec![0; sizes.pools.len()];
        let of_layer = pool_of.iter().map(|&pool| {
            before[pool] += 1;
            (pool, before[pool] - 1)
        });
        let of_layer: Vec<_> = of_layer.collect();
        let pools = sizes.pools.iter().map(|&(layers, tokens)| {
            let per_slot = tokens.div_ceil(PAGE_TOKENS);
            let pages = sizes.slots * per_slot;
            let size = layers * sizes.heads * pages * sizes.shape.bytes();
            Pool::new(size, layers, pages, (slots, per_slot)).map_err(refused)
        });
        let pools = pools.collect::<Result<_, _>>()?;
        Ok(KvCache { shape: sizes.shape, heads: sizes.heads, pools, of_layer })
    }

    /// Local tokens `from..to` of the sequence in `slot` are what `pool`'s layers hold from here
    /// on: pages come and go as it grows, shrinks and slides. There are always enough: the pool
    /// was sized for all sequences at their longest.
    pub(crate) fn resize(&mut self, pool: usize, slot: usize, from: usize, to: usize) {
        let Pool { free, slots, .. } = &mut self.pools[pool];
        let slot = &mut slots[slot];
        slot.tokens = to;
        let (first, end) = (from / PAGE_TOKENS, to.div_ceil(PAGE_TOKENS));
        while slot.first + slot.pages.len() > end.max(slot.first) {
            free.push(slot.pages.pop().expect("the loop's condition"));
        }
        let gone = first.saturating_sub(slot.first).min(slot.pages.len());
        free.extend(slot.pages.drain(..gone));
        slot.first += gone;
        if slot.pages.is_empty() {
            slot.first = first.min(end);
        }
        while slot.first + slot.pages.len() < end {
            slot.pages.push(free.pop().expect("a page for every token of every sequence"));
        }
    }

    /// The first local token of `slot`'s sequence that `pool` still has.
    pub(crate) fn start(&self, pool: usize, slot: usize) -> usize {
        self.pools[pool].slots[slot].first * PAGE_TOKENS
    }

    /// Bytes of keys and values held, without the unused ends of pages.
    pub(crate) fn bytes_held(&self) -> u64 {
        let held = |slot: &Slot| slot.tokens.saturating_sub(slot.first * PAGE_TOKENS);
        let of = |pool: &Pool| pool.slots.iter().map(held).sum::<usize>() * pool.layers;
        self.bytes_read(self.pools.iter().map(of).sum::<usize>() as u64)
    }

    /// Bytes that one layer's attention reads to see `tokens` tokens with every head.
    pub(crate) fn bytes_read(&self, tokens: u64) -> u64 {
        tokens * (self.shape.token_bytes() * self.heads) as u64
    }

    pub(crate) fn shape(&self) -> PageShape {
        self.shape
    }

    /// What attention reads of one sequence in one layer and head; local tokens are counted from
    /// [`KvCache::start`].
    pub(crate) fn view(&self, layer: usize, head: usize, slot: usize) -> KvView<'_> {
        let (pool, index) = self.of_layer[layer];
        let pool = &self.pools[pool];
        let size = pool.pages * self.shape.bytes();
        let start = (index * self.heads + head) * size;
        KvView {
            pages: &pool.bytes[start..start + size],
            table: &pool.slots[slot].pages,
            shape: self.shape,
        }
    }

    /// One layer's pages, a run of [`Tables::page`]-indexed pages per head, and where sequences
    /// have theirs.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> (&mut [u8], usize, Tables<'_>) {
        let (pool, index) = self.of_layer[layer];
        let Pool { bytes, pages, slots, .. } = &mut self.pools[pool];
        let size = *pages * self.shape.bytes();
        let start = index * self.heads * size;
        let tables = Tables { slots, page_bytes: self.shape.bytes() };
        (&mut bytes[start..start + self.heads * size], size, tables)
    }
}

impl Pool {
    fn new(
        size: usize,
        layers: usize,
        pages: usize,
        (slots, per_slot): (usize, usize),
    ) -> io::Result<Pool> {
        let bytes = memory(size)?;
        let slot = || Slot { pages: Vec::with_capacity(per_slot), ..Slot::default() };
        Ok(Pool {
            bytes,
            layers,
            pages,
            free: (0..pages as u32).rev().collect(),
            slots: (0..slots).map(|_| slot()).collect(),
        })
    }
}

/// Zeroed memory for pages.
pub(crate) fn memory(size: usize) -> io::Result<MmapMut> {
    let bytes = MmapMut::map_anon(size.max(1))?;
    // Fewer page-table walks where the system offers it; nothing is lost where it does not.
    #[cfg(target_os = "linux")]
    let _ = bytes.advise(memmap2::Advice::HugePage);
    Ok(bytes)
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
        let slot = &self.slots[slot];
        let page = slot.pages[local / PAGE_TOKENS - slot.first] as usize;
        (&mut head[page * self.page_bytes..][..self.page_bytes], local % PAGE_TOKENS)
    }
}
