//! Text from a prompt: prefill, then token by token.

use crate::console::{Console, Unit};
use crate::failure::{Failure, Outcome};
use crate::interrupt::Busy;
use helix_engine::sampler::Sampler;
use helix_engine::{Engine, RankCounters};
use helix_model::Tokenizer;
use helix_scheduler::{Step, Wanted};
use serde::Serialize;
use std::time::{Duration, Instant};

/// The engine's slot that the sequence is in.
const SLOT: usize = 0;

/// One sequence, whose KV cache is kept from prompt to prompt.
pub struct Sequence {
    engine: Engine,
    /// What the cache holds.
    cached: Vec<u32>,
    step: Step,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The model ended it.
    End,
    /// It has as many tokens as were asked for.
    Length,
    /// The context is full.
    Context,
    /// Ctrl-C.
    Interrupted,
}

/// A text and how long it took.
#[derive(Debug)]
pub struct Generated {
    /// Its tokens, without one that ends it.
    pub tokens: Vec<u32>,
    /// Its text.
    pub text: String,
    /// Why it ended.
    pub stop: Stop,
    /// Tokens of the prompt that had to be run.
    pub prompt_tokens: usize,
    /// From the call to the first token.
    pub first: Option<Duration>,
    /// From each token to the next.
    pub others: Vec<Duration>,
    /// The ranks' counters of the tokens after the first.
    pub counters: Vec<RankCounters>,
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub struct Until {
    /// Tokens at most.
    pub tokens: usize,
    /// Whether tokens that end a text end it.
    pub ends: bool,
}

impl Sequence {
    /// An empty sequence in an engine that holds none.
    pub fn new(engine: Engine) -> Sequence {
        let step = Step::with_capacity(engine.options().max_step_tokens, 1);
        Sequence { engine, cached: Vec::new(), step }
    }

    /// The engine that runs it.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The sequence becomes `prompt` and then what the model makes of it; `emit` gets text as it
    /// is made. What the cache has of the prompt already is not run again.
    ///
    /// The sequence is at most as long as the engine's context: a longer prompt is refused.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        tokenizer: &Tokenizer,
        sampler: &mut Sampler,
        until: Until,
        console: &Console,
        emit: &mut dyn FnMut(&str) -> Outcome,
    ) -> Outcome<Generated> {
        let busy = Busy::begin();
        let begun = Instant::now();
        let kept = self.keep_prefix(prompt);
        let mut made = Generated::nothing(prompt.len() - kept);
        if !self.prefill(&prompt[kept..], &busy, console)? {
            return Ok(made);
        }
        prompt[kept..].iter().for_each(|&token| sampler.accept(token));
        self.engine.reset_counters();
        let mut decoder = tokenizer.stream(prompt);
        let mut last = begun;
        made.stop = loop {
            let token = sampler.sample(self.engine.logits())?;
            made.record(std::mem::replace(&mut last, Instant::now()), last);
            if until.ends && tokenizer.is_end(token) {
                break Stop::End;
            }
            made.tokens.push(token);
            sampler.accept(token);
            let text = decoder.push(token);
            emit(&text)?;
            made.text += &text;
            if made.tokens.len() == until.tokens {
                break Stop::Length;
            }
            if self.cached.len() == self.engine.options().max_context {
                break Stop::Context;
            }
            if busy.is_stopped() {
                break Stop::Interrupted;
            }
            self.run(&[token], Wanted::Last)?;
        };
        let rest = decoder.finish();
        emit(&rest)?;
        made.text += &rest;
        made.counters = self.engine.counters()?;
        Ok(made)
    }

    /// Truncates the cache to what it has in common with `prompt`, less one token that must be
    /// run for its logits; gives the number of tokens that stay. Where sliding windows have passed
    /// what the rest would see, that is none.
    fn keep_prefix(&mut self, prompt: &[u32]) -> usize {
        let common = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = common.min(prompt.len().saturating_sub(1));
        let kept = if self.engine.can_truncate(SLOT, kept) { kept } else { 0 };
        self.engine.truncate(SLOT, kept);
        self.cached.truncate(kept);
        kept
    }

    /// Runs a prompt in pieces; false if Ctrl-C came before the last.
    fn prefill(&mut self, tokens: &[u32], busy: &Busy, console: &Console) -> Outcome<bool> {
        let context = self.engine.options().max_context;
        check_context(self.cached.len() + tokens.len(), context)?;
        let size = self.engine.options().max_step_tokens;
        let bar = (tokens.len() > size)
            .then(|| console.bar("prompt", tokens.len() as u64, Unit::Count("tokens")));
        let pieces = tokens.len().div_ceil(size);
        for (index, piece) in tokens.chunks(size).enumerate() {
            if busy.is_stopped() {
                return Ok(false);
            }
            let wanted = if index + 1 == pieces { Wanted::Last } else { Wanted::None };
            self.run(piece, wanted)?;
            bar.iter().for_each(|bar| bar.add(piece.len() as u64));
        }
        Ok(true)
    }

    fn run(&mut self, tokens: &[u32], wanted: Wanted) -> Outcome {
        self.step.clear();
        self.step.push(SLOT, self.cached.len(), tokens, wanted);
        self.engine.step(&self.step)?;
        self.cached.extend_from_slice(tokens);
        Ok(())
    }
}

impl Generated {
    fn nothing(prompt_tokens: usize) -> Generated {
        Generated {
            tokens: Vec::new(),
            text: String::new(),
            stop: Stop::Interrupted,
            prompt_tokens,
            first: None,
            others: Vec::new(),
            counters: Vec::new(),
        }
    }

    fn record(&mut self, before: Instant, now: Instant) {
        let took = now - before;
        match self.first {
            None => self.first = Some(took),
            Some(_) => self.others.push(took),
        }
    }
}

/// Refuses a prompt that does not fit.
pub fn check_context(tokens: usize, context: usize) -> Outcome {
    if tokens <= context {
        return Ok(());
    }
    Err(Failure::request(format!(
        "the prompt of {tokens} tokens is past the context of {context}: shorten it by {}, or \
         raise the context (-c {tokens} or more, to leave room for an answer)",
        tokens - context
    )))
}
