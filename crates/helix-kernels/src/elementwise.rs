//! Norms, residuals, activations and rotary embedding: a token's vector, element by element.
//!
//! The same bits on every instruction set; sums have the one order that each function states.

mod rope;

pub use rope::{RopeStyle, RopeTable};

use crate::arch::lanes::{Kernel, LANES, Lanes, dispatch, exp};
use crate::lse::Lse;

/// Root-mean-square norm: `out[i] = x[i]·weight[i]/√(mean x² + eps)`.
///
/// Shapes: all `[n]`. Squares add up in 64 running sums, element `i` in sum `i mod 64`, which are
/// then added by halves. An empty `x` is allowed.
///
/// # Panics
/// When lengths differ.
pub fn rms_norm(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    assert_eq!(out.len(), x.len(), "rms_norm: out and x");
    assert_eq!(weight.len(), x.len(), "rms_norm: weight and x");
    dispatch(RmsNorm { out, x, weight, eps });
}

/// [`rms_norm`] of each head in place, with the weight that all heads share (Qwen 3's query and
/// key norms). Shapes: `heads [heads, head_dim]`, `weight [head_dim]`.
///
/// # Panics
/// When `weight` is empty or `heads` is no whole number of them.
pub fn rms_norm_heads(heads: &mut [f32], weight: &[f32], eps: f32) {
    assert!(!weight.is_empty(), "rms_norm_heads: no weight");
    assert!(heads.len().is_multiple_of(weight.len()), "rms_norm_heads: part of a head");
    dispatch(RmsNormHeads { heads, weight, eps });
}

/// The residual: `acc[i] += x[i]`.
///
/// # Panics
/// When lengths differ.
pub fn add_in_place(acc: &mut [f32], x: &[f32]) {
    assert_eq!(acc.len(), x.len(), "add_in_place: lengths differ");
    dispatch(Add { acc, x });
}

/// The gated activation: `out[i] = silu(gate[i])·up[i]`, `silu(g) = g/(1 + e^−g)`.
///
/// Within 4e-7 of it, relative. Shapes: all `[n]`.
///
/// # Panics
/// When lengths differ.
pub fn swiglu(out: &mut [f32], gate: &[f32], up: &[f32]) {
    assert_eq!(out.len(), gate.len(), "swiglu: out and gate");
    assert_eq!(up.len(), gate.len(), "swiglu: up and gate");
    dispatch(Gated { out, gate, up, gated: Swiglu });
}

/// Gemma's gated activation: `out[i] = gelu(gate[i])·up[i]`, with GELU's tanh approximation:
/// `gelu(g) = g/2·(1 + tanh u)`, `u = √(2/π)·(g + 0.044715·g³)`.
///
/// `(1 + tanh u)/2` is `1/(1 + e^−2u)`. Shapes: all `[n]`.
///
/// # Panics
/// When lengths differ.
pub fn gelu_tanh(out: &mut [f32], gate: &[f32], up: &[f32]) {
    assert_eq!(out.len(), gate.len(), "gelu_tanh: out and gate");
    assert_eq!(up.len(), gate.len(), "gelu_tanh: up and gate");
    dispatch(Gated { out, gate, up, gated: GeluTanh });
}

/// gpt-oss's gated activation: `out[i] = g·σ(alpha·g)·(u + 1)`, `g = min(gate[i], limit)`,
/// `u = up[i]` clamped to ±`limit`, `σ(x) = 1/(1 + e^−x)`. Shapes: all `[n]`.
///
/// # Panics
/// When lengths differ.
pub fn clamped_swiglu(out: &mut [f32], gate: &[f32], up: &[f32], alpha: f32, limit: f32) {
    assert_eq!(out.len(), gate.len(), "clamped_swiglu: out and gate");
    assert_eq!(up.len(), gate.len(), "clamped_swiglu: up and gate");
    dispatch(Gated { out, gate, up, gated: ClampedSwiglu { alpha, limit } });
}

/// Turns logits to probabilities in place and gives their log-sum-exp; `x` empty gives
/// [`Lse::EMPTY`]. Sums in f64, in order: made for the sampler and for perplexity.
pub fn softmax_in_place(x: &mut [f32]) -> Lse {
    let lse = log_sum_exp(x);
    for x in x.iter_mut() {
        *x = (*x - lse.ln()).exp();
    }
    lse
}

/// `ln Σ e^x`, the sum in f64, in order; of nothing, or of −∞ alone, [`Lse::EMPTY`].
#[must_use]
pub fn log_sum_exp(x: &[f32]) -> Lse {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if x.iter().all(|x| *x == f32::NEG_INFINITY) {
        return Lse::EMPTY;
    }
    let sum: f64 = x.iter().map(|x| f64::from((x - top).exp())).sum();
    Lse::from_ln((f64::from(top) + sum.ln()) as f32)
}

struct RmsNorm<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let scale = s.splat(rms_scale(s, self.x, self.eps));
        let (x, x_rest) = self.x.as_chunks::<LANES>();
        let (w, w_rest) = self.weight.as_chunks::<LANES>();
        let (out, out_rest) = self.out.as_chunks_mut::<LANES>();
        for ((out, x), w) in out.iter_mut().zip(x).zip(w) {
            s.store(s.mul(s.mul(s.load(x), scale), s.load(w)), out);
        }
        if !x_rest.is_empty() {
            let y = s.mul(s.mul(s.load(&padded(x_rest)), scale), s.load(&padded(w_rest)));
            store_part(s, y, out_rest);
        }
    }
}

struct RmsNormHeads<'a> {
    heads: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNormHeads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let (w, w_rest) = self.weight.as_chunks::<LANES>();
        for head in self.heads.chunks_exact_mut(self.weight.len()) {
            let scale = s.splat(rms_scale(s, head, self.eps));
            let (x, x_rest) = head.as_chunks_mut::<LANES>();
            for (x, w) in x.iter_mut().zip(w) {
                s.store(s.mul(s.mul(s.load(x), scale), s.load(w)), x);
            }
            if !x_rest.is_empty() {
                let y = s.mul(s.mul(s.load(&padded(x_rest)), scale), s.load(&padded(w_rest)));
                store_part(s, y, x_rest);
            }
        }
    }
}

/// `1/√(mean x² + eps)`
#[inline(always)]
fn rms_scale<S: Lanes>(s: S, x: &[f32], eps: f32) -> f32 {
    let (blocks, rest) = x.as_chunks::<{ 4 * LANES }>();
    let mut sums = [s.splat(0.0); 4];
    for block in blocks {
        let (vectors, _) = block.as_chunks::<LANES>();
        for (sum, x) in sums.iter_mut().zip(vectors) {
            let x = s.load(x);
            *sum = s.fma(x, x, *sum);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest.chunks(LANES)) {
        let x = s.load(&padded(x));
        *sum = s.fma(x, x, *sum);
    }
    let [a, b, c, d] = sums;
    let sum = s.sum(s.add(s.add(a, c), s.add(b, d)));
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

struct Add<'a> {
    acc: &'a mut [f32],
    x: &'a [f32],
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, _: S) {
        for (acc, x) in self.acc.iter_mut().zip(self.x) {
            *acc += x;
        }
    }
}

/// A function of a gate and what it lets through.
trait Gate {
    fn of<S: Lanes>(&self, s: S, gate: S::F, up: S::F) -> S::F;
}

/// A [`Gate`] of every element.
struct Gated<'a, G> {
    out: &'a mut [f32],
    gate: &'a [f32],
    up: &'a [f32],
    gated: G,
}

impl<G: Gate> Kernel for Gated<'_, G> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let (gate, gate_rest) = self.gate.as_chunks::<LANES>();
        let (up, up_rest) = self.up.as_chunks::<LANES>();
        let (out, out_rest) = self.out.as_chunks_mut::<LANES>();
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            s.store(self.gated.of(s, s.load(gate), s.load(up)), out);
        }
        if !gate_rest.is_empty() {
            let (gate, up) = (s.load(&padded(gate_rest)), s.load(&padded(up_rest)));
            store_part(s, self.gated.of(s, gate, up), out_rest);
        }
    }
}

/// `g/(1 + e^−x)`: `g·σ(x)`.
#[inline(always)]
fn times_sigmoid<S: Lanes>(s: S, g: S::F, x: S::F) -> S::F {
    s.div(g, s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), x))))
}

struct Swiglu;

impl Gate for Swiglu {
    #[inline(always)]
    fn of<S: Lanes>(&self, s: S, gate: S::F, up: S::F) -> S::F {
        s.mul(times_sigmoid(s, gate, gate), up)
    }
}

struct GeluTanh;

impl Gate for GeluTanh {
    #[inline(always)]
    fn of<S: Lanes>(&self, s: S, gate: S::F, up: S::F) -> S::F {
        const TWICE_ROOT: f32 = 1.595_769; // 2·√(2/π)
        let inner = s.fma(s.mul(gate, gate), s.splat(0.044_715 * TWICE_ROOT), s.splat(TWICE_ROOT));
        s.mul(times_sigmoid(s, gate, s.mul(gate, inner)), up)
    }
}

struct ClampedSwiglu {
    alpha: f32,
    limit: f32,
}

impl Gate for ClampedSwiglu {
    /// Comparisons are such that a NaN stays one.
    #[inline(always)]
    fn of<S: Lanes>(&self, s: S, gate: S::F, up: S::F) -> S::F {
        let (low, high) = (s.splat(-self.limit), s.splat(self.limit));
        let gate = s.if_less(high, gate, high, gate);
        let up = s.if_less(high, up, high, up);
        let up = s.if_less(up, low, low, up);
        let gated = times_sigmoid(s, gate, s.mul(s.splat(self.alpha), gate));
        s.mul(gated, s.add(up, s.splat(1.0)))
    }
}

/// A part of a vector, with zeros behind it.
#[inline(always)]
fn padded(x: &[f32]) -> [f32; LANES] {
    let mut whole = [0.0; LANES];
    whole[..x.len()].copy_from_slice(x);
    whole
}

#[inline(always)]
fn store_part<S: Lanes>(s: S, x: S::F, to: &mut [f32]) {
    let mut whole = [0.0; LANES];
    s.store(x, &mut whole);
    to.copy_from_slice(&whole[..to.len()]);
}

#[cfg(test)]
mod tests;
