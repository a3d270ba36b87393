//! As `no_allocation.rs`, of ranks that are processes: after start-up neither the front end nor a
//! rank that follows allocates, but for what the MPI library takes from C.
//!
//! One test alone in its binary: the counts are those of the whole process.
#![cfg(feature = "mpi")]

mod common;
mod launch;

use common::precise;
use helix_comm::World;
use helix_comm::mpi::{CommThread, MpiWorld};
use helix_engine::{Engine, EngineOptions, HopB, dismiss, follow};
use helix_model::Model;
use helix_model::synthetic::{Spec, gguf};
use helix_scheduler::{Step, Wanted};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::sync::Arc;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PATIENCE: Duration = Duration::from_secs(60);
const SLOTS: usize = 3;
/// Allocations, reallocations and what is given back.
type Calls = usize;

fn calls(region: &Region<'_, System>) -> Calls {
    let change = region.change();
    change.allocations + change.reallocations + change.deallocations
}

/// A prompt in pieces, decodes of several sequences, and all of them forgotten.
fn work(engine: &mut Engine, step: &mut Step) {
    const TOKENS: [u32; 60] = [7; 60];
    for start in (0..180).step_by(60) {
        step.clear();
        step.push(0, start, &TOKENS, Wanted::None);
        engine.step(step).expect("a step");
    }
    for round in 0..4 {
        step.clear();
        for slot in 0..SLOTS {
            step.push(slot, engine.len(slot), &TOKENS[..1 + 5 * slot], Wanted::Last);
        }
        engine.step(step).expect("a step");
        engine.truncate(0, 180 - round);
    }
    (0..SLOTS).for_each(|slot| engine.release(slot));
}

/// Allocations of the front end while it runs `rounds` rounds of work, after one that warms up.
fn lead(
    world: &Arc<dyn World>,
    model: &Arc<Model>,
    name: &str,
    options: EngineOptions,
    rounds: usize,
) -> Calls {
    let layout = common::layout(model, name);
    let mut engine = Engine::lead(world, Arc::clone(model), layout, options, &|_| {})
        .expect("an engine of processes");
    let mut step = Step::with_capacity(64, SLOTS);
    work(&mut engine, &mut step);
    let region = Region::new(ALLOCATOR);
    (0..rounds).for_each(|_| work(&mut engine, &mut step));
    let calls = calls(&region);
    drop(engine);
    dismiss(&**world, PATIENCE).expect("the other listens");
    calls
}

#[test]
fn steps_over_mpi_allocate_nothing() {
    if !launch::is_rank() {
        let limit = Duration::from_secs(120);
        return launch::pass_as_ranks("steps_over_mpi_allocate_nothing", 2, limit);
    }
    let mut world = MpiWorld::join(Arc::default()).expect("MPI starts");
    world.drive(CommThread::Napping, PATIENCE).expect("a thread");
    let world: Arc<dyn World> = Arc::new(world);
    let spec = Spec { q_heads: 8, kv_heads: 4, ..Spec::tiny(helix_model::Arch::Llama) };
    let model = Arc::new(Model::from_gguf_bytes(gguf(&spec, 51)).expect("a model"));
    let options =
        EngineOptions { max_sequences: SLOTS, trace: 100, deadline: PATIENCE, ..precise() };
    let cases = [
        ("helix kvp=2 qkv=gather", EngineOptions { hopb: HopB::Auto, ..options }),
        ("helix kvp=2", EngineOptions { hopb: HopB::Pieces(4), reduce_slices: 3, ..options }),
        ("tp tpa=2", EngineOptions { reduce_slices: 4, ..options }),
    ];
    for (name, options) in cases {
        // A rank that follows takes the same memory however long it does, give or take a few calls
        // of threads that start; the first time warms up. One call a step would be 210 more.
        let mut followed = Vec::new();
        for rounds in [1, 1, 31] {
            if world.rank() == 0 {
                assert_eq!(lead(&world, &model, name, options, rounds), 0, "{name}: rank 0");
                continue;
            }
            let region = Region::new(ALLOCATOR);
            follow(&world, Some(&model), 1, PATIENCE).expect("rank 0 leads to the end");
            followed.push(calls(&region));
        }
        if let [_, once, often] = followed[..] {
            assert!(once > 0, "{name}: an engine takes memory");
            assert!(
                often.abs_diff(once) < 50,
                "{name}: rank 1 {often} calls, and {once} in fewer steps"
            );
        }
    }
}
