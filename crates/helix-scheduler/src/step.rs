//! What runs next, in the form in which an engine takes it.

/// Which rows of logits a run wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// None: a piece of a prompt that more of it follows.
    None,
    /// The row of its last token: what the next token is sampled from.
    Last,
    /// The row of every token.
    All,
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// The slot that holds the sequence in the engine.
    pub slot: usize,
    /// Position of the first token in its sequence.
    pub start: usize,
    /// Number of tokens; at least 1.
    pub len: usize,
    /// The logits it wants.
    pub logits: Wanted,
}

impl Run {
    /// How many rows of logits it wants.
    pub fn wanted_rows(&self) -> usize {
        match self.logits {
            Wanted::None => 0,
            Wanted::Last => 1,
            Wanted::All => self.len,
        }
    }
}

/// One pass through the model: tokens of any number of sequences, at most one run of each.
///
/// Meant to be kept and refilled: clearing it keeps its buffers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Every run's tokens, one run after the other.
    pub tokens: Vec<u32>,
    /// The runs; rows of logits come in this order.
    pub runs: Vec<Run>,
}

impl Step {
    /// A step with room for `tokens` tokens in `runs` runs, so that filling it allocates nothing.
    pub fn with_capacity(tokens: usize, runs: usize) -> Self {
        Self { tokens: Vec::with_capacity(tokens), runs: Vec::with_capacity(runs) }
    }

    /// Empties the step and keeps its buffers.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.runs.clear();
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Appends `tokens` of the sequence in `slot`, the first at position `start`.
    ///
    /// # Panics
    /// If there are no tokens.
    pub fn push(&mut self, slot: usize, start: usize, tokens: &[u32], logits: Wanted) {
        assert!(!tokens.is_empty(), "a run of no tokens");
        self.runs.push(Run { slot, start, len: tokens.len(), logits });
        self.tokens.extend_from_slice(tokens);
    }

    /// How many rows of logits the step yields.
    pub fn wanted_rows(&self) -> usize {
        self.runs.iter().map(Run::wanted_rows).sum()
    }

    /// Each run with its tokens.
    pub fn iter(&self) -> impl Iterator<Item = (&Run, &[u32])> {
        let mut rest = self.tokens.as_slice();
        self.runs.iter().map(move |run| {
            let (tokens, after) = rest.split_at(run.len);
            rest = after;
            (run, tokens)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_keep_their_tokens_and_count_their_rows() {
        let mut step = Step::with_capacity(6, 3);
        step.push(2, 10, &[7, 8], Wanted::All);
        step.push(0, 0, &[1, 2, 3], Wanted::None);
        step.push(1, 4, &[9], Wanted::Last);
        assert_eq!(step.wanted_rows(), 3);
        let runs: Vec<_> = step.iter().map(|(run, tokens)| (run.slot, tokens)).collect();
        assert_eq!(runs, [(2, &[7, 8][..]), (0, &[1, 2, 3]), (1, &[9])]);

        let buffers = (step.tokens.capacity(), step.runs.capacity());
        step.clear();
        assert!(step.is_empty());
        assert_eq!((step.tokens.capacity(), step.runs.capacity()), buffers);
    }
}
