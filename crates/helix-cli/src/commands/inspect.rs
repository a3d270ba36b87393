//! `helix inspect`: what a model is, and what each rank of a layout holds and reads.

use crate::args::InspectArgs;
use crate::console::Console;
use crate::failure::Outcome;
use crate::figures::{bytes, rounded};
use crate::output::Table;
use crate::{output, setup};
use helix_kernels::kv::PageShape;
use helix_layout::{Degrees, Layout, Rank, ReadCost};
use helix_model::{Model, ModelError, RopeStyle, rank_bytes};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;

/// A length that is not the model's own, to show reads at.
const USUAL_CONTEXT: usize = 4096;

/// Runs the command.
pub fn run(args: InspectArgs) -> Outcome {
    let console = Console::new(args.output.quiet);
    let model = setup::open(&args.model)?;
    let trained = model.config.context;
    let mut contexts = match args.context.is_empty() {
        true => vec![0, USUAL_CONTEXT.min(trained), trained],
        false => args.context.clone(),
    };
    contexts.sort_unstable();
    contexts.dedup();
    let longest = contexts.last().copied().unwrap_or(trained);
    let kv_type = args.engine.kv_type();
    let layout = args.layout.resolve(&model, kv_type, longest, &console)?;
    let page = PageShape::new(model.config.head_dim, kv_type);
    let ranks = layout
        .all_ranks()
        .map(|rank| RankView::new(&model, &layout, rank, page, &contexts))
        .collect::<Result<Vec<_>, ModelError>>()?;
    let cost = setup::read_cost(&model, kv_type, longest)?;
    let report = Report {
        model: ModelView::new(&model)?,
        layout: layout.name(),
        kv_type: kv_type.name(),
        kv_copies: copies(&layout),
        formulas: Formulas::new(&layout, &cost, longest),
        ranks,
    };
    match args.output.json {
        true => output::json(&report),
        false => report.print(&model, &console),
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: ModelView,
    layout: String,
    kv_type: &'static str,
    /// How often each key and value is stored, on average; 1 unless the strategy duplicates.
    kv_copies: f64,
    formulas: Formulas,
    ranks: Vec<RankView>,
}

/// How often a KV head's token is stored among the ranks that serve its sequence, on average.
fn copies(layout: &Layout) -> f64 {
    let stored: usize = layout.all_ranks().map(|rank| layout.kv_heads(rank).len()).sum();
    let Degrees { kvp, dp, .. } = layout.degrees();
    stored as f64 / (layout.shape().kv_heads * kvp * dp) as f64
}

#[derive(Serialize)]
struct ModelView {
    name: String,
    arch: &'static str,
    layers: usize,
    hidden: usize,
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    context: usize,
    tied_head: bool,
    rope: Value,
    tokenizer: String,
    chat_template: bool,
    file_bytes: usize,
    /// Of a GGUF file.
    gguf_version: Option<u32>,
    /// Tensors and bytes of each format.
    formats: BTreeMap<&'static str, Stored>,
}

/// Tensors of one format.
#[derive(Clone, Copy, Default, Serialize)]
struct Stored {
    tensors: usize,
    bytes: usize,
}

impl ModelView {
    fn new(model: &Model) -> Result<ModelView, ModelError> {
        let config = &model.config;
        let mut formats = BTreeMap::<_, Stored>::new();
        for (_, format, bytes) in model.stored() {
            let stored = formats.entry(format).or_default();
            stored.tensors += 1;
            stored.bytes += bytes;
        }
        let text = |key| match model.gguf() {
            Some(gguf) => gguf.string(key).map(Option::unwrap_or_default),
            None => Ok(""),
        };
        let tokenizer = match model.gguf() {
            Some(_) => [text("tokenizer.ggml.model")?, text("tokenizer.ggml.pre")?].join(" "),
            None => "tokenizer.json".to_owned(),
        };
        Ok(ModelView {
            name: config.name.clone(),
            arch: config.arch.name(),
            layers: config.layers,
            hidden: config.hidden,
            q_heads: config.q_heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            ffn: config.ffn,
            vocab: config.vocab,
            context: config.context,
            tied_head: config.tied_head,
            rope: rope(model),
            tokenizer: tokenizer.trim().to_owned(),
            chat_template: match model.gguf() {
                Some(_) => !text("tokenizer.chat_template")?.is_empty(),
                None => model.chat_template()?.is_some(),
            },
            file_bytes: model.file_bytes(),
            gguf_version: model.gguf().map(|gguf| gguf.version()),
            formats,
        })
    }
}

fn rope(model: &Model) -> Value {
    let rope = model.config.rope(0);
    json!({
        "base": rope.base,
        "dims": rope.dims,
        "style": match rope.style {
            RopeStyle::Interleaved => "interleaved",
            RopeStyle::Half => "half",
        },
        "scaling": rope.scaling,
        "factor": rope.factor,
    })
}

/// One rank's holdings.
#[derive(Serialize)]
struct RankView {
    rank: usize,
    kvp: usize,
    tpa: usize,
    /// Counts; the ranges that they are of follow.
    q_heads: usize,
    kv_heads: usize,
    out_heads: usize,
    q_head_range: Range<usize>,
    kv_head_range: Range<usize>,
    out_head_range: Range<usize>,
    ffn_cols: Range<usize>,
    vocab_rows: Range<usize>,
    /// Its matrices as they are on disk.
    weight_bytes: u64,
    /// Mean over the positions of a sequence, of which it stores one KVP-th.
    kv_bytes_per_token: Value,
    /// What it stores of each position that it does store.
    kv_bytes_per_owned_token: u64,
    reads: Vec<Read>,
}

/// What a rank reads to decode one token.
#[derive(Serialize)]
struct Read {
    context: usize,
    weight_bytes: u64,
    kv_bytes: u64,
}

impl RankView {
    fn new(
        model: &Model,
        layout: &Layout,
        rank: Rank,
        page: PageShape,
        contexts: &[usize],
    ) -> Result<RankView, ModelError> {
        let at = layout.attention(rank);
        let (q, kv, out) = (layout.q_heads(rank), layout.kv_heads(rank), layout.out_heads(rank));
        let weight_bytes = rank_bytes(model, layout, rank)?;
        let owned = (model.config.layers * kv.len() * page.token_bytes()) as u64;
        let kvp = layout.degrees().kvp as u64;
        let read = |&context: &usize| Read {
            context,
            weight_bytes,
            kv_bytes: owned.saturating_mul(layout.owned_before(at.kvp, context) as u64),
        };
        Ok(RankView {
            rank: rank.0,
            kvp: at.kvp,
            tpa: at.tpa,
            q_heads: q.len(),
            kv_heads: kv.len(),
            out_heads: out.len(),
            q_head_range: q,
            kv_head_range: kv,
            out_head_range: out,
            ffn_cols: layout.ffn_cols(rank),
            vocab_rows: layout.vocab_rows(rank),
            weight_bytes,
            kv_bytes_per_token: match owned % kvp {
                0 => json!(owned / kvp),
                _ => json!(rounded(owned as f64 / kvp as f64, 2)),
            },
            kv_bytes_per_owned_token: owned,
            reads: contexts.iter().map(read).collect(),
        })
    }
}

/// The paper's appendix A with this layout's numbers: bytes per layer that a rank reads to decode
/// a token. Times are these over the memory's bandwidth.
#[derive(Serialize)]
struct Formulas {
    t_kv: String,
    t_kv_bytes: f64,
    t_w: String,
    t_w_bytes: f64,
    context: usize,
}

impl Formulas {
    fn new(layout: &Layout, cost: &ReadCost, context: usize) -> Formulas {
        let Degrees { kvp, tpa, tpf, .. } = layout.degrees();
        let shape = layout.shape();
        let (h, q, k, hsz, f) =
            (shape.hidden, shape.q_heads, shape.kv_heads, shape.head_dim, shape.ffn);
        let (kv_bytes, weight_bytes) = (cost.kv_bits / 8.0, cost.weight_bits / 8.0);
        let heads = k.div_ceil(tpa) as f64;
        let over = |a: usize, b: usize| a as f64 / b as f64;
        let (h_, hsz_) = (h as f64, hsz as f64);
        let kv = 2.0 * heads * hsz_ * over(context, kvp) * kv_bytes;
        let weights =
            2.0 * h_ * over(q, tpa) * hsz_ + 2.0 * h_ * heads * hsz_ + 3.0 * h_ * over(f, tpf);
        Formulas {
            t_kv: format!(
                "B·2·⌈K/TPA⌉·Hsz·(S/KVP)·bytes = 1·2·⌈{k}/{tpa}⌉·{hsz}·({context}/{kvp})·{kv_bytes:.4}"
            ),
            t_kv_bytes: kv.round(),
            t_w: format!(
                "(2·H·(Q/TPA)·Hsz + 2·H·⌈K/TPA⌉·Hsz + 3·H·F/TPF)·bytes = \
                 (2·{h}·({q}/{tpa})·{hsz} + 2·{h}·⌈{k}/{tpa}⌉·{hsz} + 3·{h}·{f}/{tpf})·{weight_bytes:.4}"
            ),
            t_w_bytes: (weights * weight_bytes).round(),
            context,
        }
    }
}

impl Report {
    fn print(&self, model: &Model, console: &Console) -> Outcome {
        output::text(&format!("{}\n\nlayout: {}\n", self.model.describe(), self.layout))?;
        output::text(&self.holdings().to_string())?;
        let reads = self.reads().to_string();
        output::text(&format!(
            "\nBytes read per decoded token, weights + KV ({})\n",
            self.kv_type
        ))?;
        output::text(&reads)?;
        let Formulas { t_kv, t_kv_bytes, t_w, t_w_bytes, context } = &self.formulas;
        output::text(&format!(
            "\nThe paper's roofline, per layer, batch 1, S = {context}, in bytes (over the \
             bandwidth: seconds)\n  T_kv = {t_kv} = {}\n  T_w  = {t_w} = {}\n",
            bytes(*t_kv_bytes as u64),
            bytes(*t_w_bytes as u64),
        ))?;
        if self.kv_copies > 1.0 {
            console.warn(&format!(
                "this layout stores each key and value {:.2} times: {} KV heads over {} ranks; \
                 --strategy helix stores each once",
                self.kv_copies,
                model.config.kv_heads,
                self.ranks.len(),
            ));
        }
        Ok(())
    }

    fn holdings(&self) -> Table {
        let titles = [
            "rank",
            "kvp",
            "tpa",
            "query heads",
            "KV heads",
            "out heads",
            "FFN columns",
            "vocabulary",
            "weights",
            "KV/token",
        ];
        let mut table = Table::new(0, titles);
        let range = |range: &Range<usize>| match range.is_empty() {
            true => "-".to_owned(),
            false => format!("{}..{}", range.start, range.end),
        };
        for rank in &self.ranks {
            let kv = rank.kv_bytes_per_token.as_f64().unwrap_or(0.0);
            table.row(vec![
                rank.rank.to_string(),
                rank.kvp.to_string(),
                rank.tpa.to_string(),
                range(&rank.q_head_range),
                range(&rank.kv_head_range),
                range(&rank.out_head_range),
                range(&rank.ffn_cols),
                range(&rank.vocab_rows),
                bytes(rank.weight_bytes),
                bytes(kv.round() as u64),
            ]);
        }
        table
    }

    /// A row per context: what the busiest rank and all ranks together read.
    fn reads(&self) -> Table {
        let mut table = Table::new(0, ["context", "busiest rank", "all ranks"]);
        for (index, read) in self.ranks[0].reads.iter().enumerate() {
            let all = || self.ranks.iter().map(|rank| &rank.reads[index]);
            let busiest = all().max_by_key(|read| read.weight_bytes + read.kv_bytes);
            let pair = |weights: u64, kv: u64| format!("{} + {}", bytes(weights), bytes(kv));
            let kv = all().map(|read| read.kv_bytes).sum();
            table.row(vec![
                read.context.to_string(),
                busiest.map_or(String::new(), |read| pair(read.weight_bytes, read.kv_bytes)),
                pair(all().map(|read| read.weight_bytes).sum(), kv),
            ]);
        }
        table
    }
}

impl ModelView {
    fn describe(&self) -> String {
        let format = |(name, stored): (&&str, &Stored)| {
            format!("{} {name} ({})", stored.tensors, bytes(stored.bytes as u64))
        };
        let formats: Vec<String> = self.formats.iter().map(format).collect();
        let factor = self.rope["factor"].as_f64().map_or(String::new(), |f| format!(" x{f}"));
        format!(
            "{name}: {arch}, {layers} layers, hidden {hidden}, {q} query heads over {kv} KV heads \
             of {dim}, FFN {ffn}, vocabulary {vocab}{tied}\n\
             context {context}; RoPE base {base}, {dims} dimensions, {style}, scaling \
             {scaling}{factor}\n\
             tokenizer {tokenizer}; {template}\n\
             {file}, {container}: {formats}",
            name = self.name,
            arch = self.arch,
            layers = self.layers,
            hidden = self.hidden,
            q = self.q_heads,
            kv = self.kv_heads,
            dim = self.head_dim,
            ffn = self.ffn,
            vocab = self.vocab,
            tied = if self.tied_head { ", LM head tied to the embedding" } else { "" },
            context = self.context,
            base = self.rope["base"],
            dims = self.rope["dims"],
            style = self.rope["style"].as_str().unwrap_or_default(),
            scaling = self.rope["scaling"].as_str().unwrap_or_default(),
            tokenizer = self.tokenizer,
            template = if self.chat_template { "a chat template" } else { "no chat template" },
            file = bytes(self.file_bytes as u64),
            container = match self.gguf_version {
                Some(version) => format!("GGUF version {version}"),
                None => "safetensors".to_owned(),
            },
            formats = formats.join(", "),
        )
    }
}
