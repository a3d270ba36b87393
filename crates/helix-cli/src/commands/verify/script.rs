//! What every layout is made to do: the same prompts, then the same tokens.

use crate::failure::Outcome;
use helix_engine::sampler::greedy;
use helix_engine::{Engine, EngineOptions};
use helix_scheduler::{Step, Wanted};

/// Logits of this many last positions of each prompt are compared.
const COMPARED: usize = 64;

/// Prompts that run as sequences of one batch, and a number of tokens to decode after each.
pub struct Script {
    prompts: Vec<Vec<u32>>,
    decode: usize,
}

/// Logits of all compared positions.
pub struct Rows {
    /// `[positions, vocab]`.
    pub logits: Vec<f32>,
    /// Columns of a row.
    pub vocab: usize,
    /// Rows that tokens were chosen from.
    pub chosen: Vec<ChosenRow>,
}

/// A row of logits that a token was chosen from.
#[derive(Clone, Copy, Debug)]
pub struct ChosenRow {
    /// Its index in `Rows::logits`.
    pub row: usize,
    /// Which prompt.
    pub prompt: usize,
    /// Which of the tokens after it, from 0.
    pub index: usize,
}

impl Script {
    /// `prompts` must not be empty, nor any of them; `decode` is at least 1.
    pub fn new(prompts: Vec<Vec<u32>>, decode: usize) -> Script {
        Script { prompts, decode }
    }

    /// The prompts.
    pub fn prompts(&self) -> &[Vec<u32>] {
        &self.prompts
    }

    /// `options` with the sizes that the script needs.
    pub fn options(&self, options: EngineOptions) -> EngineOptions {
        let longest = self.prompts.iter().map(Vec::len).max().unwrap_or(1);
        let compared = self.prompts.iter().map(|prompt| compared(prompt).len()).sum::<usize>();
        EngineOptions {
            max_context: longest.saturating_add(self.decode),
            max_sequences: self.prompts.len(),
            max_step_tokens: options.max_step_tokens.max(compared),
            max_logits: compared.max(self.prompts.len()),
            ..options
        }
    }

    /// Runs the script: position by position with `tokens`, the choices of another run, or else
    /// with its own, which it returns.
    pub fn play(
        &self,
        engine: &mut Engine,
        tokens: Option<&[Vec<u32>]>,
    ) -> Outcome<(Rows, Vec<Vec<u32>>)> {
        let vocab = engine.vocab();
        let mut rows = Rows { logits: Vec::new(), vocab, chosen: Vec::new() };
        self.prefill(engine, &mut rows)?;
        let mut choices = vec![Vec::with_capacity(self.decode); self.prompts.len()];
        let mut step = Step::default();
        for index in 0..self.decode {
            let latest = rows.chosen[rows.chosen.len() - self.prompts.len()..].to_vec();
            step.clear();
            for (prompt, chosen) in latest.iter().enumerate() {
                let own = greedy(rows.row(chosen.row));
                choices[prompt].push(own);
                let token = tokens.map_or(own, |tokens| tokens[prompt][index]);
                step.push(prompt, self.prompts[prompt].len() + index, &[token], Wanted::Last);
            }
            if index + 1 < self.decode {
                let first = rows.logits.len() / vocab;
                rows.logits.extend_from_slice(engine.step(&step)?);
                rows.chosen.extend((0..self.prompts.len()).map(|prompt| ChosenRow {
                    row: first + prompt,
                    prompt,
                    index: index + 1,
                }));
            }
        }
        Ok((rows, choices))
    }

    /// Runs the prompts, the compared ends of all of them in one step.
    fn prefill(&self, engine: &mut Engine, rows: &mut Rows) -> Outcome {
        let mut step = Step::default();
        let size = engine.options().max_step_tokens;
        for (slot, prompt) in self.prompts.iter().enumerate() {
            let before = &prompt[..prompt.len() - compared(prompt).len()];
            for (index, piece) in before.chunks(size).enumerate() {
                step.clear();
                step.push(slot, index * size, piece, Wanted::None);
                engine.step(&step)?;
            }
        }
        step.clear();
        let mut end = 0;
        for (slot, prompt) in self.prompts.iter().enumerate() {
            let tokens = compared(prompt);
            step.push(slot, prompt.len() - tokens.len(), tokens, Wanted::All);
            end += tokens.len();
            rows.chosen.push(ChosenRow { row: end - 1, prompt: slot, index: 0 });
        }
        rows.logits.extend_from_slice(engine.step(&step)?);
        Ok(())
    }
}

/// The end of a prompt whose logits are compared.
fn compared(prompt: &[u32]) -> &[u32] {
    &prompt[prompt.len().saturating_sub(COMPARED)..]
}

impl Rows {
    /// One row of logits.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.logits[row * self.vocab..][..self.vocab]
    }
}
