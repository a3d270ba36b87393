//! Every legal layout against an independent decoder in f64, on synthetic models of awkward
//! shapes: see `reference/mod.rs` for the decoder and `script/mod.rs` for what is run.

mod common;
mod random;
mod reference;
mod script;

use common::{distinct, engine, precise};
use helix_engine::EngineOptions;
use helix_kernels::kv::KvType;
use helix_kernels::{Format, Precision};
use helix_layout::{Layout, LayoutSpec, Strategy};
use helix_model::config::{Llama3, Scaling, Yarn};
use helix_model::synthetic::{Spec, gguf};
use helix_model::{Arch, Model};
use helix_scheduler::{Step, Wanted};
use random::Random;
use reference::Reference;
use script::{CONTEXT, SLOTS, Script};
use std::sync::Arc;

/// Largest difference of a logit under [`Precision::Precise`] with f32 KV, where logits have a
/// standard deviation of about 4: up to 3.5e-5 was measured, which is what f32 sums leave.
const EXACT: f64 = 6e-5;

/// What int8 activations do to a row of logits, relative to it: at the worst, and on average.
/// Measured: 4.8 % and 2.4 %, through two layers of peaked attention.
const FAST: (f64, f64) = (0.08, 0.03);

/// What the type of the KV cache does to a row of logits, at the worst and on average. Measured:
/// 2.6e-6 and 5.1e-7, 1.5e-3 and 5.5e-4, 1.1e-2 and 4.3e-3, 2.4e-2 and 1.0e-2.
const KV_TYPES: [(KvType, (f64, f64)); 4] = [
    (KvType::F32, EXACTLY),
    (KvType::F16, (3e-3, 8e-4)),
    (KvType::BF16, (2e-2, 6e-3)),
    (KvType::Q8_0, (4e-2, 1.5e-2)),
];

/// The same where everything is f32.
const EXACTLY: (f64, f64) = (5e-6, 1e-6);

fn model(spec: &Spec) -> Arc<Model> {
    let seed = 1 + spec.hidden as u64;
    Arc::new(Model::from_gguf_bytes(gguf(spec, seed)).expect("a synthetic model opens"))
}

fn options() -> EngineOptions {
    EngineOptions { max_context: CONTEXT, max_sequences: SLOTS, ..precise() }
}

/// The largest difference of any logit.
#[derive(Default)]
struct Worst {
    difference: f64,
    place: String,
}

impl Worst {
    fn see(&mut self, found: &[f32], expected: &[f64], place: impl Fn() -> String) {
        for (token, (found, expected)) in found.iter().zip(expected).enumerate() {
            let difference = (f64::from(*found) - expected).abs();
            assert!(!difference.is_nan(), "{}, token {token}: {found}", place());
            if difference > self.difference {
                self.difference = difference;
                self.place = format!("{}, token {token}: {found} for {expected}", place());
            }
        }
    }
}

/// Replays `script` on each layout; differences stay below `tolerance`.
fn check(
    name: &str,
    model: &Arc<Model>,
    script: &Script<'_>,
    all: &[Layout],
    options: EngineOptions,
    tolerance: f64,
) {
    let mut worst = Worst::default();
    for layout in all {
        let mut engine = engine(model, *layout, options);
        script.replay(&mut engine, |found, expected, place| {
            worst.see(found, expected, || format!("{layout}, {place}"));
        });
        assert!(worst.difference < tolerance, "{name}, {}: {}", worst.place, worst.difference);
    }
    println!("{name}: {} layouts, {:.2e} on {}", all.len(), worst.difference, worst.place);
}

/// Heads, sizes and settings that do not divide each other.
fn awkward() -> Vec<Spec> {
    let spec = |name: &str, arch, (q_heads, kv_heads, head_dim), (hidden, ffn, vocab)| Spec {
        name: name.to_owned(),
        q_heads,
        kv_heads,
        head_dim,
        rope_dims: head_dim,
        hidden,
        ffn,
        vocab,
        context: CONTEXT,
        ..Spec::tiny(arch)
    };
    let yarn = Yarn {
        factor: 4.0,
        original_context: 12,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor: None,
    };
    let llama3 =
        Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 64 };
    vec![
        spec("llama 9/3", Arch::Llama, (9, 3, 8), (40, 52, 301)),
        Spec { tied_head: false, ..spec("llama 5/5", Arch::Llama, (5, 5, 40), (50, 33, 67)) },
        spec("llama 128/1", Arch::Llama, (128, 1, 8), (24, 20, 40)),
        Spec { bias: true, ..spec("llama, biases", Arch::Llama, (6, 2, 20), (33, 47, 50)) },
        Spec { rope_dims: 12, ..spec("llama, 12 of 20", Arch::Llama, (4, 2, 20), (24, 31, 70)) },
        Spec {
            scaling: Scaling::Llama3(llama3),
            ..spec("llama, llama3", Arch::Llama, (3, 3, 16), (40, 21, 99))
        },
        spec("qwen2 10/5", Arch::Qwen2, (10, 5, 20), (36, 50, 130)),
        Spec { tied_head: true, ..spec("qwen2 7/1", Arch::Qwen2, (7, 1, 16), (44, 37, 81)) },
        Spec {
            scaling: Scaling::Yarn(yarn),
            ..spec("qwen2, yarn", Arch::Qwen2, (4, 2, 64), (30, 40, 60))
        },
        spec("qwen3 8/2", Arch::Qwen3, (8, 2, 16), (17, 64, 65)),
        Spec { rope_dims: 8, ..spec("qwen3, 8 of 16", Arch::Qwen3, (6, 3, 16), (31, 29, 47)) },
        Spec {
            scaling: Scaling::Linear { factor: 2.5 },
            ..spec("qwen3, linear", Arch::Qwen3, (9, 3, 8), (27, 18, 33))
        },
        // Ranks without FFN columns or rows of the vocabulary.
        spec("llama, idle ranks", Arch::Llama, (2, 1, 16), (20, 3, 17)),
    ]
}

#[test]
fn every_layout_of_up_to_4_ranks() {
    for (index, spec) in awkward().iter().enumerate() {
        let model = model(spec);
        let reference = Reference::new(spec, &model);
        let script = Script::life(&reference, spec.vocab, 3);
        // Token by token, or in blocks that pieces of prompts end in.
        let kv_blocks = [&[1, 16][..], &[5], &[1]][index % 3];
        check(&spec.name, &model, &script, &distinct(&model, 4, kv_blocks), options(), EXACT);
    }
}

#[test]
fn every_layout_of_5_to_8_ranks() {
    for (spec, kv_block) in awkward().iter().zip([1, 16, 3]) {
        let model = model(spec);
        let reference = Reference::new(spec, &model);
        let script = Script::life(&reference, spec.vocab, 4);
        let mut all = distinct(&model, 8, &[kv_block]);
        all.retain(|layout| layout.ranks() > 4);
        check(&spec.name, &model, &script, &all, options(), EXACT);
    }
}

/// Blocks of weights that heads and ranks cut across.
fn quantised(format: Format) -> Spec {
    // Heads of 40: two of them end inside a block of 32. FFN: 3 or 2 blocks over up to 4 ranks.
    let small = Spec {
        name: format!("llama in {format}"),
        q_heads: 8,
        kv_heads: 4,
        head_dim: 40,
        rope_dims: 40,
        hidden: 64,
        ffn: 96,
        vocab: 70,
        context: CONTEXT,
        format,
        down_format: format,
        embedding_format: format,
        ..Spec::tiny(Arch::Llama)
    };
    match format.block_len() {
        // All heads lie in one block: every rank holds all columns of the output projection.
        256 => Spec { q_heads: 16, head_dim: 16, rope_dims: 16, hidden: 256, ffn: 512, ..small },
        _ => small,
    }
}

const FORMATS: [Format; 6] =
    [Format::F16, Format::BF16, Format::Q8_0, Format::Q4_0, Format::Q4_1, Format::Q6K];

#[test]
fn quantised_weights_with_f32_activations() {
    for format in FORMATS {
        let spec = quantised(format);
        let model = model(&spec);
        let reference = Reference::new(&spec, &model);
        let script = Script::life(&reference, spec.vocab, 5);
        let ranks = if format == Format::Q4_0 { 4 } else { 2 };
        check(&spec.name, &model, &script, &distinct(&model, ranks, &[1]), options(), EXACT);
    }
}

/// Length of the difference of two rows of logits over the length of the row.
fn relative(found: &[f32], expected: &[f64]) -> f64 {
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = length(
        &mut found.iter().zip(expected).map(|(found, expected)| f64::from(*found) - expected),
    );
    difference / length(&mut expected.iter().copied())
}

/// Replays `script` on each layout; rows' relative differences stay below `(worst, mean)`.
fn check_relative(
    name: &str,
    model: &Arc<Model>,
    script: &Script<'_>,
    options: EngineOptions,
    tolerance: (f64, f64),
) {
    let (mut worst, mut sum, mut rows) = (0.0, 0.0, 0);
    for layout in distinct(model, 3, &[1]) {
        let mut engine = engine(model, layout, options);
        script.replay(&mut engine, |found, expected, place| {
            let difference = relative(found, expected);
            assert!(difference < tolerance.0, "{name}, {layout}, {place}: {difference}");
            worst = difference.max(worst);
            sum += difference;
            rows += 1;
        });
    }
    let mean = sum / f64::from(rows);
    println!("{name}: relative difference {worst:.2e}, on average {mean:.2e}");
    assert!(mean < tolerance.1, "{name}: {mean} on average");
}

#[test]
fn quantised_weights_with_quantised_activations() {
    for format in FORMATS {
        let spec = quantised(format);
        let model = model(&spec);
        let reference = Reference::new(&spec, &model);
        let script = Script::life(&reference, spec.vocab, 6);
        let fast = EngineOptions { precision: Precision::Fast, ..options() };
        // Activations keep 8 bits where weights are quantised, and all of them where they are not.
        let tolerance = if format.is_quantized() { FAST } else { EXACTLY };
        check_relative(&spec.name, &model, &script, fast, tolerance);
    }
}

#[test]
fn every_type_of_keys_and_values() {
    for (kv_type, tolerance) in KV_TYPES {
        for spec in [&awkward()[0], &awkward()[6], &awkward()[8]] {
            let model = model(spec);
            let reference = Reference::new(spec, &model);
            let script = Script::life(&reference, spec.vocab, 7);
            let name = format!("{}, KV in {kv_type}", spec.name);
            let options = EngineOptions { kv_type, ..options() };
            check_relative(&name, &model, &script, options, tolerance);
        }
    }
}

#[test]
fn random_lives_on_random_layouts() {
    let specs = awkward();
    let mut random = Random(8);
    for seed in 0..8 {
        let spec = &specs[random.below(specs.len())];
        let model = model(spec);
        let reference = Reference::new(spec, &model);
        let script = Script::random(&reference, spec.vocab, seed, 25);
        let mut all = distinct(&model, 6, &[1, 2, 7, 16, 32]);
        let drawn: Vec<_> = (0..3).map(|_| all.swap_remove(random.below(all.len()))).collect();
        let name = format!("{}, seed {seed}", spec.name);
        let options = EngineOptions { threads_per_rank: 1 + random.below(3), ..options() };
        check(&name, &model, &script, &drawn, options, EXACT);
    }
}

/// Attention folds chunks of 256 local tokens, and those in waves of 64 when few rows ask.
#[test]
fn chunks_and_waves_of_a_long_context() {
    const CONTEXT: usize = 17_000;
    const PIECE: usize = 1000;
    let spec = Spec {
        name: "long".to_owned(),
        layers: 1,
        q_heads: 2,
        kv_heads: 1,
        hidden: 16,
        ffn: 16,
        vocab: 400,
        context: CONTEXT,
        ..Spec::tiny(Arch::Llama)
    };
    let model = model(&spec);
    let reference = Reference::new(&spec, &model);
    let tokens = Random(9).tokens(CONTEXT, spec.vocab);
    // At the end: two decodes, then as many tokens at once as make several items of attention.
    let ends = [CONTEXT - 130, CONTEXT - 129, CONTEXT - 128, CONTEXT];
    let mut sequence = reference.start();
    let expected: Vec<Vec<f64>> = (0..CONTEXT)
        .filter_map(|position| {
            if ends[1..].contains(&(position + 1)) {
                return Some(reference.append(&mut sequence, tokens[position]));
            }
            reference.remember(&mut sequence, tokens[position]);
            None
        })
        .collect();
    for (kvp, kv_block) in [(1, 16), (2, 1), (3, 16)] {
        let spec = LayoutSpec { kv_block, ..LayoutSpec::new(Strategy::Helix, kvp, 1) };
        let layout = Layout::new(&model.shape(), spec).unwrap();
        for threads_per_rank in [1, 2] {
            let options = EngineOptions {
                threads_per_rank,
                max_context: CONTEXT,
                max_step_tokens: PIECE,
                ..precise()
            };
            let mut engine = engine(&model, layout, options);
            let mut worst = Worst::default();
            let mut run = |start: usize, end: usize, wanted| {
                let mut step = Step::default();
                step.push(0, start, &tokens[start..end], wanted);
                engine.step(&step).expect("a step runs").to_vec()
            };
            for start in (0..ends[0]).step_by(PIECE) {
                run(start, ends[0].min(start + PIECE), Wanted::None);
            }
            for (piece, expected) in ends.windows(2).zip(&expected) {
                let found = run(piece[0], piece[1], Wanted::Last);
                worst.see(&found, expected, || format!("{layout}, up to {}", piece[1]));
            }
            assert!(worst.difference < EXACT, "{}: {}", worst.place, worst.difference);
            println!("{:.2e} on {}", worst.difference, worst.place);
        }
    }
}
