//! Logits of Hugging Face transformers for tiny models of every architecture, read from their
//! directories as they are, and from GGUF where ggml has the architecture: see
//! `fixtures/README.md`.

mod common;

use common::{directory, engine, largest_difference, layouts, logits, precise};
use helix_engine::sampler::greedy;
use helix_engine::{EngineOptions, FfnReduce, MlaUp};
use helix_layout::{Layout, QkvMode};
use helix_model::Model;
use helix_scheduler::{Step, Wanted};
use safetensors::SafeTensors;
use std::path::Path;
use std::sync::Arc;

/// transformers' own f32 differs from its f64 by up to 3e-5 on these.
const TOLERANCE: f32 = 1e-3;

struct Prompt {
    tokens: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
}

fn prompts(answers: &Path) -> Vec<Prompt> {
    let bytes = std::fs::read(answers).expect("answers of a fixture");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let words = |name: String| -> Vec<u32> {
        let data = tensors.tensor(&name).expect("a tensor of the fixture").data();
        data.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
    };
    let prompt = |i| Prompt {
        tokens: words(format!("tokens.{i}")),
        logits: words(format!("logits.{i}")).into_iter().map(f32::from_bits).collect(),
        greedy: words(format!("greedy.{i}")),
    };
    (0..2).map(prompt).collect()
}

/// Every fixture: a directory, or a GGUF file of the same weights, also as converters once wrote it.
fn fixtures(name: &str) -> Vec<(String, Arc<Model>, Vec<Prompt>)> {
    let mut all = Vec::new();
    for path in ["", ".gguf", "-older.gguf"].map(|end| directory(&format!("{name}{end}"))) {
        if path.exists() {
            let model = Model::open(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            let answers = directory(&format!("{name}.safetensors"));
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            all.push((name, Arc::new(model), prompts(&answers)));
        }
    }
    assert!(!all.is_empty(), "{name} is in the repository");
    all
}

/// Prefill in pieces and greedy decoding of one prompt on one layout.
fn check(
    name: &str,
    model: &Arc<Model>,
    layout: Layout,
    prompt: &Prompt,
    piece: usize,
    options: EngineOptions,
) -> f32 {
    let mut engine = engine(model, layout, options);
    let found = logits(&mut engine, &prompt.tokens, piece);
    let (difference, at) = largest_difference(&found, &prompt.logits);
    let vocab = model.config.vocab;
    assert!(
        difference < TOLERANCE,
        "{name}, {layout}, {options:?}, pieces of {piece}: {difference} at position {}, token {}",
        at / vocab,
        at % vocab
    );
    let mut token = greedy(&found[found.len() - vocab..]);
    let mut step = Step::default();
    for (i, &expected) in prompt.greedy.iter().enumerate() {
        assert_eq!(token, expected, "{name}, {layout}: greedy token {i}");
        step.clear();
        step.push(0, prompt.tokens.len() + i, &[token], Wanted::Last);
        token = greedy(engine.step(&step).expect("a step runs"));
    }
    difference
}

/// Every legal layout of up to `ranks` ranks, in pieces that end inside blocks and windows.
fn check_all(name: &str, ranks: usize) {
    for (name, model, prompts) in fixtures(name) {
        let mut worst = (0.0, String::new());
        let all = layouts(&model.shape(), ranks, &[1, 16]);
        for (index, &layout) in all.iter().enumerate() {
            let options = EngineOptions {
                mla_up: [MlaUp::Auto, MlaUp::Before, MlaUp::After][index % 3],
                ffn_reduce: [FfnReduce::World, FfnReduce::Grid][index % 2],
                rewind: [0, 7][index % 2],
                ..precise()
            };
            let prompt = &prompts[index / 2 % 2];
            let piece = [17, 1, 23, 40][index % 4];
            let difference = check(&name, &model, layout, prompt, piece, options);
            if difference > worst.0 {
                worst = (difference, layout.to_string());
            }
        }
        println!("{name}: {} layouts, largest difference {:e} on {}", all.len(), worst.0, worst.1);
    }
}

#[test]
fn every_fixture_on_one_rank() {
    let mut count = 0;
    for entry in std::fs::read_dir(directory("")).expect("the fixtures are in the repository") {
        let path = entry.expect("a file").path();
        if !path.is_dir() {
            continue;
        }
        count += 1;
        for (name, model, prompts) in fixtures(&path.file_name().unwrap().to_string_lossy()) {
            let layout = layouts(&model.shape(), 1, &[16])[0];
            for prompt in &prompts {
                let difference = check(&name, &model, layout, prompt, 64, precise());
                println!("{name}: largest difference {difference:e}");
            }
        }
    }
    assert_eq!(count, 12, "every fixture is compared");
}

#[test]
fn dense_models_on_every_layout() {
    ["llama3", "mistral", "qwen2.5", "qwen3", "gemma3"].iter().for_each(|name| check_all(name, 4));
}

#[test]
fn experts_on_every_layout() {
    ["mixtral", "qwen3-moe", "gpt-oss", "gpt-oss-mxfp4"].iter().for_each(|name| check_all(name, 4));
}

#[test]
fn latents_on_every_layout() {
    ["deepseek-v2", "deepseek-v3", "deepseek-v3-fp8"].iter().for_each(|name| check_all(name, 4));
}

/// What runs unless asked otherwise: KV in f16, and activations as int8 against MXFP4 (FP8 meets
/// floats). Logits here reach 4.5, and where two experts are close a token may take the other.
#[test]
fn the_default_is_close() {
    let options = EngineOptions { max_logits: 64, max_step_tokens: 64, ..EngineOptions::default() };
    for (name, largest, mean) in [("deepseek-v3-fp8", 0.1, 0.005), ("gpt-oss-mxfp4", 1.0, 0.03)] {
        for (name, model, prompts) in fixtures(name) {
            for layout in layouts(&model.shape(), 2, &[16]) {
                for prompt in &prompts {
                    let mut engine = engine(&model, layout, options);
                    let found = logits(&mut engine, &prompt.tokens, 64);
                    let (worst, _) = largest_difference(&found, &prompt.logits);
                    let pairs = found.iter().zip(&prompt.logits);
                    let sum: f32 = pairs.map(|(a, b)| (a - b).abs()).sum();
                    let average = sum / found.len() as f32;
                    println!("{name}, {layout}: {worst}, {average} on average");
                    assert!(worst < largest && average < mean, "{name}, {layout}: {worst}");
                }
            }
        }
    }
}

#[test]
fn eight_ranks() {
    for name in ["deepseek-v3", "gpt-oss", "qwen3-moe"] {
        for (name, model, prompts) in fixtures(name) {
            for strategy in helix_layout::Strategy::ALL {
                for qkv in QkvMode::ALL {
                    for layout in Layout::candidates(&model.shape(), 8, strategy, 2, qkv) {
                        check(&name, &model, layout, &prompts[1], 29, precise());
                    }
                }
            }
        }
    }
}
