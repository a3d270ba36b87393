//! What goes from connections to the engine's thread, and what comes back.

use helix_engine::sampler::Sampler;
use helix_scheduler::{Refusal, Request};
use serde::Serialize;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// What the engine's thread is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Take this on, and say whether.
    Submit(Box<Job>, oneshot::Sender<Result<(), Refusal>>),
    /// Take no more on; end when nothing is left to do.
    Drain,
}

/// A text to make.
pub(crate) struct Job {
    pub request: Request,
    /// It has seen the prompt.
    pub sampler: Sampler,
    /// Not empty, each of them.
    pub stops: Vec<String>,
    /// Whether tokens that end a text end it.
    pub ends: bool,
    /// When the request came.
    pub arrived: Instant,
    /// Where the text goes. That nobody receives it any more cancels the job. It has no bound, so
    /// that a slow reader stalls nobody; what it may hold is what one context may.
    pub events: mpsc::UnboundedSender<Event>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({} prompt tokens)", self.request.prompt.len())
    }
}

/// What becomes of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// More text: whole characters, and not empty.
    Text(String),
    /// It is complete.
    Done(Done),
    /// It can't go on: why.
    Failed(String),
}

/// How a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub finish: Finish,
    /// Tokens that were drawn, one that ends the text among them.
    pub completion_tokens: usize,
}

/// Why a text ended, as OpenAI's API says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// It is as long as was asked for, or as the context is.
    Length,
}
