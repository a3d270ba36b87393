//! What makes partial attention exact: the all-to-all inside the KVP group, and the merge. HELIX.md's
//! steps 5 and 6 (paper section 2.2), a piece at a time.

use crate::attention::Heads;
use crate::batch::{Batch, Row};
use crate::hopb::MAX_PIECES;
use crate::lanes::Lanes;
use crate::values::{ValueBuffers, ValuePlan};
use helix_comm::{Chunks, Comm, CommError, Counts, Pending};
use helix_kernels::attention::{finish, finish_with_sink, lse_of, merge_parts, state_len};
use helix_kernels::columns::SharedRows;
use helix_kernels::{Activations, Lse};
use helix_model::LayerWeights;
use std::collections::VecDeque;
use std::ops::Range;

/// Rows that a thread packs or merges before it asks for more.
const ROWS: usize = 8;

impl Heads {
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

    /// Whether shards send values that they have raised themselves.
    fn raise_before(&self) -> bool {
        self.kept.len() > 1 && self.values.is_some_and(|values| values.before)
    }

    /// Values of one head after the merge.
    fn merged(&self) -> usize {
        if self.raise_before() { self.value } else { self.attended }
    }
}

/// The phase's buffers, sized once.
pub(crate) struct ExchangeBuffers {
    send_counts: Vec<usize>,
    recv_counts: Vec<usize>,
    /// Pieces that were sent and not merged: what was started of each; nothing in a group of one.
    sent: VecDeque<Option<Pending>>,
    /// Merged outputs of the heads that this rank keeps, in the order of its rows.
    merged: Vec<f32>,
    values: ValueBuffers,
}

impl ExchangeBuffers {
    pub(crate) fn new(heads: &Heads, max_tokens: usize, values: ValueBuffers) -> ExchangeBuffers {
        let members = heads.kept.len();
        ExchangeBuffers {
            send_counts: vec![0; members],
            recv_counts: vec![0; members],
            sent: VecDeque::with_capacity(MAX_PIECES),
            merged: vec![0.0; max_tokens * heads.own().len() * heads.merged()],
            values,
        }
    }
}

/// Finishes a piece's states and starts their exchange in the KVP group, each member's heads to
/// that member; a group of one exchanges nothing. Gives bytes of weights read.
pub(crate) fn send(
    lanes: &mut Lanes,
    group: &mut impl Comm,
    outputs: Outputs<'_>,
    piece: &Range<usize>,
    w: &LayerWeights,
    buffers: &mut ExchangeBuffers,
) -> Result<u64, CommError> {
    let Outputs { batch, heads, .. } = outputs;
    let ExchangeBuffers { send_counts, recv_counts, sent, values, .. } = buffers;
    if heads.kept.len() == 1 {
        sent.push_back(None);
        return Ok(0);
    }
    let before = heads.raise_before();
    let tokens = batch.tokens_of(piece);
    let bytes = if before { values.raise(lanes, outputs, tokens, w) } else { 0 };
    let len = |member| batch.rows_to(member, piece).1.len() * heads.message();
    send_counts.iter_mut().enumerate().for_each(|(member, count)| *count = len(member));
    recv_counts.fill(len(heads.member));
    let counts = Counts { send: send_counts, recv: recv_counts };
    let pending = group.start_all_to_all(counts, |mut message| {
        for (member, &count) in counts.send.iter().enumerate() {
            let chunk = message.split_off_mut(..count).expect("a chunk for each member");
            let (_, rows) = batch.rows_to(member, piece);
            pack(lanes, chunk, outputs, rows, before.then_some(&*values));
        }
    })?;
    sent.push_back(Some(pending));
    Ok(bytes)
}

/// One member's part of a message: for each of its rows an output and the log-sum-exp.
fn pack(
    lanes: &mut Lanes,
    chunk: &mut [f32],
    outputs: Outputs<'_>,
    rows: &[Row],
    raised: Option<&ValueBuffers>,
) {
    let message = outputs.heads.message();
    let shared = SharedRows::new(chunk, ROWS * message);
    lanes.by_token(rows.len().div_ceil(ROWS), |_| {
        while let Some((index, to)) = shared.next() {
            for (row, to) in rows[index * ROWS..].iter().zip(to.chunks_exact_mut(message)) {
                let (lse, o) = to.split_last_mut().expect("an output and an lse");
                *lse = match raised {
                    Some(values) => {
                        values.copy(o, row.token as usize, row.head as usize);
                        lse_of(outputs.state(*row)).ln()
                    }
                    None => finish(o, outputs.state(*row)).ln(),
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
    pub(crate) states: &'a [f32],
}

impl<'a> Outputs<'a> {
    fn state(&self, row: Row) -> &'a [f32] {
        let (token, head) = (row.token as usize, row.head as usize);
        let Heads { groups, kv_of, q, attended, .. } = self.heads;
        let state = state_len(*attended);
        &self.states[self.batch.row_of(token, &groups[kv_of[head]], head, *q) * state..][..state]
    }

    /// A head's output over this rank's tokens.
    pub(crate) fn finish(&self, out: &mut [f32], row: Row) {
        finish(out, self.state(row));
    }
}

/// Waits for the group's parts of the piece that was sent first, and hands them to `merge`; none
/// in a group of one.
///
/// # Panics
/// All that was sent has been received.
pub(crate) fn receive(
    group: &mut impl Comm,
    buffers: &mut ExchangeBuffers,
    merge: impl FnOnce(Option<Chunks<'_>>, &mut ExchangeBuffers),
) -> Result<(), CommError> {
    match buffers.sent.pop_front().expect("a piece was sent") {
        None => merge(None, buffers),
        Some(pending) => group.finish(pending, |parts| merge(Some(parts), buffers))?,
    }
    Ok(())
}

/// Merges the group's partial outputs of the heads that this rank keeps of a piece, in shard order.
/// Sinks take part here: once.
pub(crate) fn merge(
    lanes: &mut Lanes,
    parts: Option<Chunks<'_>>,
    outputs: Outputs<'_>,
    piece: &Range<usize>,
    w: &LayerWeights,
    buffers: &mut ExchangeBuffers,
) {
    let Outputs { batch, heads, .. } = outputs;
    let (range, rows) = batch.rows_to(heads.member, piece);
    let (first, len, message) = (heads.own().start, heads.merged(), heads.message());
    let out = &mut buffers.merged[range.start * len..range.end * len];
    let shared = SharedRows::new(out, ROWS * len);
    lanes.by_token(rows.len().div_ceil(ROWS), |lane| {
        while let Some((index, out)) = shared.next() {
            let start = index * ROWS;
            for (index, out) in (start..).zip(out.chunks_exact_mut(len)) {
                let row = rows[index];
                let sink = w.sinks.as_ref().map(|sinks| sinks[row.head as usize - first]);
                let Some(parts) = parts else {
                    finish_with_sink(out, outputs.state(row), sink);
                    continue;
                };
                let of = |shard: usize| &parts.of(shard)[index * message..][..message];
                let lse = |shard| Lse::from_ln(of(shard)[message - 1]);
                lane.lse.clear();
                lane.lse.extend((0..parts.count()).map(lse));
                merge_parts(out, of, &lane.lse, sink);
            }
        }
    });
}

/// All merged outputs of the heads that a rank keeps.
#[derive(Clone, Copy)]
pub(crate) struct Merged<'a> {
    pub(crate) batch: &'a Batch,
    pub(crate) heads: &'a Heads,
    rows: &'a [f32],
}

impl<'a> Merged<'a> {
    /// The exact output of kept head `index`.
    pub(crate) fn head(&self, token: usize, index: usize) -> &'a [f32] {
        let heads = self.heads;
        let own = heads.own();
        let group = &heads.own_groups[heads.kv_of[own.start + index]];
        let row = self.batch.row_of(token, group, index, own.len());
        &self.rows[row * heads.merged()..][..heads.merged()]
    }
}

/// Brings the merged pieces together to the out-projection's input `[tokens, out_cols]`; zero where
/// a column belongs to a head that another rank keeps. Gives bytes of weights read.
pub(crate) fn collect(
    lanes: &mut Lanes,
    batch: &Batch,
    heads: &Heads,
    w: &LayerWeights,
    buffers: &mut ExchangeBuffers,
    out: &mut Activations,
) -> u64 {
    let ExchangeBuffers { merged, values, .. } = buffers;
    let merged = Merged { batch, heads, rows: merged };
    let after = heads.values.is_some() && !heads.raise_before();
    let bytes = if after { values.raise_merged(lanes, merged, w) } else { 0 };
    let values = &*values;
    let rows = out.fill(batch.tokens.len(), heads.out_cols);
    lanes.by_token(batch.tokens.len(), |lane| {
        while let Some(row) = rows.next() {
            let out = &mut lane.row[..heads.out_cols];
            out.fill(0.0);
            let kept = &mut out[heads.out_start..][..heads.own().len() * heads.value];
            for (index, o) in kept.chunks_exact_mut(heads.value).enumerate() {
                match after {
                    true => values.copy(o, row.token(), index),
                    false => o.copy_from_slice(merged.head(row.token(), index)),
                }
            }
            row.write(out);
        }
    });
    bytes
}
