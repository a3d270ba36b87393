//! What operations cost besides their bytes and their arithmetic.

use super::{ProbeOptions, Sample};
use crate::{Engine, EngineError, EngineOptions, Line};
use helix_kernels::elementwise::rms_norm;
use helix_kernels::probe::{float_peak, integer_peak};
use helix_kernels::{Activations, Forms};
use helix_layout::{Layout, LayoutSpec, Strategy};
use helix_model::synthetic::{Spec, gguf};
use helix_model::{Arch, Model};
use helix_scheduler::{Step, Wanted};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

/// What operations cost besides their bytes and their arithmetic.
#[derive(Clone, Debug)]
pub struct Overheads {
    /// Seconds that the operations of a layer, [`OPERATIONS`], cost a rank of so many threads beside
    /// their bytes and arithmetic.
    pub layers: Vec<(usize, Sample)>,
    /// Values per second that one thread normalises and quantises.
    pub elements: Sample,
    /// Operations per second and core: int8 products, f32 multiply-adds.
    pub peaks: [f64; 2],
}

const ROUNDS: usize = 9;
/// Steps, or rows, of one round.
const STEPS: usize = 50;
const ROWS: usize = 500;
/// Values of a row.
const ROW: usize = 2048;
/// Layers of a model that has next to nothing to compute.
const LAYERS: usize = 16;
/// Operations of each: QKV, attention, the out-projection, gate and up, and down are forked; two
/// norms, RoPE, append, the values' way to the out-projection and two residuals are not.
pub const OPERATIONS: usize = 12;
/// Of those, the ones that are forked.
pub const FORKED: usize = 5;
/// Lines outside layers.
const OUTSIDE: [Line; 3] = [Line::Embedding, Line::Head, Line::LogitsGather];

pub(super) fn measure(options: &ProbeOptions) -> Result<Overheads, EngineError> {
    let layers = options.threads().into_iter().map(|threads| Ok((threads, layer(threads)?)));
    Ok(Overheads {
        layers: layers.collect::<Result<_, EngineError>>()?,
        elements: elements(),
        peaks: [integer_peak(0.1), float_peak(0.1)],
    })
}

/// Seconds of a layer of the engine, of a model whose layers fit in the nearest cache.
fn layer(threads: usize) -> Result<Sample, EngineError> {
    let spec = Spec { layers: LAYERS, ..Spec::tiny(Arch::Llama) };
    let model = Arc::new(Model::from_gguf_bytes(gguf(&spec, 1))?);
    let layout = Layout::new(&model.shape(), LayoutSpec::new(Strategy::Helix, 1, 1));
    let layout = layout.expect("one rank is a layout of any model");
    let options = EngineOptions {
        threads_per_rank: threads,
        max_context: STEPS,
        max_step_tokens: 1,
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(model, layout, options, &|_| {})?;
    let mut step = Step::default();
    let mut rounds = Vec::new();
    for _ in 0..=ROUNDS {
        engine.reset_counters();
        for position in 0..STEPS {
            step.clear();
            step.push(0, position, &[1], Wanted::None);
            engine.step(&step)?;
        }
        engine.release(0);
        let time = engine.counters()?[0].time;
        let inside = Line::ALL.into_iter().filter(|line| !OUTSIDE.contains(line));
        let seconds: f64 = inside.map(|line| time[line as usize].as_secs_f64()).sum();
        rounds.push(seconds / (STEPS * LAYERS) as f64);
    }
    // The first warms up.
    Ok(Sample::of(rounds.split_off(1)))
}

/// A row of the stream becomes the input of a product.
fn elements() -> Sample {
    let x: Vec<f32> = (0..ROW).map(|at| (at % 17) as f32 - 8.0).collect();
    let (weight, mut normed) = (vec![1.0; ROW], vec![0.0; ROW]);
    let mut input = Activations::new(1, ROW, Forms { values: false, codes: true });
    let mut round = || {
        let begun = Instant::now();
        for _ in 0..ROWS {
            rms_norm(&mut normed, black_box(&x), &weight, 1e-5);
            input.load(&normed, 1, ROW);
            black_box(&input);
        }
        (ROWS * ROW) as f64 / begun.elapsed().as_secs_f64()
    };
    round();
    Sample::of((0..ROUNDS).map(|_| round()).collect())
}
