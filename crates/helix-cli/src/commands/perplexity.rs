//! `helix perplexity`: how well the model predicts a text.
//!
//! The definition is that of llama.cpp's `tools/perplexity`, so that figures compare.

use super::run::read_text;
use crate::args::{Expected, PerplexityArgs};
use crate::console::{Console, Unit};
use crate::failure::{Failure, Outcome};
use crate::figures::rounded;
use crate::processes::Ranks;
use crate::setup::Choices;
use crate::{output, setup};
use helix_engine::{Engine, EngineOptions};
use helix_model::Tokenizer;
use helix_scheduler::{Step, Wanted};
use serde::Serialize;
use std::thread;

/// Scored tokens of a step: their rows of logits must fit in memory at once.
const SCORED_TOKENS: usize = 128;

/// Runs the command.
pub fn run(mut args: PerplexityArgs, ranks: &Ranks) -> Outcome {
    let console = Console::new(args.output.quiet);
    let text = read_text(&args.file)?;
    let model = setup::open(ranks, &args.model, &args.engine, &console)?;
    let tokenizer = model.tokenizer()?;
    let tokens = tokenizer.encode(&text, true);
    model.check_tokens(&tokens)?;
    let size = args.context;
    let chunks = (tokens.len() / size).min(args.chunks.unwrap_or(usize::MAX));
    if chunks == 0 {
        return Err(Failure::request(format!(
            "{} has {} tokens, less than one chunk of {size}: give a longer text, or a smaller -c",
            args.file.display(),
            tokens.len()
        )));
    }
    if size > model.config.context {
        let trained = model.config.context;
        console.warn(&format!("chunks of {size} are past the {trained} that it was trained for"));
    }
    let layout =
        args.layout.resolve(ranks, &model, &mut args.engine, Expected::one(size), &console)?;
    let options = EngineOptions {
        max_context: size,
        max_logits: SCORED_TOKENS,
        ..setup::options(ranks, &args.engine, &layout, &console)?
    };
    let engine = setup::start(ranks, &model, layout, options, &console)?;
    let bos = tokenizer.bos().filter(|_| adds_bos(&tokenizer));
    let mut scorer = Scorer { engine, step: Step::default(), sum: Sum::default(), size };
    let bar = console.bar("perplexity", chunks as u64, Unit::Count("chunks"));
    for (index, chunk) in tokens.chunks_exact(size).take(chunks).enumerate() {
        scorer.chunk(chunk, bos)?;
        let running = scorer.sum.perplexity();
        if args.output.json {
            bar.message(format!("perplexity {running:.4}"));
        } else {
            bar.beside(|| output::line(&format!("[{}] {running:.4}", index + 1)))?;
        }
        bar.add(1);
    }
    drop(bar);
    report(&args, Choices::new(&args.engine, &model), &scorer, chunks)
}

/// Whether the model's texts start with BOS.
fn adds_bos(tokenizer: &Tokenizer) -> bool {
    tokenizer.bos().is_some() && tokenizer.encode("", true).first().copied() == tokenizer.bos()
}

struct Scorer {
    engine: Engine,
    step: Step,
    sum: Sum,
    /// Tokens of a chunk.
    size: usize,
}

/// Negative log-likelihoods so far.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    tokens: usize,
    nll: f64,
    squares: f64,
}

impl Sum {
    fn add(&mut self, nll: f64) {
        self.tokens += 1;
        self.nll += nll;
        self.squares += nll * nll;
    }

    fn mean(&self) -> f64 {
        self.nll / self.tokens as f64
    }

    fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// Standard error of the perplexity, from the spread of the log-likelihoods.
    fn error(&self) -> Option<f64> {
        let variance = self.squares / self.tokens as f64 - self.mean() * self.mean();
        let of_mean = (variance.max(0.0) / (self.tokens.checked_sub(1)? as f64)).sqrt();
        Some(of_mean * self.perplexity()).filter(|error| error.is_finite())
    }
}

impl Scorer {
    /// Scores the second half of a chunk given all before it.
    fn chunk(&mut self, chunk: &[u32], bos: Option<u32>) -> Outcome {
        let first = self.size / 2;
        let mut tokens = chunk.to_vec();
        tokens[0] = bos.unwrap_or(tokens[0]);
        self.engine.release(0);
        let size = self.engine.options().max_step_tokens;
        let mut start = 0;
        // The last token of a chunk predicts nothing of it, so it is not run.
        let end = tokens.len() - 1;
        while start < end {
            let (len, wanted) = match start < first {
                true => ((first - start).min(size), Wanted::None),
                false => ((end - start).min(SCORED_TOKENS), Wanted::All),
            };
            self.step.clear();
            self.step.push(0, start, &tokens[start..start + len], wanted);
            let vocab = self.engine.vocab();
            let logits = self.engine.step(&self.step)?;
            if wanted == Wanted::All {
                let targets = &tokens[start + 1..start + 1 + len];
                for nll in losses(logits, vocab, targets) {
                    self.sum.add(nll);
                }
            }
            start += len;
        }
        if self.sum.nll.is_finite() {
            return Ok(());
        }
        Err(Failure::running("a logit is not a number: the model's weights are damaged"))
    }
}

/// `-ln softmax(logits)[target]` of each row of `logits [targets, vocab]`, over all processors.
fn losses(logits: &[f32], vocab: usize, targets: &[u32]) -> Vec<f64> {
    let mut losses = vec![0.0; targets.len()];
    let share = targets.len().div_ceil(setup::cores()).max(1);
    thread::scope(|scope| {
        let rows = logits.chunks(share * vocab);
        for ((losses, logits), targets) in
            losses.chunks_mut(share).zip(rows).zip(targets.chunks(share))
        {
            scope.spawn(move || {
                let rows = logits.chunks_exact(vocab).zip(targets);
                losses.iter_mut().zip(rows).for_each(|(out, (row, &t))| *out = loss(row, t));
            });
        }
    });
    losses
}

/// `-ln softmax(row)[target]`, summed in f64.
fn loss(row: &[f32], target: u32) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&logit| f64::from((logit - max).exp())).sum();
    sum.ln() - f64::from(row[target as usize] - max)
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: String,
    layout: String,
    #[serde(flatten)]
    choices: Choices,
    perplexity: f64,
    /// Tokens whose predictions were scored.
    tokens: usize,
    chunks: usize,
    context: usize,
    mean_nll: f64,
    /// Of the perplexity.
    standard_error: Option<f64>,
}

fn report(args: &PerplexityArgs, choices: Choices, scorer: &Scorer, chunks: usize) -> Outcome {
    let sum = &scorer.sum;
    let report = Report {
        model: args.model.display().to_string(),
        layout: scorer.engine.layout().name(),
        choices,
        perplexity: rounded(sum.perplexity(), 6),
        tokens: sum.tokens,
        chunks,
        context: scorer.size,
        mean_nll: rounded(sum.mean(), 8),
        standard_error: sum.error().map(|error| rounded(error, 6)),
    };
    if args.output.json {
        return output::json(&report);
    }
    let error = report.standard_error.map_or(String::new(), |error| format!(" ± {error:.4}"));
    output::line(&format!(
        "perplexity {:.4}{error}, {} tokens scored in {chunks} chunks of {}, {}",
        report.perplexity, report.tokens, report.context, report.layout
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_the_negative_log_of_a_share() {
        let row = [1.0f32, 2.0, 3.0];
        let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        for (target, &logit) in row.iter().enumerate() {
            let expected = -(f64::from(logit).exp() / total).ln();
            assert!((loss(&row, target as u32) - expected).abs() < 1e-6);
        }
        let rows = [row, [1000.0, 0.0, -1000.0], row].concat();
        let all = losses(&rows, 3, &[2, 0, 1]);
        assert_eq!(all, [loss(&row, 2), 0.0, loss(&row, 1)]);
    }

    #[test]
    fn perplexity_of_even_odds() {
        let mut sum = Sum::default();
        (0..10).for_each(|_| sum.add(4f64.ln()));
        assert!((sum.perplexity() - 4.0).abs() < 1e-12);
        assert!(sum.error().unwrap() < 1e-6);
    }
}
