//! The same programs of collectives over threads and over processes.

#[path = "../../helix-engine/tests/launch/mod.rs"]
mod launch;
mod suite;

use helix_comm::ThreadComm;
use std::time::Duration;
use suite::Program;

const PATIENCE: Duration = Duration::from_secs(60);
const LARGEST: usize = 3000;

#[test]
fn random_programs_over_threads() {
    for seed in 0..200 {
        let members = 1 + (seed % 5) as usize;
        let program = Program::random(seed, members, 20, LARGEST);
        let ranks: Vec<usize> = (0..members).collect();
        std::thread::scope(|scope| {
            for mut comm in ThreadComm::group(&ranks, 5 * LARGEST, PATIENCE) {
                let program = &program;
                scope.spawn(move || assert_eq!(program.run(&mut comm), (20, None), "seed {seed}"));
            }
        });
    }
}

#[cfg(feature = "mpi")]
mod with_mpi {
    use super::{LARGEST, PATIENCE, Program, launch};
    use helix_comm::World;
    use helix_comm::mpi::{CommThread, MpiWorld};
    use std::sync::Arc;

    /// Programs in the world and, at the same time, in groups of it.
    fn play(world: &MpiWorld, largest: usize, seeds: u64) {
        let (rank, size) = (world.rank(), world.size());
        for seed in 0..seeds {
            let all: Vec<usize> = (0..size).collect();
            let halves: Vec<usize> = all.iter().copied().filter(|r| r % 2 == rank % 2).collect();
            let mut outer = world.group(0, all, size * largest, PATIENCE);
            let mut inner = world.group(1, halves.clone(), size * largest, PATIENCE);
            let first = Program::random(seed, size, 12, largest);
            let second = Program::random(seed + 1_000_000, halves.len(), 12, largest);
            assert_eq!(first.run(&mut outer), (12, None), "seed {seed}");
            assert_eq!(second.run(&mut inner), (12, None), "seed {seed}");
            assert_eq!(first.run(&mut outer), (12, None), "seed {seed}");
        }
    }

    #[test]
    fn random_programs_over_processes() {
        if !launch::is_rank() {
            let name = "with_mpi::random_programs_over_processes";
            (1..=4).for_each(|ranks| launch::pass_as_ranks(name, ranks, PATIENCE));
            return;
        }
        let mut world = MpiWorld::join(Arc::default()).expect("MPI starts");
        play(&world, LARGEST, 40);
        world.drive(CommThread::Napping, PATIENCE).expect("a thread");
        play(&world, LARGEST, 40);
        // Past the eager limit, and in two stages.
        play(&world, 60_000, 6);
    }
}
