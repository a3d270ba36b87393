//! What all connections share, and how a request becomes a job.

use crate::error::ApiError;
use crate::fields::shown;
use crate::job::{Command, Event, Job};
use crate::metrics::Metrics;
use crate::request::{Ask, Prompt};
use helix_engine::sampler::Sampler;
use helix_model::{ChatTemplate, Message, Tokenizer};
use helix_scheduler::Request;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::Sender;
use std::time::Instant;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{mpsc, oneshot};

/// What the server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Serving,
    /// It finishes what it has taken on, and takes on no more.
    Draining,
    /// The engine failed.
    Failed,
}

/// What connections and the engine's thread both see.
#[derive(Debug)]
pub(crate) struct Shared {
    phase: AtomicU8,
    pub metrics: Metrics,
}

impl Shared {
    pub fn new() -> Shared {
        Shared { phase: AtomicU8::new(Phase::Serving as u8), metrics: Metrics::default() }
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            0 => Phase::Serving,
            1 => Phase::Draining,
            _ => Phase::Failed,
        }
    }

    /// Later phases stay.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::SeqCst);
    }
}

/// What requests are answered from.
pub(crate) struct App {
    /// The model's name for clients.
    pub name: String,
    /// Seconds since 1970 at the start.
    pub created: u64,
    /// Positions of the longest sequence.
    pub context: usize,
    /// Columns of a row of logits.
    pub vocab: usize,
    pub tokenizer: Arc<Tokenizer>,
    /// None if the model has none, so that it can't chat.
    pub template: Option<ChatTemplate>,
    pub worker: Sender<Command>,
    pub shared: Arc<Shared>,
}

/// A job that was taken on.
pub(crate) struct Taken {
    pub prompt_tokens: usize,
    pub events: UnboundedReceiver<Event>,
}

impl App {
    /// Refuses what is not to be answered now, or not by this model.
    pub fn check(&self, model: Option<&str>) -> Result<(), ApiError> {
        match model {
            Some(name) if name != self.name => {
                let (name, served) = (shown(name), &self.name);
                Err(ApiError::no_model(format!(
                    "there is no model {name:?} here: ask for \"model\": {served:?}, or leave it \
                     out"
                )))
            }
            _ => self.check_phase(),
        }
    }

    fn check_phase(&self) -> Result<(), ApiError> {
        match self.shared.phase() {
            Phase::Serving => Ok(()),
            Phase::Draining => Err(ApiError::draining()),
            Phase::Failed => Err(ApiError::engine("the engine failed; the server ends")),
        }
    }

    /// Makes a job of what is asked for and gives it to the engine's thread.
    pub async fn submit(self: &Arc<App>, ask: Ask, arrived: Instant) -> Result<Taken, ApiError> {
        let app = Arc::clone(self);
        let (events, received) = mpsc::unbounded_channel();
        // Templates and tokenizers take their time over a long text: connections don't wait for it.
        let made = tokio::task::spawn_blocking(move || app.job(ask, arrived, events)).await;
        let job = made.map_err(|_| ApiError::engine("the prompt could not be encoded"))??;
        let prompt_tokens = job.request.prompt.len();
        let (reply, answer) = oneshot::channel();
        // Without a worker there is no answer either.
        let _ = self.worker.send(Command::Submit(Box::new(job), reply));
        match answer.await {
            Ok(taken) => taken?,
            Err(_) => {
                self.check_phase()?;
                return Err(ApiError::draining());
            }
        }
        Ok(Taken { prompt_tokens, events: received })
    }

    fn job(
        &self,
        ask: Ask,
        arrived: Instant,
        events: mpsc::UnboundedSender<Event>,
    ) -> Result<Job, ApiError> {
        let Ask { prompt, max_new_tokens, sampling, stops, ends, .. } = ask;
        let prompt = self.encode(prompt)?;
        let sampler = Sampler::new(sampling, self.vocab);
        let mut sampler = sampler.map_err(|error| ApiError::request(error.to_string()))?;
        prompt.iter().for_each(|&token| sampler.accept(token));
        let request = Request { prompt, max_new_tokens };
        Ok(Job { request, sampler, stops, ends, arrived, events })
    }

    fn encode(&self, prompt: Prompt) -> Result<Vec<u32>, ApiError> {
        let (field, tokens) = match prompt {
            Prompt::Text(text) => ("prompt", self.tokenizer.encode_with_control(&text, true)),
            Prompt::Tokens(tokens) => ("prompt", tokens),
            Prompt::Chat(messages) => ("messages", self.encode_chat(&messages)?),
        };
        // The tokenizer's, too: it may know some that the model has no row for.
        match tokens.iter().find(|&&token| token as usize >= self.vocab) {
            None => Ok(tokens),
            Some(token) => {
                let message = format!("token {token} is none of the model's {}", self.vocab);
                Err(ApiError::field(field, message))
            }
        }
    }

    fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, ApiError> {
        let wrong = |message: String| ApiError::field("messages", message);
        let template = self.template.as_ref().ok_or_else(|| {
            wrong("this model has no chat template: use /v1/completions".to_owned())
        })?;
        let tokens = self.tokenizer.encode_chat(template, messages, true);
        tokens.map_err(|error| wrong(format!("the model's chat template: {error}")))
    }
}
