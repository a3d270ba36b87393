//! What a step means on one rank: where its tokens lie, what they see, and how attention is cut.

use crate::attention::{Heads, common};
use crate::hopb::{self, Pieces};
use crate::kv::KvCache;
use crate::tuner::Kind;
use helix_kernels::attention::{CHUNK_TOKENS, Sees};
use helix_layout::pieces::{self, tile_tokens};
use helix_layout::{Layout, Rank};
use helix_scheduler::{Step, Wanted};
use std::ops::Range;

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

/// All query rows of a run that read one KV head: what a batch's attention is cut between.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    /// The KV head, counted on this rank.
    head: usize,
    /// The run: of [`Batch::tokens`].
    pub(crate) tokens: Range<usize>,
    /// Where its items end.
    items_end: usize,
}

/// A query head of one of [`Batch::tokens`], counted on this rank.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) token: u32,
    pub(crate) head: u32,
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
    /// Where the pieces end whose outputs are exchanged one after the other: of
    /// [`Batch::units`]. The same on all ranks of a KVP group, and never empty.
    piece_ends: Vec<usize>,
    /// What attention costs for each unit: the same on all ranks of a KVP group.
    costs: Vec<u64>,
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
    /// Run by run, KV head by KV head.
    pub(crate) units: Vec<Unit>,
    /// For each member of the KVP group: the heads that it keeps, in the order of their states.
    rows_to: Vec<Vec<Row>>,
    /// Where each unit's rows end in each member's: `[units, members]`.
    row_ends: Vec<usize>,
    /// By pool.
    pub(crate) sights: Vec<Sight>,
}

/// What a batch has to know of its rank.
#[derive(Clone, Copy)]
pub(crate) struct Cut<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) rank: Rank,
    pub(crate) heads: &'a Heads,
    /// Values of the state of a query row.
    pub(crate) state: usize,
    /// Pieces to exchange attention's outputs in.
    pub(crate) pieces: Pieces<'a>,
}

impl Sight {
    fn with_capacity(window: Option<usize>, tokens: usize, items: usize) -> Sight {
        Sight {
            window,
            sees: Vec::with_capacity(tokens),
            items: Vec::with_capacity(items),
            state_ends: Vec::with_capacity(items),
            piece_ends: Vec::with_capacity(hopb::MAX_PIECES),
            costs: Vec::with_capacity(items),
            visible_tokens: 0,
        }
    }

    fn clear(&mut self) {
        self.sees.clear();
        self.items.clear();
        self.state_ends.clear();
        self.visible_tokens = 0;
    }

    /// How many pieces there are.
    pub(crate) fn pieces(&self) -> usize {
        self.piece_ends.len()
    }

    /// What attention costs in all.
    pub(crate) fn cost(&self) -> u64 {
        self.costs.iter().sum()
    }

    /// The units of a piece.
    pub(crate) fn piece(&self, index: usize) -> Range<usize> {
        index.checked_sub(1).map_or(0, |before| self.piece_ends[before])..self.piece_ends[index]
    }

    /// Adds what a run's tokens see, and cuts them into items.
    fn add(&mut self, tokens: &[Token], run: Range<usize>, start: usize, cut: Cut<'_>) {
        let Cut { layout, rank, .. } = cut;
        let slot = tokens[run.start].slot;
        let kvp = layout.attention(rank).kvp;
        let local = |position| layout.owned_before(kvp, position) - start;
        self.sees.extend(tokens[run.clone()].iter().map(|token| Sees {
            from: local(pieces::hidden_before(self.window, token.position)) as u32,
            to: local(token.position + 1) as u32,
        }));
        let (first, last) = (self.sees[run.start], self.sees[run.end - 1]);
        self.visible_tokens += u64::from(last.to - first.from);
        for (head, group) in cut.heads.groups.iter().enumerate() {
            let group = group.len();
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
        heads: &Heads,
        logits: usize,
        windows: &[Option<usize>],
        ranks: usize,
    ) -> Batch {
        let (kv_heads, members) = (heads.groups.len(), heads.kept.len());
        // A run of n tokens makes at most 1 + n / tile tiles.
        let items = (tokens + tokens / tile_tokens(heads.largest_group())) * kv_heads;
        let sights = windows.iter().map(|&w| Sight::with_capacity(w, tokens, items));
        let rows_to = heads.kept.iter().map(|kept| Vec::with_capacity(tokens * kept.len()));
        Batch {
            ids: Vec::with_capacity(tokens),
            tokens: Vec::with_capacity(tokens),
            rows: Vec::with_capacity(tokens),
            by_group: Vec::with_capacity(tokens),
            group_rows: Vec::with_capacity(ranks),
            wanted: Vec::with_capacity(logits),
            units: Vec::with_capacity(tokens * kv_heads),
            rows_to: rows_to.collect(),
            row_ends: Vec::with_capacity(tokens * kv_heads * members),
            sights: sights.collect(),
        }
    }

    /// Describes `step` for the rank of `cut`, whose cache has taken in the step's tokens.
    pub(crate) fn load(&mut self, step: &Step, kv: &KvCache, cut: Cut<'_>) {
        let Cut { layout, rank, .. } = cut;
        let Batch { ids, tokens, rows, by_group, group_rows, wanted, sights, .. } = self;
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
        by_group.clear();
        group_rows.clear();
        if layout.degrees().dp > 1 {
            bring_together(by_group, group_rows, step, layout);
        }
        self.divide(cut.heads);
        let kind = self.kind();
        let values = cut.heads.exchanged(self.tokens.len());
        for Sight { window, piece_ends, costs, .. } in &mut self.sights {
            costs.clear();
            costs.extend(self.units.iter().map(|unit| {
                let (first, last) = (unit.tokens.start, unit.tokens.end - 1);
                let positions = self.tokens[first].position..self.tokens[last].position + 1;
                pieces::cost(positions, *window, cut.heads.groups[unit.head].len())
            }));
            let pieces = match cut.pieces {
                Pieces::Fixed(pieces) => pieces,
                Pieces::Tuned(tuner) => tuner.pieces(kind, costs, values, piece_ends),
            };
            pieces::cut(piece_ends, costs, pieces);
        }
    }

    /// What the step is, where all runs are of a kind; else a prompt.
    pub(crate) fn kind(&self) -> Kind {
        let single = self.tokens.iter().all(|token| token.run.1 - token.run.0 == 1);
        if single { Kind::Decode } else { Kind::Prompt }
    }

    /// The units, and the rows that each member of the KVP group keeps of them.
    fn divide(&mut self, heads: &Heads) {
        let Batch { tokens, units, rows_to, row_ends, .. } = self;
        units.clear();
        row_ends.clear();
        rows_to.iter_mut().for_each(Vec::clear);
        let (mut first, mut items_end) = (0, 0);
        while let Some(&Token { run: (_, end), .. }) = tokens.get(first) {
            for (head, group) in heads.groups.iter().enumerate() {
                items_end += (end - first).div_ceil(tile_tokens(group.len()));
                units.push(Unit { head, tokens: first..end, items_end });
                for (rows, kept) in rows_to.iter_mut().zip(&heads.kept) {
                    for token in first..end {
                        let row = |head| Row { token: token as u32, head: head as u32 };
                        rows.extend(common(group, kept).map(row));
                    }
                    row_ends.push(rows.len());
                }
            }
            first = end;
        }
    }

    /// The items of some units.
    pub(crate) fn items(&self, piece: &Range<usize>) -> Range<usize> {
        items_of(&self.units, piece)
    }

    /// The tokens that some units are of.
    pub(crate) fn tokens_of(&self, piece: &Range<usize>) -> Range<usize> {
        match &self.units[piece.clone()] {
            [] => 0..0,
            [first, ..] => first.tokens.start..self.units[piece.end - 1].tokens.end,
        }
    }

    /// The rows of some units that a member of the KVP group keeps, and where they lie among all
    /// that it keeps.
    pub(crate) fn rows_to(&self, member: usize, piece: &Range<usize>) -> (Range<usize>, &[Row]) {
        let members = self.rows_to.len();
        let end = |units: usize| match units {
            0 => 0,
            units => self.row_ends[(units - 1) * members + member],
        };
        let rows = end(piece.start)..end(piece.end);
        (rows.clone(), &self.rows_to[member][rows])
    }

    /// Where a query head of one of [`Batch::tokens`] comes in the order of the items (run, KV
    /// head, token, query head) among `all` heads of each token. `heads` are those of its KV head.
    pub(crate) fn row_of(
        &self,
        token: usize,
        heads: &Range<usize>,
        head: usize,
        all: usize,
    ) -> usize {
        let (first, end) = self.tokens[token].run;
        let before = first * all + heads.start * (end - first);
        before + (token - first) * heads.len() + head - heads.start
    }
}

fn items_of(units: &[Unit], piece: &Range<usize>) -> Range<usize> {
    let end = |count: usize| count.checked_sub(1).map_or(0, |last| units[last].items_end);
    end(piece.start)..end(piece.end)
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
