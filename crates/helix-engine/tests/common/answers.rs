//! Prompts, and what transformers answers: see `fixtures/README.md`.

use helix_engine::Engine;
use helix_engine::sampler::greedy;
use helix_scheduler::{Step, Wanted};
use safetensors::SafeTensors;
use std::path::Path;

/// A prompt with its answers.
pub struct Prompt {
    pub tokens: Vec<u32>,
    /// `[tokens, vocab]`
    pub logits: Vec<f32>,
    /// How it goes on, by the largest logit.
    pub greedy: Vec<u32>,
}

/// Both prompts of a fixture's file of answers.
pub fn prompts(answers: &Path) -> [Prompt; 2] {
    let bytes = std::fs::read(answers).expect("answers of a fixture");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let words = |name: String| -> Vec<u32> {
        let data = tensors.tensor(&name).expect("a tensor of the fixture").data();
        data.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
    };
    [0, 1].map(|i| Prompt {
        tokens: words(format!("tokens.{i}")),
        logits: words(format!("logits.{i}")).into_iter().map(f32::from_bits).collect(),
        greedy: words(format!("greedy.{i}")),
    })
}

impl Prompt {
    /// Asserts that the engine goes on as transformers did. It has run the prompt, whose last token
    /// has the logits `last [vocab]`.
    #[track_caller]
    pub fn check_greedy(&self, engine: &mut Engine, last: &[f32], place: &str) {
        let mut token = greedy(last);
        let mut step = Step::default();
        for (i, &expected) in self.greedy.iter().enumerate() {
            assert_eq!(token, expected, "{place}: greedy token {i}");
            step.clear();
            step.push(0, self.tokens.len() + i, &[token], Wanted::Last);
            token = greedy(engine.step(&step).expect("a step runs"));
        }
    }
}
