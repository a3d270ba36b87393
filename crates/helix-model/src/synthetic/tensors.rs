//! A synthetic model's tensors.

use helix_kernels::{Format, quantize};

use super::random::Random;
use super::{Experts, Spec, Values};
use crate::Arch;
use crate::config::{Mla, Scaling, Scoring};
use crate::gguf::{GgmlType, Writer};

pub(super) fn write(spec: &Spec, seed: u64, writer: &mut Writer) {
    let mut maker = Maker { spec, seed, writer };
    // The logits' spread: a head row is as long as this, and the final norm makes x's mean square 1.
    const LOGIT_SPREAD: f32 = 4.0;
    let head = LOGIT_SPREAD / (spec.hidden as f32).sqrt();
    let embedding = if spec.tied_head { head } else { 1.0 };
    let (hidden, vocab) = (spec.hidden, spec.vocab);
    maker.matrix("token_embd.weight", hidden, vocab, spec.embedding_format, embedding);
    if let Scaling::Llama3(llama3) = &spec.scaling {
        let divisors = llama3.divisors(spec.rope_dims, spec.rope_base);
        maker.f32s("rope_freqs.weight", &divisors);
    }
    for layer in 0..spec.layers {
        maker.layer(layer);
    }
    maker.vector("output_norm.weight", hidden, 1.0, 0.2);
    if !spec.tied_head {
        maker.matrix("output.weight", hidden, vocab, spec.embedding_format, head);
    }
}

struct Maker<'a> {
    spec: &'a Spec,
    seed: u64,
    writer: &'a mut Writer,
}

/// A weight of this deviation times a value of mean square 1 over `inputs` gives mean square 1.
fn unit(inputs: usize) -> f32 {
    1.0 / (inputs as f32).sqrt()
}

/// silu(gate) * up has a standard deviation of about 0.6.
fn down(inputs: usize) -> f32 {
    1.7 * unit(inputs)
}

/// Scores of standard deviation 1.5² make attention peaked but not one-hot.
fn peaked(inputs: usize) -> f32 {
    1.5 * unit(inputs)
}

impl Maker<'_> {
    fn layer(&mut self, layer: usize) {
        let Spec { hidden, q_heads, head_dim, format, experts, .. } = *self.spec;
        let name = |suffix: &str| format!("blk.{layer}.{suffix}");
        self.vector(&name("attn_norm.weight"), hidden, 1.0, 0.2);
        let out = match self.spec.mla {
            None => {
                self.heads(&name);
                q_heads * head_dim
            }
            Some(mla) => {
                self.latent(&mla, &name);
                q_heads * mla.value
            }
        };
        self.matrix(&name("attn_output.weight"), out, hidden, format, 1.5 * unit(out));
        self.vector(&name("ffn_norm.weight"), hidden, 1.0, 0.2);
        match experts.filter(|experts| layer >= experts.dense_layers) {
            None => self.ffn("", self.spec.ffn, &name),
            Some(experts) => self.experts(&experts, &name),
        }
    }

    fn heads(&mut self, name: &dyn Fn(&str) -> String) {
        let Spec { hidden, q_heads, kv_heads, head_dim, format, .. } = *self.spec;
        let (q, kv) = (q_heads * head_dim, kv_heads * head_dim);
        self.matrix(&name("attn_q.weight"), hidden, q, format, peaked(hidden));
        self.matrix(&name("attn_k.weight"), hidden, kv, format, peaked(hidden));
        self.matrix(&name("attn_v.weight"), hidden, kv, format, unit(hidden));
        if self.spec.bias {
            self.vector(&name("attn_q.bias"), q, 0.0, 0.5);
            self.vector(&name("attn_k.bias"), kv, 0.0, 0.5);
            self.vector(&name("attn_v.bias"), kv, 0.0, 0.5);
        }
        if matches!(self.spec.arch, Arch::Qwen3 | Arch::Qwen3Moe) {
            self.vector(&name("attn_q_norm.weight"), head_dim, 1.5, 0.2);
            self.vector(&name("attn_k_norm.weight"), head_dim, 1.5, 0.2);
        }
    }

    /// Queries, and keys of both kinds, have a standard deviation of 1.5; latents are normalised.
    fn latent(&mut self, mla: &Mla, name: &dyn Fn(&str) -> String) {
        let Spec { hidden, q_heads, format, .. } = *self.spec;
        let Mla { q_lora, kv_lora, nope, rope, value } = *mla;
        let q = q_heads * (nope + rope);
        match q_lora {
            None => self.matrix(&name("attn_q.weight"), hidden, q, format, peaked(hidden)),
            Some(q_lora) => {
                self.matrix(&name("attn_q_a.weight"), hidden, q_lora, format, unit(hidden));
                self.vector(&name("attn_q_a_norm.weight"), q_lora, 1.0, 0.2);
                self.matrix(&name("attn_q_b.weight"), q_lora, q, format, peaked(q_lora));
            }
        }
        let key = kv_lora + rope;
        self.matrix(&name("attn_kv_a_mqa.weight"), hidden, key, format, peaked(hidden));
        self.vector(&name("attn_kv_a_norm.weight"), kv_lora, 1.0, 0.2);
        let k_up = [nope, kv_lora, q_heads];
        self.parts(&name("attn_k_b.weight"), k_up, fitting(format, nope), peaked(kv_lora));
        let v_up = [kv_lora, value, q_heads];
        self.parts(&name("attn_v_b.weight"), v_up, fitting(format, kv_lora), unit(kv_lora));
    }

    /// An FFN of `ffn` columns, its tensors' names with an infix.
    fn ffn(&mut self, infix: &str, ffn: usize, name: &dyn Fn(&str) -> String) {
        let Spec { hidden, format, down_format, .. } = *self.spec;
        let name = |part: &str| name(&format!("ffn_{part}{infix}.weight"));
        self.matrix(&name("gate"), hidden, ffn, format, unit(hidden));
        self.matrix(&name("up"), hidden, ffn, format, unit(hidden));
        self.matrix(&name("down"), ffn, hidden, down_format, down(ffn));
    }

    fn experts(&mut self, experts: &Experts, name: &dyn Fn(&str) -> String) {
        let Spec { hidden, format, down_format, .. } = *self.spec;
        let &Experts { count, top_k, ffn, shared, scoring, .. } = experts;
        self.router(&name("ffn_gate_inp.weight"), hidden, count);
        if scoring == Scoring::Sigmoid {
            self.vector(&name("exp_probs_b.bias"), count, 0.0, 0.1);
        }
        let (into, out_of) = ([hidden, ffn, count], [ffn, hidden, count]);
        self.parts(&name("ffn_gate_exps.weight"), into, format, unit(hidden));
        self.parts(&name("ffn_up_exps.weight"), into, format, unit(hidden));
        // Results of the chosen differ; their mean is smaller than each.
        let mean = (top_k as f32).sqrt() * down(ffn);
        self.parts(&name("ffn_down_exps.weight"), out_of, down_format, mean);
        if shared > 0 {
            self.ffn("_shexp", shared * ffn, name);
        }
    }

    /// A matrix of normally distributed weights.
    fn matrix(&mut self, name: &str, cols: usize, rows: usize, format: Format, deviation: f32) {
        let data = self.rows(name, [cols, rows], format, deviation);
        self.writer.tensor(name, &[cols, rows], ggml_type(format), data);
    }

    /// A matrix `[cols, rows]` for each of some heads or experts.
    fn parts(&mut self, name: &str, dims: [usize; 3], format: Format, deviation: f32) {
        let data = self.rows(name, [dims[0], dims[1] * dims[2]], format, deviation);
        self.writer.tensor(name, &dims, ggml_type(format), data);
    }

    /// Rows of normally distributed weights, all or a few dozen of them drawn.
    fn rows(
        &self,
        name: &str,
        [cols, rows]: [usize; 2],
        format: Format,
        deviation: f32,
    ) -> Vec<u8> {
        const DIFFERENT_ROWS: usize = 48;
        let drawn = match self.spec.values {
            Values::Independent => rows,
            Values::Repeated => rows.min(DIFFERENT_ROWS),
        };
        let mut random = Random::named(self.seed, name);
        let row_bytes = format
            .row_bytes(cols)
            .unwrap_or_else(|| panic!("{name}: {format} cannot store rows of {cols}"));
        let mut data = vec![0; rows * row_bytes];
        let mut row = vec![0.0; cols];
        for bytes in data.chunks_exact_mut(row_bytes).take(drawn) {
            row.fill_with(|| deviation * random.normal());
            quantize(format, &row, bytes);
        }
        let (first, rest) = data.split_at_mut(drawn * row_bytes);
        for chunk in rest.chunks_mut(first.len()) {
            chunk.copy_from_slice(&first[..chunk.len()]);
        }
        data
    }

    /// Rows that all differ, however other matrices are drawn: of experts with equal logits a token
    /// would always go to the first.
    fn router(&mut self, name: &str, cols: usize, rows: usize) {
        let mut random = Random::named(self.seed, name);
        let deviation = 2.0 * unit(cols);
        let values = (0..cols * rows).flat_map(|_| (deviation * random.normal()).to_le_bytes());
        let data = values.collect();
        self.writer.tensor(name, &[cols, rows], ggml_type(Format::F32), data);
    }

    fn vector(&mut self, name: &str, len: usize, mean: f32, deviation: f32) {
        let mut random = Random::named(self.seed, name);
        let values: Vec<f32> = (0..len).map(|_| mean + deviation * random.normal()).collect();
        self.f32s(name, &values);
    }

    fn f32s(&mut self, name: &str, values: &[f32]) {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.writer.tensor(name, &[values.len()], ggml_type(Format::F32), data);
    }
}

fn ggml_type(format: Format) -> &'static GgmlType {
    GgmlType::from_name(format.name()).expect("every format is a ggml type")
}

/// The format, or the next that can store rows of `cols`.
fn fitting(format: Format, cols: usize) -> Format {
    let mut formats = [format, Format::Q8_0].into_iter();
    formats.find(|format| format.row_bytes(cols).is_some()).unwrap_or(Format::F32)
}
