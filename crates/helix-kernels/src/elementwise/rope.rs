//! Rotary position embedding.

use crate::arch::lanes::{Kernel, Lanes, dispatch};

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// Neighbours: `2i` and `2i + 1` (GGUF's `llama`).
    Interleaved,
    /// Halves: `i` and `i + dims/2` (Hugging Face, GPT-NeoX, Qwen).
    Half,
}

/// Angles of the rotary embedding: what remains of a model's RoPE settings after any scaling.
#[derive(Clone, Debug)]
pub struct RopeTable {
    style: RopeStyle,
    frequencies: Vec<f32>,
    magnitude: f32,
}

impl RopeTable {
    /// Turns the first `2·frequencies.len()` elements of a head: pair `i` by
    /// `position·frequencies[i]` radians, and scales them by `magnitude` (1, or YaRN's).
    #[must_use]
    pub fn new(style: RopeStyle, frequencies: &[f32], magnitude: f32) -> RopeTable {
        RopeTable { style, frequencies: frequencies.to_vec(), magnitude }
    }

    /// Elements of a head that turn; those behind them pass unchanged.
    #[must_use]
    pub fn dims(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Numbers that [`RopeTable::turn`] writes for a position.
    #[must_use]
    pub fn turn_len(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// The rotation at `position`: cosines, then sines, both times the magnitude.
    ///
    /// Angles are taken in f64, so that positions in the millions are as exact as the first.
    /// Compute it once for each token of a step; every layer and head uses it.
    ///
    /// # Panics
    /// When `turn` is not [`RopeTable::turn_len`] long.
    pub fn turn(&self, position: usize, turn: &mut [f32]) {
        assert_eq!(turn.len(), self.turn_len(), "rope: cosines and sines");
        let (cos, sin) = turn.split_at_mut(self.frequencies.len());
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
            let (s, c) = (position as f64 * f64::from(*frequency)).sin_cos();
            *cos = (c * f64::from(self.magnitude)) as f32;
            *sin = (s * f64::from(self.magnitude)) as f32;
        }
    }

    /// Turns every head of one token: `(a, b) ← (a·cos − b·sin, b·cos + a·sin)`.
    ///
    /// Shapes: `heads [heads, head_dim]`, `turn` from [`RopeTable::turn`].
    ///
    /// # Panics
    /// When `head_dim` is less than [`RopeTable::dims`] or zero, `heads` no whole number of
    /// heads, or `turn` of another length.
    pub fn apply(&self, heads: &mut [f32], head_dim: usize, turn: &[f32]) {
        let pairs = self.frequencies.len();
        assert_eq!(turn.len(), 2 * pairs, "rope: cosines and sines");
        assert!(head_dim >= self.dims().max(1), "rope: turns {} of {head_dim}", self.dims());
        assert!(heads.len().is_multiple_of(head_dim), "rope: part of a head of {head_dim}");
        let (cos, sin) = turn.split_at(pairs);
        dispatch(Rope { style: self.style, heads, head_dim, cos, sin });
    }
}

struct Rope<'a> {
    style: RopeStyle,
    heads: &'a mut [f32],
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Rope<'_> {
    type Output = ();

    /// Left to the compiler's vectoriser, which the enabled instructions are enough for.
    #[inline(always)]
    fn run<S: Lanes>(self, _: S) {
        let pairs = self.cos.len();
        let turns = self.cos.iter().zip(self.sin);
        for head in self.heads.chunks_exact_mut(self.head_dim) {
            match self.style {
                RopeStyle::Interleaved => {
                    let (head, _) = head[..2 * pairs].as_chunks_mut::<2>();
                    for ([a, b], (cos, sin)) in head.iter_mut().zip(turns.clone()) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
                RopeStyle::Half => {
                    let (first, second) = head[..2 * pairs].split_at_mut(pairs);
                    let head = first.iter_mut().zip(second);
                    for ((a, b), (cos, sin)) in head.zip(turns.clone()) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            }
        }
    }
}
