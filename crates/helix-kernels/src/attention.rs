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
//! Both give the same bits: a row's result for a chunk depends on that row, its limit, and the
//! chunk's tokens; not on the rows beside it, nor on the instruction set.
//!
//! Order of sums: a score adds dimensions in order; the sum of a chunk's probabilities adds
//! vectors in order in each of 16 lanes, then halves of the lanes; an output adds tokens in order. Scores
//! are kept in base 2 inside a state ([`Lse`] is natural, always).

mod element;
mod kernel;

use std::ops::Range;

use crate::arch::lanes::{LANES, dispatch, dispatch_on};
use crate::isa::{self, Isa};
use crate::kv::{KvView, PAGE_TOKENS};
pub use crate::lse::Lse;

/// Local tokens that one call of [`attend`] covers at most: a page; chunks start at multiples of
/// it.
pub const CHUNK_TOKENS: usize = PAGE_TOKENS;

/// Query rows that go through a page together, at most.
const TILE_ROWS: usize = 4;

/// Numbers in the state of one query row: an unnormalised output, padded to whole vectors; the
/// largest score; the sum.
#[must_use]
pub const fn state_len(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES) + 2
}

/// What [`attend`] writes between its steps: one for each thread.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// Scores, then probabilities, of a tile of rows.
    scores: Box<[kernel::Row; TILE_ROWS]>,
}

impl Scratch {
    /// Room for heads of any size.
    #[must_use]
    pub fn new() -> Scratch {
        Scratch { scores: Box::new([const { kernel::Row([0.0; CHUNK_TOKENS]) }; TILE_ROWS]) }
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

/// Attention of query rows over the local tokens `range` of a shard.
///
/// Row `r` sees the tokens of `range` below `limits[r]`: `m = max s_t`, `l = Σ_t 2^(s_t − m)`,
/// `o[d] = Σ_t 2^(s_t − m)·v_t[d]` with `s_t = q_r·k_t·log2 e`. A row that sees none gets
/// `o = 0`, `m = −∞`, `l = 0`. Bytes of tokens that no row sees are not used, whatever they are;
/// nor, for any row, those at or past its own limit.
///
/// Shapes: `state [rows, state_len(head_dim)]` is `o, m, l` of each row, overwritten;
/// `q [rows, head_dim]`, already times `1/√head_dim`; `limits [rows]`.
///
/// # Panics
/// When a length does not fit, `range` does not start at a chunk or leaves it, or the view's table
/// is too short.
pub fn attend(
    state: &mut [f32],
    q: &[f32],
    limits: &[u32],
    kv: &KvView<'_>,
    range: Range<usize>,
    scratch: &mut Scratch,
) {
    attend_on(isa::cpu(), state, q, limits, kv, range, scratch);
}

/// [`attend`] in plain Rust, one lane after the other: what every instruction set agrees with.
pub fn attend_reference(
    state: &mut [f32],
    q: &[f32],
    limits: &[u32],
    kv: &KvView<'_>,
    range: Range<usize>,
    scratch: &mut Scratch,
) {
    attend_on(Isa::Scalar, state, q, limits, kv, range, scratch);
}

fn attend_on(
    isa: Isa,
    state: &mut [f32],
    q: &[f32],
    limits: &[u32],
    kv: &KvView<'_>,
    range: Range<usize>,
    scratch: &mut Scratch,
) {
    let head_dim = kv.shape.head_dim();
    let rows = limits.len();
    assert_eq!(state.len(), rows * state_len(head_dim), "attend: state of {rows} rows");
    assert_eq!(q.len(), rows * head_dim, "attend: q of {rows} rows");
    assert!(range.start.is_multiple_of(CHUNK_TOKENS), "attend: {range:?} starts inside a chunk");
    assert!(range.len() <= CHUNK_TOKENS, "attend: {range:?} is more than a chunk");
    assert!(range.end.div_ceil(PAGE_TOKENS) <= kv.table.len(), "attend: {range:?} past the table");
    dispatch_on(isa, kernel::Attend { state, q, limits, kv, range, scratch });
}

/// Adds the state of a later chunk to that of the chunks before it, for one row:
/// `acc ← acc + part`, both rescaled to the larger maximum.
///
/// Shapes: both `[state_len(head_dim)]`. To or from a row that saw no token, it copies or leaves.
///
/// # Panics
/// When the lengths differ.
pub fn fold(acc: &mut [f32], part: &[f32]) {
    assert_eq!(acc.len(), part.len(), "fold: lengths differ");
    assert!(part.len() > 2, "fold: no state");
    dispatch(kernel::Fold { acc, part });
}

/// Sets the state `[state_len(head_dim)]` of one row to that of no tokens: where a fold starts.
pub fn clear(state: &mut [f32]) {
    let (o, sums) = state.split_last_chunk_mut().expect("a state is longer than two");
    o.fill(0.0);
    *sums = [f32::NEG_INFINITY, 0.0];
}

/// Normalises one row's state: `out[d] = o[d]/l`, and the natural log of the sum over all tokens.
///
/// A row that saw no token gives zeros and [`Lse::EMPTY`]. Shapes: `out [head_dim]`,
/// `state [state_len(head_dim)]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn finish(out: &mut [f32], state: &[f32]) -> Lse {
    assert_eq!(state.len(), state_len(out.len()), "finish: state of {} elements", out.len());
    let (o, [m, l]) = state.split_last_chunk().expect("longer than two");
    if *l == 0.0 {
        out.fill(0.0);
        return Lse::EMPTY;
    }
    for (out, o) in out.iter_mut().zip(o) {
        *out = o / l;
    }
    let ln = f64::from(*m) * std::f64::consts::LN_2 + f64::from(*l).ln();
    Lse::from_ln(ln as f32)
}

/// Merges per-shard attention of one head: `out[d] = Σ_s w_s·o[s][d]`, `w_s = e^(lse_s − lse)`,
/// `lse = ln Σ_s e^lse_s`.
///
/// Shapes: `out [head_dim]`, `o [shards, head_dim]`, `lse [shards]`. Sums in shard order. A shard
/// that is [`Lse::EMPTY`] contributes nothing, whatever its `o` holds; all empty give zeros and
/// `EMPTY`. Source: Helix, arXiv 2507.07120, section 2.
///
/// # Panics
/// When `o` is not `lse.len()` rows of `out.len()`.
pub fn merge(out: &mut [f32], o: &[f32], lse: &[Lse]) -> Lse {
    assert_eq!(o.len(), out.len() * lse.len(), "merge: o of {} shards", lse.len());
    merge_strided(out, o, out.len(), lse)
}

/// [`merge`] of rows that lie `stride` elements apart: shard `s` is `o[s·stride..][..head_dim]`.
///
/// # Panics
/// When `stride` is less than `out.len()`, or `o` ends before the last row.
pub fn merge_strided(out: &mut [f32], o: &[f32], stride: usize, lse: &[Lse]) -> Lse {
    let head_dim = out.len();
    out.fill(0.0);
    if lse.iter().all(|lse| lse.is_empty()) {
        return Lse::EMPTY;
    }
    let top = lse.iter().fold(f32::NEG_INFINITY, |top, lse| top.max(lse.ln()));
    assert!(stride >= head_dim, "merge: rows of {head_dim} every {stride}");
    let weight = |lse: &Lse| (f64::from(lse.ln()) - f64::from(top)).exp();
    let sum: f64 = lse.iter().map(weight).sum();
    for (shard, lse) in lse.iter().enumerate().filter(|(_, lse)| !lse.is_empty()) {
        let w = (weight(lse) / sum) as f32;
        for (out, o) in out.iter_mut().zip(&o[shard * stride..][..head_dim]) {
            *out += w * o;
        }
    }
    Lse::from_ln((f64::from(top) + sum.ln()) as f32)
}

#[cfg(test)]
mod tests;
