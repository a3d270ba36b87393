//! Choices of the engine side by side, in one interleaved run: how the FFN's results come together,
//! and when latents become values.
//!
//! ```text
//! cargo x synthetic deepseek deepseek.gguf
//! cargo bench -p helix-engine --bench choices -- deepseek.gguf [DEPTH]
//! ```
//!
//! A round decodes a few tokens with each choice, one right after another. Medians over rounds, for
//! a layout and batch; bytes are sent by all ranks per step. More ranks than cores take turns:
//! their times say less than their bytes.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use helix_comm::Traffic;
use helix_engine::{Engine, EngineOptions, FfnReduce, Line, MlaUp};
use helix_layout::{Layout, LayoutSpec};
use helix_model::Model;
use helix_scheduler::{Step, Wanted};

const ROUNDS: usize = 9;
const STEPS: usize = 4;
const BATCHES: [usize; 2] = [1, 8];

/// With experts on both axes of the grid, the reductions differ; with latents, `kvp` matters.
const LAYOUTS: [&str; 3] = ["helix kvp=2", "helix kvp=4 tpf=2 ep=2", "helix kvp=4 tpf=1 ep=4"];

struct Choice {
    name: &'static str,
    options: EngineOptions,
    /// The lines of a step that the choice is about.
    lines: &'static [Line],
}

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let Some(file) = arguments.first() else {
        println!("choices: give a model, such as one of `cargo x synthetic`");
        return;
    };
    let depth = arguments.get(1).map_or(1024, |depth| depth.parse().expect("a depth"));
    let model = Arc::new(Model::open(Path::new(file)).expect("a model"));
    println!("{}, depth {depth}, {}", model.config.name, helix_kernels::cpu());
    println!(
        "| layout | batch | choice | its lines, us | step, us (min - max) | read/step | sent/step |"
    );
    println!("|---|---:|---|---:|---:|---:|---:|");
    for name in LAYOUTS {
        let spec = LayoutSpec::read(name, &model.shape());
        let layout = spec.ok().and_then(|spec| Layout::new(&model.shape(), spec).ok());
        let Some(layout) = layout else { continue };
        for batch in BATCHES {
            for pair in pairs(&model, &layout) {
                compare(&model, layout, batch, depth, &pair);
            }
        }
    }
}

/// What can be chosen between for this model on this layout.
fn pairs(model: &Model, layout: &Layout) -> Vec<[Choice; 2]> {
    const FFN: &[Line] = &[Line::FfnAllReduce];
    const UP: &[Line] = &[Line::AllToAll, Line::Merge];
    let degrees = layout.degrees();
    let plain = EngineOptions::default();
    let reduce = |name, ffn_reduce| Choice {
        name,
        options: EngineOptions { ffn_reduce, ..plain },
        lines: FFN,
    };
    let up = |name, mla_up| Choice { name, options: EngineOptions { mla_up, ..plain }, lines: UP };
    let mut pairs = Vec::new();
    if degrees.tpf > 1 && degrees.ep > 1 {
        pairs.push([
            reduce("ffn_reduce world", FfnReduce::World),
            reduce("ffn_reduce grid", FfnReduce::Grid),
        ]);
    }
    if model.config.mla.is_some() && degrees.kvp > 1 {
        pairs.push([up("mla_up before", MlaUp::Before), up("mla_up after", MlaUp::After)]);
    }
    pairs
}

fn compare(model: &Arc<Model>, layout: Layout, batch: usize, depth: usize, pair: &[Choice; 2]) {
    let mut engines = pair.each_ref().map(|choice| {
        let options = EngineOptions {
            max_context: depth + STEPS,
            max_sequences: batch,
            max_step_tokens: batch,
            max_logits: batch,
            ..choice.options
        };
        let mut engine =
            Engine::new(Arc::clone(model), layout, options, &|_| ()).expect("an engine");
        (0..batch).for_each(|slot| engine.fill_with_noise(slot, depth));
        decode(&mut engine, batch, depth);
        engine
    });
    let mut samples = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for ((engine, choice), samples) in engines.iter_mut().zip(pair).zip(&mut samples) {
            samples.push(sample(engine, choice, batch, depth));
        }
    }
    for ((engine, choice), samples) in engines.iter_mut().zip(pair).zip(&mut samples) {
        engine.reset_counters();
        decode(engine, batch, depth);
        let counters = engine.counters().expect("counters");
        let read: u64 = counters.iter().map(|rank| rank.weight_bytes).sum();
        let sent: u64 = counters
            .iter()
            .flat_map(|rank| [rank.world, rank.kvp, rank.experts[0], rank.experts[1]])
            .map(bytes_sent)
            .sum();
        let lines = median(samples.iter().map(|&(lines, _)| lines).collect());
        let steps: Vec<f64> = samples.iter().map(|&(_, step)| step).collect();
        let (least, most) = (
            steps.iter().copied().fold(f64::MAX, f64::min),
            steps.iter().copied().fold(0.0, f64::max),
        );
        println!(
            "| {} | {batch} | {} | {lines:.0} | {:.0} ({least:.0} - {most:.0}) | {:.1} MB | {:.0} kB |",
            layout.name(),
            choice.name,
            median(steps),
            read as f64 / STEPS as f64 / 1e6,
            sent as f64 / STEPS as f64 / 1e3,
        );
    }
}

fn bytes_sent(traffic: Traffic) -> u64 {
    helix_comm::Collective::ALL.into_iter().map(|kind| traffic.of(kind).1).sum()
}

/// Microseconds of the choice's lines and of the whole step, means over a few steps.
fn sample(engine: &mut Engine, choice: &Choice, batch: usize, depth: usize) -> (f64, f64) {
    engine.reset_counters();
    let begun = Instant::now();
    decode(engine, batch, depth);
    let step = begun.elapsed().as_secs_f64() * 1e6 / STEPS as f64;
    // Of the fastest rank: the others' times are the same and waiting for it.
    let time = |rank: &helix_engine::RankCounters| -> f64 {
        choice.lines.iter().map(|&line| rank.time[line as usize].as_secs_f64()).sum()
    };
    let lines = engine.counters().expect("counters").iter().map(time).fold(f64::MAX, f64::min);
    (lines * 1e6 / STEPS as f64, step)
}

/// A few tokens of each sequence, which then is as long as before.
fn decode(engine: &mut Engine, batch: usize, depth: usize) {
    let mut step = Step::default();
    for at in 0..STEPS {
        step.clear();
        for slot in 0..batch {
            let token = (7 * slot + 31 * at) % engine.vocab();
            step.push(slot, depth + at, &[token as u32], Wanted::Last);
        }
        engine.step(&step).expect("a step runs");
    }
    (0..batch).for_each(|slot| engine.truncate(slot, depth));
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
