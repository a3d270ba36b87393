//! Weights in f64, out of the bytes of a file. Blocks as in ggml's `ggml-common.h`.

use helix_kernels::Format;
use helix_model::Model;
use helix_model::synthetic::Spec;

/// Rows of a matrix, one per output.
pub type Rows = Vec<Vec<f64>>;

pub struct Weights {
    pub embedding: Rows,
    pub layers: Vec<Layer>,
    pub final_norm: Vec<f64>,
    pub head: Rows,
}

pub struct Layer {
    pub attn_norm: Vec<f64>,
    pub q: Rows,
    pub k: Rows,
    pub v: Rows,
    pub q_bias: Option<Vec<f64>>,
    pub k_bias: Option<Vec<f64>>,
    pub v_bias: Option<Vec<f64>>,
    pub q_norm: Option<Vec<f64>>,
    pub k_norm: Option<Vec<f64>>,
    pub out: Rows,
    pub ffn_norm: Vec<f64>,
    pub gate: Rows,
    pub up: Rows,
    pub down: Rows,
}

impl Weights {
    pub fn read(spec: &Spec, model: &Model) -> Weights {
        let Spec { hidden, q_heads, kv_heads, head_dim, ffn, vocab, .. } = *spec;
        let (q, kv) = (q_heads * head_dim, kv_heads * head_dim);
        let matrix = |name: &str, rows, cols| matrix(model, name, rows, cols);
        let vector = |name: &str, len| matrix(name, 1, len).remove(0);
        let layer = |index: usize| {
            let name = |suffix: &str| format!("blk.{index}.{suffix}");
            let bias = |suffix: &str, len| spec.bias.then(|| vector(&name(suffix), len));
            let head_norm = |suffix: &str| {
                let normed = spec.arch == helix_model::Arch::Qwen3;
                normed.then(|| vector(&name(suffix), head_dim))
            };
            Layer {
                attn_norm: vector(&name("attn_norm.weight"), hidden),
                q: matrix(&name("attn_q.weight"), q, hidden),
                k: matrix(&name("attn_k.weight"), kv, hidden),
                v: matrix(&name("attn_v.weight"), kv, hidden),
                q_bias: bias("attn_q.bias", q),
                k_bias: bias("attn_k.bias", kv),
                v_bias: bias("attn_v.bias", kv),
                q_norm: head_norm("attn_q_norm.weight"),
                k_norm: head_norm("attn_k_norm.weight"),
                out: matrix(&name("attn_output.weight"), hidden, q),
                ffn_norm: vector(&name("ffn_norm.weight"), hidden),
                gate: matrix(&name("ffn_gate.weight"), ffn, hidden),
                up: matrix(&name("ffn_up.weight"), ffn, hidden),
                down: matrix(&name("ffn_down.weight"), hidden, ffn),
            }
        };
        let head = if spec.tied_head { "token_embd.weight" } else { "output.weight" };
        Weights {
            embedding: matrix("token_embd.weight", vocab, hidden),
            layers: (0..spec.layers).map(layer).collect(),
            final_norm: vector("output_norm.weight", hidden),
            head: matrix(head, vocab, hidden),
        }
    }
}

fn matrix(model: &Model, name: &str, rows: usize, cols: usize) -> Rows {
    let tensor = model.tensor(name).expect("the model has it");
    let values = values(tensor.format, tensor.data);
    assert_eq!(values.len(), rows * cols, "{name}");
    values.chunks_exact(cols).map(<[f64]>::to_vec).collect()
}

fn values(format: Format, data: &[u8]) -> Vec<f64> {
    let half = |low: u8, high: u8| binary16(u16::from_le_bytes([low, high]));
    let low_then_high = |codes: &[u8]| -> Vec<f64> {
        let low = codes.iter().map(|code| f64::from(code & 15));
        low.chain(codes.iter().map(|code| f64::from(code >> 4))).collect()
    };
    match format {
        Format::F32 => {
            let words = data.chunks_exact(4);
            words.map(|w| f64::from(f32::from_le_bytes([w[0], w[1], w[2], w[3]]))).collect()
        }
        Format::F16 => data.chunks_exact(2).map(|w| half(w[0], w[1])).collect(),
        Format::BF16 => {
            let words = data.chunks_exact(2);
            words.map(|w| f64::from(f32::from_le_bytes([0, 0, w[0], w[1]]))).collect()
        }
        Format::Q8_0 => data
            .chunks_exact(34)
            .flat_map(|block| {
                let scale = half(block[0], block[1]);
                block[2..].iter().map(move |&code| scale * f64::from(code as i8))
            })
            .collect(),
        Format::Q4_0 => data
            .chunks_exact(18)
            .flat_map(|block| {
                let scale = half(block[0], block[1]);
                low_then_high(&block[2..]).into_iter().map(move |code| scale * (code - 8.0))
            })
            .collect(),
        Format::Q4_1 => data
            .chunks_exact(20)
            .flat_map(|block| {
                let (scale, min) = (half(block[0], block[1]), half(block[2], block[3]));
                low_then_high(&block[4..]).into_iter().map(move |code| scale * code + min)
            })
            .collect(),
        Format::Q6K => data.chunks_exact(210).flat_map(q6_k).collect(),
        other => panic!("the reference does not read {other}"),
    }
}

/// 256 weights: 4 low bits of each, 2 high bits, a signed scale per 16, one scale of the scales.
fn q6_k(block: &[u8]) -> Vec<f64> {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, all) = rest.split_at(16);
    let all = binary16(u16::from_le_bytes([all[0], all[1]]));
    let weight = |i: usize| {
        // Halves of 128 weights; in each, four quarters of 32 share bytes.
        let (half, quarter, lane) = (i / 128, i % 128 / 32, i % 32);
        let byte = low[64 * half + 32 * (quarter % 2) + lane];
        let four = if quarter < 2 { byte & 15 } else { byte >> 4 };
        let two = high[32 * half + lane] >> (2 * quarter) & 3;
        let code = f64::from(four | two << 4) - 32.0;
        all * f64::from(scales[i / 16] as i8) * code
    };
    (0..256).map(weight).collect()
}

fn binary16(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from(bits >> 10 & 31);
    let fraction = f64::from(bits & 1023) / 1024.0;
    match exponent {
        0 => sign * fraction * 2f64.powi(-14),
        31 => panic!("a weight that is not finite"),
        _ => sign * (1.0 + fraction) * 2f64.powi(exponent - 15),
    }
}
