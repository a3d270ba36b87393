//! What a step means on one rank: where its tokens lie, what they see, and how attention is cut.

use helix_kernels::attention::CHUNK_TOKENS;
use helix_layout::{Layout, Rank};
use helix_scheduler::{Step, Wanted};
use std::ops::Range;

/// Query tokens of one attention item: enough rows to pay for converting a page of keys once, few
/// enough that a prefill chunk makes plenty of items.
pub(crate) const TILE_TOKENS: usize = 16;

/// A token of the step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    pub(crate) id: u32,
    pub(crate) slot: usize,
    pub(crate) position: usize,
    /// Where this rank stores it, if it owns its position.
    pub(crate) local: Option<usize>,
    /// Local tokens that it sees: its own among them, if this rank has it.
    pub(crate) visible: u32,
    /// Rows of the batch that its run takes.
    pub(crate) run: (usize, usize),
}

/// Query rows that read the same keys: some tokens of one run, all query heads of one KV head.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) slot: usize,
    /// The KV head, counted on this rank.
    pub(crate) head: usize,
    /// Rows of the batch.
    pub(crate) tokens: Range<usize>,
    /// Local tokens that the last of them sees.
    pub(crate) visible: usize,
}

/// One step, from one rank's point of view. Its buffers are sized once.
pub(crate) struct Batch {
    pub(crate) tokens: Vec<Token>,
    /// Rows whose logits are wanted.
    pub(crate) wanted: Vec<usize>,
    pub(crate) items: Vec<Item>,
    /// Where each item's rows of states end; row = (token, query head of the KV head).
    pub(crate) state_ends: Vec<usize>,
    /// Whether there are too few items for the threads, so that each is cut into chunks.
    pub(crate) by_chunk: bool,
    /// Sum over runs of the local tokens that they see.
    pub(crate) visible_tokens: u64,
}

impl Batch {
    pub(crate) fn with_capacity(tokens: usize, kv_heads: usize, logits: usize) -> Batch {
        // A run of n tokens makes at most 1 + n / TILE_TOKENS tiles.
        let items = (tokens + tokens / TILE_TOKENS) * kv_heads;
        Batch {
            tokens: Vec::with_capacity(tokens),
            wanted: Vec::with_capacity(logits),
            items: Vec::with_capacity(items),
            state_ends: Vec::with_capacity(items),
            by_chunk: false,
            visible_tokens: 0,
        }
    }

    /// Describes `step` for `rank`, whose states have `state` values per query row.
    pub(crate) fn load(
        &mut self,
        step: &Step,
        layout: &Layout,
        rank: Rank,
        threads: usize,
        state: usize,
    ) {
        self.tokens.clear();
        self.wanted.clear();
        self.items.clear();
        self.state_ends.clear();
        self.visible_tokens = 0;
        let kvp = layout.attention(rank).kvp;
        for (run, ids) in step.iter() {
            let first = self.tokens.len();
            let rows = first..first + run.len;
            self.tokens.extend(ids.iter().enumerate().map(|(i, &id)| {
                let position = run.start + i;
                let local =
                    (layout.owner(position) == kvp).then(|| layout.owned_before(kvp, position));
                let visible = layout.owned_before(kvp, position + 1) as u32;
                Token { id, slot: run.slot, position, local, visible, run: (rows.start, rows.end) }
            }));
            self.visible_tokens += u64::from(self.tokens[rows.end - 1].visible);
            match run.logits {
                Wanted::None => {}
                Wanted::Last => self.wanted.push(rows.end - 1),
                Wanted::All => self.wanted.extend(rows.clone()),
            }
            self.cut(run.slot, rows, layout, rank, state);
        }
        self.by_chunk = self.items.len() < 4 * threads && self.chunks() > 1;
    }

    fn cut(&mut self, slot: usize, rows: Range<usize>, layout: &Layout, rank: Rank, state: usize) {
        for head in 0..layout.kv_heads(rank).len() {
            let group = group_heads(layout, rank, head).len();
            for start in rows.clone().step_by(TILE_TOKENS) {
                let tokens = start..rows.end.min(start + TILE_TOKENS);
                let visible = self.tokens[tokens.end - 1].visible as usize;
                let before = self.state_ends.last().copied().unwrap_or(0);
                self.state_ends.push(before + tokens.len() * group * state);
                self.items.push(Item { slot, head, tokens, visible });
            }
        }
    }

    /// The state of a query head of a row of the batch: its range among all states.
    ///
    /// `heads` are the query heads of its KV head, counted on this rank. The order is that of the
    /// items: run, KV head, token, query head.
    pub(crate) fn state_of(
        &self,
        row: usize,
        heads: &Range<usize>,
        head: usize,
        q_heads: usize,
        state: usize,
    ) -> Range<usize> {
        let (first, end) = self.tokens[row].run;
        let before = first * q_heads + heads.start * (end - first);
        let start = (before + (row - first) * heads.len() + head - heads.start) * state;
        start..start + state
    }

    /// The items' chunks from `first` on, up to `most` of each, laid end to end: every item with
    /// its run of them.
    pub(crate) fn wave(
        &self,
        first: usize,
        most: usize,
    ) -> impl Iterator<Item = (&Item, Range<usize>)> {
        let mut end = 0;
        self.items.iter().map(move |item| {
            let start = end;
            let chunks = item.visible.div_ceil(CHUNK_TOKENS);
            end += most.min(chunks.saturating_sub(first));
            (item, start..end)
        })
    }

    /// Chunks of the longest item.
    pub(crate) fn chunks(&self) -> usize {
        self.items.iter().map(|item| item.visible.div_ceil(CHUNK_TOKENS)).max().unwrap_or(0)
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
