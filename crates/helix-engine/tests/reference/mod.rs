//! A decoder in f64, written from the architectures' definitions (Hugging Face transformers'
//! `modeling_llama.py`, `modeling_qwen2.py`, `modeling_qwen3.py`) and from nothing of Helix: dense,
//! unpaged, one thread, a token at a time.
//!
//! Its settings are those that the synthetic model was made from, not what Helix read out of the
//! file; weights are read out of the file's bytes. Frequencies are computed here.
#![allow(dead_code, reason = "each test file uses some of it")]

mod rotary;
mod weights;

use helix_model::Model;
use helix_model::synthetic::Spec;
use rotary::Rotary;
use weights::{Layer, Weights};

/// A model, and how its layers compute.
pub struct Reference {
    spec: Spec,
    weights: Weights,
    rotary: Rotary,
}

/// A sequence so far: each layer's keys and values, a row `[kv_heads, head_dim]` per position.
#[derive(Clone)]
pub struct Sequence {
    layers: Vec<Cache>,
}

#[derive(Clone, Default)]
struct Cache {
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

impl Sequence {
    pub fn len(&self) -> usize {
        self.layers[0].keys.len()
    }

    /// Forgets the positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        for cache in &mut self.layers {
            cache.keys.truncate(len);
            cache.values.truncate(len);
        }
    }
}

impl Reference {
    pub fn new(spec: &Spec, model: &Model) -> Reference {
        Reference {
            spec: spec.clone(),
            weights: Weights::read(spec, model),
            rotary: Rotary::new(spec),
        }
    }

    pub fn start(&self) -> Sequence {
        Sequence { layers: vec![Cache::default(); self.spec.layers] }
    }

    /// Appends a token and gives its logits, `[vocab]`.
    pub fn append(&self, sequence: &mut Sequence, token: u32) -> Vec<f64> {
        let x = self.stream(sequence, token);
        product(&self.weights.head, &rms_norm(&x, &self.weights.final_norm, self.eps()))
    }

    /// Appends a token whose logits nobody asks for.
    pub fn remember(&self, sequence: &mut Sequence, token: u32) {
        let (last, before) = self.weights.layers.split_last().expect("a layer");
        let mut x = self.embedding(token);
        for (layer, cache) in before.iter().zip(&mut sequence.layers) {
            self.layer(layer, cache, &mut x);
        }
        self.project(last, sequence.layers.last_mut().expect("a layer"), &x);
    }

    /// The stream after all layers.
    fn stream(&self, sequence: &mut Sequence, token: u32) -> Vec<f64> {
        let mut x = self.embedding(token);
        for (layer, cache) in self.weights.layers.iter().zip(&mut sequence.layers) {
            self.layer(layer, cache, &mut x);
        }
        x
    }

    fn embedding(&self, token: u32) -> Vec<f64> {
        self.weights.embedding[token as usize].clone()
    }

    fn eps(&self) -> f64 {
        f64::from(self.spec.rms_eps)
    }

    fn layer(&self, w: &Layer, cache: &mut Cache, x: &mut [f64]) {
        let queries = self.project(w, cache, x);
        let attended = self.attend(cache, &queries);
        add(x, &product(&w.out, &attended));

        let normed = rms_norm(x, &w.ffn_norm, self.eps());
        let (gate, up) = (product(&w.gate, &normed), product(&w.up, &normed));
        let silu = |g: f64| g / (1.0 + (-g).exp());
        let hidden: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| silu(*g) * u).collect();
        add(x, &product(&w.down, &hidden));
    }

    /// Appends this position's key and value; gives its query.
    fn project(&self, w: &Layer, cache: &mut Cache, x: &[f64]) -> Vec<f64> {
        let position = cache.keys.len();
        let normed = rms_norm(x, &w.attn_norm, self.eps());
        let turned = |matrix: &[Vec<f64>], bias: &Option<Vec<f64>>, norm: &Option<Vec<f64>>| {
            let mut y = biased(matrix, &normed, bias);
            for head in y.chunks_exact_mut(self.spec.head_dim) {
                if let Some(norm) = norm {
                    head.copy_from_slice(&rms_norm(head, norm, self.eps()));
                }
                self.rotary.turn(head, position);
            }
            y
        };
        let queries = turned(&w.q, &w.q_bias, &w.q_norm);
        cache.keys.push(turned(&w.k, &w.k_bias, &w.k_norm));
        cache.values.push(biased(&w.v, &normed, &w.v_bias));
        queries
    }

    /// Softmax attention of each query head over all positions so far.
    fn attend(&self, cache: &Cache, queries: &[f64]) -> Vec<f64> {
        let dim = self.spec.head_dim;
        let group = self.spec.q_heads / self.spec.kv_heads;
        let mut out = vec![0.0; queries.len()];
        for (head, (out, query)) in
            out.chunks_exact_mut(dim).zip(queries.chunks_exact(dim)).enumerate()
        {
            let own = head / group * dim..(head / group + 1) * dim;
            let scores: Vec<f64> = cache
                .keys
                .iter()
                .map(|key| dot(query, &key[own.clone()]) / (dim as f64).sqrt())
                .collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (weight, value) in weights.iter().zip(&cache.values) {
                for (out, value) in out.iter_mut().zip(&value[own.clone()]) {
                    *out += weight / sum * value;
                }
            }
        }
        out
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], y: &[f64]) {
    assert_eq!(x.len(), y.len());
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn product(matrix: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    matrix.iter().map(|row| dot(row, x)).collect()
}

fn biased(matrix: &[Vec<f64>], x: &[f64], bias: &Option<Vec<f64>>) -> Vec<f64> {
    let mut y = product(matrix, x);
    if let Some(bias) = bias {
        add(&mut y, bias);
    }
    y
}

fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    assert_eq!(x.len(), weight.len());
    let root = (dot(x, x) / x.len() as f64 + eps).sqrt();
    x.iter().zip(weight).map(|(x, w)| x / root * w).collect()
}
