//! As `no_allocation.rs`, of ranks that are processes: after start-up neither the front end nor a
//! rank that follows allocates, but for what the MPI library takes from C.
//!
//! One test alone in its binary: the counts are those of the whole process.
#![cfg(feature = "mpi")]

mod common;
mod launch;

use common::precise;
use helix_comm::mpi::{CommThread, MpiWorld};
use helix_comm::{Link, World, WorldError};
use helix_engine::{Engine, EngineError, EngineOptions, HopB, dismiss, follow};
use helix_model::Model;
use helix_model::synthetic::{Spec, gguf};
use helix_scheduler::{Step, Wanted};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PATIENCE: Duration = Duration::from_secs(60);
const SLOTS: usize = 3;
/// Of 7 steps each.
const ROUNDS: usize = 31;
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

/// Allocations of the front end while it runs many rounds of work, after one that warms up.
fn lead(
    world: &Arc<dyn World>,
    model: &Arc<Model>,
    name: &str,
    options: EngineOptions,
) -> Result<Calls, EngineError> {
    let layout = common::layout(model, name);
    let mut engine = Engine::lead(world, Arc::clone(model), layout, options, &|_| {})?;
    let mut step = Step::with_capacity(64, SLOTS);
    work(&mut engine, &mut step);
    // Threads that were late for all of that have started by now, and the others reply.
    std::thread::sleep(Duration::from_millis(20));
    engine.counters()?;
    let region = Region::new(ALLOCATOR);
    (0..ROUNDS).for_each(|_| work(&mut engine, &mut step));
    let calls = calls(&region);
    engine.counters()?;
    drop(engine);
    dismiss(&**world, PATIENCE)?;
    Ok(calls)
}

/// A world that knows how much was allocated when this process last replied, and the time before.
struct Watched {
    world: MpiWorld,
    replies: Mutex<[Calls; 2]>,
    since: Region<'static, System>,
}

impl World for Watched {
    fn rank(&self) -> usize {
        self.world.rank()
    }

    fn size(&self) -> usize {
        self.world.size()
    }

    fn neighbours(&self) -> &[usize] {
        self.world.neighbours()
    }

    fn processors(&self) -> &[usize] {
        self.world.processors()
    }

    fn tell(
        &self,
        to: &mut dyn Iterator<Item = usize>,
        message: &[u8],
        patience: Duration,
    ) -> Result<(), WorldError> {
        self.world.tell(to, message, patience)
    }

    fn next_command(&self, message: &mut Vec<u8>, patience: Duration) -> Result<(), WorldError> {
        self.world.next_command(message, patience)
    }

    fn reply(&self, message: &[u8], patience: Duration) -> Result<(), WorldError> {
        let mut replies = self.replies.lock().expect("nobody panicked");
        *replies = [replies[1], calls(&self.since)];
        self.world.reply(message, patience)
    }

    fn reply_of(
        &self,
        from: usize,
        message: &mut Vec<u8>,
        patience: Duration,
    ) -> Result<(), WorldError> {
        self.world.reply_of(from, message, patience)
    }

    fn group(
        &self,
        group: usize,
        members: Vec<usize>,
        max_values: usize,
        deadline: Duration,
    ) -> Link {
        self.world.group(group, members, max_values, deadline)
    }

    fn abort(&self) {
        self.world.abort();
    }

    fn is_broken(&self) -> bool {
        self.world.is_broken()
    }
}

#[test]
fn steps_over_mpi_allocate_nothing() {
    if !launch::is_rank() {
        let limit = Duration::from_secs(120);
        return launch::pass_as_ranks("steps_over_mpi_allocate_nothing", 2, limit);
    }
    let mut world = MpiWorld::join(Arc::default()).expect("MPI starts");
    world.drive(CommThread::Napping, PATIENCE).expect("a thread");
    let since = Region::new(ALLOCATOR);
    let watched = Arc::new(Watched { world, replies: Mutex::default(), since });
    let world: Arc<dyn World> = Arc::clone(&watched) as Arc<dyn World>;
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
        if world.rank() == 0 {
            let calls = lead(&world, &model, name, options).expect("an engine of processes");
            assert_eq!(calls, 0, "{name}: rank 0");
            continue;
        }
        follow(&world, Some(&model), 1, PATIENCE).expect("rank 0 leads to the end");
        let [warm, end] = *watched.replies.lock().expect("nobody panicked");
        assert!(warm > 0, "{name}: an engine takes memory");
        assert_eq!(end - warm, 0, "{name}: rank 1");
    }
}
