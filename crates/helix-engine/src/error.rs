//! What can go wrong while a model runs.

use helix_comm::{CommError, WorldError};
use helix_model::ModelError;

/// Why the engine did not start, or a step did not run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model's files don't hold what a rank needs.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An option that no engine can be sized by.
    #[error("{name} is {value}: it must be from 1 to {max}")]
    Option {
        /// The option's name.
        name: &'static str,
        /// What it was.
        value: usize,
        /// The largest that will do.
        max: usize,
    },
    /// The KV cache does not fit.
    #[error(
        "{ranks} ranks need {needed_mib} MiB for the KV of {sequences} sequences of {context} \
         positions, and {available_mib} MiB are free: shorten the context, or take a smaller KV type"
    )]
    KvMemory {
        /// Ranks of this host.
        ranks: usize,
        /// What they need in all.
        needed_mib: u64,
        /// What the system has.
        available_mib: u64,
        /// Sequences sized for.
        sequences: usize,
        /// Positions of each.
        context: usize,
    },
    /// The system refuses memory or a thread.
    #[error("the system refuses {what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        source: std::io::Error,
    },
    /// A step that does not fit what the engine was sized for, or the sequences that it holds.
    #[error("a step is wrong: {0}")]
    Step(String),
    /// Threads can't be bound to processors.
    #[error("the system does not let threads be bound to processors: leave --pin out")]
    Pin,
    /// A layout that the model of another process can't have.
    #[error("{0}")]
    Layout(String),
    /// Another process can't load its part.
    #[error("rank {rank}: {why}")]
    Refused {
        /// Which.
        rank: usize,
        /// In its words.
        why: String,
    },
    /// Processes lost each other between steps.
    #[error("rank {rank}: {source}")]
    World {
        /// The rank that noticed.
        rank: usize,
        /// What it waited for.
        source: WorldError,
    },
    /// A process said something that makes no sense here.
    #[error("rank {rank} sent something else than was asked for")]
    Protocol {
        /// Which.
        rank: usize,
    },
    /// Ranks lost each other.
    #[error("rank {rank}, step {step}: {source}")]
    Comm {
        /// The rank that noticed.
        rank: usize,
        /// Which step, counted from the start.
        step: u64,
        /// What it waited for.
        source: CommError,
    },
}
