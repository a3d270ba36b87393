//! The paper's roofline with a layout's numbers.

use crate::setup::Widths;
use helix_layout::{Degrees, Layout, MlaShape, MoeShape};
use helix_model::Model;
use serde::Serialize;

/// The paper's appendix A with this layout's numbers: bytes per layer that a rank reads to decode
/// a token. Times are these over the memory's bandwidth.
///
/// The appendix is about dense layers and heads of keys and values. What it says of these is said
/// of latents and of experts in the same terms: the latent once, the query heads over TPA, experts
/// over TPF x EP where a token goes to `top_k` of them, what all tokens go through over N.
#[derive(Serialize)]
pub struct Formulas {
    pub t_kv: String,
    pub t_kv_bytes: f64,
    /// Of layers with a sliding window.
    #[serde(flatten)]
    pub window: Option<WindowFormula>,
    /// Of dense layers; of layers with experts where there are any.
    pub t_w: String,
    pub t_w_bytes: f64,
    /// Of dense layers, where others have experts.
    #[serde(flatten)]
    pub dense: Option<DenseFormula>,
    pub context: usize,
}

#[derive(Serialize)]
pub struct WindowFormula {
    pub t_kv_window: String,
    pub t_kv_window_bytes: f64,
}

#[derive(Serialize)]
pub struct DenseFormula {
    pub t_w_dense: String,
    pub t_w_dense_bytes: f64,
}

/// Part of a formula: its letters, the same with numbers, and the elements that they are.
struct Term {
    letters: String,
    numbers: String,
    elements: f64,
}

impl Formulas {
    pub fn new(model: &Model, layout: &Layout, widths: &Widths, context: usize) -> Formulas {
        let kv_bytes = widths.kv / 8.0;
        let kv = |positions: usize, letters: &str| {
            let term = keys(layout, positions, letters);
            let Term { letters, numbers, elements } = term;
            let text = format!("B·{letters}·bytes = 1·{numbers}·{kv_bytes:.4}");
            (text, (elements * kv_bytes).round())
        };
        let weight_bytes = widths.weights / 8.0;
        let weights = |ffn: Term| {
            let attention = attention(layout);
            let text = format!(
                "({} + {})·bytes = ({} + {})·{weight_bytes:.4}",
                attention.letters, ffn.letters, attention.numbers, ffn.numbers
            );
            (text, ((attention.elements + ffn.elements) * weight_bytes).round())
        };
        let shape = layout.shape();
        let (t_kv, t_kv_bytes) = kv(context, "S");
        let window = model.config.window.map(|window| {
            let (t_kv_window, t_kv_window_bytes) = kv(window.min(context), "min(S,W)");
            WindowFormula { t_kv_window, t_kv_window_bytes }
        });
        let (t_w, t_w_bytes) = weights(match &shape.moe {
            Some(moe) => experts(layout, moe),
            None => dense_ffn(layout),
        });
        let mixed = shape.moe.is_some() && shape.dense_layers() > 0;
        let dense = mixed.then(|| {
            let (t_w_dense, t_w_dense_bytes) = weights(dense_ffn(layout));
            DenseFormula { t_w_dense, t_w_dense_bytes }
        });
        Formulas { t_kv, t_kv_bytes, window, t_w, t_w_bytes, dense, context }
    }
}

/// Keys and values, or latents, of so many positions.
fn keys(layout: &Layout, positions: usize, name: &str) -> Term {
    let Degrees { kvp, tpa, .. } = layout.degrees();
    let shape = layout.shape();
    let over = positions as f64 / kvp as f64;
    match &shape.mla {
        Some(MlaShape { kv_lora, rope, .. }) => Term {
            letters: format!("(C+R)·({name}/KVP)"),
            numbers: format!("({kv_lora}+{rope})·({positions}/{kvp})"),
            elements: (kv_lora + rope) as f64 * over,
        },
        None => {
            let (k, hsz) = (shape.kv_heads, shape.head_dim);
            Term {
                letters: format!("2·⌈K/TPA⌉·Hsz·({name}/KVP)"),
                numbers: format!("2·⌈{k}/{tpa}⌉·{hsz}·({positions}/{kvp})"),
                elements: (2 * k.div_ceil(tpa) * hsz) as f64 * over,
            }
        }
    }
}

/// The projections of attention.
fn attention(layout: &Layout) -> Term {
    let tpa = layout.degrees().tpa;
    let shape = layout.shape();
    let (h, q, k, hsz) = (shape.hidden, shape.q_heads, shape.kv_heads, shape.head_dim);
    let heads = q as f64 / tpa as f64;
    let h_ = h as f64;
    match &shape.mla {
        None => Term {
            letters: "2·H·(Q/TPA)·Hsz + 2·H·⌈K/TPA⌉·Hsz".to_owned(),
            numbers: format!("2·{h}·({q}/{tpa})·{hsz} + 2·{h}·⌈{k}/{tpa}⌉·{hsz}"),
            elements: 2.0 * h_ * hsz as f64 * (heads + k.div_ceil(tpa) as f64),
        },
        Some(mla) => {
            let &MlaShape { q_lora, kv_lora: c, nope, rope: r } = mla;
            let (qk, v) = (nope + r, shape.value_dim);
            let (compress, from) = match q_lora {
                Some(q_lora) => (("H·Cq + ", format!("{h}·{q_lora} + ")), ("Cq", q_lora)),
                None => (("", String::new()), ("H", h)),
            };
            let of_head = (from.1 * qk + c * (nope + v) + h * v) as f64;
            Term {
                letters: format!(
                    "{}H·(C+R) + (Q/TPA)·({}·Hqk + C·(Hk+Hv) + H·Hv)",
                    compress.0, from.0
                ),
                numbers: format!(
                    "{}{h}·({c}+{r}) + ({q}/{tpa})·({}·{qk} + {c}·({nope}+{v}) + {h}·{v})",
                    compress.1, from.1
                ),
                elements: h_ * (q_lora.unwrap_or(0) + c + r) as f64 + heads * of_head,
            }
        }
    }
}

/// Ranks that the FFN is over: all of them but under `medha`.
fn ffn_ranks(layout: &Layout) -> usize {
    let Degrees { tpf, ep, .. } = layout.degrees();
    tpf * ep
}

fn dense_ffn(layout: &Layout) -> Term {
    let (h, f, n) = (layout.shape().hidden, layout.shape().ffn, ffn_ranks(layout));
    // Without experts TPF is all of them.
    let name = if layout.shape().moe.is_some() { "(TPF·EP)" } else { "TPF" };
    Term {
        letters: format!("3·H·F/{name}"),
        numbers: format!("3·{h}·{f}/{n}"),
        elements: 3.0 * h as f64 * f as f64 / n as f64,
    }
}

fn experts(layout: &Layout, moe: &MoeShape) -> Term {
    let Degrees { tpf, ep, .. } = layout.degrees();
    let (h, n) = (layout.shape().hidden, ffn_ranks(layout));
    let &MoeShape { experts, top_k, ffn, shared_ffn, .. } = moe;
    let routed = top_k as f64 / ep as f64 * ffn as f64 / tpf as f64;
    let mut term = Term {
        letters: "(k/EP)·3·H·Fe/TPF".to_owned(),
        numbers: format!("({top_k}/{ep})·3·{h}·{ffn}/{tpf}"),
        elements: 3.0 * h as f64 * routed,
    };
    if shared_ffn > 0 {
        term.letters += " + 3·H·Fs/(TPF·EP)";
        term.numbers += &format!(" + 3·{h}·{shared_ffn}/{n}");
        term.elements += 3.0 * h as f64 * shared_ffn as f64 / n as f64;
    }
    term.letters += " + H·E";
    term.numbers += &format!(" + {h}·{experts}");
    term.elements += (h * experts) as f64;
    term
}
