//! What the scheduler must never exceed.

/// What the scheduler must never exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that run at once: the slots of the engine.
    pub max_sequences: usize,
    /// Tokens of one step; at least `max_sequences`, so that every sequence gets its token.
    pub max_step_tokens: usize,
    /// Tokens that one sequence may store.
    pub max_context: usize,
    /// Tokens that all running sequences together may store.
    pub kv_tokens: usize,
    /// Tokens that the engine hands out KV memory by: a sequence's share of `kv_tokens` is
    /// rounded up to a multiple.
    pub kv_granule: usize,
    /// Requests that may wait for a slot or for KV; the next one is refused.
    pub max_waiting: usize,
}

impl Limits {
    /// The most sequences that may run at once.
    pub const MAX_SEQUENCES: usize = 1 << 16;

    pub(crate) fn validate(&self) -> Result<(), LimitsError> {
        let at_least_one = [
            ("max_sequences", self.max_sequences),
            ("max_step_tokens", self.max_step_tokens),
            ("max_context", self.max_context),
            ("kv_tokens", self.kv_tokens),
            ("kv_granule", self.kv_granule),
        ];
        if let Some(&(name, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err(LimitsError::Zero { name });
        }
        let &Self { max_sequences, max_step_tokens, .. } = self;
        if max_sequences > Self::MAX_SEQUENCES {
            return Err(LimitsError::TooManySequences { max_sequences, most: Self::MAX_SEQUENCES });
        }
        if max_step_tokens < max_sequences {
            return Err(LimitsError::StepTooSmall { max_sequences, max_step_tokens });
        }
        Ok(())
    }

    /// What storing `tokens` takes of `kv_tokens`.
    pub(crate) fn kv_share(&self, tokens: usize) -> usize {
        tokens.checked_next_multiple_of(self.kv_granule).unwrap_or(usize::MAX)
    }
}

/// Why limits were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// A limit under which nothing could run.
    #[error("{name}=0 would let nothing run; it is at least 1")]
    Zero {
        /// The limit.
        name: &'static str,
    },
    /// More sequences than are worth a slot each.
    #[error("max_sequences={max_sequences} is more than the {most} that can run at once")]
    TooManySequences {
        /// What was asked for.
        max_sequences: usize,
        /// The largest legal value.
        most: usize,
    },
    /// A step that could not hold one token of each sequence.
    #[error(
        "max_step_tokens={max_step_tokens} leaves some of max_sequences={max_sequences} without \
         a token per step; raise it to {max_sequences}, or run fewer sequences"
    )]
    StepTooSmall {
        /// Sequences at once.
        max_sequences: usize,
        /// Tokens per step.
        max_step_tokens: usize,
    },
}
