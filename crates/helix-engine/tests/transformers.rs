//! Logits of Hugging Face transformers, for tiny models of every architecture and RoPE variant:
//! see `fixtures/README.md`.

mod common;

use common::{engine, largest_difference, layouts, logits, precise};
use helix_engine::sampler::greedy;
use helix_model::Model;
use helix_scheduler::{Step, Wanted};
use safetensors::SafeTensors;
use std::path::PathBuf;
use std::sync::Arc;

/// transformers' own f32 differs from its f64 by up to 3e-5 on models of this size.
const TOLERANCE: f32 = 1e-4;

struct Prompt {
    tokens: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
}

fn fixtures() -> Vec<(String, Arc<Model>, Vec<Prompt>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&folder).expect("the fixtures are in the repository") {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let model = Arc::new(Model::open(&path).expect("a fixture opens"));
        let bytes = std::fs::read(path.with_extension("safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let words = |name: String| -> Vec<u32> {
            let data = tensors.tensor(&name).unwrap().data().as_chunks::<4>().0;
            data.iter().map(|word| u32::from_le_bytes(*word)).collect()
        };
        let prompts = (0..2).map(|i| Prompt {
            tokens: words(format!("tokens.{i}")),
            logits: words(format!("logits.{i}")).into_iter().map(f32::from_bits).collect(),
            greedy: words(format!("greedy.{i}")),
        });
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        all.push((name, model, prompts.collect()));
    }
    assert_eq!(all.len(), 11, "every fixture is compared");
    all
}

#[test]
fn logits_match_on_one_rank() {
    for (name, model, prompts) in fixtures() {
        let layout = layouts(&model.shape(), 1, &[16])[0];
        let mut engine = engine(&model, layout, precise());
        for (i, prompt) in prompts.iter().enumerate() {
            engine.release(0);
            let found = logits(&mut engine, &prompt.tokens, 64);
            let (difference, at) = largest_difference(&found, &prompt.logits);
            println!("{name}, prompt {i}: largest difference {difference:e}");
            assert!(difference < TOLERANCE, "{name}, prompt {i}: {difference} at {at}");
        }
    }
}

#[test]
fn logits_and_greedy_tokens_match_on_every_layout_of_up_to_4_ranks() {
    for (name, model, prompts) in fixtures() {
        let mut worst = (0.0, String::new());
        let all = layouts(&model.shape(), 4, &[1, 16]);
        for (index, layout) in all.iter().enumerate() {
            let mut engine = engine(&model, *layout, precise());
            let prompt = &prompts[index % 2];
            // Pieces that end inside blocks; and now and then token by token.
            let piece = [17, 1, 23, 40][index % 4];
            let found = logits(&mut engine, &prompt.tokens, piece);
            let (difference, at) = largest_difference(&found, &prompt.logits);
            assert!(difference < TOLERANCE, "{name}, {layout}: {difference} at {at}");
            if difference > worst.0 {
                worst = (difference, layout.to_string());
            }
            let vocab = model.config.vocab;
            let mut token = greedy(&found[found.len() - vocab..]);
            let mut step = Step::default();
            for (i, &expected) in prompt.greedy.iter().enumerate() {
                assert_eq!(token, expected, "{name}, {layout}: greedy token {i}");
                step.clear();
                step.push(0, prompt.tokens.len() + i, &[token], Wanted::Last);
                token = greedy(engine.step(&step).unwrap());
            }
        }
        println!("{name}: {} layouts, largest difference {:e} on {}", all.len(), worst.0, worst.1);
    }
}
