//! What goes in and what comes out.

use std::fmt;

/// A prompt to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its tokens; at least one.
    pub prompt: Vec<u32>,
    /// The most tokens to generate; at least one. `usize::MAX` means as far as the context goes.
    pub max_new_tokens: usize,
}

/// Names a submitted request; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub(crate) u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finish {
    /// It has as many new tokens as were asked for.
    Length,
    /// The caller said that its last token ends it.
    EndToken,
    /// The context is full.
    Context,
}

/// Why a request was refused: the limit it breaks, and by how much.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing to continue.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// Nothing to generate.
    #[error("max_new_tokens=0 asks for nothing; ask for at least 1")]
    NoNewTokens,
    /// A prompt longer than any sequence may be.
    #[error(
        "the prompt of {prompt} tokens is past the context of {max_context}; \
         shorten it by {over}, or raise the context",
        over = prompt.saturating_sub(*max_context)
    )]
    PromptPastContext {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that one sequence may store.
        max_context: usize,
    },
    /// A sequence that the KV cache could not hold even alone.
    #[error(
        "a prompt of {prompt} tokens and what it may generate need KV for {needed} tokens, \
         and the cache holds {kv_tokens}; ask for fewer tokens, or enlarge the cache"
    )]
    PastKvBudget {
        /// Tokens of the prompt.
        prompt: usize,
        /// KV that the whole sequence may take, in tokens.
        needed: usize,
        /// KV there is, in tokens.
        kv_tokens: usize,
    },
    /// As many requests wait as may.
    #[error("{waiting} requests wait already, and no more than {max_waiting} may; try again later")]
    QueueFull {
        /// Requests that wait.
        waiting: usize,
        /// How many may.
        max_waiting: usize,
    },
}
