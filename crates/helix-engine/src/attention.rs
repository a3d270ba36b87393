//! Partial attention over this rank's own tokens: HELIX.md's step 4 (paper section 2.2). What comes
//! of it goes to `exchange.rs`.

use crate::batch::{Batch, Item, Sight};
use crate::exchange::Outputs;
use crate::kv::KvCache;
use crate::lanes::{Lane, Lanes};
use crate::pieces;
use crate::values::ValuePlan;
use helix_kernels::attention::{attend, clear, fold, state_len};
use helix_kernels::columns::{SharedParts, SharedRegions, SharedRows};
use helix_layout::pieces::tile_tokens;
use helix_layout::{Layout, Rank};
use helix_model::Config;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;

/// Chunks of one item that are computed side by side before they are folded in order, where their
/// states are small; more where the items have fewer rows than they might.
const WAVE_CHUNKS: Range<usize> = 4..65;
/// States of such chunks, in f32 values, that a rank has room for whatever their size.
const WAVE_VALUES: usize = 1 << 22;
/// Short runs of chunks per thread.
const REST_RUNS: usize = 8;
/// Items per thread from which on each thread takes whole items.
const FEW_ITEMS: usize = 4;

/// What the phase knows of its rank's heads; made once.
pub(crate) struct Heads {
    /// Elements of a query and a key.
    pub(crate) dim: usize,
    /// Elements of what attention gives per head: of a value, or of the latent.
    pub(crate) attended: usize,
    /// Elements of a head that the output projection takes.
    pub(crate) value: usize,
    /// What scores are multiplied by.
    scale: f32,
    /// This rank's query heads, counted from 0.
    pub(crate) q: usize,
    /// The query heads of each of its KV heads.
    pub(crate) groups: Vec<Range<usize>>,
    /// The KV head of each query head.
    pub(crate) kv_of: Vec<usize>,
    /// For each member of the KVP group: the heads of the slice that it keeps after the merge.
    pub(crate) kept: Vec<Range<usize>>,
    /// This rank's index in the group.
    pub(crate) member: usize,
    /// The heads that it keeps of each KV head's, counted from the first that it keeps.
    pub(crate) own_groups: Vec<Range<usize>>,
    /// Where its kept heads lie in its rows of the out-projection's input, and the row's length.
    pub(crate) out_start: usize,
    pub(crate) out_cols: usize,
    /// How values come out of a latent.
    pub(crate) values: Option<ValuePlan>,
}

impl Heads {
    pub(crate) fn new(
        config: &Config,
        layout: &Layout,
        rank: Rank,
        values: Option<ValuePlan>,
    ) -> Heads {
        let value = config.value_dim;
        let q = layout.q_heads(rank);
        let kv_heads = layout.kv_heads(rank).len();
        let groups: Vec<_> =
            (0..kv_heads).map(|head| crate::batch::group_heads(layout, rank, head)).collect();
        let kv_of = groups.iter().enumerate().flat_map(|(kv, g)| g.clone().map(move |_| kv));
        let kept = layout.kvp_group(rank).map(|member| {
            let heads = layout.out_heads(Rank(member));
            if heads.is_empty() { 0..0 } else { heads.start - q.start..heads.end - q.start }
        });
        let kept: Vec<_> = kept.collect();
        let member = layout.attention(rank).kvp;
        let own = &kept[member];
        let own_group = |group: &Range<usize>| {
            let heads = common(group, own);
            heads.start - own.start..heads.end - own.start
        };
        let out_cols = layout.out_cols(rank);
        Heads {
            dim: config.head_dim,
            attended: values.map_or(value, |values| values.latent),
            value,
            scale: config.attention_scale,
            q: q.len(),
            kv_of: kv_of.collect(),
            own_groups: groups.iter().map(own_group).collect(),
            groups,
            kept,
            member,
            out_start: layout.out_heads(rank).start * value - out_cols.start,
            out_cols: out_cols.len(),
            values,
        }
    }

    pub(crate) fn own(&self) -> Range<usize> {
        self.kept[self.member].clone()
    }

    /// The most query heads of a KV head.
    pub(crate) fn largest_group(&self) -> usize {
        self.groups.iter().map(Range::len).max().unwrap_or(0)
    }

    /// Query rows of the largest item.
    pub(crate) fn item_rows(&self, max_tokens: usize) -> usize {
        let rows = |group: &Range<usize>| tile_tokens(group.len()).min(max_tokens) * group.len();
        self.groups.iter().map(rows).max().unwrap_or(0)
    }
}

/// The heads that are in both runs: where `run` starts or later, if there are none.
pub(crate) fn common(heads: &Range<usize>, run: &Range<usize>) -> Range<usize> {
    let start = heads.start.clamp(run.start, run.end);
    start..heads.end.clamp(start, run.end)
}

/// Partial attention's buffers, sized once.
pub(crate) struct AttentionBuffers {
    /// A state for each row and query head, in the order of [`Batch::row_of`].
    pub(crate) states: Vec<f32>,
    /// States of chunks that wait to be folded.
    parts: Vec<f32>,
    /// Where threads' runs of those end, and how many of them are taken.
    runs: Vec<usize>,
    taken: Vec<AtomicUsize>,
}

impl AttentionBuffers {
    pub(crate) fn new(heads: &Heads, max_tokens: usize, threads: usize) -> AttentionBuffers {
        let state = state_len(heads.attended);
        let column = FEW_ITEMS * threads * heads.item_rows(max_tokens) * state;
        let wave = (WAVE_VALUES / column.max(1)).clamp(WAVE_CHUNKS.start, WAVE_CHUNKS.end - 1);
        AttentionBuffers {
            states: vec![0.0; max_tokens * heads.q * state],
            parts: vec![0.0; wave * column],
            runs: Vec::with_capacity(pieces::count(threads, REST_RUNS)),
            taken: (0..threads).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    /// What has been computed so far.
    pub(crate) fn outputs<'a>(&'a self, batch: &'a Batch, heads: &'a Heads) -> Outputs<'a> {
        Outputs { batch, heads, states: &self.states }
    }
}

/// A rank's rows of `[q; k; v]`, `len` values each.
#[derive(Clone, Copy)]
pub(crate) struct QkvRows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) len: usize,
}

/// Attention of a piece's query rows over this rank's own tokens: a state per row and query head.
pub(crate) fn partial(
    lanes: &mut Lanes,
    kv: &KvCache,
    layer: usize,
    (batch, sight, piece): (&Batch, &Sight, usize),
    heads: &Heads,
    qkv: QkvRows<'_>,
    buffers: &mut AttentionBuffers,
) {
    let items = batch.items(&sight.piece(piece));
    let work = Work { kv, layer, batch, sight, heads, qkv, items };
    let few = work.items.len() < FEW_ITEMS * lanes.threads();
    if few && work.chunks() > 1 {
        work.chunk_by_chunk(lanes, buffers);
    } else {
        work.item_by_item(lanes, &mut buffers.states);
    }
}

/// Some items of a layer's attention.
struct Work<'a> {
    kv: &'a KvCache,
    layer: usize,
    batch: &'a Batch,
    sight: &'a Sight,
    heads: &'a Heads,
    qkv: QkvRows<'a>,
    items: Range<usize>,
}

impl Work<'_> {
    fn items(&self) -> &[Item] {
        &self.sight.items[self.items.clone()]
    }

    /// Chunks of the longest item.
    fn chunks(&self) -> usize {
        self.items().iter().map(|item| item.chunks().len()).max().unwrap_or(0)
    }

    /// Where the states of item `index` of the sight start.
    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.sight.state_ends[before])
    }

    /// Values of the states of item `index` of the sight.
    fn size(&self, index: usize) -> usize {
        self.sight.state_ends[index] - self.start(index)
    }

    /// The items' chunks from each one's `first` on, up to `most` of each, laid end to end: every
    /// item's index with its run of them.
    fn wave(&self, first: usize, most: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let mut end = 0;
        self.items.clone().zip(self.items()).map(move |(index, item)| {
            let start = end;
            end += most.min(item.chunks().len().saturating_sub(first));
            (index, start..end)
        })
    }

    /// Each thread takes whole items and folds their chunks as it goes.
    fn item_by_item(&self, lanes: &mut Lanes, states: &mut [f32]) {
        let state = state_len(self.heads.attended);
        let shared = SharedParts::some(states, &self.sight.state_ends, self.items.clone());
        lanes.share(|lane| {
            while let Some((index, acc)) = shared.next() {
                let item = &self.sight.items[index];
                lane.load(item, self);
                let view = self.kv.view(self.layer, item.head, item.slot);
                let Lane { attention, states, queries, sees, .. } = &mut *lane;
                let mut chunks = item.chunks().map(|chunk| item.chunk(chunk));
                match chunks.next() {
                    None => acc.chunks_exact_mut(state).for_each(clear),
                    Some(first) => attend(acc, queries, sees, &view, first, attention),
                }
                let part = &mut states[..acc.len()];
                for chunk in chunks {
                    attend(part, queries, sees, &view, chunk, attention);
                    fold_rows(acc, part, state);
                }
            }
        });
    }

    /// Few items: each thread takes runs of chunks, one after the other in a region of its own, whose
    /// states are folded afterwards in the same order. Threads that took single chunks in turn would
    /// each read every second page, and ask ahead for pages that are another's: a quarter less of
    /// the bandwidth.
    fn chunk_by_chunk(&self, lanes: &mut Lanes, buffers: &mut AttentionBuffers) {
        let AttentionBuffers { states, parts, runs, taken } = buffers;
        let state = state_len(self.heads.attended);
        let slot = self.items.clone().map(|index| self.size(index)).max().unwrap_or(0);
        let states = &mut states[self.start(self.items.start)..self.start(self.items.end)];
        states.chunks_exact_mut(state).for_each(clear);
        let most = (parts.len() / (slot * self.items.len()).max(1)).max(1);
        for first in (0..self.chunks()).step_by(most) {
            let chunks = self.wave(first, most).last().map_or(0, |(_, run)| run.end);
            runs.clear();
            runs.extend(pieces::regions(chunks, lanes.threads(), REST_RUNS).map(|end| end * slot));
            let wave = Wave { work: self, first, most, slot, runs };
            let shared = SharedRegions::new(&mut parts[..chunks * slot], runs, taken);
            lanes.share(|lane| {
                while let Some((run, parts)) = shared.next(lane.thread) {
                    wave.run(lane, run, parts);
                }
            });
            wave.fold(lanes, states, parts);
        }
    }
}

/// Some chunks of every item, whose states have room side by side.
struct Wave<'a> {
    work: &'a Work<'a>,
    /// The first of every item's chunks, and how many there are at most.
    first: usize,
    most: usize,
    /// Values that a chunk's states have room for.
    slot: usize,
    /// Where in those values the threads' runs of chunks end.
    runs: &'a [usize],
}

impl Wave<'_> {
    /// Every item with its run of the wave's chunks.
    fn items(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        self.work.wave(self.first, self.most)
    }

    /// The chunks of a run.
    fn chunks(&self, run: usize) -> Range<usize> {
        let start = run.checked_sub(1).map_or(0, |before| self.runs[before]);
        start / self.slot..self.runs[run] / self.slot
    }

    /// Where the run ends that starts an item's chunks: up to there they are folded as they come.
    fn folded(&self, own: &Range<usize>) -> usize {
        if self.first > 0 || own.is_empty() {
            return own.start;
        }
        let run = self.runs.partition_point(|&end| end <= own.start * self.slot);
        own.end.min(self.chunks(run).end)
    }

    /// The chunks of a run, each to its slot of `parts`, but those that start an item: together to the
    /// first one's.
    fn run(&self, lane: &mut Lane, run: usize, parts: &mut [f32]) {
        let state = state_len(self.work.heads.attended);
        let run = self.chunks(run);
        for (index, own) in self.items() {
            let mine = run.start.max(own.start)..run.end.min(own.end);
            if mine.is_empty() {
                continue;
            }
            let item = &self.work.sight.items[index];
            let size = self.work.size(index);
            lane.load(item, self.work);
            let view = self.work.kv.view(self.work.layer, item.head, item.slot);
            let Lane { attention, queries, sees, states, .. } = &mut *lane;
            for at in mine {
                let range = item.chunk(item.chunks().start + self.first + at - own.start);
                if own.start < at && at < self.folded(&own) {
                    let acc = &mut parts[(own.start - run.start) * self.slot..][..size];
                    let part = &mut states[..size];
                    attend(part, queries, sees, &view, range, attention);
                    fold_rows(acc, part, state);
                } else {
                    let part = &mut parts[(at - run.start) * self.slot..][..size];
                    attend(part, queries, sees, &view, range, attention);
                }
            }
        }
    }

    /// Adds the chunks to the items' states.
    fn fold(&self, lanes: &mut Lanes, states: &mut [f32], parts: &[f32]) {
        let work = self.work;
        let state = state_len(work.heads.attended);
        let before = work.start(work.items.start);
        let chunks = self.items().last().map_or(0, |(_, own)| own.end);
        let rows = SharedRows::new(states, state);
        lanes.by_token(chunks, |_| {
            while let Some((row, acc)) = rows.next() {
                let place = before + row * state;
                let index = work.sight.state_ends.partition_point(|&end| end <= place);
                let at = place - work.start(index);
                let (_, own) = self.items().nth(index - work.items.start).expect("an item");
                let folded = self.folded(&own);
                for chunk in own.clone().filter(|&chunk| chunk == own.start || chunk >= folded) {
                    fold(acc, &parts[chunk * self.slot + at..][..state]);
                }
            }
        });
    }
}

fn fold_rows(acc: &mut [f32], part: &[f32], state: usize) {
    for (acc, part) in acc.chunks_exact_mut(state).zip(part.chunks_exact(state)) {
        fold(acc, part);
    }
}

impl Lane {
    /// Gathers an item's query rows, scaled, and what each may see.
    fn load(&mut self, item: &Item, work: &Work<'_>) {
        let &Work { batch, sight, heads, qkv, .. } = work;
        debug_assert!(item.tokens.end <= batch.tokens.len());
        let group = &heads.groups[item.head];
        self.queries.clear();
        self.sees.clear();
        for token in item.tokens.clone() {
            let q = &qkv.values[token * qkv.len..][group.start * heads.dim..group.end * heads.dim];
            self.queries.extend(q.iter().map(|q| q * heads.scale));
            self.sees.extend(group.clone().map(|_| sight.sees[token]));
        }
    }
}
