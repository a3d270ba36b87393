//! Thousands of seeds of delay, loss and death: every run ends in time, and nothing that a member
//! is told is wrong.

mod suite;

use helix_comm::{Comm, CommError, Fate, Faults, Faulty, ThreadComm};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use suite::Program;

const SEEDS: u64 = 3000;
/// Runs at a time: they mostly sleep.
const AT_ONCE: usize = 24;
const CALLS: usize = 16;
const DEADLINE: Duration = Duration::from_millis(400);
/// A member may wait for the deadline in a collective, and so may the one that it waits for.
const LIMIT: Duration = Duration::from_secs(5);

/// How a member ended: calls done, and why no more.
type End = (usize, Option<CommError>, bool);

fn run(seed: u64, faults: Faults) -> Vec<End> {
    let members = 2 + (seed % 3) as usize;
    let program = Program::random(seed, members, CALLS, 300);
    let ranks: Vec<usize> = (0..members).collect();
    std::thread::scope(|scope| {
        let ends = ThreadComm::group(&ranks, 4 * 300, DEADLINE).into_iter().map(|comm| {
            let program = &program;
            scope.spawn(move || {
                let fate = Fate::new(comm.rank(), faults, seed);
                let mut comm = Faulty::new(comm, fate.clone());
                let (done, error) = program.run(&mut comm);
                if error.is_some() {
                    comm.abort();
                }
                (done, error, fate.is_sealed())
            })
        });
        let ends: Vec<_> = ends.collect();
        ends.into_iter().map(|end| end.join().expect("no result is wrong")).collect()
    })
}

#[test]
fn every_seed_ends_in_time_with_the_right_result_or_an_error() {
    let (next, failed) = (AtomicU64::new(0), AtomicUsize::new(0));
    let slowest = Mutex::new((Duration::ZERO, 0));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        break;
                    }
                    // Every third seed has delays alone, which is no failure.
                    let fatal = seed % 3 != 0;
                    let faults = Faults {
                        delays: 4,
                        longest_delay: Duration::from_millis(2),
                        losses: if fatal { 150 } else { 0 },
                        deaths: if fatal { 100 } else { 0 },
                        deadline: DEADLINE,
                    };
                    let since = Instant::now();
                    let ends = run(seed, faults);
                    let took = since.elapsed();
                    check(seed, fatal, &ends);
                    failed.fetch_add(usize::from(ends[0].1.is_some()), Ordering::Relaxed);
                    let mut slowest = slowest.lock().expect("no test has failed");
                    *slowest = (*slowest).max((took, seed));
                }
            });
        }
    });
    let (slowest, failed) = (slowest.into_inner().expect("all passed"), failed.into_inner());
    println!("{failed} of {SEEDS} seeds failed a run; the slowest took {slowest:?}");
    assert!(slowest.0 < LIMIT, "seed {} took {:?}", slowest.1, slowest.0);
    let range = SEEDS as usize / 20..SEEDS as usize * 2 / 3;
    assert!(range.contains(&failed), "{failed} of {SEEDS} failed: the faults test nothing");
}

fn check(seed: u64, fatal: bool, ends: &[End]) {
    let broken = ends.iter().any(|(_, _, broken)| *broken);
    for (rank, (done, error, _)) in ends.iter().enumerate() {
        match error {
            None => assert_eq!(*done, CALLS, "seed {seed}, rank {rank}"),
            Some(error) => {
                assert!(fatal && broken, "seed {seed}, rank {rank}: {error}, and nobody failed");
            }
        }
    }
}
