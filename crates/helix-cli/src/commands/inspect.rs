//! `helix inspect`: what a model is, and what each rank of a layout holds and reads.

mod formulas;
mod holdings;

use crate::args::{Expected, InspectArgs};
use crate::console::Console;
use crate::failure::Outcome;
use crate::figures::bytes;
use crate::output::Table;
use crate::processes::Ranks;
use crate::setup::{Choices, Widths};
use crate::{output, setup};
use formulas::{DenseFormula, Formulas, WindowFormula};
use helix_model::config::{Mla, Moe, Rope};
use helix_model::{Model, ModelError, RopeStyle};
use holdings::{KvKind, RankView, copies};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;

/// A length that is not the model's own, to show reads at.
const USUAL_CONTEXT: usize = 4096;

/// Runs the command.
pub fn run(mut args: InspectArgs, ranks: &Ranks) -> Outcome {
    let console = Console::new(args.output.quiet);
    let model = setup::open(ranks, &args.model, &args.engine, &console)?;
    let trained = model.config.context;
    let mut contexts = match args.context.is_empty() {
        true => vec![0, USUAL_CONTEXT.min(trained), trained],
        false => args.context.clone(),
    };
    contexts.sort_unstable();
    contexts.dedup();
    let longest = contexts.last().copied().unwrap_or(trained);
    let kv_type = args.engine.kv_type();
    let layout =
        args.layout.resolve(ranks, &model, &mut args.engine, Expected::one(longest), &console)?;
    let ranks = layout
        .all_ranks()
        .map(|rank| RankView::new(&model, &layout, rank, &args.engine, &contexts))
        .collect::<Result<Vec<_>, ModelError>>()?;
    let widths = Widths::of(&model, kv_type)?;
    let report = Report {
        model: ModelView::new(&model)?,
        layout: layout.name(),
        kv_type: kv_type.name(),
        choices: Choices::new(&args.engine, &model),
        kv_copies: copies(&layout),
        formulas: Formulas::new(&model, &layout, &widths, longest),
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
    #[serde(flatten)]
    choices: Choices,
    /// How often each key and value is stored, on average; 1 unless the strategy duplicates.
    kv_copies: f64,
    formulas: Formulas,
    ranks: Vec<RankView>,
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
    /// Of layers with a window, where it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    window_rope: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mla: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    moe: Option<Value>,
    sinks: bool,
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
            rope: rope(&config.ropes[0]),
            window_rope: config.ropes.get(1).map(rope),
            window: config.window.map(|positions| {
                let layers = (0..config.layers).filter(|&l| config.window(l).is_some()).count();
                json!({ "positions": positions, "layers": layers })
            }),
            mla: config.mla.as_ref().map(mla),
            moe: config.moe.as_ref().map(|moe| {
                let layers = (0..config.layers).filter(|&l| config.moe(l).is_some()).count();
                experts(moe, layers)
            }),
            sinks: config.sinks,
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

fn mla(mla: &Mla) -> Value {
    let &Mla { q_lora, kv_lora, nope, rope, value } = mla;
    json!({ "q_lora": q_lora, "kv_lora": kv_lora, "nope": nope, "rope": rope, "value": value })
}

fn experts(moe: &Moe, layers: usize) -> Value {
    json!({
        "layers": layers,
        "experts": moe.experts,
        "top_k": moe.routing.top_k,
        "ffn": moe.ffn,
        "shared_ffn": moe.shared_ffn,
    })
}

fn rope(rope: &Rope) -> Value {
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

impl Report {
    fn print(&self, model: &Model, console: &Console) -> Outcome {
        output::text(&format!("{}\n\nlayout: {}\n", self.model.describe(), self.layout))?;
        output::text(&self.holdings().to_string())?;
        output::text("\nBytes held\n")?;
        output::text(&self.bytes().to_string())?;
        output::text(&self.kv_layers())?;
        let each = match self.ranks.iter().any(|rank| rank.dp > 0) {
            true => ", each rank of a sequence of its own",
            false => "",
        };
        output::text(&format!(
            "\nBytes read per decoded token{each}, weights + KV ({})\n",
            self.kv_type
        ))?;
        output::text(&self.reads().to_string())?;
        output::text(&self.formulas.describe())?;
        if self.kv_copies > 1.0 {
            let kv = match model.config.mla {
                Some(_) => "one latent".to_owned(),
                None => format!("{} KV heads", model.config.kv_heads),
            };
            console.warn(&format!(
                "this layout stores each key and value {:.2} times: {kv} over {} ranks; \
                 --strategy helix stores each once",
                self.kv_copies,
                self.ranks.len(),
            ));
        }
        Ok(())
    }

    /// Who has which part of what.
    fn holdings(&self) -> Table {
        let titles = [
            "rank",
            "kvp",
            "tpa",
            "dp",
            "tpf",
            "ep",
            "query heads",
            "KV heads",
            "out heads",
            "FFN columns",
            "experts",
            "expert columns",
            "vocabulary",
        ];
        let mut table = Table::new(0, titles);
        let range = |range: &Range<usize>| match range.is_empty() {
            true => "-".to_owned(),
            false => format!("{}..{}", range.start, range.end),
        };
        let number = |at: Option<usize>| at.map_or("-".to_owned(), |at| at.to_string());
        for rank in &self.ranks {
            let experts = rank.experts.as_ref();
            table.row(vec![
                rank.rank.to_string(),
                rank.kvp.to_string(),
                rank.tpa.to_string(),
                rank.dp.to_string(),
                number(rank.tpf),
                number(rank.ep),
                range(&rank.q_head_range),
                range(&rank.kv_head_range),
                range(&rank.out_head_range),
                range(&rank.ffn_cols),
                experts.map_or("-".to_owned(), |experts| range(&experts.held)),
                experts.map_or("-".to_owned(), |experts| range(&experts.cols)),
                range(&rank.vocab_rows),
            ]);
        }
        let ranks = &self.ranks;
        let dense = self.model.moe.is_none();
        table.drop_columns(|title| match title {
            "dp" => ranks.iter().all(|rank| rank.dp == 0),
            "tpf" | "ep" | "experts" | "expert columns" => dense,
            "FFN columns" => ranks.iter().all(|rank| rank.ffn_cols.is_empty()),
            _ => false,
        });
        table
    }

    /// What each rank's weights and stored tokens take.
    fn bytes(&self) -> Table {
        let titles = [
            "rank",
            "attention",
            "dense FFN",
            "routers",
            "shared experts",
            "experts",
            "read of them per token",
            "LM head",
            "weights",
            "KV/token",
        ];
        let mut table = Table::new(0, titles);
        for rank in &self.ranks {
            let kv = rank.kv_bytes_per_token.as_f64().unwrap_or(0.0);
            table.row(vec![
                rank.rank.to_string(),
                bytes(rank.bytes.attention),
                bytes(rank.bytes.dense_ffn),
                bytes(rank.bytes.routers),
                bytes(rank.bytes.shared_experts),
                bytes(rank.bytes.experts),
                bytes(rank.expert_bytes_per_token),
                bytes(rank.bytes.lm_head),
                bytes(rank.weight_bytes),
                bytes(kv.round() as u64),
            ]);
        }
        let none = |of: fn(&RankView) -> u64| self.ranks.iter().all(|rank| of(rank) == 0);
        table.drop_columns(|title| match title {
            "dense FFN" => none(|rank| rank.bytes.dense_ffn),
            "routers" | "experts" | "read of them per token" => none(|rank| rank.bytes.experts),
            "shared experts" => none(|rank| rank.bytes.shared_experts),
            _ => false,
        });
        table
    }

    /// A line about layers with and without windows, where both are there.
    fn kv_layers(&self) -> String {
        let layers = &self.ranks[0].kv_layers;
        let Some(KvKind { layers: windowed, window: Some(window), .. }) = layers.windowed else {
            return String::new();
        };
        let most = |of: &dyn Fn(&RankView) -> u64| self.ranks.iter().map(of).max().unwrap_or(0);
        let full_bytes = most(&|rank| rank.kv_layers.full.bytes_per_owned_token);
        let window_bytes =
            most(&|rank| rank.kv_layers.windowed.map_or(0, |kind| kind.bytes_per_owned_token));
        format!(
            "KV of a stored position: {} in {} layers that see all, {} in {windowed} layers that \
             see {window} positions and free the pages behind them\n",
            bytes(full_bytes),
            layers.full.layers,
            bytes(window_bytes),
        )
    }

    /// A row per context: what the busiest rank and all ranks together read.
    fn reads(&self) -> Table {
        let mut table = Table::new(0, ["context", "busiest rank", "all ranks"]);
        for (index, read) in self.ranks[0].reads.iter().enumerate() {
            let all = || self.ranks.iter().map(|rank| &rank.reads[index]);
            let busiest = all().max_by_key(|read| read.weight_bytes.saturating_add(read.kv_bytes));
            let pair = |weights: u64, kv: u64| format!("{} + {}", bytes(weights), bytes(kv));
            let kv = all().fold(0u64, |sum, read| sum.saturating_add(read.kv_bytes));
            table.row(vec![
                read.context.to_string(),
                busiest.map_or(String::new(), |read| pair(read.weight_bytes, read.kv_bytes)),
                pair(all().map(|read| read.weight_bytes).sum(), kv),
            ]);
        }
        table
    }
}

impl Formulas {
    fn describe(&self) -> String {
        let Formulas { t_kv, t_kv_bytes, window, t_w, t_w_bytes, dense, context } = self;
        let mut text = format!(
            "\nThe paper's roofline, per layer, batch 1, S = {context}, in bytes (over the \
             bandwidth: seconds)\n"
        );
        let mut line = |name: &str, formula: &str, value: f64| {
            text += &format!("  {name} = {formula} = {}\n", bytes(value as u64));
        };
        line("T_kv", t_kv, *t_kv_bytes);
        if let Some(WindowFormula { t_kv_window, t_kv_window_bytes }) = window {
            line("T_kv, windowed layers", t_kv_window, *t_kv_window_bytes);
        }
        line("T_w ", t_w, *t_w_bytes);
        if let Some(DenseFormula { t_w_dense, t_w_dense_bytes }) = dense {
            line("T_w, dense layers", t_w_dense, *t_w_dense_bytes);
        }
        text
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
            "{name}: {arch}, {layers} layers, hidden {hidden}, {q} query heads over {kv} \
             of {dim}, FFN {ffn}, vocabulary {vocab}{tied}\n\
             context {context}; RoPE base {base}, {dims} dimensions, {style}, scaling \
             {scaling}{factor}\n\
             {more}tokenizer {tokenizer}; {template}\n\
             {file}, {container}: {formats}",
            name = self.name,
            arch = self.arch,
            layers = self.layers,
            hidden = self.hidden,
            q = self.q_heads,
            kv = match self.mla {
                Some(_) => "one latent".to_owned(),
                None => format!("{} KV heads", self.kv_heads),
            },
            dim = self.head_dim,
            ffn = self.ffn,
            vocab = self.vocab,
            tied = if self.tied_head { ", LM head tied to the embedding" } else { "" },
            context = self.context,
            base = self.rope["base"],
            dims = self.rope["dims"],
            style = self.rope["style"].as_str().unwrap_or_default(),
            scaling = self.rope["scaling"].as_str().unwrap_or_default(),
            more = self.variants(),
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

    /// Lines about what not every model has.
    fn variants(&self) -> String {
        let mut text = String::new();
        if let Some(mla) = &self.mla {
            let queries = match mla["q_lora"].as_u64() {
                Some(q_lora) => format!(", queries through {q_lora}"),
                None => String::new(),
            };
            text += &format!(
                "latent attention: {} + {} elements per token for all heads{queries}; heads of \
                 {} + {}, values of {}\n",
                mla["kv_lora"], mla["rope"], mla["nope"], mla["rope"], mla["value"]
            );
        }
        if let Some(moe) = &self.moe {
            let shared = match moe["shared_ffn"].as_u64() {
                Some(width) if width > 0 => format!(", shared experts of {width}"),
                _ => String::new(),
            };
            text += &format!(
                "experts in {} layers: {} of {}, {} per token{shared}\n",
                moe["layers"], moe["experts"], moe["ffn"], moe["top_k"]
            );
        }
        if let Some(window) = &self.window {
            let sinks = if self.sinks { "; sinks" } else { "" };
            text += &format!(
                "{} of {} layers see {} positions{sinks}\n",
                window["layers"], self.layers, window["positions"]
            );
        }
        text
    }
}
