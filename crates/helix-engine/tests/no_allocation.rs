//! After start-up the step loop allocates nothing, on any thread.
//!
//! One test alone in its binary: the counts are those of the whole process.

mod common;

use common::{engine, fixture, layout, precise};
use helix_engine::sampler::{Sampler, SamplerOptions};
use helix_engine::{Engine, EngineOptions, FfnReduce, HopB, MlaUp};
use helix_kernels::kv::KvType;
use helix_kernels::{Format, Precision};
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
    // Windows kept 30 positions more than they see.
    engine.truncate(0, engine.len(0) - 9);
    engine.truncate(3, 17);
    (0..SLOTS).for_each(|slot| engine.release(slot));
}

fn samplers(vocab: usize) -> Vec<Sampler> {
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
    options.map(|options| Sampler::new(options, vocab).unwrap()).into()
}

/// A model, how it runs, and layouts with the threads of their ranks.
type Case = (Arc<Model>, EngineOptions, &'static [(&'static str, usize)]);

fn options(precision: Precision, kv_type: KvType) -> EngineOptions {
    EngineOptions {
        precision,
        kv_type,
        hopb: match kv_type {
            KvType::F16 => HopB::Off,
            KvType::BF16 => HopB::Auto,
            _ => HopB::Pieces(5),
        },
        reduce_slices: if kv_type == KvType::F16 { 1 } else { 3 },
        trace: if kv_type == KvType::F32 { 0 } else { 1000 },
        max_context: CONTEXT,
        max_sequences: SLOTS,
        rewind: 30,
        ..precise()
    }
}

fn dense() -> Vec<Case> {
    const LAYOUTS: &[(&str, usize)] = &[
        ("helix", 1),
        ("helix", 3),
        ("helix kvp=2 block=1 qkv=gather", 1),
        ("helix kvp=2", 2),
        ("tp tpa=2", 2),
        ("medha kvp=2", 2),
    ];
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
        (quantised.clone(), Precision::Fast, KvType::F16),
        (quantised, Precision::Fast, KvType::Q8_0),
    ];
    let open = |spec| Arc::new(Model::from_gguf_bytes(gguf(&spec, 51)).unwrap());
    cases.map(|(spec, precision, kv)| (open(spec), options(precision, kv), LAYOUTS)).into()
}

/// Experts, latents, windows that slide over more than a page, sinks, attention groups.
fn architectures() -> Vec<Case> {
    const HEADS: &[(&str, usize)] = &[
        ("helix", 3),
        ("helix kvp=2 tpf=1 ep=2 block=1 qkv=gather", 1),
        ("tp tpa=2 tpf=2 ep=1", 2),
        ("dp-ep dp=2", 2),
    ];
    const LATENTS: &[(&str, usize)] = &[
        ("helix", 2),
        ("helix kvp=2 qkv=gather", 2),
        ("helix kvp=4 tpf=2 ep=2", 1),
        ("dp-ep dp=3", 1),
    ];
    let grid = EngineOptions {
        ffn_reduce: FfnReduce::Grid,
        mla_up: MlaUp::Before,
        hopb: HopB::Pieces(3),
        ..options(Precision::Precise, KvType::F32)
    };
    type Layouts = &'static [(&'static str, usize)];
    let cases: [(&str, EngineOptions, Layouts); 6] = [
        ("qwen3-moe", options(Precision::Precise, KvType::F16), HEADS),
        ("gpt-oss-mxfp4", options(Precision::Fast, KvType::Q8_0), HEADS),
        ("gemma3", options(Precision::Precise, KvType::BF16), &[("helix", 2), ("tp tpa=2", 1)]),
        ("deepseek-v2", options(Precision::Precise, KvType::Q8_0), LATENTS),
        ("deepseek-v3", grid, LATENTS),
        ("deepseek-v3-fp8", options(Precision::Fast, KvType::F16), LATENTS),
    ];
    cases.map(|(name, options, layouts)| (fixture(name), options, layouts)).into()
}

#[test]
fn steps_and_samplers_allocate_nothing() {
    for (model, options, layouts) in dense().into_iter().chain(architectures()) {
        let vocab = model.config.vocab;
        let tokens: Vec<u32> = (0..600).map(|i| (i * 7 % vocab) as u32).collect();
        for &(name, threads_per_rank) in layouts {
            let layout = layout(&model, name);
            let options = EngineOptions { threads_per_rank, ..options };
            let mut engine = engine(&model, layout, options);
            let mut step = Step::with_capacity(64, SLOTS);
            let mut samplers = samplers(vocab);
            work(&mut engine, &mut step, &mut samplers, &tokens);
            // Threads that were late for all of that have started by now.
            std::thread::sleep(Duration::from_millis(20));
            let region = Region::new(ALLOCATOR);
            work(&mut engine, &mut step, &mut samplers, &tokens);
            let change = region.change();
            let calls = change.allocations + change.reallocations + change.deallocations;
            let arch = model.config.arch;
            assert_eq!(calls, 0, "{arch:?}, {layout}, {threads_per_rank} threads: {change:?}");
        }
    }
}
