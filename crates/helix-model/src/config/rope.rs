//! Rotary position embedding: the angle per position of each pair of elements.
//!
//! Computed once per model in f64. Sources: ggml's `ggml_rope_yarn` and `ggml_rope_ext`,
//! transformers' `modeling_rope_utils.py`; YaRN is arXiv 2309.00071.

use std::f64::consts::PI;

use crate::source::of_gguf;
use crate::{Gguf, ModelError};

/// Which two elements of a head are rotated together.
pub use helix_kernels::elementwise::RopeStyle;

/// How each head's first `dims` elements turn with the position.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Elements that are rotated; even. Those after them stay.
    pub dims: usize,
    /// The base of the geometric row of frequencies, before scaling.
    pub base: f32,
    /// How pairs lie in the head.
    pub style: RopeStyle,
    /// `[dims / 2]`: radians per position of each pair, all scaling applied.
    pub frequencies: Vec<f32>,
    /// What sine and cosine are multiplied by: 1, or YaRN's attention factor.
    pub magnitude: f32,
    /// What was done to the frequencies, for people to read.
    pub scaling: &'static str,
    /// New context over old, where that was it.
    pub factor: Option<f32>,
}

/// How a model was stretched past the context that it was first trained for.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// New context over old.
        factor: f32,
    },
    /// Low frequencies divided, high ones kept, a ramp between.
    Yarn(Yarn),
    /// Llama 3's: as YaRN with another ramp; in GGUF the tensor `rope_freqs.weight`.
    Llama3(Llama3),
}

/// YaRN's parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// New context over old.
    pub factor: f32,
    /// Positions of the first training.
    pub original_context: usize,
    /// Turns over the original context above which a frequency is kept.
    pub beta_fast: f32,
    /// Turns below which it is divided by `factor`.
    pub beta_slow: f32,
    /// Whether the ramp between the two starts and ends at whole pairs, as in all but OpenAI's gpt-oss.
    pub truncate: bool,
    /// What sine and cosine are multiplied by, if not by `0.1 ln(factor) + 1`.
    pub attention_factor: Option<f32>,
}

/// Llama 3's parameters, named as in Hugging Face configurations.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3 {
    /// New context over old.
    pub factor: f32,
    /// Frequencies with fewer turns over the original context are divided by `factor`.
    pub low_freq_factor: f32,
    /// Frequencies with more turns are kept.
    pub high_freq_factor: f32,
    /// Positions of the first training.
    pub original_context: usize,
}

impl Llama3 {
    /// What each frequency is divided by: the contents of `rope_freqs.weight`, `[dims / 2]`.
    pub fn divisors(&self, dims: usize, base: f32) -> Vec<f32> {
        let (low, high) = (f64::from(self.low_freq_factor), f64::from(self.high_freq_factor));
        let factor = f64::from(self.factor);
        let divisor = |pair: usize| {
            let turns = self.original_context as f64 * frequency(pair, dims, base) / (2.0 * PI);
            if turns < low {
                factor
            } else if turns > high {
                1.0
            } else {
                let smooth = (turns - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        (0..dims / 2).map(|pair| divisor(pair) as f32).collect()
    }
}

impl Yarn {
    /// The part of pair `pair`'s unscaled frequency that is kept, from 0 to 1.
    fn kept(&self, pair: usize, dims: usize, base: f32) -> f64 {
        let bound = |turns: f32| {
            let ratio = self.original_context as f64 / (f64::from(turns) * 2.0 * PI);
            dims as f64 * ratio.ln() / (2.0 * f64::from(base).ln())
        };
        let (low, high) = (bound(self.beta_fast), bound(self.beta_slow));
        let (low, high) = if self.truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
        let ramp = (pair as f64 - low) / (high - low).max(0.001);
        1.0 - ramp.clamp(0.0, 1.0)
    }

    fn magnitude(&self) -> f32 {
        self.attention_factor.unwrap_or_else(|| mscale(self.factor, 1.0))
    }
}

/// YaRN's and DeepSeek's attention factor: `0.1·weight·ln(factor) + 1`, or 1 where nothing is
/// stretched.
pub(crate) fn mscale(factor: f32, weight: f32) -> f32 {
    if factor > 1.0 { 0.1 * weight * factor.ln() + 1.0 } else { 1.0 }
}

/// Divisors of single frequencies, as the tensor `rope_freqs.weight` has them; empty for none.
pub(super) struct Factors(Vec<f32>);

impl Factors {
    pub(super) fn none() -> Factors {
        Factors(Vec::new())
    }

    pub(super) fn read(gguf: &Gguf, dims: usize) -> Result<Factors, ModelError> {
        const NAME: &str = "rope_freqs.weight";
        if gguf.tensor(NAME).is_none() {
            return Ok(Factors::none());
        }
        let factors = of_gguf(gguf, NAME, None)?.vector(dims / 2)?;
        match factors.iter().find(|factor| **factor <= 0.0) {
            Some(factor) => Err(ModelError::Header {
                what: format!("tensor {NAME:?}"),
                problem: format!("a frequency cannot be divided by {factor}"),
            }),
            None => Ok(Factors(factors)),
        }
    }
}

impl Rope {
    /// The embedding of `dims` elements without scaling.
    pub(crate) fn plain(dims: usize, base: f32, style: RopeStyle) -> Rope {
        Rope::new(dims, base, style, &Scaling::None, &Factors::none(), 1.0)
    }

    /// The embedding of `dims` elements with `scaling`; `magnitude` multiplies the scaling's own.
    pub(super) fn new(
        dims: usize,
        base: f32,
        style: RopeStyle,
        scaling: &Scaling,
        factors: &Factors,
        magnitude: f32,
    ) -> Rope {
        let llama3 = match scaling {
            Scaling::Llama3(llama3) => llama3.divisors(dims, base),
            _ => Vec::new(),
        };
        let divisor = |list: &[f32], pair: usize| list.get(pair).map_or(1.0, |&d| f64::from(d));
        let scaled = |pair: usize| {
            let kept = frequency(pair, dims, base) / divisor(&factors.0, pair);
            match scaling {
                Scaling::None => kept,
                Scaling::Linear { factor } => kept / f64::from(*factor),
                Scaling::Llama3(_) => kept / divisor(&llama3, pair),
                Scaling::Yarn(yarn) => {
                    let share = yarn.kept(pair, dims, base);
                    kept * share + kept / f64::from(yarn.factor) * (1.0 - share)
                }
            }
        };
        let own = if let Scaling::Yarn(yarn) = scaling { yarn.magnitude() } else { 1.0 };
        let frequencies = (0..dims / 2).map(|pair| scaled(pair) as f32).collect();
        let (scaling, factor) = match scaling {
            _ if !factors.0.is_empty() => ("rope_freqs (llama3)", None),
            Scaling::None => ("none", None),
            Scaling::Linear { factor } => ("linear", Some(*factor)),
            Scaling::Yarn(yarn) => ("yarn", Some(yarn.factor)),
            Scaling::Llama3(llama3) => ("llama3", Some(llama3.factor)),
        };
        Rope { dims, base, style, frequencies, magnitude: own * magnitude, scaling, factor }
    }
}

/// Radians per position of a pair before any scaling: `base^(-2·pair / dims)`.
fn frequency(pair: usize, dims: usize, base: f32) -> f64 {
    f64::from(base).powf(-2.0 * pair as f64 / dims as f64)
}
