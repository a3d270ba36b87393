//! The state machine: submit, next step, commit, cancel.

use std::collections::VecDeque;

use crate::{Finish, Limits, LimitsError, Refusal, Request, SequenceId, Step, Wanted};

/// Decides which tokens run next.
///
/// The caller's loop: `next_step`, run it, `commit` one token for each run that wanted logits.
/// `commit` and `cancel` say which slots become free; the engine must let go of what it stored
/// in them before it runs another step.
#[derive(Clone, Debug)]
pub struct Scheduler {
    limits: Limits,
    /// Requests without a slot, oldest first.
    waiting: VecDeque<Sequence>,
    /// What runs in each slot.
    slots: Vec<Option<Sequence>>,
    /// The taken slots, in the order in which they were.
    order: Vec<usize>,
    /// Sum of what the running sequences have reserved, in tokens.
    kv_reserved: usize,
    next_id: u64,
}

/// A request on its way.
#[derive(Clone, Debug)]
struct Sequence {
    id: SequenceId,
    prompt: Vec<u32>,
    /// Tokens that have run, or are in the step that runs: the position of the next.
    stored: usize,
    next: Next,
    /// New tokens still to come.
    left: usize,
    /// Why it ends when none is left.
    at_limit: Finish,
    /// Its share of the KV budget, enough for its last token, in tokens.
    reserved: usize,
}

/// What a sequence runs next.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// More of its prompt.
    Prompt,
    /// Nothing, until the token that its last run yields is committed.
    Awaited,
    /// The token committed last.
    Token(u32),
}

/// What became of a committed token's sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a sequence that finished has left its slot, and the engine must release that"]
pub struct Committed {
    /// The sequence that the token belongs to.
    pub id: SequenceId,
    /// Why it ended, if it did; its slot is then free.
    pub finished: Option<Finish>,
}

/// What a cancelled sequence was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a sequence that ran has left its slot, and the engine must release that"]
pub enum Cancelled {
    /// Nothing: it had finished, or was cancelled before.
    Unknown,
    /// It waited for a slot.
    Waiting,
    /// It ran in this slot, which is now free.
    Running {
        /// The slot.
        slot: usize,
    },
}

impl Scheduler {
    /// A scheduler with nothing to do.
    pub fn new(limits: Limits) -> Result<Self, LimitsError> {
        limits.validate()?;
        Ok(Self {
            limits,
            waiting: VecDeque::new(),
            slots: std::iter::repeat_with(|| None).take(limits.max_sequences).collect(),
            order: Vec::with_capacity(limits.max_sequences),
            kv_reserved: 0,
            next_id: 0,
        })
    }

    /// Takes a request on, or says which limit forbids that. What is taken on can always finish.
    pub fn submit(&mut self, request: Request) -> Result<SequenceId, Refusal> {
        let sequence = self.plan(request)?;
        self.admit_waiting();
        let at_once = self.waiting.is_empty() && self.fits(&sequence);
        let max_waiting = self.limits.max_waiting;
        if !at_once && self.waiting.len() >= max_waiting {
            return Err(Refusal::QueueFull { waiting: self.waiting.len(), max_waiting });
        }
        let id = sequence.id;
        self.next_id += 1;
        self.waiting.push_back(sequence);
        self.admit_waiting();
        Ok(id)
    }

    /// Fills `step` with what runs next; false, and an empty step, if nothing can.
    ///
    /// One token of every sequence that decodes, then pieces of prompts, both in the order in
    /// which sequences got their slots. A sequence whose last token was not committed is left out.
    pub fn next_step(&mut self, step: &mut Step) -> bool {
        step.clear();
        self.admit_waiting();
        for &slot in &self.order {
            let sequence = running(&mut self.slots, slot);
            if let Next::Token(token) = sequence.next {
                step.push(slot, sequence.stored, &[token], Wanted::Last);
                sequence.stored += 1;
                sequence.next = Next::Awaited;
            }
        }
        for &slot in &self.order {
            let room = self.limits.max_step_tokens - step.tokens.len();
            let sequence = running(&mut self.slots, slot);
            if let Next::Prompt = sequence.next
                && room > 0
            {
                let rest = &sequence.prompt[sequence.stored..];
                let piece = &rest[..rest.len().min(room)];
                let is_last = piece.len() == rest.len();
                let logits = if is_last { Wanted::Last } else { Wanted::None };
                step.push(slot, sequence.stored, piece, logits);
                sequence.stored += piece.len();
                sequence.next = if is_last { Next::Awaited } else { Next::Prompt };
            }
        }
        !step.is_empty()
    }

    /// Appends `token` to the sequence in `slot`, whose last run wanted it; `is_end` says that it
    /// ends the sequence. Nothing, if that sequence was cancelled since the step was made.
    ///
    /// Commit what a step yields before asking for the next: a slot may change hands.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn commit(&mut self, slot: usize, token: u32, is_end: bool) -> Option<Committed> {
        let sequence = self.slots[slot].as_mut().filter(|s| matches!(s.next, Next::Awaited))?;
        let id = sequence.id;
        sequence.left -= 1;
        sequence.next = Next::Token(token);
        let finished = match (is_end, sequence.left) {
            (true, _) => Some(Finish::EndToken),
            (false, 0) => Some(sequence.at_limit),
            (false, _) => None,
        };
        if finished.is_some() {
            self.free(slot);
        }
        Some(Committed { id, finished })
    }

    /// Forgets a sequence, wherever it is. A token of it that is on its way will not be taken.
    pub fn cancel(&mut self, id: SequenceId) -> Cancelled {
        if let Some(index) = self.waiting.iter().position(|s| s.id == id) {
            self.waiting.remove(index);
            return Cancelled::Waiting;
        }
        match self.order.iter().copied().find(|&slot| self.sequence(slot) == Some(id)) {
            Some(slot) => {
                self.free(slot);
                Cancelled::Running { slot }
            }
            None => Cancelled::Unknown,
        }
    }

    /// The limits it keeps.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The sequence that runs in `slot`, if one does.
    pub fn sequence(&self, slot: usize) -> Option<SequenceId> {
        self.slots[slot].as_ref().map(|s| s.id)
    }

    /// How many sequences have a slot.
    pub fn running(&self) -> usize {
        self.order.len()
    }

    /// How many requests wait for one.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How much of `kv_tokens` the running sequences have reserved, in tokens.
    pub fn kv_reserved(&self) -> usize {
        self.kv_reserved
    }

    /// Works out what a request will take, or why it can never run.
    fn plan(&self, request: Request) -> Result<Sequence, Refusal> {
        let Request { prompt, max_new_tokens } = request;
        let &Limits { max_context, kv_tokens, .. } = &self.limits;
        if prompt.is_empty() {
            return Err(Refusal::EmptyPrompt);
        }
        if max_new_tokens == 0 {
            return Err(Refusal::NoNewTokens);
        }
        if prompt.len() > max_context {
            return Err(Refusal::PromptPastContext { prompt: prompt.len(), max_context });
        }
        // A sequence's last token is never run, so never stored.
        let room = max_context - prompt.len() + 1;
        let left = max_new_tokens.min(room);
        let at_limit = if max_new_tokens <= room { Finish::Length } else { Finish::Context };
        let reserved = self.limits.kv_share(prompt.len() + (left - 1));
        if reserved > kv_tokens {
            let prompt = prompt.len();
            return Err(Refusal::PastKvBudget { prompt, needed: reserved, kv_tokens });
        }
        let id = SequenceId(self.next_id);
        Ok(Sequence { id, prompt, stored: 0, next: Next::Prompt, left, at_limit, reserved })
    }

    fn fits(&self, sequence: &Sequence) -> bool {
        self.order.len() < self.limits.max_sequences
            && sequence.reserved <= self.limits.kv_tokens - self.kv_reserved
    }

    /// Gives slots to those who wait, strictly in order: a large request is not overtaken.
    fn admit_waiting(&mut self) {
        while self.waiting.front().is_some_and(|first| self.fits(first)) {
            let slot = self.slots.iter().position(Option::is_none);
            let slot = slot.expect("fewer sequences run than there are slots");
            let sequence = self.waiting.pop_front().expect("the first was just looked at");
            self.kv_reserved += sequence.reserved;
            self.slots[slot] = Some(sequence);
            self.order.push(slot);
        }
    }

    fn free(&mut self, slot: usize) {
        let sequence = self.slots[slot].take().expect("only a taken slot is freed");
        self.kv_reserved -= sequence.reserved;
        self.order.retain(|&taken| taken != slot);
    }
}

/// The sequence in a slot that is known to be taken.
fn running(slots: &mut [Option<Sequence>], slot: usize) -> &mut Sequence {
    slots[slot].as_mut().expect("the order lists taken slots only")
}

#[cfg(test)]
mod tests;
