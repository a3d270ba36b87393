//! What happens to an engine's sequences, and the logits that it must give: made once per model
//! with the reference, then replayed on many layouts.
#![allow(dead_code, reason = "each test file uses some of it")]

use crate::random::Random;
use crate::reference::{Reference, Sequence};
use helix_engine::Engine;
use helix_scheduler::{Step, Wanted};

/// Slots and positions that every script needs.
pub const SLOTS: usize = 3;
pub const CONTEXT: usize = 48;

enum Event {
    Step {
        step: Step,
        expected: Vec<f64>,
    },
    /// A sequence forgets what it holds from `len` on; all of it, when it is released.
    Truncate {
        slot: usize,
        len: usize,
    },
}

pub struct Script<'a> {
    reference: &'a Reference,
    vocab: usize,
    random: Random,
    sequences: Vec<Sequence>,
    events: Vec<Event>,
}

impl<'a> Script<'a> {
    pub fn new(reference: &'a Reference, vocab: usize, seed: u64) -> Script<'a> {
        let sequences = (0..SLOTS).map(|_| reference.start()).collect();
        Script { reference, vocab, random: Random(seed), sequences, events: Vec::new() }
    }

    /// A step of runs `(slot, tokens, wanted)`, of random tokens.
    pub fn step(&mut self, runs: &[(usize, usize, Wanted)]) {
        let mut step = Step::default();
        let mut expected = Vec::new();
        for &(slot, len, wanted) in runs {
            let sequence = &mut self.sequences[slot];
            let tokens = self.random.tokens(len, self.vocab);
            step.push(slot, sequence.len(), &tokens, wanted);
            for (index, &token) in tokens.iter().enumerate() {
                match wanted {
                    Wanted::All => expected.extend(self.reference.append(sequence, token)),
                    Wanted::Last if index + 1 == len => {
                        expected.extend(self.reference.append(sequence, token));
                    }
                    _ => self.reference.remember(sequence, token),
                }
            }
        }
        self.events.push(Event::Step { step, expected });
    }

    pub fn truncate(&mut self, slot: usize, len: usize) {
        self.sequences[slot].truncate(len);
        self.events.push(Event::Truncate { slot, len });
    }

    /// Everything that happens to sequences, in few steps: prompts in odd pieces, several runs in
    /// a step and not in the order of their slots, prompts beside decodes, drafts rolled back
    /// inside a block, a slot used again by a longer sequence, a prompt of one token, a full slot.
    pub fn life(reference: &'a Reference, vocab: usize, seed: u64) -> Script<'a> {
        use Wanted::{All, Last, None};
        let mut script = Script::new(reference, vocab, seed);
        script.step(&[(0, 7, All)]);
        script.step(&[(1, 3, All), (0, 13, All)]);
        script.step(&[(0, 1, Last), (2, 16, All), (1, 1, Last)]);
        script.step(&[(2, 5, None), (0, 1, Last)]);
        script.step(&[(1, 1, Last), (2, 1, Last), (0, 1, Last)]);
        script.truncate(0, 18);
        script.step(&[(0, 4, All), (2, 1, Last)]);
        script.truncate(1, 0);
        script.step(&[(1, 19, Last), (0, 1, Last)]);
        script.truncate(2, 16);
        script.step(&[(2, 1, Last)]);
        script.truncate(0, 0);
        script.truncate(2, 0);
        script.step(&[(2, 1, All)]);
        script.step(&[(0, 33, All), (2, 1, Last)]);
        script.step(&[(0, 14, None), (1, 1, Last), (2, 2, All)]);
        script.step(&[(0, 1, Last)]);
        script
    }

    /// Random steps, truncations and releases.
    pub fn random(reference: &'a Reference, vocab: usize, seed: u64, steps: usize) -> Script<'a> {
        let mut script = Script::new(reference, vocab, seed);
        for _ in 0..steps {
            let mut runs: Vec<(usize, usize, Wanted)> = Vec::new();
            let first = script.random.below(SLOTS);
            for slot in (0..SLOTS).map(|i| (first + i) % SLOTS) {
                let len = script.sequences[slot].len();
                if script.random.below(5) == 0 {
                    let keep =
                        if script.random.below(2) == 0 { 0 } else { script.random.below(len + 1) };
                    script.truncate(slot, keep);
                }
                let room = CONTEXT - script.sequences[slot].len();
                let tokens = [0, 1, 1, script.random.below(20)][script.random.below(4)].min(room);
                let wanted = [Wanted::None, Wanted::Last, Wanted::All][script.random.below(3)];
                if tokens > 0 {
                    runs.push((slot, tokens, wanted));
                }
            }
            if !runs.is_empty() {
                script.step(&runs);
            }
        }
        script
    }

    /// Replays on an engine that holds no sequences, hands each row of logits and what it should
    /// be to `compare`, and releases the sequences.
    pub fn replay(&self, engine: &mut Engine, mut compare: impl FnMut(&[f32], &[f64], &str)) {
        for (index, event) in self.events.iter().enumerate() {
            match event {
                Event::Truncate { slot, len } => engine.truncate(*slot, *len),
                Event::Step { step, expected } => {
                    let found = engine.step(step).expect("a step runs");
                    assert_eq!(found.len(), expected.len(), "event {index}: lengths differ");
                    let rows = found.chunks_exact(self.vocab);
                    let expected = expected.chunks_exact(self.vocab);
                    for (row, (found, expected)) in rows.zip(expected).enumerate() {
                        compare(found, expected, &format!("event {index}, row {row}"));
                    }
                }
            }
        }
        (0..SLOTS).for_each(|slot| engine.release(slot));
    }
}
