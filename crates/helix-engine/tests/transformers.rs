//! Logits of Hugging Face transformers, for tiny models of every architecture and RoPE variant:
//! see `fixtures/README.md`.

mod common;

use common::answers::{Prompt, prompts};
use common::{engine, largest_difference, layouts, logits, precise};
use helix_model::Model;
use std::path::PathBuf;
use std::sync::Arc;

/// transformers' own f32 differs from its f64 by up to 3e-5 on models of this size.
const TOLERANCE: f32 = 1e-4;

fn fixtures() -> Vec<(String, Arc<Model>, [Prompt; 2])> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&folder).expect("the fixtures are in the repository") {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let model = Arc::new(Model::open(&path).expect("a fixture opens"));
        let prompts = prompts(&path.with_extension("safetensors"));
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        all.push((name, model, prompts));
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
            let place = format!("{name}, {layout}");
            prompt.check_greedy(&mut engine, &found[found.len() - vocab..], &place);
        }
        println!("{name}: {} layouts, largest difference {:e} on {}", all.len(), worst.0, worst.1);
    }
}
