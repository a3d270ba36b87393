//! Rotary positions, from transformers' `modeling_rope_utils.py` and ggml's pair orders.

use helix_model::Arch;
use helix_model::config::Scaling;
use helix_model::synthetic::Spec;
use std::f64::consts::TAU;

pub struct Rotary {
    /// Radians per position of each pair.
    frequencies: Vec<f64>,
    magnitude: f64,
    /// The elements of each pair.
    pairs: Vec<(usize, usize)>,
}

impl Rotary {
    pub fn new(spec: &Spec) -> Rotary {
        let count = spec.rope_dims / 2;
        let plain = |pair: usize| {
            f64::from(spec.rope_base).powf(-((2 * pair) as f64) / spec.rope_dims as f64)
        };
        let frequencies = (0..count).map(|pair| scaled(plain(pair), pair, spec)).collect();
        let magnitude = match &spec.scaling {
            Scaling::Yarn(yarn) => 0.1 * f64::from(yarn.factor).ln() + 1.0,
            _ => 1.0,
        };
        // Llama's projections are permuted in GGUF, so that neighbours turn together.
        let pairs = (0..count).map(|pair| match spec.arch {
            Arch::Llama => (2 * pair, 2 * pair + 1),
            _ => (pair, pair + count),
        });
        Rotary { frequencies, magnitude, pairs: pairs.collect() }
    }

    /// Turns one head.
    pub fn turn(&self, head: &mut [f64], position: usize) {
        for (&(a, b), frequency) in self.pairs.iter().zip(&self.frequencies) {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (x, y) = (head[a] * self.magnitude, head[b] * self.magnitude);
            (head[a], head[b]) = (x * cos - y * sin, x * sin + y * cos);
        }
    }
}

fn scaled(plain: f64, pair: usize, spec: &Spec) -> f64 {
    match &spec.scaling {
        Scaling::None => plain,
        Scaling::Linear { factor } => plain / f64::from(*factor),
        Scaling::Llama3(llama3) => {
            let wavelength = TAU / plain;
            let original = llama3.original_context as f64;
            let (low, high) =
                (f64::from(llama3.low_freq_factor), f64::from(llama3.high_freq_factor));
            let stretched = plain / f64::from(llama3.factor);
            if wavelength > original / low {
                stretched
            } else if wavelength < original / high {
                plain
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * stretched + smooth * plain
            }
        }
        Scaling::Yarn(yarn) => {
            let dims = spec.rope_dims as f64;
            let correction = |turns: f32| {
                dims * (yarn.original_context as f64 / (f64::from(turns) * TAU)).ln()
                    / (2.0 * f64::from(spec.rope_base).ln())
            };
            let low = correction(yarn.beta_fast).floor().max(0.0);
            let mut high = correction(yarn.beta_slow).ceil().min(dims - 1.0);
            if low == high {
                high += 0.001;
            }
            let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            plain / f64::from(yarn.factor) * ramp + plain * (1.0 - ramp)
        }
    }
}
