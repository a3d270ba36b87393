//! A caller that remembers everything, against the state machine.

use std::collections::BTreeMap;

use proptest::prelude::{Strategy, any, prop, prop_oneof, proptest};

use super::*;
use crate::Run;

const ROOMY: Limits = Limits {
    max_sequences: 4,
    max_step_tokens: 16,
    max_context: 64,
    kv_tokens: 256,
    kv_granule: 16,
    max_waiting: 4,
};

fn request(prompt: usize, max_new_tokens: usize) -> Request {
    Request { prompt: (0..prompt as u32).collect(), max_new_tokens }
}

/// What a caller knows of one sequence.
#[derive(Debug)]
struct Known {
    /// Prompt and committed tokens.
    tokens: Vec<u32>,
    prompt: usize,
    max_new_tokens: usize,
    /// The caller ends it at this many new tokens.
    end_at: Option<usize>,
    /// Tokens that have run.
    ran: usize,
    slot: Option<usize>,
}

impl Known {
    fn decodes(&self) -> bool {
        self.ran >= self.prompt
    }

    fn new_tokens(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// The most it may ever store.
    fn reserve(&self, limits: &Limits) -> usize {
        let stored = (self.prompt + self.max_new_tokens - 1).min(limits.max_context);
        stored.next_multiple_of(limits.kv_granule)
    }

    /// Why it should end now, if it should.
    fn finish(&self, limits: &Limits) -> Option<Finish> {
        if self.end_at == Some(self.new_tokens()) {
            Some(Finish::EndToken)
        } else if self.new_tokens() == self.max_new_tokens {
            Some(Finish::Length)
        } else if self.ran == limits.max_context {
            Some(Finish::Context)
        } else {
            None
        }
    }
}

/// A caller that checks every promise at every step.
struct Caller {
    scheduler: Scheduler,
    limits: Limits,
    alive: BTreeMap<SequenceId, Known>,
    step: Step,
    last_started: Option<SequenceId>,
}

impl Caller {
    fn new(limits: Limits) -> Self {
        Self {
            scheduler: Scheduler::new(limits).unwrap(),
            limits,
            alive: BTreeMap::new(),
            step: Step::with_capacity(limits.max_step_tokens, limits.max_sequences),
            last_started: None,
        }
    }

    fn submit(&mut self, prompt: usize, max_new_tokens: usize, end_at: Option<usize>) {
        // Tokens that no other position of any sequence has, so that a mix-up shows.
        let base = (self.scheduler.next_id as u32) << 12;
        let tokens: Vec<_> = (0..prompt as u32).map(|i| base + i).collect();
        let known =
            Known { tokens: tokens.clone(), prompt, max_new_tokens, end_at, ran: 0, slot: None };
        let must_refuse = prompt == 0
            || max_new_tokens == 0
            || prompt > self.limits.max_context
            || known.reserve(&self.limits) > self.limits.kv_tokens;
        match self.scheduler.submit(Request { prompt: tokens, max_new_tokens }) {
            Ok(id) => {
                assert!(!must_refuse, "took on {known:?}");
                assert!(self.alive.insert(id, known).is_none(), "id {id} was used twice");
            }
            Err(Refusal::QueueFull { waiting, max_waiting }) => {
                assert!(!must_refuse);
                assert_eq!((waiting, max_waiting), (self.scheduler.waiting(), waiting));
                assert_eq!(max_waiting, self.limits.max_waiting);
            }
            Err(refusal) => assert!(must_refuse, "{refusal}"),
        }
        assert!(self.scheduler.waiting() <= self.limits.max_waiting);
    }

    fn cancel(&mut self, pick: usize) {
        let Some(&id) = self.alive.keys().nth(pick % self.alive.len().max(1)) else { return };
        let known = self.alive.remove(&id).unwrap();
        match self.scheduler.cancel(id) {
            Cancelled::Running { slot } => assert!(known.slot.is_none_or(|s| s == slot)),
            Cancelled::Waiting => assert_eq!(known.slot, None),
            Cancelled::Unknown => panic!("{id} was alive"),
        }
        assert_eq!(self.scheduler.cancel(id), Cancelled::Unknown);
    }

    /// Makes a step, checks it and commits it, after cancelling one of its sequences if told.
    fn step(&mut self, cancel_before_commit: Option<usize>) -> bool {
        let owed: Vec<_> =
            self.alive.iter().filter(|(_, known)| known.decodes()).map(|(id, _)| *id).collect();
        let mut step = std::mem::take(&mut self.step);
        let buffers = (step.tokens.capacity(), step.runs.capacity());
        let any = self.scheduler.next_step(&mut step);
        assert_eq!((step.tokens.capacity(), step.runs.capacity()), buffers, "it allocated");
        assert_eq!(any, !step.is_empty());

        let ids: Vec<_> = step.iter().map(|(run, tokens)| self.check_run(run, tokens)).collect();
        self.check_order(&step, &ids, &owed);
        self.check_limits(&step);

        if let Some(pick) = cancel_before_commit {
            self.cancel(pick);
        }
        for (run, id) in step.runs.iter().zip(ids) {
            if run.logits == Wanted::Last {
                self.commit(run.slot, id);
            }
        }
        self.step = step;
        any
    }

    /// A run continues its sequence exactly where it stopped, with exactly its tokens.
    fn check_run(&mut self, run: &Run, tokens: &[u32]) -> SequenceId {
        let id = self.scheduler.sequence(run.slot).expect("a run's slot is taken");
        let known = self.alive.get_mut(&id).expect("only what is alive runs");
        assert_eq!(*known.slot.get_or_insert(run.slot), run.slot, "{id} moved");
        if run.start == 0 {
            assert!(self.last_started < Some(id), "{id} overtook {:?}", self.last_started);
            self.last_started = Some(id);
        }
        assert_eq!(run.start, known.ran);
        assert_eq!(tokens, &known.tokens[run.start..run.start + run.len]);
        known.ran += run.len;
        let wanted = if known.ran == known.tokens.len() { Wanted::Last } else { Wanted::None };
        assert_eq!(run.logits, wanted);
        id
    }

    /// Whoever decodes runs, first; then prompts, oldest first, as far as the step goes.
    fn check_order(&self, step: &Step, ids: &[SequenceId], owed: &[SequenceId]) {
        let (decoded, prefilled) = ids.split_at(owed.len());
        let mut decoded = decoded.to_vec();
        decoded.sort();
        assert_eq!(decoded, owed, "everyone who decodes gets one token in every step");
        assert!(prefilled.is_sorted(), "prompts run oldest first: {prefilled:?}");
        let mut cut = self.alive.iter().filter(|(_, k)| k.slot.is_some() && !k.decodes());
        if let Some((first_cut, _)) = cut.next() {
            assert_eq!(step.tokens.len(), self.limits.max_step_tokens, "room was wasted");
            assert!(prefilled.last().is_none_or(|last| last <= first_cut));
        }
    }

    fn check_limits(&self, step: &Step) {
        let limits = &self.limits;
        assert!(step.tokens.len() <= limits.max_step_tokens);
        assert!(step.runs.len() <= limits.max_sequences);
        let mut slots: Vec<_> = step.runs.iter().map(|run| run.slot).collect();
        slots.sort();
        slots.dedup();
        assert_eq!(slots.len(), step.runs.len(), "one run for each sequence");
        assert!(slots.iter().all(|&slot| slot < limits.max_sequences));
        assert!(step.runs.iter().all(|run| run.start + run.len <= limits.max_context));

        let has_slot = |slot| self.scheduler.sequence(slot).map(|id| &self.alive[&id]);
        let running: Vec<_> = (0..limits.max_sequences).filter_map(has_slot).collect();
        assert_eq!(running.len(), self.scheduler.running());
        let reserved: usize = running.iter().map(|known| known.reserve(limits)).sum();
        assert_eq!(reserved, self.scheduler.kv_reserved());
        assert!(reserved <= limits.kv_tokens);
        assert!(running.iter().all(|known| known.ran <= known.reserve(limits)));

        // Nobody waits whom there is room for, unless an older one waits.
        let runs = |id: &SequenceId| {
            (0..limits.max_sequences).any(|slot| self.scheduler.sequence(slot) == Some(*id))
        };
        let waiting: Vec<_> = self.alive.iter().filter(|(id, _)| !runs(id)).collect();
        assert_eq!(waiting.len(), self.scheduler.waiting());
        if let Some((_, oldest)) = waiting.first() {
            let no_slot = running.len() == limits.max_sequences;
            let no_kv = reserved + oldest.reserve(limits) > limits.kv_tokens;
            assert!(no_slot || no_kv, "{oldest:?} waits for nothing");
        }
    }

    fn commit(&mut self, slot: usize, id: SequenceId) {
        let Some(known) = self.alive.get_mut(&id) else {
            assert_eq!(self.scheduler.commit(slot, 0, false), None, "{id} was cancelled");
            return;
        };
        let token = u32::MAX - known.tokens.len() as u32;
        known.tokens.push(token);
        let finished = known.finish(&self.limits);
        let is_end = finished == Some(Finish::EndToken);
        let committed = self.scheduler.commit(slot, token, is_end);
        assert_eq!(committed, Some(Committed { id, finished }));
        assert_eq!(self.scheduler.commit(slot, token, is_end), None, "a token commits once");
        if finished.is_some() {
            self.alive.remove(&id);
            assert_eq!(self.scheduler.sequence(slot), None);
        }
    }

    /// Runs until nothing is left, which takes no more steps than there are tokens.
    fn finish_all(&mut self) {
        let work = |known: &Known| known.prompt + known.max_new_tokens.min(self.limits.max_context);
        let most: usize = self.alive.values().map(work).sum();
        for _ in 0..=most {
            if !self.step(None) {
                break;
            }
        }
        assert!(self.alive.is_empty(), "never finished: {:?}", self.alive);
        assert_eq!((self.scheduler.running(), self.scheduler.waiting()), (0, 0));
        assert_eq!(self.scheduler.kv_reserved(), 0);
    }
}

#[derive(Clone, Debug)]
enum Action {
    Submit { prompt: usize, max_new_tokens: usize, end_at: Option<usize> },
    Step,
    Cancel(usize),
    CancelInFlight(usize),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let max_new_tokens = prop_oneof![9 => 0usize..30, 1 => 30usize..1000];
    let submit = (0usize..50, max_new_tokens, prop::option::of(1usize..20));
    let action = prop_oneof![
        6 => submit.prop_map(|(prompt, max_new_tokens, end_at)| {
            Action::Submit { prompt, max_new_tokens, end_at }
        }),
        12 => any::<bool>().prop_map(|_| Action::Step),
        1 => any::<usize>().prop_map(Action::Cancel),
        1 => any::<usize>().prop_map(Action::CancelInFlight),
    ];
    prop::collection::vec(action, 0..120)
}

fn limits() -> impl Strategy<Value = Limits> {
    let sizes = (1usize..6, 0usize..24, 1usize..48, 1usize..128, 1usize..20, 0usize..6);
    sizes.prop_map(|(max_sequences, more, max_context, kv_tokens, kv_granule, max_waiting)| {
        let max_step_tokens = max_sequences + more;
        Limits { max_sequences, max_step_tokens, max_context, kv_tokens, kv_granule, max_waiting }
    })
}

proptest! {
    #[test]
    fn whatever_is_submitted_runs_exactly_within_limits_and_to_its_end(
        limits in limits(),
        actions in actions(),
    ) {
        let mut caller = Caller::new(limits);
        for action in actions {
            match action {
                Action::Submit { prompt, max_new_tokens, end_at } => {
                    caller.submit(prompt, max_new_tokens, end_at);
                }
                Action::Step => { caller.step(None); }
                Action::Cancel(pick) => caller.cancel(pick),
                Action::CancelInFlight(pick) => { caller.step(Some(pick)); }
            }
        }
        caller.finish_all();
    }
}

#[test]
fn decode_goes_first_and_prompts_fill_the_rest() {
    let mut scheduler = Scheduler::new(ROOMY).unwrap();
    let mut step = Step::default();
    scheduler.submit(request(10, 4)).unwrap();
    scheduler.submit(request(20, 4)).unwrap();
    let run = |slot, start, len, logits| Run { slot, start, len, logits };

    assert!(scheduler.next_step(&mut step));
    assert_eq!(step.runs, [run(0, 0, 10, Wanted::Last), run(1, 0, 6, Wanted::None)]);
    let _ = scheduler.commit(0, 99, false);

    assert!(scheduler.next_step(&mut step));
    assert_eq!(step.runs, [run(0, 10, 1, Wanted::Last), run(1, 6, 14, Wanted::Last)]);
    assert_eq!(step.tokens[..2], [99, 6]);

    // Neither token is committed: nobody knows what comes next.
    assert!(!scheduler.next_step(&mut step));
    assert!(step.is_empty());
}

#[test]
fn a_sequence_ends_by_length_by_end_token_or_with_the_context() {
    let ends = |prompt, max_new_tokens, end_at| {
        let mut scheduler = Scheduler::new(ROOMY).unwrap();
        scheduler.submit(request(prompt, max_new_tokens)).unwrap();
        let mut step = Step::default();
        let (mut count, mut stored) = (0, 0);
        while scheduler.next_step(&mut step) {
            stored += step.tokens.len();
            if step.wanted_rows() == 0 {
                continue;
            }
            count += 1;
            let committed = scheduler.commit(0, 0, Some(count) == end_at).unwrap();
            if let Some(finish) = committed.finished {
                return (finish, count, stored);
            }
        }
        panic!("it stopped without a reason");
    };
    assert_eq!(ends(3, 5, None), (Finish::Length, 5, 7));
    assert_eq!(ends(3, 5, Some(2)), (Finish::EndToken, 2, 4));
    assert_eq!(ends(3, 5, Some(5)), (Finish::EndToken, 5, 7));
    assert_eq!(ends(60, 5, None), (Finish::Length, 5, 64));
    assert_eq!(ends(60, 6, None), (Finish::Context, 5, 64));
    assert_eq!(ends(64, usize::MAX, None), (Finish::Context, 1, 64));
}

#[test]
fn refusals_name_the_limit_and_the_numbers() {
    let mut scheduler = Scheduler::new(Limits { kv_tokens: 40, max_waiting: 1, ..ROOMY }).unwrap();
    let mut refusal = |prompt, new| scheduler.submit(request(prompt, new)).unwrap_err().to_string();
    assert_eq!(refusal(0, 1), "the prompt is empty; give at least one token");
    assert_eq!(refusal(1, 0), "max_new_tokens=0 asks for nothing; ask for at least 1");
    assert_eq!(
        refusal(70, 1),
        "the prompt of 70 tokens is past the context of 64; shorten it by 6, or raise the context"
    );
    assert_eq!(
        refusal(20, 20),
        "a prompt of 20 tokens and what it may generate need KV for 48 tokens, and the cache \
         holds 40; ask for fewer tokens, or enlarge the cache"
    );
    // One runs, one waits for KV, and the third may not.
    scheduler.submit(request(20, 1)).unwrap();
    scheduler.submit(request(20, 1)).unwrap();
    assert_eq!((scheduler.running(), scheduler.waiting()), (1, 1));
    let refusal = scheduler.submit(request(1, 1)).unwrap_err();
    assert_eq!(refusal, Refusal::QueueFull { waiting: 1, max_waiting: 1 });
    assert_eq!(
        refusal.to_string(),
        "1 requests wait already, and no more than 1 may; try again later"
    );
}

#[test]
fn no_queue_at_all_still_lets_run_what_fits() {
    let limits = Limits { max_sequences: 2, max_waiting: 0, ..ROOMY };
    let mut scheduler = Scheduler::new(limits).unwrap();
    let first = scheduler.submit(request(1, 1)).unwrap();
    scheduler.submit(request(1, 1)).unwrap();
    let refusal = scheduler.submit(request(1, 1)).unwrap_err();
    assert_eq!(refusal, Refusal::QueueFull { waiting: 0, max_waiting: 0 });
    assert_eq!(scheduler.cancel(first), Cancelled::Running { slot: 0 });
    scheduler.submit(request(1, 1)).unwrap();
}

#[test]
fn a_large_request_is_not_overtaken_by_small_ones() {
    let mut scheduler = Scheduler::new(Limits { kv_tokens: 64, ..ROOMY }).unwrap();
    let small = scheduler.submit(request(1, 16)).unwrap();
    let large = scheduler.submit(request(40, 10)).unwrap();
    let late = scheduler.submit(request(1, 1)).unwrap();
    assert_eq!((scheduler.running(), scheduler.waiting()), (1, 2));
    assert_eq!(scheduler.cancel(small), Cancelled::Running { slot: 0 });
    assert!(scheduler.next_step(&mut Step::default()));
    assert_eq!((scheduler.sequence(0), scheduler.sequence(1)), (Some(large), None));
    assert_eq!(scheduler.cancel(late), Cancelled::Waiting);
}

#[test]
fn a_slot_that_changes_hands_in_flight_takes_no_foreign_token() {
    let mut scheduler = Scheduler::new(Limits { max_sequences: 1, ..ROOMY }).unwrap();
    let mut step = Step::default();
    let first = scheduler.submit(request(4, 4)).unwrap();
    assert!(scheduler.next_step(&mut step));
    assert_eq!(scheduler.cancel(first), Cancelled::Running { slot: 0 });
    let second = scheduler.submit(request(4, 4)).unwrap();
    assert_eq!(scheduler.sequence(0), Some(second));
    assert_eq!(scheduler.commit(0, 9, false), None);
    assert!(scheduler.next_step(&mut step));
    assert_eq!(step.runs[0].start, 0);
}

#[test]
fn limits_under_which_something_could_never_run_are_refused() {
    let refusal = |limits| Scheduler::new(limits).unwrap_err().to_string();
    assert_eq!(
        refusal(Limits { kv_tokens: 0, ..ROOMY }),
        "kv_tokens=0 would let nothing run; it is at least 1"
    );
    assert_eq!(
        refusal(Limits { max_step_tokens: 3, ..ROOMY }),
        "max_step_tokens=3 leaves some of max_sequences=4 without a token per step; raise it to \
         4, or run fewer sequences"
    );
    assert_eq!(
        refusal(Limits { max_sequences: usize::MAX, ..ROOMY }),
        "max_sequences=18446744073709551615 is more than the 65536 that can run at once"
    );
    let huge = Limits {
        max_step_tokens: usize::MAX,
        max_context: usize::MAX,
        kv_tokens: usize::MAX,
        kv_granule: usize::MAX,
        max_waiting: usize::MAX,
        ..ROOMY
    };
    let mut scheduler = Scheduler::new(huge).unwrap();
    scheduler.submit(request(3, usize::MAX)).unwrap();
    assert!(scheduler.next_step(&mut Step::default()));
}
