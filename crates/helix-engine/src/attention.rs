//! The attention phase between the projections: partial attention over this rank's own tokens, the
//! all-to-all, and the merge that makes it exact. HELIX.md's steps 4 to 6 (paper section 2.2).

use crate::batch::{Batch, Item};
use crate::kv::KvCache;
use crate::lanes::{Lane, Lanes};
use crate::pieces;
use helix_comm::{Comm, CommError, Counts};
use helix_kernels::Lse;
use helix_kernels::attention::{
    CHUNK_TOKENS, Sees, attend, clear, finish, fold, merge_strided, state_len,
};
use helix_kernels::columns::{SharedParts, SharedRows};
use helix_layout::{Layout, Rank};
use std::ops::Range;

/// Chunks of one item that are computed side by side before they are folded in order; more where
/// the items have fewer rows than they might.
const WAVE_CHUNKS: usize = 64;
/// Short runs of chunks per thread.
const REST_RUNS: usize = 8;

/// What the phase knows of its rank's heads; made once.
pub(crate) struct Heads {
    pub(crate) dim: usize,
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
}

impl Heads {
    pub(crate) fn new(layout: &Layout, rank: Rank) -> Heads {
        let dim = layout.shape().head_dim;
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
            dim,
            q: q.len(),
            kv_of: kv_of.collect(),
            groups,
            kept: kept.collect(),
            member: layout.attention(rank).kvp,
            out_start: layout.out_heads(rank).start * dim - out_cols.start,
            out_cols: out_cols.len(),
        }
    }

    fn own(&self) -> Range<usize> {
        self.kept[self.member].clone()
    }

    /// Values of one head in a message: its output, and the log-sum-exp.
    fn message(&self) -> usize {
        self.dim + 1
    }
}

/// The phase's buffers, sized once.
pub(crate) struct AttentionBuffers {
    /// A state for each row and query head, in the order of [`Batch::state_of`].
    states: Vec<f32>,
    /// States of chunks that wait to be folded.
    parts: Vec<f32>,
    /// Where threads' runs of those end.
    runs: Vec<usize>,
    send: Vec<f32>,
    recv: Vec<f32>,
    send_counts: Vec<usize>,
    recv_counts: Vec<usize>,
}

impl AttentionBuffers {
    pub(crate) fn new(heads: &Heads, max_tokens: usize, threads: usize) -> AttentionBuffers {
        let members = heads.kept.len();
        let state = state_len(heads.dim);
        let exchange = if members > 1 { max_tokens * heads.message() } else { 0 };
        let group = heads.groups.iter().map(Range::len).max().unwrap_or(0);
        let rows = crate::batch::TILE_TOKENS.min(max_tokens) * group;
        AttentionBuffers {
            states: vec![0.0; max_tokens * heads.q * state],
            parts: vec![0.0; 4 * threads * WAVE_CHUNKS * rows * state],
            runs: Vec::with_capacity(pieces::count(threads, REST_RUNS)),
            send: vec![0.0; exchange * heads.q],
            recv: vec![0.0; exchange * heads.own().len() * members],
            send_counts: vec![0; members],
            recv_counts: vec![0; members],
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
    batch: &Batch,
    heads: &Heads,
    qkv: QkvRows<'_>,
    buffers: &mut AttentionBuffers,
) {
    if batch.by_chunk {
        chunk_by_chunk(lanes, kv, layer, batch, heads, qkv, buffers);
    } else {
        item_by_item(lanes, kv, layer, batch, heads, qkv, &mut buffers.states);
    }
}

/// Each thread takes whole items and folds their chunks as it goes.
fn item_by_item(
    lanes: &mut Lanes,
    kv: &KvCache,
    layer: usize,
    batch: &Batch,
    heads: &Heads,
    qkv: QkvRows<'_>,
    states: &mut [f32],
) {
    let state = state_len(heads.dim);
    let shared = SharedParts::new(states, &batch.state_ends);
    lanes.share(|lane| {
        while let Some((index, acc)) = shared.next() {
            let item = &batch.items[index];
            lane.load(item, batch, heads, qkv);
            acc.chunks_exact_mut(state).for_each(clear);
            let view = kv.view(layer, item.head, item.slot);
            let Lane { attention, states, queries, sees, .. } = &mut *lane;
            let part = &mut states[..acc.len()];
            for start in (0..item.visible).step_by(CHUNK_TOKENS) {
                let range = start..item.visible.min(start + CHUNK_TOKENS);
                attend(part, queries, sees, &view, range, attention);
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
    batch: &Batch,
    heads: &Heads,
    qkv: QkvRows<'_>,
    buffers: &mut AttentionBuffers,
) {
    let AttentionBuffers { states, parts, runs, .. } = buffers;
    let state = state_len(heads.dim);
    let sizes = |index: usize| {
        let before = if index == 0 { 0 } else { batch.state_ends[index - 1] };
        batch.state_ends[index] - before
    };
    let slot = (0..batch.items.len()).map(sizes).max().unwrap_or(0);
    let end = batch.state_ends.last().copied().unwrap_or(0);
    states[..end].chunks_exact_mut(state).for_each(clear);
    let wave = (parts.len() / (slot * batch.items.len()).max(1)).max(1);
    for first in (0..batch.chunks()).step_by(wave) {
        let chunks = batch.wave(first, wave).last().map_or(0, |(_, run)| run.end);
        runs.clear();
        runs.extend(pieces::ends(chunks, lanes.threads(), REST_RUNS).map(|end| end * slot));
        let shared = SharedParts::new(&mut *parts, runs);
        lanes.share(|lane| {
            while let Some((run, parts)) = shared.next() {
                let start = runs[run] / slot - parts.len() / slot;
                let run = start..runs[run] / slot;
                for (index, (item, own)) in batch.wave(first, wave).enumerate() {
                    let mine = run.start.max(own.start)..run.end.min(own.end);
                    if mine.is_empty() {
                        continue;
                    }
                    lane.load(item, batch, heads, qkv);
                    let view = kv.view(layer, item.head, item.slot);
                    for at in mine {
                        let start = (first + at - own.start) * CHUNK_TOKENS;
                        let range = start..item.visible.min(start + CHUNK_TOKENS);
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
                let index = batch.state_ends.partition_point(|&end| end <= row * state);
                let at = row * state - (batch.state_ends[index] - sizes(index));
                let (_, own) = batch.wave(first, wave).nth(index).expect("an item");
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
    fn load(&mut self, item: &Item, batch: &Batch, heads: &Heads, qkv: QkvRows<'_>) {
        let scale = 1.0 / (heads.dim as f32).sqrt();
        let group = &heads.groups[item.head];
        self.queries.clear();
        self.sees.clear();
        for row in item.tokens.clone() {
            let q = &qkv.values[row * qkv.len..][group.start * heads.dim..group.end * heads.dim];
            self.queries.extend(q.iter().map(|q| q * scale));
            self.sees.extend(group.clone().map(|_| Sees::below(batch.tokens[row].visible)));
        }
    }
}

/// Finishes the states, exchanges them in the KVP group and merges what this rank keeps into the
/// out-projection's input: `out [tokens, out_cols]`, zero where a column belongs to a head that
/// another rank keeps.
pub(crate) fn exchange(
    lanes: &mut Lanes,
    group: &mut impl Comm,
    batch: &Batch,
    heads: &Heads,
    buffers: &mut AttentionBuffers,
) -> Result<(), CommError> {
    let AttentionBuffers { states, send, recv, send_counts, recv_counts, .. } = buffers;
    let tokens = batch.tokens.len();
    let mut rest = &mut send[..];
    for (member, kept) in heads.kept.iter().enumerate() {
        send_counts[member] = tokens * kept.len() * heads.message();
        recv_counts[member] = tokens * heads.own().len() * heads.message();
        let (chunk, after) = rest.split_at_mut(send_counts[member]);
        rest = after;
        pack(lanes, chunk, batch, heads, kept, states);
    }
    let sent = send_counts.iter().sum();
    let received = recv_counts.iter().sum();
    let counts = Counts { send: send_counts, recv: recv_counts };
    group.all_to_all(&send[..sent], counts, &mut recv[..received])
}

/// One member's message: `[tokens, its heads, dim + 1]`, an output and its log-sum-exp.
fn pack(
    lanes: &mut Lanes,
    chunk: &mut [f32],
    batch: &Batch,
    heads: &Heads,
    kept: &Range<usize>,
    states: &[f32],
) {
    if kept.is_empty() {
        return;
    }
    let shared = SharedRows::new(chunk, kept.len() * heads.message());
    lanes.by_token(batch.tokens.len(), |_| {
        while let Some((row, message)) = shared.next() {
            for (head, message) in kept.clone().zip(message.chunks_exact_mut(heads.message())) {
                let (lse, o) = message.split_last_mut().expect("an output and an lse");
                *lse = finish(o, heads.state(batch, row, head, states)).ln();
            }
        }
    });
}

impl Heads {
    fn state<'a>(&self, batch: &Batch, row: usize, head: usize, states: &'a [f32]) -> &'a [f32] {
        let group = &self.groups[self.kv_of[head]];
        &states[batch.state_of(row, group, head, self.q, state_len(self.dim))]
    }
}

/// Merges the group's partial outputs of the heads that this rank keeps, in shard order, into
/// one row of the out-projection's input. A group of one has nothing to merge.
pub(crate) fn merge_row(
    out: &mut [f32],
    row: usize,
    batch: &Batch,
    heads: &Heads,
    buffers: &AttentionBuffers,
    lse: &mut Vec<Lse>,
) {
    out.fill(0.0);
    let own = heads.own();
    let kept = &mut out[heads.out_start..][..own.len() * heads.dim];
    for (index, out) in kept.chunks_exact_mut(heads.dim).enumerate() {
        if heads.kept.len() == 1 {
            finish(out, heads.state(batch, row, own.start + index, &buffers.states));
            continue;
        }
        let stride = batch.tokens.len() * own.len() * heads.message();
        let first = (row * own.len() + index) * heads.message();
        lse.clear();
        lse.extend(
            (0..heads.kept.len())
                .map(|shard| Lse::from_ln(buffers.recv[first + shard * stride + heads.dim])),
        );
        merge_strided(out, &buffers.recv[first..], stride, lse, None);
    }
}
