//! What a step means on one rank: where its tokens lie, what they see, and how attention is cut.

use crate::kv::KvCache;
use helix_kernels::attention::{CHUNK_TOKENS, Sees};
use helix_layout::{Layout, Rank};
use helix_scheduler::{Step, Wanted};
use std::ops::Range;

/// Query rows of one attention item at most, if a token has fewer: enough to pay for converting a
/// page of keys once, few enough that a prefill chunk makes plenty of items.
const TILE_ROWS: usize = 64;
/// Query tokens of one attention item at most.
const TILE_TOKENS: usize = 16;

/// A token whose attention this rank takes part in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    pub(crate) slot: usize,
    pub(crate) position: usize,
    /// Where this rank stores it, if it owns its position.
    pub(crate) local: Option<usize>,
    /// The tokens of its run that this rank has: a range of [`Batch::tokens`].
    pub(crate) run: (usize, usize),
}

/// Query rows that read the same keys: some tokens of one run, all query heads of one KV head.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) slot: usize,
    /// The KV head, counted on this rank.
    pub(crate) head: usize,
    /// Of [`Batch::tokens`].
    pub(crate) tokens: Range<usize>,
    /// Local tokens that any of them sees, counted from the first that the pool still has.
    pub(crate) seen: Range<usize>,
}

impl Item {
    /// Chunks of the shard that have something to see.
    pub(crate) fn chunks(&self) -> Range<usize> {
        self.seen.start / CHUNK_TOKENS..self.seen.end.div_ceil(CHUNK_TOKENS)
    }

    /// What is seen of a chunk.
    pub(crate) fn chunk(&self, chunk: usize) -> Range<usize> {
        let start = chunk * CHUNK_TOKENS;
        start..self.seen.end.min(start + CHUNK_TOKENS)
    }
}

/// What layers of one pool see.
pub(crate) struct Sight {
    /// Positions that a query sees, its own included.
    window: Option<usize>,
    /// What each of [`Batch::tokens`] sees, counted from the first that the pool still has.
    pub(crate) sees: Vec<Sees>,
    pub(crate) items: Vec<Item>,
    /// Where each item's rows of states end; row = (token, query head of the KV head).
    pub(crate) state_ends: Vec<usize>,
    /// Whether there are too few items for the threads, so that each is cut into chunks.
    pub(crate) by_chunk: bool,
    /// Sum over runs of the local tokens that they see.
    pub(crate) visible_tokens: u64,
}

/// One step, from one rank's point of view. Its buffers are sized once.
pub(crate) struct Batch {
    /// Every token's id: the rows of the residual stream.
    pub(crate) ids: Vec<u32>,
    /// The tokens whose attention this rank takes part in.
    pub(crate) tokens: Vec<Token>,
    /// Their rows. All rows, unless sequences belong to groups of ranks.
    pub(crate) rows: Vec<usize>,
    /// Rows of the stream in the order in which groups of ranks bring them together; empty where
    /// there is one group.
    pub(crate) by_group: Vec<usize>,
    /// How many of those each rank brings.
    pub(crate) group_rows: Vec<usize>,
    /// Rows whose logits are wanted.
    pub(crate) wanted: Vec<usize>,
    /// By pool.
    pub(crate) sights: Vec<Sight>,
}

/// What a batch has to know of its rank.
#[derive(Clone, Copy)]
pub(crate) struct Cut<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) rank: Rank,
    pub(crate) threads: usize,
    /// Values of the state of a query row.
    pub(crate) state: usize,
}

/// Query tokens of an item whose KV head serves `group` query heads.
pub(crate) fn tile_tokens(group: usize) -> usize {
    (TILE_ROWS / group.max(1)).clamp(1, TILE_TOKENS)
}

impl Sight {
    fn with_capacity(window: Option<usize>, tokens: usize, items: usize) -> Sight {
        Sight {
            window,
            sees: Vec::with_capacity(tokens),
            items: Vec::with_capacity(items),
            state_ends: Vec::with_capacity(items),
            by_chunk: false,
            visible_tokens: 0,
        }
    }

    fn clear(&mut self) {
        self.sees.clear();
        self.items.clear();
        self.state_ends.clear();
        self.visible_tokens = 0;
    }

    /// Positions before the first that a query at `position` sees.
    pub(crate) fn hidden_before(window: Option<usize>, position: usize) -> usize {
        window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Adds what a run's tokens see, and cuts them into items.
    fn add(&mut self, tokens: &[Token], run: Range<usize>, start: usize, cut: Cut<'_>) {
        let Cut { layout, rank, .. } = cut;
        let slot = tokens[run.start].slot;
        let kvp = layout.attention(rank).kvp;
        let local = |position| layout.owned_before(kvp, position) - start;
        self.sees.extend(tokens[run.clone()].iter().map(|token| Sees {
            from: local(Sight::hidden_before(self.window, token.position)) as u32,
            to: local(token.position + 1) as u32,
        }));
        let (first, last) = (self.sees[run.start], self.sees[run.end - 1]);
        self.visible_tokens += u64::from(last.to - first.from);
        for head in 0..layout.kv_heads(rank).len() {
            let group = group_heads(layout, rank, head).len();
            let tile = tile_tokens(group);
            for start in run.clone().step_by(tile) {
                let tokens = start..run.end.min(start + tile);
                let (first, last) = (self.sees[tokens.start], self.sees[tokens.end - 1]);
                let before = self.state_ends.last().copied().unwrap_or(0);
                self.state_ends.push(before + tokens.len() * group * cut.state);
                self.items.push(Item {
                    slot,
                    head,
                    tokens,
                    seen: first.from as usize..last.to as usize,
                });
            }
        }
    }
}

impl Batch {
    pub(crate) fn with_capacity(
        tokens: usize,
        kv_heads: usize,
        group: usize,
        logits: usize,
        windows: &[Option<usize>],
        ranks: usize,
    ) -> Batch {
        // A run of n tokens makes at most 1 + n / tile tiles.
        let items = (tokens + tokens / tile_tokens(group)) * kv_heads;
        let sights = windows.iter().map(|&w| Sight::with_capacity(w, tokens, items));
        Batch {
            ids: Vec::with_capacity(tokens),
            tokens: Vec::with_capacity(tokens),
            rows: Vec::with_capacity(tokens),
            by_group: Vec::with_capacity(tokens),
            group_rows: Vec::with_capacity(ranks),
            wanted: Vec::with_capacity(logits),
            sights: sights.collect(),
        }
    }

    /// Describes `step` for the rank of `cut`, whose cache has taken in the step's tokens.
    pub(crate) fn load(&mut self, step: &Step, kv: &KvCache, cut: Cut<'_>) {
        let Cut { layout, rank, threads, .. } = cut;
        let Batch { ids, tokens, rows, by_group, group_rows, wanted, sights } = self;
        ids.clear();
        ids.extend_from_slice(&step.tokens);
        tokens.clear();
        rows.clear();
        wanted.clear();
        sights.iter_mut().for_each(Sight::clear);
        let kvp = layout.attention(rank).kvp;
        let mut end = 0;
        for run in &step.runs {
            let all = end..end + run.len;
            end = all.end;
            match run.logits {
                Wanted::None => {}
                Wanted::Last => wanted.push(all.end - 1),
                Wanted::All => wanted.extend(all.clone()),
            }
            if !layout.attends(rank, run.slot) {
                continue;
            }
            let own = tokens.len()..tokens.len() + run.len;
            rows.extend(all);
            tokens.extend((run.start..run.start + run.len).map(|position| {
                let owned = layout.owner(position) == kvp;
                let local = owned.then(|| layout.owned_before(kvp, position));
                Token { slot: run.slot, position, local, run: (own.start, own.end) }
            }));
            for (pool, sight) in sights.iter_mut().enumerate() {
                sight.add(tokens, own.clone(), kv.start(pool, run.slot), cut);
            }
        }
        for sight in sights {
            sight.by_chunk = sight.items.len() < 4 * threads && sight.chunks() > 1;
        }
        by_group.clear();
        group_rows.clear();
        if layout.degrees().dp > 1 {
            bring_together(by_group, group_rows, step, layout);
        }
    }

    /// The state of a query head of one of [`Batch::tokens`]: its range among all states.
    ///
    /// `heads` are the query heads of its KV head, counted on this rank. The order is that of the
    /// items: run, KV head, token, query head.
    pub(crate) fn state_of(
        &self,
        token: usize,
        heads: &Range<usize>,
        head: usize,
        q_heads: usize,
        state: usize,
    ) -> Range<usize> {
        let (first, end) = self.tokens[token].run;
        let before = first * q_heads + heads.start * (end - first);
        let start = (before + (token - first) * heads.len() + head - heads.start) * state;
        start..start + state
    }
}

/// The step's rows in the order of the ranks that attend to them, and how many each does.
fn bring_together(
    by_group: &mut Vec<usize>,
    group_rows: &mut Vec<usize>,
    step: &Step,
    layout: &Layout,
) {
    for rank in layout.all_ranks() {
        let before = by_group.len();
        let mut end = 0;
        for run in &step.runs {
            let rows = end..end + run.len;
            end = rows.end;
            if layout.attends(rank, run.slot) {
                by_group.extend(rows);
            }
        }
        group_rows.push(by_group.len() - before);
    }
}

impl Sight {
    /// The items' chunks from each one's `first` on, up to `most` of each, laid end to end: every
    /// item with its run of them.
    pub(crate) fn wave(
        &self,
        first: usize,
        most: usize,
    ) -> impl Iterator<Item = (&Item, Range<usize>)> {
        let mut end = 0;
        self.items.iter().map(move |item| {
            let start = end;
            end += most.min(item.chunks().len().saturating_sub(first));
            (item, start..end)
        })
    }

    /// Chunks of the longest item.
    pub(crate) fn chunks(&self) -> usize {
        self.items.iter().map(|item| item.chunks().len()).max().unwrap_or(0)
    }
}

/// The query heads that a rank's KV head `head` serves, counted on that rank.
pub(crate) fn group_heads(layout: &Layout, rank: Rank, head: usize) -> Range<usize> {
    let shape = layout.shape();
    let group = shape.q_heads / shape.kv_heads;
    let q = layout.q_heads(rank);
    let kv = layout.kv_heads(rank).start + head;
    let first = (kv * group).max(q.start);
    let last = ((kv + 1) * group).min(q.end);
    first - q.start..last - q.start
}
