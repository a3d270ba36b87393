//! Sliding windows: what they have passed is gone and matters to nobody, what they keep may be
//! rewound to, and pages come back.

mod common;
mod poisoned;
mod random;

use common::{engine, fixture, layout, layouts, logits, precise};
use helix_engine::{Engine, EngineOptions};
use helix_kernels::kv::KvType;
use helix_layout::QkvMode;
use helix_scheduler::{Step, Wanted};
use poisoned::{POISON, VOCAB};
use random::Random;
use std::panic::{AssertUnwindSafe, catch_unwind};

const CONTEXT: usize = 700;

fn options(rewind: usize) -> EngineOptions {
    EngineOptions { max_context: CONTEXT, max_sequences: 3, rewind, ..precise() }
}

/// Tokens that are not the poison.
fn text(seed: u64, len: usize) -> Vec<u32> {
    Random(seed).tokens(len, VOCAB - 1).iter().map(|token| token + 1).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    assert!(logits.iter().all(|logit| logit.is_finite()));
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Rows of logits of the tokens that come next in `slot`.
fn next(engine: &mut Engine, slot: usize, tokens: &[u32]) -> Vec<f32> {
    let mut step = Step::default();
    step.push(slot, engine.len(slot), tokens, Wanted::All);
    engine.step(&step).expect("a step runs").to_vec()
}

/// Every layer of Mistral's has a window: what is further back than all windows together is as if
/// it had never been.
#[test]
fn what_all_windows_have_passed_is_as_if_it_had_never_been() {
    const POISONED: usize = 300;
    let model = poisoned::fixture("mistral");
    let reach = model.config.layers * (model.config.window(0).expect("a window") - 1);
    let (clean, rest) = (text(1, POISONED), text(2, 300));
    for name in ["helix", "helix kvp=2 block=1", "helix kvp=3", "tp tpa=2", "dp-ep dp=2"] {
        for (kv_type, rewind) in KvType::ALL.into_iter().zip([0, 40].into_iter().cycle()) {
            let options = EngineOptions { kv_type, ..options(rewind) };
            let mut engine = engine(&model, layout(&model, name), options);
            let expected = logits(&mut engine, &[clean.as_slice(), &rest].concat(), 64);
            engine.release(0);
            let poison = [[POISON; POISONED].as_slice(), &rest].concat();
            let found = logits(&mut engine, &poison, 50);
            let row = engine.vocab();
            assert!(found[POISONED * row].is_nan(), "{name}: windows see the poison");
            let seen = (POISONED + reach) * row;
            assert!(bits(&found[seen..]) == bits(&expected[seen..]), "{name}, KV {kv_type}");
        }
    }
}

/// Drafts full of poison are taken back over the ends of pages, as far as `rewind` goes.
#[test]
fn what_is_kept_may_be_rewound_to() {
    const REWIND: usize = 40;
    let text = text(3, 560);
    for name in ["mistral", "gemma3", "gpt-oss"] {
        let model = poisoned::fixture(name);
        for spec in ["helix", "helix kvp=2 block=16", "tp tpa=3", "dp-ep dp=2"] {
            let layout = layout(&model, spec);
            let expected = logits(&mut engine(&model, layout, options(0)), &text, 64);
            let row = model.config.vocab;
            let mut engine = engine(&model, layout, options(REWIND));
            let mut random = Random(7);
            let mut furthest = 0;
            while engine.len(0) < text.len() {
                let len = engine.len(0);
                let piece = &text[len..text.len().min(len + 1 + random.below(60))];
                let found = next(&mut engine, 0, piece);
                let expected = &expected[len * row..][..found.len()];
                assert!(bits(&found) == bits(expected), "{name}, {layout}: from {len} on");
                // A draft, taken back, and now and then what was right before it.
                let len = engine.len(0);
                let draft = 1 + random.below(20);
                let spoilt = next(&mut engine, 0, &vec![POISON; draft]);
                assert!(spoilt[0].is_nan());
                furthest = len.max(furthest);
                let back = [0, random.below(REWIND)][random.below(2)];
                engine.truncate(0, len.saturating_sub(back).max(furthest.saturating_sub(REWIND)));
            }
        }
    }
}

fn panic_of(run: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(run)).expect_err("it panics");
    *payload.downcast::<String>().expect("a message")
}

#[test]
fn no_further_back_than_that() {
    let model = fixture("gpt-oss");
    let window = model.config.window(0).expect("a window");
    let text = text(4, 400);
    for (rewind, spec) in [(0, "helix"), (25, "helix kvp=2 block=1"), (25, "dp-ep dp=2")] {
        let mut engine = engine(&model, layout(&model, spec), options(rewind));
        let all = logits(&mut engine, &text, 50);
        // The last step started at 350.
        let kept = 350 - rewind;
        for len in [1, window, kept - 1] {
            let message = panic_of(|| engine.truncate(0, len));
            assert!(message.contains(&format!("passed {len}: {kept} is kept")), "{message}");
        }
        assert!(panic_of(|| engine.truncate(0, 401)).contains("slot 0 holds 400 positions"));
        assert_eq!(engine.len(0), 400, "nothing was changed");
        engine.truncate(0, kept);
        let found = next(&mut engine, 0, &text[kept..kept + 50]);
        assert!(bits(&found) == bits(&all[kept * engine.vocab()..][..found.len()]), "{spec}");
        // Nothing at all is always legal, and the next sequence has a window of its own.
        engine.release(0);
        assert!(bits(&logits(&mut engine, &text, 50)) == bits(&all), "{spec}: again");
    }
}

/// A window that has not passed a position keeps it, whatever `rewind` is.
#[test]
fn a_sequence_within_its_window_may_be_rewound_to_anywhere() {
    let model = fixture("gpt-oss");
    let window = model.config.window(0).expect("a window");
    let text = text(5, window);
    for (rewind, len) in [(0, window), (3, window + 3)] {
        let mut engine = engine(&model, layout(&model, "helix kvp=2 block=1"), options(rewind));
        let mut all = Vec::new();
        for (position, &token) in text.iter().cycle().take(len).enumerate() {
            assert_eq!(engine.len(0), position);
            all.extend(next(&mut engine, 0, &[token]));
        }
        engine.truncate(0, 1);
        let found = next(&mut engine, 0, &text[1..]);
        assert!(bits(&found) == bits(&all[engine.vocab()..window * engine.vocab()]));
    }
}

/// All slots at their longest, in steps of any size: pools never run out, and never hold more than
/// a window, what may be rewound, a step and the rest of a page.
#[test]
fn pools_hold_any_sequences_in_any_steps() {
    let model = fixture("mistral");
    let config = &model.config;
    let window = config.window(0).expect("a window");
    let token = (config.layers * config.kv_heads * 2 * config.head_dim * 4) as u64;
    let all = layouts(&model.shape(), 3, &[1, 100]);
    for layout in all.into_iter().filter(|layout| layout.qkv() == QkvMode::Replicate) {
        for rewind in [0, usize::MAX] {
            let mut engine = engine(&model, layout, options(rewind));
            let mut random = Random(9);
            let kept = rewind.min(CONTEXT);
            // As many of a rank's positions as blocks can lie in so many of the sequence.
            let blocks = (window + kept + 64).div_ceil(layout.degrees().kvp * layout.kv_block());
            let most = (blocks + 1) * layout.kv_block() + 256;
            for round in 0..2 {
                let mut furthest = [0; 3];
                while (0..3).any(|slot| engine.len(slot) < CONTEXT) {
                    let mut step = Step::default();
                    for slot in 0..3 {
                        let len = engine.len(slot);
                        let room = [1, random.below(21), 20][random.below(3)].min(CONTEXT - len);
                        if room > 0 {
                            step.push(slot, len, &vec![5; room], Wanted::None);
                        }
                    }
                    if step.is_empty() {
                        continue;
                    }
                    engine.step(&step).expect("a step runs");
                    for run in &step.runs {
                        let furthest = &mut furthest[run.slot];
                        *furthest = run.start.max(*furthest);
                        if random.below(4) == 0 {
                            let len = run.start.saturating_sub(random.below(8));
                            engine.truncate(run.slot, len.max(furthest.saturating_sub(kept)));
                        }
                    }
                    for counters in engine.counters().expect("counters") {
                        let held = counters.kv_bytes_held;
                        assert!(held <= 3 * most as u64 * token, "{layout}: {held} in {round}");
                    }
                }
                (0..3).for_each(|slot| engine.release(slot));
                assert!(
                    engine
                        .counters()
                        .expect("counters")
                        .iter()
                        .all(|counters| counters.kv_bytes_held == 0)
                );
            }
        }
    }
}

/// A context of noise on top of a text, further ahead than a window's pool holds.
#[test]
fn noise_far_ahead_of_a_text() {
    for name in ["mistral", "gemma3"] {
        let model = fixture(name);
        let options = EngineOptions { max_context: 3000, ..options(0) };
        let layout = layout(&model, "helix kvp=2");
        let run = |first: &[u32]| {
            let mut engine = engine(&model, layout, options);
            if !first.is_empty() {
                next(&mut engine, 1, first);
            }
            engine.fill_with_noise(1, 2900);
            bits(&next(&mut engine, 1, &[3, 4, 5]))
        };
        let (noise, after) = (run(&[]), run(&text(6, 20)));
        // Layers that see all see the text.
        assert_eq!(noise == after, name == "mistral", "{name}");
    }
}
