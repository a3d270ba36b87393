//! The engine's thread: takes jobs on, runs steps, sends text.

use crate::app::{Phase, Shared};
use crate::job::{Command, Done, Event, Finish, Job};
use crate::metrics::Outcome;
use crate::stops::Stops;
use helix_engine::sampler::{Sampler, SamplerError};
use helix_engine::{Engine, EngineError};
use helix_model::{StreamDecoder, Tokenizer};
use helix_scheduler::{Cancelled, Refusal, Scheduler, SequenceId, Step, Wanted};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;
use tokio::sync::mpsc::UnboundedSender;

/// Runs jobs until it is told to drain and has, or the engine fails.
pub(crate) struct Worker<'t> {
    engine: Engine,
    scheduler: Scheduler,
    tokenizer: &'t Tokenizer,
    inbox: Receiver<Command>,
    shared: &'t Shared,
    /// What was taken on and is not complete.
    texts: HashMap<SequenceId, Text<'t>>,
    draining: bool,
}

/// A job on its way.
struct Text<'t> {
    sampler: Sampler,
    decoder: StreamDecoder<'t>,
    stops: Stops,
    ends: bool,
    events: UnboundedSender<Event>,
    completion_tokens: usize,
    /// When the request came, or the last token.
    last: Instant,
}

impl<'t> Worker<'t> {
    /// A worker without work. The scheduler's limits must be the engine's.
    pub fn new(
        engine: Engine,
        scheduler: Scheduler,
        tokenizer: &'t Tokenizer,
        inbox: Receiver<Command>,
        shared: &'t Shared,
    ) -> Worker<'t> {
        let texts = HashMap::new();
        Worker { engine, scheduler, tokenizer, inbox, shared, texts, draining: false }
    }

    /// Works until it has drained.
    ///
    /// # Errors
    /// A step failed; every job was told.
    pub fn run(mut self) -> Result<(), EngineError> {
        let limits = self.scheduler.limits();
        let mut step = Step::with_capacity(limits.max_step_tokens, limits.max_sequences);
        while self.take_commands() {
            self.cancel_abandoned();
            if self.scheduler.next_step(&mut step)
                && let Err(error) = self.run_step(&step)
            {
                self.fail(&error);
                return Err(error);
            }
            self.publish();
        }
        Ok(())
    }

    /// Does what it is told; sleeps while there is nothing to run. False when it has drained.
    fn take_commands(&mut self) -> bool {
        loop {
            let command = match (self.texts.is_empty(), self.draining) {
                (true, true) => return false,
                (true, false) => self.inbox.recv().map_err(|_| TryRecvError::Disconnected),
                (false, _) => self.inbox.try_recv(),
            };
            match command {
                Ok(Command::Submit(job, reply)) if !self.draining => {
                    // Whoever is gone before the reply is gone from the events, too.
                    let _ = reply.send(self.submit(*job));
                    self.publish();
                }
                Ok(Command::Drain) | Err(TryRecvError::Disconnected) if !self.draining => {
                    self.draining = true;
                }
                // A submission of which the reply is dropped comes too late.
                Ok(_) => {}
                Err(_) => return true,
            }
        }
    }

    fn submit(&mut self, job: Job) -> Result<(), Refusal> {
        let Job { request, sampler, stops, ends, arrived, events } = job;
        let prompt_tokens = request.prompt.len();
        let decoder = self.tokenizer.stream(&request.prompt);
        let id = self.scheduler.submit(request)?;
        self.shared.metrics.prompt_tokens.fetch_add(prompt_tokens as u64, Ordering::Relaxed);
        let stops = Stops::new(&stops);
        let completion_tokens = 0;
        let text = Text { sampler, decoder, stops, ends, events, completion_tokens, last: arrived };
        self.texts.insert(id, text);
        Ok(())
    }

    /// Forgets those whom nobody listens to any more.
    fn cancel_abandoned(&mut self) {
        let Self { engine, scheduler, shared, texts, .. } = self;
        texts.retain(|&id, text| {
            if !text.events.is_closed() {
                return true;
            }
            cancel(engine, scheduler, id);
            shared.metrics.count(Outcome::Cancelled);
            false
        });
    }

    /// Runs a step, and draws a token for each sequence that gets one.
    fn run_step(&mut self, step: &Step) -> Result<(), EngineError> {
        let vocab = self.engine.vocab();
        let mut rows = self.engine.step(step)?.chunks_exact_mut(vocab);
        let mut over = Vec::new();
        for run in step.runs.iter().filter(|run| run.logits == Wanted::Last) {
            let logits = rows.next().expect("a row for each run that wants one");
            let id = self.scheduler.sequence(run.slot).expect("what ran has its slot");
            let text = self.texts.get_mut(&id).expect("what runs was taken on");
            let (token, end) = match text.next(logits, self.tokenizer, self.shared) {
                Ok(drawn) => drawn,
                // No token comes of it, so it does not matter which ends the sequence.
                Err(error) => (0, Some(End::Failure(error.to_string()))),
            };
            let committed = self.scheduler.commit(run.slot, token, end.is_some());
            let is_over = committed.is_some_and(|committed| committed.finished.is_some());
            over.extend(is_over.then(|| (id, run.slot, end.unwrap_or(End::Length))));
        }
        for (id, slot, end) in over {
            self.engine.release(slot);
            let text = self.texts.remove(&id).expect("it ran just now");
            self.shared.metrics.count(text.finish(end));
        }
        Ok(())
    }

    /// Tells all that there is nothing more to come.
    fn fail(&mut self, error: &EngineError) {
        self.shared.set_phase(Phase::Failed);
        for (_, text) in self.texts.drain() {
            self.shared.metrics.count(text.finish(End::Failure(error.to_string())));
        }
        self.publish();
    }

    fn publish(&self) {
        let metrics = &self.shared.metrics;
        metrics.running.store(self.scheduler.running() as u64, Ordering::Relaxed);
        metrics.waiting.store(self.scheduler.waiting() as u64, Ordering::Relaxed);
    }
}

/// Forgets a sequence, and what the engine has of it.
fn cancel(engine: &mut Engine, scheduler: &mut Scheduler, id: SequenceId) {
    if let Cancelled::Running { slot } = scheduler.cancel(id) {
        engine.release(slot);
    }
}

/// How a text ends.
enum End {
    /// By a token of the model's.
    Token,
    /// By a stop string, with which no more text comes out.
    StopString,
    /// By the request's or the context's limit.
    Length,
    /// Without a token.
    Failure(String),
}

impl Text<'_> {
    /// Draws a token from `logits [vocab]` and sends the text that it makes certain; tells whether
    /// that ends it.
    fn next(
        &mut self,
        logits: &mut [f32],
        tokenizer: &Tokenizer,
        shared: &Shared,
    ) -> Result<(u32, Option<End>), SamplerError> {
        let token = self.sampler.sample(logits)?;
        let now = Instant::now();
        let times = match self.completion_tokens {
            0 => &shared.metrics.first,
            _ => &shared.metrics.others,
        };
        times.add(now - std::mem::replace(&mut self.last, now));
        self.completion_tokens += 1;
        shared.metrics.completion_tokens.fetch_add(1, Ordering::Relaxed);
        if self.ends && tokenizer.is_end(token) {
            return Ok((token, Some(End::Token)));
        }
        self.sampler.accept(token);
        let (text, stopped) = self.stops.push(&self.decoder.push(token));
        send(&self.events, text);
        Ok((token, stopped.then_some(End::StopString)))
    }

    /// Sends what was kept back, and how the text ended.
    fn finish(self, end: End) -> Outcome {
        let Text { decoder, stops, events, completion_tokens, .. } = self;
        let finish = match end {
            End::StopString => Finish::Stop,
            End::Token => flush(decoder, stops, &events).unwrap_or(Finish::Stop),
            End::Length => flush(decoder, stops, &events).unwrap_or(Finish::Length),
            End::Failure(why) => {
                let _ = events.send(Event::Failed(why));
                return Outcome::Failed;
            }
        };
        let _ = events.send(Event::Done(Done { finish, completion_tokens }));
        match finish {
            Finish::Stop => Outcome::Stop,
            Finish::Length => Outcome::Length,
        }
    }
}

/// Sends what waited for more text; that may yet complete a stop string.
fn flush(
    decoder: StreamDecoder<'_>,
    mut stops: Stops,
    events: &UnboundedSender<Event>,
) -> Option<Finish> {
    let (text, stopped) = stops.push(&decoder.finish());
    send(events, text);
    if stopped {
        return Some(Finish::Stop);
    }
    send(events, stops.finish());
    None
}

/// Sends text, if there is any. Who is gone is noticed before the next step.
fn send(events: &UnboundedSender<Event>, text: String) {
    if !text.is_empty() {
        let _ = events.send(Event::Text(text));
    }
}
