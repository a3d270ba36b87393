//! Bytes that belong to nobody: pages, places past a sequence's end, and other sequences are full
//! of NaN, and no logit may change by a bit.

mod common;
mod poisoned;
mod random;

use common::{engine, layout, layouts, logits, precise};
use helix_engine::{Engine, EngineOptions};
use helix_kernels::kv::KvType;
use helix_layout::Layout;
use helix_model::{Arch, Model};
use helix_scheduler::{Step, Wanted};
use poisoned::{POISON, VOCAB};
use random::Random;
use std::sync::Arc;

/// Past a block of keys inside a page.
const CONTEXT: usize = 80;
const PROMPT: usize = 37;

/// Dense models, experts, latents, windows with sinks, windows with norms of their own.
fn models() -> impl Iterator<Item = Arc<Model>> {
    let dense = [Arch::Llama, Arch::Qwen3].into_iter().map(poisoned::synthetic);
    dense.chain(["mixtral", "deepseek-v3", "gpt-oss", "gemma3"].map(poisoned::fixture))
}

/// Tokens that are not the poison.
fn text(seed: u64, len: usize) -> Vec<u32> {
    Random(seed).tokens(len, VOCAB - 1).iter().map(|token| token + 1).collect()
}

fn options(kv_type: KvType, max_context: usize) -> EngineOptions {
    EngineOptions { kv_type, max_context, max_sequences: 2, ..precise() }
}

/// Every type of the cache on one layout each, and every layout of up to 3 ranks in f32.
fn cases(model: &Model) -> Vec<(Layout, KvType)> {
    let all = layouts(&model.shape(), 3, &[1, 16]);
    let types =
        KvType::ALL.iter().flat_map(|&kv_type| [(all[0], kv_type), (all[all.len() - 1], kv_type)]);
    types.chain(all.iter().map(|&layout| (layout, KvType::F32))).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// What an engine that never saw the poison gives.
fn fresh(model: &Arc<Model>, layout: Layout, options: EngineOptions, tokens: &[u32]) -> Vec<u32> {
    let logits = logits(&mut engine(model, layout, options), tokens, 16);
    assert!(logits.iter().all(|logit| logit.is_finite()));
    bits(&logits)
}

fn step(engine: &mut Engine, runs: &[(usize, usize, &[u32])]) -> Vec<f32> {
    let mut step = Step::default();
    for &(slot, start, tokens) in runs {
        step.push(slot, start, tokens, Wanted::All);
    }
    engine.step(&step).expect("a step runs").to_vec()
}

fn assert_spoilt(logits: &[f32], kv_type: KvType) {
    let spoilt = logits.iter().all(|logit| logit.is_nan());
    assert!(spoilt, "KV {kv_type} turns what is no number into plausible logits");
}

/// Fills both slots with the poison, releases them, and runs `text` in their pages: in pieces, so
/// that it ends, each time, where NaN starts.
fn run_in_spoilt_pages(
    model: &Arc<Model>,
    layout: Layout,
    options: EngineOptions,
    text: &[u32],
    pieces: &[usize],
) {
    let expected = fresh(model, layout, options, text);
    let mut engine = engine(model, layout, options);
    for slot in 0..2 {
        for start in (0..options.max_context).step_by(50) {
            let poison = vec![POISON; 50.min(options.max_context - start)];
            assert_spoilt(&step(&mut engine, &[(slot, start, &poison)]), options.kv_type);
        }
    }
    engine.release(0);
    engine.release(1);
    for &piece in pieces {
        let found = bits(&logits(&mut engine, text, piece));
        assert!(found == expected, "{layout}, KV {}, pieces of {piece}", options.kv_type);
        engine.release(0);
    }
}

#[test]
fn pages_that_held_nan_are_as_good_as_new() {
    for model in models() {
        for (layout, kv_type) in cases(&model) {
            let text = text(1, PROMPT);
            run_in_spoilt_pages(&model, layout, options(kv_type, CONTEXT), &text, &[5, 1]);
        }
    }
}

#[test]
fn a_text_longer_than_a_page_that_held_nan() {
    let models = [
        (poisoned::synthetic(Arch::Llama), ["helix", "helix kvp=2 tpa=3 block=32"]),
        (poisoned::fixture("deepseek-v3"), ["helix", "helix kvp=2 block=32"]),
        (poisoned::fixture("gpt-oss"), ["dp-ep dp=2", "helix kvp=2 block=32"]),
    ];
    for (model, names) in models {
        for name in names {
            let layout = layout(&model, name);
            for kv_type in KvType::ALL {
                // Each rank has more than 256 positions.
                let text = text(4, 530);
                run_in_spoilt_pages(&model, layout, options(kv_type, 600), &text, &[50]);
            }
        }
    }
}

#[test]
fn a_sequence_of_nan_beside_another_stays_by_itself() {
    let text = text(2, PROMPT);
    for model in models() {
        for (layout, kv_type) in cases(&model) {
            let options = options(kv_type, CONTEXT);
            let expected = fresh(&model, layout, options, &text);
            let mut engine = engine(&model, layout, options);
            let mut found = Vec::new();
            for start in (0..PROMPT).step_by(10) {
                let piece = &text[start..PROMPT.min(start + 10)];
                let poison = [POISON; 7];
                let len = engine.len(1);
                let both = step(&mut engine, &[(1, len, &poison), (0, start, piece)]);
                let (spoilt, own) = both.split_at(7 * engine.vocab());
                assert_spoilt(spoilt, kv_type);
                found.extend(bits(own));
            }
            assert!(found == expected, "{layout}, KV {kv_type}");
        }
    }
}

#[test]
fn no_token_sees_a_later_one_nor_one_that_was_taken_back() {
    let text = text(3, PROMPT);
    for model in models() {
        let row = model.config.vocab;
        for (layout, kv_type) in cases(&model) {
            let options = options(kv_type, CONTEXT);
            let expected = fresh(&model, layout, options, &text);
            let mut engine = engine(&model, layout, options);
            // A draft that is NaN from its sixth token on, verified in one run and taken back.
            let mut draft = text[..9].to_vec();
            draft[5] = POISON;
            let rows = step(&mut engine, &[(0, 0, &draft)]);
            let (before, after) = rows.split_at(5 * row);
            let same = bits(before) == expected[..5 * row];
            assert!(same, "{layout}, KV {kv_type}: sees the future");
            assert_spoilt(after, kv_type);
            engine.truncate(0, 5);
            let rest = step(&mut engine, &[(0, 5, &text[5..])]);
            assert!(bits(&rest) == expected[5 * row..], "{layout}, KV {kv_type}: after a rollback");
        }
    }
}
