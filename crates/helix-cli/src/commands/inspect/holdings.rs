//! What each rank holds, and what it reads to decode a token.

use crate::args::EngineArgs;
use crate::figures::rounded;
use crate::setup;
use helix_engine::MlaUp;
use helix_layout::{Degrees, Layout, Rank};
use helix_model::{Holdings, Model, ModelError};
use serde::Serialize;
use serde_json::{Value, json};
use std::ops::Range;

/// One rank's holdings.
#[derive(Serialize)]
pub struct RankView {
    pub rank: usize,
    pub kvp: usize,
    pub tpa: usize,
    /// Its attention group, under dp-ep.
    pub dp: usize,
    /// Its place in the FFN's grid; `None` for a rank outside of it.
    pub tpf: Option<usize>,
    pub ep: Option<usize>,
    /// Counts; the ranges that they are of follow.
    pub q_heads: usize,
    pub kv_heads: usize,
    pub out_heads: usize,
    pub q_head_range: Range<usize>,
    pub kv_head_range: Range<usize>,
    pub out_head_range: Range<usize>,
    /// Of dense layers.
    pub ffn_cols: Range<usize>,
    pub vocab_rows: Range<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertsView>,
    /// Its matrices, in the format that they are held in.
    pub weight_bytes: u64,
    pub bytes: BytesView,
    /// Of its routed experts, those that a token goes to on average.
    pub expert_bytes_per_token: u64,
    /// Mean over the positions of a sequence, of which it stores one KVP-th; layers with a window
    /// keep no more of them than the window has.
    pub kv_bytes_per_token: Value,
    /// What it stores of each position that it does store.
    pub kv_bytes_per_owned_token: u64,
    /// The same by kind of layer.
    pub kv_layers: KvLayers,
    pub reads: Vec<Read>,
}

/// What it holds of experts.
#[derive(Serialize)]
pub struct ExpertsView {
    pub held: Range<usize>,
    /// Its columns of each.
    pub cols: Range<usize>,
    /// Its columns of the shared experts.
    pub shared_cols: Range<usize>,
    /// How many of those that it holds a token goes to on average, all being as likely.
    pub per_token: f64,
}

/// Bytes of weights by what they are; they add up to `weight_bytes`.
#[derive(Serialize)]
pub struct BytesView {
    pub attention: u64,
    pub dense_ffn: u64,
    pub routers: u64,
    pub shared_experts: u64,
    pub experts: u64,
    pub lm_head: u64,
}

/// Bytes per stored position in layers that see everything and in those with a window.
#[derive(Clone, Copy, Serialize)]
pub struct KvLayers {
    pub full: KvKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windowed: Option<KvKind>,
}

/// Layers of one kind.
#[derive(Clone, Copy, Serialize)]
pub struct KvKind {
    pub layers: usize,
    /// Positions that they see; `None` for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    pub bytes_per_owned_token: u64,
}

/// What a rank reads to decode one token of a sequence that it has a part in.
#[derive(Serialize)]
pub struct Read {
    pub context: usize,
    pub weight_bytes: u64,
    pub kv_bytes: u64,
}

impl RankView {
    pub fn new(
        model: &Model,
        layout: &Layout,
        rank: Rank,
        engine: &EngineArgs,
        contexts: &[usize],
    ) -> Result<RankView, ModelError> {
        let at = layout.attention(rank);
        let ffn = layout.ffn(rank);
        let (q, kv, out) = (layout.q_heads(rank), layout.kv_heads(rank), layout.out_heads(rank));
        let held = Holdings::of(model, layout, rank)?;
        let experts = experts(layout, rank);
        let share = experts.as_ref().map_or(0.0, |e| e.per_token / e.held.len().max(1) as f64);
        let expert_bytes_per_token = (held.experts as f64 * share).round() as u64;
        let values = match engine.mla_up() {
            MlaUp::Before => held.values,
            MlaUp::After | MlaUp::Auto => share_of(held.values, out.len(), q.len()),
        };
        let weight_bytes = held.total();
        let read_weights =
            weight_bytes - held.experts + expert_bytes_per_token - held.values + values;
        let kv_layers = KvLayers::new(model, layout, rank, engine);
        let owned = kv_layers.bytes_per_owned_token();
        let kvp = layout.degrees().kvp as u64;
        let read = |&context: &usize| Read {
            context,
            weight_bytes: read_weights,
            kv_bytes: kv_layers.read(layout, at.kvp, context),
        };
        Ok(RankView {
            rank: rank.0,
            kvp: at.kvp,
            tpa: at.tpa,
            dp: at.dp,
            tpf: ffn.map(|at| at.tpf),
            ep: ffn.map(|at| at.ep),
            q_heads: q.len(),
            kv_heads: kv.len(),
            out_heads: out.len(),
            q_head_range: q,
            kv_head_range: kv,
            out_head_range: out,
            ffn_cols: layout.ffn_cols(rank),
            vocab_rows: layout.vocab_rows(rank),
            experts,
            weight_bytes,
            bytes: BytesView::new(&held),
            expert_bytes_per_token,
            kv_bytes_per_token: match owned % kvp {
                0 => json!(owned / kvp),
                _ => json!(rounded(owned as f64 / kvp as f64, 2)),
            },
            kv_bytes_per_owned_token: owned,
            kv_layers,
            reads: contexts.iter().map(read).collect(),
        })
    }
}

fn experts(layout: &Layout, rank: Rank) -> Option<ExpertsView> {
    let moe = layout.shape().moe?;
    let held = layout.experts(rank);
    let per_token = moe.top_k as f64 * held.len() as f64 / moe.experts as f64;
    Some(ExpertsView {
        held,
        cols: layout.expert_cols(rank),
        shared_cols: layout.shared_cols(rank),
        per_token: rounded(per_token, 4),
    })
}

/// `bytes` of `whole` equal parts: those of `parts`.
fn share_of(bytes: u64, parts: usize, whole: usize) -> u64 {
    bytes.checked_div(whole as u64).unwrap_or(0) * parts as u64
}

impl BytesView {
    fn new(held: &Holdings) -> BytesView {
        let &Holdings { attention, values, dense_ffn, routers, shared_experts, experts, head } =
            held;
        BytesView {
            attention: attention + values,
            dense_ffn,
            routers,
            shared_experts,
            experts,
            lm_head: head,
        }
    }
}

impl KvLayers {
    fn new(model: &Model, layout: &Layout, rank: Rank, engine: &EngineArgs) -> KvLayers {
        let config = &model.config;
        let windowed = (0..config.layers).filter(|&layer| config.window(layer).is_some()).count();
        let page = setup::page(model, engine.kv_type());
        let of_layer = layout.kv_heads(rank).len() * page.token_bytes();
        let kind = |layers: usize, window| KvKind {
            layers,
            window,
            bytes_per_owned_token: (layers * of_layer) as u64,
        };
        KvLayers {
            full: kind(config.layers - windowed, None),
            windowed: (windowed > 0).then(|| kind(windowed, config.window)),
        }
    }

    fn kinds(&self) -> impl Iterator<Item = KvKind> + use<> {
        [Some(self.full), self.windowed].into_iter().flatten()
    }

    pub fn bytes_per_owned_token(&self) -> u64 {
        self.kinds().map(|kind| kind.bytes_per_owned_token).sum()
    }

    /// Bytes that the token at position `context` reads of those before it.
    fn read(&self, layout: &Layout, kvp: usize, context: usize) -> u64 {
        let of_kind = |kind: KvKind| {
            let hidden = kind.window.map_or(0, |window| (context + 1).saturating_sub(window));
            let seen =
                layout.owned_before(kvp, context) - layout.owned_before(kvp, hidden.min(context));
            kind.bytes_per_owned_token.saturating_mul(seen as u64)
        };
        self.kinds().map(of_kind).sum()
    }
}

/// How often a KV head's token is stored among the ranks that serve its sequence, on average.
pub fn copies(layout: &Layout) -> f64 {
    let stored: usize = layout.all_ranks().map(|rank| layout.kv_heads(rank).len()).sum();
    let Degrees { kvp, dp, .. } = layout.degrees();
    stored as f64 / (layout.shape().kv_heads * kvp * dp) as f64
}
