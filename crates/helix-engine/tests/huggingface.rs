//! Logits of Hugging Face transformers for tiny models of every architecture, read from their
//! directories as they are, and from GGUF where ggml has the architecture: see
//! `fixtures/README.md`.

mod common;

use common::answers::{Prompt, prompts};
use common::directories::{names, path};
use common::{distinct, engine, largest_difference, layouts, logits, precise};
use helix_engine::{EngineOptions, FfnReduce, MlaUp};
use helix_layout::Layout;
use helix_model::Model;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// transformers' own f32 differs from its f64 by up to 3e-5 on these.
const TOLERANCE: f32 = 1e-3;

/// Every fixture: a directory, or a GGUF file of the same weights, also as converters once wrote it.
fn fixtures(name: &str) -> Vec<(String, Arc<Model>, [Prompt; 2])> {
    let mut all = Vec::new();
    for file in ["", ".gguf", "-older.gguf"].map(|end| path(&format!("{name}{end}"))) {
        if file.exists() {
            let model = Model::open(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
            let answers = path(&format!("{name}.safetensors"));
            let name = file.file_name().expect("a name").to_string_lossy().into_owned();
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
    let place = format!("{name}, {layout}");
    prompt.check_greedy(&mut engine, &found[found.len() - vocab..], &place);
    difference
}

/// Every legal layout of so many ranks, in pieces that end inside blocks and windows.
fn check_all(name: &str, ranks: RangeInclusive<usize>, kv_blocks: &[usize]) {
    for (name, model, prompts) in fixtures(name) {
        let mut worst = (0.0, String::new());
        let mut all = distinct(&model, *ranks.end(), kv_blocks);
        all.retain(|layout| ranks.contains(&layout.ranks()));
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
    for name in names() {
        for (name, model, prompts) in fixtures(&name) {
            let layout = layouts(&model.shape(), 1, &[16])[0];
            for prompt in &prompts {
                let difference = check(&name, &model, layout, prompt, 64, precise());
                println!("{name}: largest difference {difference:e}");
            }
        }
    }
}

const DENSE: [&str; 5] = ["llama3", "mistral", "qwen2.5", "qwen3", "gemma3"];
const EXPERTS: [&str; 4] = ["mixtral", "qwen3-moe", "gpt-oss", "gpt-oss-mxfp4"];
const LATENTS: [&str; 3] = ["deepseek-v2", "deepseek-v3", "deepseek-v3-fp8"];

#[test]
fn dense_models_on_every_layout() {
    DENSE.iter().for_each(|name| check_all(name, 1..=4, &[1, 16]));
}

#[test]
fn experts_on_every_layout() {
    EXPERTS.iter().for_each(|name| check_all(name, 1..=4, &[1, 16]));
}

#[test]
fn latents_on_every_layout() {
    LATENTS.iter().for_each(|name| check_all(name, 1..=4, &[1, 16]));
}

#[test]
fn every_layout_of_5_to_8_ranks() {
    for name in DENSE.into_iter().chain(EXPERTS).chain(LATENTS) {
        check_all(name, 5..=8, &[2]);
    }
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
