//! Partial attention of a few query rows over a chunk of a paged KV shard.
//!
//! A shard's local tokens are cut in chunks of [`CHUNK_TOKENS`]. [`attend`] computes rows against
//! one chunk, [`fold`] adds chunks up in order, [`finish`] normalises, [`merge`] joins shards:
//!
//! ```text
//! decode     work items (sequence, KV head, chunk);       then fold in chunk order
//! prefill    work items (sequence, KV head, query rows);  each folds its chunks in order
//! ```
//!
//! Both give the same bits: a row's result for a chunk depends on that row, the tokens it sees, and
//! the chunk's tokens; not on the rows beside it, nor on the instruction set.
//!
//! Order of sums: a score adds dimensions in order (of a latent: in each of 16 lanes, then halves of
//! the lanes); the sum of a chunk's probabilities adds vectors in order in each of 16 lanes, then
//! halves of the lanes; an output adds tokens in order. Over [`KvType::Q8_0`] sums are of integers,
//! and so exact; a score adds groups of 32 dimensions in order. Scores are kept in base 2 inside a
//! state ([`Lse`] is natural, always).

mod ahead;
mod codes;
mod element;
mod kernel;
mod latent;

use std::ops::Range;

use crate::arch::lanes::{LANES, dispatch, dispatch_on};
use crate::arch::matmul;
use crate::isa::{self, Isa};
use crate::kv::{KvType, KvView, PAGE_TOKENS};
pub use crate::lse::Lse;

/// Local tokens that one call of [`attend`] covers at most: a page; chunks start at multiples of
/// it.
pub const CHUNK_TOKENS: usize = PAGE_TOKENS;

/// Query rows that go through a page together, at most.
const TILE_ROWS: usize = 8;

/// Numbers in the state of one query row: an unnormalised output, padded to whole vectors; the
/// largest score; the sum.
#[must_use]
pub const fn state_len(value_dim: usize) -> usize {
    value_dim.next_multiple_of(LANES) + 2
}

/// The local tokens that a query row sees: `from..to`. None if `from` is not below `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sees {
    /// The first: of a sliding window, mostly not 0.
    pub from: u32,
    /// One past the last.
    pub to: u32,
}

impl Sees {
    /// Every token below `to`: causal attention without a window.
    #[must_use]
    pub const fn below(to: u32) -> Sees {
        Sees { from: 0, to }
    }

    /// Those that lie in a chunk, counted from its start.
    fn within(self, chunk: &Range<usize>) -> Span {
        let from = (self.from as usize).max(chunk.start);
        let to = (self.to as usize).min(chunk.end);
        if from < to { Span { from: from - chunk.start, to: to - chunk.start } } else { Span::NONE }
    }
}

/// Tokens of a chunk: `from..to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    from: usize,
    to: usize,
}

impl Span {
    const NONE: Span = Span { from: 0, to: 0 };

    fn is_empty(self) -> bool {
        self.from >= self.to
    }

    fn range(self) -> Range<usize> {
        self.from..self.to
    }

    /// The least run of tokens that has all of `spans`.
    fn hull(spans: &[Span]) -> Span {
        let seeing = || spans.iter().filter(|span| !span.is_empty());
        let from = seeing().map(|span| span.from).min().unwrap_or(0);
        Span { from, to: seeing().map(|span| span.to).max().unwrap_or(0) }
    }

    /// The tokens that are in each of `spans`; if there are none, an empty run that starts no
    /// earlier than any of them.
    fn common(spans: &[Span]) -> Span {
        let from = spans.iter().map(|span| span.from).max().unwrap_or(0);
        let to = spans.iter().map(|span| span.to).min().unwrap_or(0);
        Span { from, to: to.max(from) }
    }
}

/// What [`attend`] writes between its steps: one for each thread.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// Scores, then probabilities, of a tile of rows.
    scores: Box<[kernel::Row; TILE_ROWS]>,
    kept: kernel::Converted,
    latent: latent::Scratch,
    codes: codes::Scratch,
}

impl Scratch {
    /// Room for heads of any size.
    #[must_use]
    pub fn new() -> Scratch {
        Scratch {
            scores: Box::new([const { kernel::Row([0.0; CHUNK_TOKENS]) }; TILE_ROWS]),
            kept: kernel::Converted::new(),
            latent: latent::Scratch::new(),
            codes: codes::Scratch::new(),
        }
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

/// Attention of query rows over the local tokens `range` of a shard.
///
/// Row `r` sees the tokens of `range` in `sees[r]`: `m = max s_t`, `l = Σ_t 2^(s_t − m)`,
/// `o[d] = Σ_t 2^(s_t − m)·v_t[d]` with `s_t = q_r·k_t·log2 e`. A row that sees none gets
/// `o = 0`, `m = −∞`, `l = 0`. Bytes of tokens that a row does not see never matter to it, whatever
/// they are.
///
/// Shapes: `state [rows, state_len(value_dim)]` is `o, m, l` of each row, overwritten;
/// `q [rows, head_dim]`, already times `1/√head_dim`, or what else scales scores; `sees [rows]`.
///
/// # Panics
/// When a length does not fit, `range` does not start at a chunk or leaves it, or the view's table
/// is too short.
pub fn attend(
    state: &mut [f32],
    q: &[f32],
    sees: &[Sees],
    kv: &KvView<'_>,
    range: Range<usize>,
    scratch: &mut Scratch,
) {
    attend_on(isa::cpu(), state, q, sees, kv, range, scratch);
}

/// [`attend`] in plain Rust, one lane after the other: what every instruction set agrees with.
pub fn attend_reference(
    state: &mut [f32],
    q: &[f32],
    sees: &[Sees],
    kv: &KvView<'_>,
    range: Range<usize>,
    scratch: &mut Scratch,
) {
    attend_on(Isa::Scalar, state, q, sees, kv, range, scratch);
}

fn attend_on(
    isa: Isa,
    state: &mut [f32],
    q: &[f32],
    sees: &[Sees],
    kv: &KvView<'_>,
    range: Range<usize>,
    scratch: &mut Scratch,
) {
    let rows = sees.len();
    let len = state_len(kv.shape.value_dim());
    assert_eq!(state.len(), rows * len, "attend: state of {rows} rows");
    assert_eq!(q.len(), rows * kv.shape.head_dim(), "attend: q of {rows} rows");
    assert!(range.start.is_multiple_of(CHUNK_TOKENS), "attend: {range:?} starts inside a chunk");
    assert!(range.len() <= CHUNK_TOKENS, "attend: {range:?} is more than a chunk");
    assert!(range.end.div_ceil(PAGE_TOKENS) <= kv.table.len(), "attend: {range:?} past the table");
    if range.is_empty() {
        state.chunks_exact_mut(len).for_each(clear);
    } else if kv.shape.kv_type() == KvType::Q8_0 {
        let scratch = &mut scratch.codes;
        matmul::dispatch(isa, codes::Attend { state, q, sees, kv, range, scratch });
    } else if kv.shape.is_latent() {
        let scratch = &mut scratch.latent;
        dispatch_on(isa, latent::Attend { state, q, sees, kv, range, scratch });
    } else {
        dispatch_on(isa, kernel::Attend { state, q, sees, kv, range, scratch });
    }
}

/// Adds the state of a later chunk to that of the chunks before it, for one row:
/// `acc ← acc + part`, both rescaled to the larger maximum.
///
/// Shapes: both `[state_len(value_dim)]`. To or from a row that saw no token, it copies or leaves.
///
/// # Panics
/// When the lengths differ.
pub fn fold(acc: &mut [f32], part: &[f32]) {
    assert_eq!(acc.len(), part.len(), "fold: lengths differ");
    assert!(part.len() > 2, "fold: no state");
    dispatch(kernel::Fold { acc, part });
}

/// Sets the state `[state_len(value_dim)]` of one row to that of no tokens: where a fold starts.
pub fn clear(state: &mut [f32]) {
    let (o, sums) = state.split_last_chunk_mut().expect("a state is longer than two");
    o.fill(0.0);
    *sums = [f32::NEG_INFINITY, 0.0];
}

/// Normalises one row's state: `out[d] = o[d]/l`, and the natural log of the sum over all tokens.
///
/// A row that saw no token gives zeros and [`Lse::EMPTY`]. Shapes: `out [value_dim]`,
/// `state [state_len(value_dim)]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn finish(out: &mut [f32], state: &[f32]) -> Lse {
    assert_eq!(state.len(), state_len(out.len()), "finish: state of {} elements", out.len());
    let (o, [_, l]) = state.split_last_chunk().expect("longer than two");
    if *l == 0.0 {
        out.fill(0.0);
    } else {
        let inverse = 1.0 / l;
        out.iter_mut().zip(o).for_each(|(out, o)| *out = o * inverse);
    }
    lse_of(state)
}

/// The log-sum-exp that [`finish`] gives for a row's state.
///
/// # Panics
/// When it is no state.
pub fn lse_of(state: &[f32]) -> Lse {
    let Some((_, &[m, l])) = state.split_last_chunk() else { panic!("no state: {}", state.len()) };
    if l == 0.0 {
        return Lse::EMPTY;
    }
    let ln = f64::from(m) * std::f64::consts::LN_2 + f64::from(l).ln();
    Lse::from_ln(ln as f32)
}

/// [`finish`] of all tokens that there are, with an attention sink: one more logit of the softmax,
/// in natural units, that has no value. It adds `e^sink` to the denominator and to the result;
/// where shards are merged, that is for [`merge`] to do, once.
///
/// A row that saw no token gives zeros and the sink. Source: gpt-oss, arXiv 2508.10925.
///
/// # Panics
/// When the lengths do not fit.
pub fn finish_with_sink(out: &mut [f32], state: &[f32], sink: Option<f32>) -> Lse {
    let lse = finish(out, state);
    let Some(sink) = sink else { return lse };
    let (weight, lse) = join(lse, sink);
    out.iter_mut().for_each(|out| *out = (f64::from(*out) * weight) as f32);
    lse
}

/// The share that tokens keep beside a sink, and the log of both sums.
fn join(lse: Lse, sink: f32) -> (f64, Lse) {
    if lse.is_empty() {
        return (0.0, Lse::from_ln(sink));
    }
    let over = f64::from(sink) - f64::from(lse.ln());
    // `e^over` may be infinite: its reciprocal is zero then, as it should be.
    let ln = f64::from(lse.ln()) + over.max(0.0) + (-over.abs()).exp().ln_1p();
    (1.0 / (1.0 + over.exp()), Lse::from_ln(ln as f32))
}

/// Merges per-shard attention of one head: `out[d] = Σ_s w_s·o[s][d]`, `w_s = e^(lse_s − lse)`,
/// `lse = ln (Σ_s e^lse_s + e^sink)`, without the last term where there is no sink.
///
/// Shapes: `out [value_dim]`, `o [shards, value_dim]`, `lse [shards]`. Sums in shard order. A shard
/// that is [`Lse::EMPTY`] contributes nothing, whatever its `o` holds; all empty give zeros, and
/// `EMPTY` or the sink. Sources: Helix, arXiv 2507.07120, section 2; gpt-oss, arXiv 2508.10925.
///
/// # Panics
/// When `o` is not `lse.len()` rows of `out.len()`.
pub fn merge(out: &mut [f32], o: &[f32], lse: &[Lse], sink: Option<f32>) -> Lse {
    let value_dim = out.len();
    assert_eq!(o.len(), value_dim * lse.len(), "merge: o of {} shards", lse.len());
    merge_parts(out, |shard| &o[shard * value_dim..], lse, sink)
}

/// [`merge`] of rows that lie anywhere: shard `s` is the start of `o(s)`.
///
/// # Panics
/// When one is shorter than `out`.
pub fn merge_parts<'a>(
    out: &mut [f32],
    o: impl Fn(usize) -> &'a [f32],
    lse: &[Lse],
    sink: Option<f32>,
) -> Lse {
    let value_dim = out.len();
    out.fill(0.0);
    let sink = sink.map_or(Lse::EMPTY, Lse::from_ln);
    if lse.iter().all(|lse| lse.is_empty()) {
        return sink;
    }
    let top = lse.iter().fold(sink.ln(), |top, lse| top.max(lse.ln()));
    let weight = |lse: &Lse| (f64::from(lse.ln()) - f64::from(top)).exp();
    let mut sum = if sink.is_empty() { 0.0 } else { weight(&sink) };
    for (shard, lse) in lse.iter().enumerate().filter(|(_, lse)| !lse.is_empty()) {
        let w = weight(lse);
        sum += w;
        for (out, o) in out.iter_mut().zip(&o(shard)[..value_dim]) {
            *out += w as f32 * o;
        }
    }
    let inverse = (1.0 / sum) as f32;
    out.iter_mut().for_each(|out| *out *= inverse);
    Lse::from_ln((f64::from(top) + sum.ln()) as f32)
}

#[cfg(test)]
mod tests;
