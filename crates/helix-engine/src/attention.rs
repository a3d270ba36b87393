//! The attention phase between the projections: partial attention over this rank's own tokens, the
//! all-to-all, and the merge that makes it exact. HELIX.md's steps 4 to 6 (paper section 2.2).

use crate::batch::{Batch, Item, Sight, tile_tokens};
use crate::kv::KvCache;
use crate::lanes::{Lane, Lanes};
use crate::pieces;
use crate::values::{ValueBuffers, ValuePlan};
use helix_comm::{Chunks, Comm, CommError, Counts, Pending};
use helix_kernels::attention::{
    attend, clear, finish, finish_with_sink, fold, lse_of, merge_parts, state_len,
};
use helix_kernels::columns::{SharedParts, SharedRows};
use helix_kernels::{Activations, Lse};
use helix_layout::{Layout, Rank};
use helix_model::{Config, LayerWeights};
use std::ops::Range;

/// Chunks of one item that are computed side by side before they are folded in order, where their
/// states are small; more where the items have fewer rows than they might.
const WAVE_CHUNKS: Range<usize> = 4..65;
/// States of such chunks, in f32 values, that a rank has room for whatever their size.
const WAVE_VALUES: usize = 1 << 22;
/// Short runs of chunks per thread.
const REST_RUNS: usize = 8;

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
        let out_cols = layout.out_cols(rank);
        Heads {
            dim: config.head_dim,
            attended: values.map_or(value, |values| values.latent),
            value,
            scale: config.attention_scale,
            q: q.len(),
            kv_of: kv_of.collect(),
            groups,
            kept: kept.collect(),
            member: layout.attention(rank).kvp,
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

    /// Values of one head's output in a message.
    fn sent(&self) -> usize {
        match self.values {
            Some(ValuePlan { before: true, .. }) => self.value,
            _ => self.attended,
        }
    }

    /// Values of one head in a message: its output, and the log-sum-exp.
    fn message(&self) -> usize {
        self.sent() + 1
    }
}

/// The phase's buffers, sized once.
pub(crate) struct AttentionBuffers {
    /// A state for each row and query head, in the order of [`Batch::state_of`].
    pub(crate) states: Vec<f32>,
    /// States of chunks that wait to be folded.
    parts: Vec<f32>,
    /// Where threads' runs of those end.
    runs: Vec<usize>,
    send_counts: Vec<usize>,
    recv_counts: Vec<usize>,
    pub(crate) values: ValueBuffers,
}

impl AttentionBuffers {
    pub(crate) fn new(
        heads: &Heads,
        max_tokens: usize,
        threads: usize,
        values: ValueBuffers,
    ) -> AttentionBuffers {
        let members = heads.kept.len();
        let state = state_len(heads.attended);
        let column = 4 * threads * heads.item_rows(max_tokens) * state;
        let wave = (WAVE_VALUES / column.max(1)).clamp(WAVE_CHUNKS.start, WAVE_CHUNKS.end - 1);
        AttentionBuffers {
            states: vec![0.0; max_tokens * heads.q * state],
            parts: vec![0.0; wave * column],
            runs: Vec::with_capacity(pieces::count(threads, REST_RUNS)),
            send_counts: vec![0; members],
            recv_counts: vec![0; members],
            values,
        }
    }
}

/// A rank's rows of `[q; k; v]`, `len` values each.
#[derive(Clone, Copy)]
pub(crate) struct QkvRows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) len: usize,
}

/// Attention of every query row over this rank's own tokens: a state per row and query head.
pub(crate) fn partial(
    lanes: &mut Lanes,
    kv: &KvCache,
    layer: usize,
    (batch, sight): (&Batch, &Sight),
    heads: &Heads,
    qkv: QkvRows<'_>,
    buffers: &mut AttentionBuffers,
) {
    if sight.by_chunk {
        chunk_by_chunk(lanes, kv, layer, (batch, sight), heads, qkv, buffers);
    } else {
        item_by_item(lanes, kv, layer, (batch, sight), heads, qkv, &mut buffers.states);
    }
}

/// Each thread takes whole items and folds their chunks as it goes.
fn item_by_item(
    lanes: &mut Lanes,
    kv: &KvCache,
    layer: usize,
    (batch, sight): (&Batch, &Sight),
    heads: &Heads,
    qkv: QkvRows<'_>,
    states: &mut [f32],
) {
    let state = state_len(heads.attended);
    let shared = SharedParts::new(states, &sight.state_ends);
    lanes.share(|lane| {
        while let Some((index, acc)) = shared.next() {
            let item = &sight.items[index];
            lane.load(item, batch, sight, heads, qkv);
            acc.chunks_exact_mut(state).for_each(clear);
            let view = kv.view(layer, item.head, item.slot);
            let Lane { attention, states, queries, sees, .. } = &mut *lane;
            let part = &mut states[..acc.len()];
            for chunk in item.chunks() {
                attend(part, queries, sees, &view, item.chunk(chunk), attention);
                fold_rows(acc, part, state);
            }
        }
    });
}

/// Few items: each thread takes a long run of chunks, then short ones, whose states are folded
/// afterwards in the same order. Threads that took single chunks in turn would each read every
/// second page, and ask ahead for pages that are another's: a quarter less of the bandwidth.
fn chunk_by_chunk(
    lanes: &mut Lanes,
    kv: &KvCache,
    layer: usize,
    (batch, sight): (&Batch, &Sight),
    heads: &Heads,
    qkv: QkvRows<'_>,
    buffers: &mut AttentionBuffers,
) {
    let AttentionBuffers { states, parts, runs, .. } = buffers;
    let state = state_len(heads.attended);
    let sizes = |index: usize| {
        let before = if index == 0 { 0 } else { sight.state_ends[index - 1] };
        sight.state_ends[index] - before
    };
    let slot = (0..sight.items.len()).map(sizes).max().unwrap_or(0);
    let end = sight.state_ends.last().copied().unwrap_or(0);
    states[..end].chunks_exact_mut(state).for_each(clear);
    let wave = (parts.len() / (slot * sight.items.len()).max(1)).max(1);
    for first in (0..sight.chunks()).step_by(wave) {
        let chunks = sight.wave(first, wave).last().map_or(0, |(_, run)| run.end);
        runs.clear();
        runs.extend(pieces::ends(chunks, lanes.threads(), REST_RUNS).map(|end| end * slot));
        let shared = SharedParts::new(&mut *parts, runs);
        lanes.share(|lane| {
            while let Some((run, parts)) = shared.next() {
                let start = runs[run] / slot - parts.len() / slot;
                let run = start..runs[run] / slot;
                for (index, (item, own)) in sight.wave(first, wave).enumerate() {
                    let mine = run.start.max(own.start)..run.end.min(own.end);
                    if mine.is_empty() {
                        continue;
                    }
                    lane.load(item, batch, sight, heads, qkv);
                    let view = kv.view(layer, item.head, item.slot);
                    for at in mine {
                        let range = item.chunk(item.chunks().start + first + at - own.start);
                        let part = &mut parts[(at - run.start) * slot..][..sizes(index)];
                        let Lane { attention, queries, sees, .. } = &mut *lane;
                        attend(part, queries, sees, &view, range, attention);
                    }
                }
            }
        });
        let rows = SharedRows::new(&mut states[..end], state);
        let parts = &*parts;
        lanes.by_token(chunks, |_| {
            while let Some((row, acc)) = rows.next() {
                let index = sight.state_ends.partition_point(|&end| end <= row * state);
                let at = row * state - (sight.state_ends[index] - sizes(index));
                let (_, own) = sight.wave(first, wave).nth(index).expect("an item");
                for part in parts.chunks_exact(slot).take(own.end).skip(own.start) {
                    fold(acc, &part[at..at + state]);
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
    fn load(&mut self, item: &Item, batch: &Batch, sight: &Sight, heads: &Heads, qkv: QkvRows<'_>) {
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

/// Finishes the states and starts their exchange in the KVP group, each member's heads to that
/// member; a group of one exchanges nothing. Gives bytes of weights read.
pub(crate) fn send(
    lanes: &mut Lanes,
    group: &mut impl Comm,
    batch: &Batch,
    heads: &Heads,
    w: &LayerWeights,
    buffers: &mut AttentionBuffers,
) -> Result<(u64, Option<Pending>), CommError> {
    if heads.kept.len() == 1 {
        return Ok((0, None));
    }
    let AttentionBuffers { states, send_counts, recv_counts, values, .. } = buffers;
    let tokens = batch.tokens.len();
    let outputs = Outputs { batch, heads, states };
    let before = heads.values.is_some_and(|values| values.before);
    let bytes = if before { values.raise(lanes, outputs, w) } else { 0 };
    for (member, kept) in heads.kept.iter().enumerate() {
        send_counts[member] = tokens * kept.len() * heads.message();
        recv_counts[member] = tokens * heads.own().len() * heads.message();
    }
    let counts = Counts { send: send_counts, recv: recv_counts };
    let pending = group.start_all_to_all(counts, |mut message| {
        for (kept, &count) in heads.kept.iter().zip(counts.send) {
            let chunk = message.split_off_mut(..count).expect("a chunk for each member");
            pack(lanes, chunk, outputs, kept, before.then_some(&*values));
        }
    })?;
    Ok((bytes, Some(pending)))
}

/// Waits for the group's partial outputs and hands them to `merge`; none in a group of one.
pub(crate) fn receive(
    group: &mut impl Comm,
    sent: Option<Pending>,
    merge: impl FnOnce(Option<Chunks<'_>>),
) -> Result<(), CommError> {
    match sent {
        None => merge(None),
        Some(pending) => group.finish(pending, |parts| merge(Some(parts)))?,
    }
    Ok(())
}

/// One member's message: `[tokens, its heads, sent + 1]`, an output and its log-sum-exp.
fn pack(
    lanes: &mut Lanes,
    chunk: &mut [f32],
    outputs: Outputs<'_>,
    kept: &Range<usize>,
    raised: Option<&ValueBuffers>,
) {
    if kept.is_empty() {
        return;
    }
    let message = outputs.heads.message();
    let shared = SharedRows::new(chunk, kept.len() * message);
    lanes.by_token(outputs.batch.tokens.len(), |_| {
        while let Some((token, row)) = shared.next() {
            for (head, to) in kept.clone().zip(row.chunks_exact_mut(message)) {
                let (lse, o) = to.split_last_mut().expect("an output and an lse");
                *lse = match raised {
                    Some(values) => {
                        values.copy(o, token, head);
                        outputs.lse(token, head).ln()
                    }
                    None => outputs.finish(o, token, head).ln(),
                };
            }
        }
    });
}

/// What partial attention left of a batch.
#[derive(Clone, Copy)]
pub(crate) struct Outputs<'a> {
    pub(crate) batch: &'a Batch,
    pub(crate) heads: &'a Heads,
    states: &'a [f32],
}

impl<'a> Outputs<'a> {
    fn state(&self, token: usize, head: usize) -> &'a [f32] {
        let Heads { groups, kv_of, q, attended, .. } = self.heads;
        let group = &groups[kv_of[head]];
        &self.states[self.batch.state_of(token, group, head, *q, state_len(*attended))]
    }

    /// The log-sum-exp of a head's scores against this rank's tokens.
    fn lse(&self, token: usize, head: usize) -> Lse {
        lse_of(self.state(token, head))
    }

    /// A head's output over this rank's tokens.
    pub(crate) fn finish(&self, out: &mut [f32], token: usize, head: usize) -> Lse {
        finish(out, self.state(token, head))
    }
}

/// Merges the group's partial outputs of the heads that this rank keeps, in shard order, into the
/// out-projection's input `[tokens, out_cols]`; zero where a column belongs to a head that another
/// rank keeps. A group of one has nothing to merge. Sinks take part here: once.
pub(crate) fn merge(
    lanes: &mut Lanes,
    parts: Option<Chunks<'_>>,
    batch: &Batch,
    heads: &Heads,
    w: &LayerWeights,
    buffers: &mut AttentionBuffers,
    out: &mut Activations,
) -> u64 {
    let AttentionBuffers { states, values, .. } = buffers;
    let outputs = Outputs { batch, heads, states };
    let merged = Merged { outputs, parts, sinks: w.sinks.as_deref() };
    let after = heads.values.is_some_and(|values| parts.is_none() || !values.before);
    let bytes = if after { values.raise_merged(lanes, &merged, w) } else { 0 };
    let (values, own) = (&*values, heads.own());
    let rows = out.fill(batch.tokens.len(), heads.out_cols);
    lanes.by_token(batch.tokens.len(), |lane| {
        while let Some(row) = rows.next() {
            let out = &mut lane.row[..heads.out_cols];
            out.fill(0.0);
            let kept = &mut out[heads.out_start..][..own.len() * heads.value];
            for (index, o) in kept.chunks_exact_mut(heads.value).enumerate() {
                if after {
                    values.copy(o, row.token(), index);
                } else {
                    merged.head(o, row.token(), index, &mut lane.lse);
                }
            }
            row.write(out);
        }
    });
    bytes
}

/// The group's partial outputs of the heads that this rank keeps.
pub(crate) struct Merged<'a, 'c> {
    pub(crate) outputs: Outputs<'a>,
    parts: Option<Chunks<'c>>,
    sinks: Option<&'a [f32]>,
}

impl Merged<'_, '_> {
    /// The exact output of kept head `index`.
    pub(crate) fn head(&self, out: &mut [f32], token: usize, index: usize, lse: &mut Vec<Lse>) {
        let heads = self.outputs.heads;
        let own = heads.own();
        let sink = self.sinks.map(|sinks| sinks[index]);
        let Some(parts) = self.parts else {
            finish_with_sink(out, self.outputs.state(token, own.start + index), sink);
            return;
        };
        let first = (token * own.len() + index) * heads.message();
        let of = |shard: usize| &parts.of(shard)[first..][..heads.message()];
        lse.clear();
        lse.extend((0..parts.count()).map(|shard| Lse::from_ln(of(shard)[heads.sent()])));
        merge_parts(out, of, lse, sink);
    }
}
