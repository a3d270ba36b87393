//! `helix verify`: every legal layout against one rank.

mod compare;
mod script;

use super::run::read_text;
use crate::args::{EngineArgs, VerifyArgs};
use crate::console::{Console, Unit};
use crate::failure::{Failure, Outcome};
use crate::processes::Ranks;
use crate::setup::Choices;
use crate::{output, setup};
use compare::{Comparison, Verdict};
use helix_kernels::Precision;
use helix_kernels::kv::KvType;
use helix_layout::{DEFAULT_KV_BLOCK, Layout, LayoutSpec, ModelShape, QkvMode, Strategy};
use helix_model::Model;
use script::{Rows, Script};
use serde::Serialize;
use std::sync::Arc;

/// KV blocks that layouts are tried with.
const BLOCKS: [usize; 3] = [1, DEFAULT_KV_BLOCK, 32];

/// Prompts of three lengths: inside one KV block, ending inside one, and over several.
const PROMPTS: [&str; 3] = [
    "The capital of France is",
    "Once upon a time there was a lighthouse keeper who wrote down every ship that passed. One \
     night a ship went by that was in no register, and in the morning",
    "Water boils when its vapour pressure equals the pressure of the air around it. At sea level \
     this happens at 100 degrees Celsius; on a high mountain the air presses less, and water boils \
     at a lower temperature, so that food takes longer to cook. A pressure cooker does the \
     opposite: it keeps the steam in, the pressure rises, and the water gets hotter before it \
     boils. The same is true of other liquids. Alcohol boils at 78 degrees, which is why it can be \
     separated from water by heating. In short, the boiling point of a liquid depends on",
];

/// Runs the command.
pub fn run(args: VerifyArgs, ranks: &Ranks) -> Outcome {
    let console = Console::new(args.output.quiet);
    let texts = match (&args.prompt, &args.file) {
        (Some(text), _) => vec![text.clone()],
        (None, Some(path)) => vec![read_text(path)?],
        (None, None) => PROMPTS.map(str::to_owned).to_vec(),
    };
    let model = setup::open(ranks, &args.model, &args.engine, &console)?;
    let layouts = layouts(&args, ranks, &model.shape())?;
    let tokenizer = model.tokenizer()?;
    let prompts: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text, true)).collect();
    if prompts.iter().any(Vec::is_empty) {
        return Err(Failure::request("the prompt is empty"));
    }
    prompts.iter().try_for_each(|prompt| model.check_tokens(prompt))?;
    let script = Script::new(prompts, args.tokens);
    let engine = if args.fast { args.engine.clone() } else { args.engine.made_precise() };
    let tolerance = args.tolerance.unwrap_or(tolerance(&engine));
    if !(tolerance.is_finite() && tolerance >= 0.0) {
        return Err(Failure::request(format!("--tolerance {tolerance} is no difference")));
    }
    let one = LayoutSpec::new(Strategy::Helix, 1, 1);
    let one = Layout::new(&model.shape(), one)?;
    let bar = console.bar("verify", layouts.len() as u64 + 1, Unit::Count("layouts"));
    let (reference, tokens) = play(ranks, &engine, &model, one, &script, None)?;
    bar.add(1);
    let mut reports = Vec::new();
    for layout in layouts {
        bar.message(layout.name());
        let (rows, _) = play(ranks, &engine, &model, layout, &script, Some(&tokens))?;
        let comparison = Comparison::new(&reference, &rows);
        let report = LayoutReport::new(&layout, comparison, tolerance);
        if !args.output.json {
            bar.beside(|| output::line(&report.line()))?;
        }
        reports.push(report);
        bar.add(1);
    }
    drop(bar);
    let choices = Choices::new(&engine, &model);
    conclude(&args, choices, &engine, &script, tolerance, reports)
}

/// Largest logit difference that passes: a few times what was measured on a real model; see the
/// command's help.
fn tolerance(engine: &EngineArgs) -> f32 {
    match (engine.precision(), engine.kv_type()) {
        (Precision::Fast, _) => 5.0,
        (Precision::Precise, KvType::F32) => 1e-3,
        (Precision::Precise, KvType::F16) => 0.05,
        (Precision::Precise, KvType::BF16) => 0.3,
        (Precision::Precise, KvType::Q8_0) => 1.0,
    }
}

/// The layouts to try, fewest ranks first.
fn layouts(args: &VerifyArgs, ranks: &Ranks, shape: &ModelShape) -> Outcome<Vec<Layout>> {
    if args.layouts.trim() != "all" {
        let specs = args.layouts.split([',', ';']).map(str::trim).filter(|name| !name.is_empty());
        let layouts = specs.map(|name| {
            let spec = LayoutSpec::read(name, shape)
                .map_err(|error| Failure::request(format!("--layouts {name:?}: {error}")))?;
            let layout = Layout::new(shape, spec)?;
            check_count(ranks, &layout)?;
            Ok(layout)
        });
        let layouts = layouts.collect::<Outcome<Vec<_>>>()?;
        return match layouts.is_empty() {
            true => Err(Failure::request("--layouts names none; give all, or a list")),
            false => Ok(layouts),
        };
    }
    let mut layouts = Vec::new();
    let most = ranks.count().map_or(args.ranks, |count| count.min(args.ranks));
    for ranks in 1..=most {
        for strategy in Strategy::ALL.into_iter().filter(|s| is_told_apart(*s, shape)) {
            for block in BLOCKS {
                for qkv in QkvMode::ALL {
                    let legal = Layout::candidates(shape, ranks, strategy, block, qkv);
                    layouts.extend(legal.into_iter().filter(is_distinct));
                }
            }
        }
    }
    Ok(layouts)
}

/// Refuses a layout that has more ranks than there are processes.
fn check_count(ranks: &Ranks, layout: &Layout) -> Outcome {
    match ranks.count() {
        Some(count) if layout.ranks() > count => Err(Failure::request(format!(
            "{layout} has {} ranks, and {count} processes were started: start more",
            layout.ranks()
        ))),
        _ => Ok(()),
    }
}

/// Without experts, `dp-ep` is not what it is named after: only a list tries it.
fn is_told_apart(strategy: Strategy, shape: &ModelShape) -> bool {
    strategy != Strategy::DpEp || shape.moe.is_some()
}

/// With one shard of the sequence, blocks and QKV modes make no difference: one of each is enough.
fn is_distinct(layout: &Layout) -> bool {
    let plain = layout.kv_block() == DEFAULT_KV_BLOCK && layout.qkv() == QkvMode::Replicate;
    layout.degrees().kvp > 1 || plain
}

/// Plays the script on a layout: with `tokens`, or with those that it chooses itself.
fn play(
    ranks: &Ranks,
    engine: &EngineArgs,
    model: &Arc<Model>,
    layout: Layout,
    script: &Script,
    tokens: Option<&[Vec<u32>]>,
) -> Outcome<(Rows, Vec<Vec<u32>>)> {
    let quiet = Console::new(true);
    // A thread per rank, and all threads for the one rank that the others wait for.
    let engine = engine.with_threads(engine.threads.or(tokens.map(|_| 1)));
    let options = script.options(setup::options(ranks, &engine, &layout, &quiet)?);
    script.play(&mut setup::start(ranks, model, layout, options, &quiet)?, tokens)
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    model: String,
    tolerance: f32,
    precise: bool,
    kv_type: &'static str,
    #[serde(flatten)]
    choices: Choices,
    prompt_tokens: Vec<usize>,
    decoded_tokens: usize,
    layouts: &'a [LayoutReport],
}

#[derive(Serialize)]
struct LayoutReport {
    layout: String,
    ok: bool,
    tokens_equal: bool,
    max_abs_logit_diff: f32,
    /// Choices that differ from one rank's.
    differences: Vec<compare::Choice>,
    #[serde(skip)]
    verdict: Verdict,
}

impl LayoutReport {
    fn new(layout: &Layout, comparison: Comparison, tolerance: f32) -> LayoutReport {
        let verdict = comparison.verdict(tolerance);
        LayoutReport {
            layout: layout.name(),
            ok: verdict != Verdict::Fail,
            tokens_equal: comparison.differences.is_empty(),
            max_abs_logit_diff: comparison.max_abs,
            differences: comparison.differences,
            verdict,
        }
    }

    fn line(&self) -> String {
        let word = match self.verdict {
            Verdict::Ok => "OK  ",
            Verdict::Tie => "TIE ",
            Verdict::Fail => "FAIL",
        };
        let mut line = format!("{word}  {:<52} {:9.2e}", self.layout, self.max_abs_logit_diff);
        if let Some(first) = self.differences.first() {
            line += &format!(
                "  {} tokens differ; the first where one rank's choice led by {:.1e}",
                self.differences.len(),
                first.gap
            );
        }
        line
    }
}

fn conclude(
    args: &VerifyArgs,
    choices: Choices,
    engine: &EngineArgs,
    script: &Script,
    tolerance: f32,
    reports: Vec<LayoutReport>,
) -> Outcome {
    let failed = reports.iter().filter(|report| !report.ok).count();
    if args.output.json {
        output::json(&Report {
            ok: failed == 0,
            model: args.model.display().to_string(),
            tolerance,
            precise: engine.precision() == Precision::Precise,
            kv_type: engine.kv_type().name(),
            choices,
            prompt_tokens: script.prompts().iter().map(Vec::len).collect(),
            decoded_tokens: args.tokens * script.prompts().len(),
            layouts: &reports,
        })?;
    } else {
        let equal = reports.iter().filter(|report| report.tokens_equal).count();
        let largest = reports.iter().map(|report| report.max_abs_logit_diff).fold(0.0, f32::max);
        output::line(&format!(
            "{} layouts: {failed} failed; {equal} chose the tokens of one rank, all {} of them; \
             largest logit difference {largest:.2e}, tolerance {tolerance:.2e}",
            reports.len(),
            args.tokens * script.prompts().len(),
        ))?;
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Negative),
    }
}
