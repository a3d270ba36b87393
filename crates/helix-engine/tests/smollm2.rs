//! A real model against transformers: SmolLM2-135M-Instruct, Q4_1 weights made f32 on the way.
//! `fixtures/smollm2.safetensors` holds transformers' 8 largest logits at every position.

mod common;

use common::{engine, logits, precise};
use helix_engine::sampler::greedy;
use helix_layout::{Layout, LayoutSpec, Strategy};
use helix_model::Model;
use helix_scheduler::{Step, Wanted};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Logits here go up to 30, after 30 layers.
const TOLERANCE: f32 = 1e-3;

#[test]
fn logits_and_greedy_tokens_are_those_of_transformers() {
    let Some(path) = std::env::var_os("HELIX_TEST_MODEL") else {
        println!("skipped: HELIX_TEST_MODEL does not name SmolLM2-135M-Instruct.Q4_1.gguf");
        return;
    };
    let model = Arc::new(Model::open(Path::new(&path)).expect("the model opens"));
    let fixture =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smollm2.safetensors");
    let bytes = std::fs::read(fixture).expect("the fixture is in the repository");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let words = |name: String| -> Vec<u32> {
        let data = tensors.tensor(&name).expect("a tensor of the fixture").data();
        data.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
    };
    for spec in [LayoutSpec::new(Strategy::Helix, 1, 1), LayoutSpec::new(Strategy::Helix, 2, 2)] {
        let layout = Layout::new(&model.shape(), spec).expect("a legal layout");
        let mut engine = engine(&model, layout, precise());
        for prompt in 0..3 {
            let tokens = words(format!("tokens.{prompt}"));
            let (top, expected) =
                (words(format!("top.{prompt}")), words(format!("logits.{prompt}")));
            engine.release(0);
            let found = logits(&mut engine, &tokens, 23);
            let vocab = model.config.vocab;
            assert_eq!(top.len(), tokens.len() * 8);
            for (i, (&id, &logit)) in top.iter().zip(&expected).enumerate() {
                let (found, expected) = (found[i / 8 * vocab + id as usize], f32::from_bits(logit));
                assert!(
                    (found - expected).abs() < TOLERANCE,
                    "{layout}, prompt {prompt}, position {}, token {id}: {found}, not {expected}",
                    i / 8
                );
            }
            let mut token = greedy(&found[found.len() - vocab..]);
            let mut step = Step::default();
            for (i, expected) in words(format!("greedy.{prompt}")).into_iter().enumerate() {
                assert_eq!(token, expected, "{layout}, prompt {prompt}: greedy token {i}");
                step.clear();
                step.push(0, tokens.len() + i, &[token], Wanted::Last);
                token = greedy(engine.step(&step).expect("a step runs"));
            }
        }
    }
}
