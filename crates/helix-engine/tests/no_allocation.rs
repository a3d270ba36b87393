//! After start-up the step loop allocates nothing, on any thread.
//!
//! One test alone in its binary: the counts are those of the whole process.

mod common;

use common::{engine, precise};
use helix_engine::sampler::{Sampler, SamplerOptions};
use helix_engine::{Engine, EngineOptions};
use helix_kernels::kv::KvType;
use helix_kernels::{Format, Precision};
use helix_layout::Layout;
use helix_model::synthetic::{Spec, gguf};
use helix_model::{Arch, Model};
use helix_scheduler::{Step, Wanted};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::sync::Arc;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SLOTS: usize = 4;
const CONTEXT: usize = 700;
const VOCAB: usize = 300;

/// What an engine does in its life. The first time it warms up.
fn work(engine: &mut Engine, step: &mut Step, samplers: &mut [Sampler], tokens: &[u32]) {
    // A long prompt in pieces: attention by items.
    for start in (0..600).step_by(60) {
        step.clear();
        step.push(0, start, &tokens[start..start + 60], Wanted::None);
        engine.step(step).unwrap();
    }
    // Decodes of one sequence: attention by chunks.
    let mut next = 1;
    for position in 600..604 {
        step.clear();
        step.push(0, position, &[next], Wanted::Last);
        let logits = engine.step(step).unwrap();
        next = samplers[position % samplers.len()].sample(logits).unwrap();
        samplers.iter_mut().for_each(|sampler| sampler.accept(next));
    }
    // A short prompt beside decodes of several sequences, and all of its logits.
    for round in 0..3 {
        step.clear();
        for slot in 0..SLOTS {
            let len = if slot == 3 { 20 } else { 1 };
            let wanted = if slot == 3 { Wanted::All } else { Wanted::Last };
            step.push(slot, engine.len(slot), &tokens[20 * round..20 * round + len], wanted);
        }
        engine.step(step).unwrap();
        engine.logits()[0] = 0.0;
    }
    engine.truncate(3, 17);
    (0..SLOTS).for_each(|slot| engine.release(slot));
}

fn samplers() -> Vec<Sampler> {
    let hot = SamplerOptions { temperature: 0.8, ..SamplerOptions::default() };
    let options = [
        SamplerOptions::default(),
        SamplerOptions { top_k: 40, top_p: 0.9, min_p: 0.05, ..hot },
        SamplerOptions {
            repetition_penalty: 1.1,
            presence_penalty: 0.2,
            frequency_penalty: 0.1,
            penalty_window: 3,
            ..hot
        },
    ];
    options.map(|options| Sampler::new(options, VOCAB).unwrap()).into()
}

#[test]
fn steps_and_samplers_allocate_nothing() {
    let quantised = Spec {
        q_heads: 8,
        kv_heads: 4,
        hidden: 64,
        ffn: 96,
        format: Format::Q4_0,
        down_format: Format::Q4_1,
        embedding_format: Format::Q8_0,
        ..Spec::tiny(Arch::Llama)
    };
    let cases = [
        (Spec::tiny(Arch::Qwen2), Precision::Precise, KvType::F32),
        (Spec::tiny(Arch::Qwen3), Precision::Precise, KvType::BF16),
        (Spec { ..quantised.clone() }, Precision::Fast, KvType::F16),
        (quantised, Precision::Fast, KvType::Q8_0),
    ];
    let layouts = [
        ("helix", 1),
        ("helix", 3),
        ("helix kvp=2 block=1 qkv=gather", 1),
        ("helix kvp=2", 2),
        ("tp tpa=2", 2),
        ("medha kvp=2", 2),
    ];
    for (spec, precision, kv_type) in cases {
        let model = Arc::new(Model::from_gguf_bytes(gguf(&spec, 51)).unwrap());
        let tokens: Vec<u32> = (0..600).map(|i| (i * 7 % VOCAB) as u32).collect();
        for (name, threads_per_rank) in layouts {
            let layout = Layout::new(&model.shape(), name.parse().unwrap()).unwrap();
            let options = EngineOptions {
                precision,
                kv_type,
                threads_per_rank,
                max_context: CONTEXT,
                max_sequences: SLOTS,
                ..precise()
            };
            let mut engine = engine(&model, layout, options);
            let mut step = Step::with_capacity(64, SLOTS);
            let mut samplers = samplers();
            work(&mut engine, &mut step, &mut samplers, &tokens);
            // Threads that were late for all of that have started by now.
            std::thread::sleep(Duration::from_millis(20));
            let region = Region::new(ALLOCATOR);
            work(&mut engine, &mut step, &mut samplers, &tokens);
            let change = region.change();
            let calls = change.allocations + change.reallocations + change.deallocations;
            assert_eq!(calls, 0, "{layout}, {threads_per_rank} threads: {change:?}");
        }
    }
}
