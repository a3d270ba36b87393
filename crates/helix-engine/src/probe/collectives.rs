//! Collectives between the ranks of a process, or between processes.

use super::{ProbeOptions, Sample};
use crate::EngineError;
use crate::protocol::Command;
use helix_comm::{Collective, Comm, CommError, Counts, Link, Team, ThreadComm, World};
use std::hint::black_box;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long a collective takes.
#[derive(Clone, Copy, Debug)]
pub struct CollectiveTime {
    /// Which.
    pub collective: Collective,
    /// Members of the group.
    pub ranks: usize,
    /// Bytes that a member hands over for others.
    pub bytes: usize,
    /// Seconds, of the first member.
    pub seconds: Sample,
}

/// Bytes that a member hands over.
const BYTES: [usize; 5] = [256, 4 << 10, 32 << 10, 256 << 10, 2 << 20];
/// The most members; larger groups are extrapolated.
const MOST_RANKS: usize = 8;
/// Values of a message at most: an all-to-all's own chunk lies in it too.
const ROOM: usize = 2 * BYTES[BYTES.len() - 1] / size_of::<f32>();
const ROUNDS: usize = 9;
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that go round in one measurement, and bounds of how often.
const VOLUME: usize = 4 << 20;
const CALLS: (usize, usize) = (8, 500);

/// What was measured between processes.
#[derive(Clone, Debug)]
pub struct ProcessTimes {
    /// By kind, ranks and bytes; the groups are ranks 0 and on.
    pub groups: Vec<CollectiveTime>,
    /// Ranks of rank 0's host.
    pub near: usize,
    /// Where other hosts have ranks, too: all-to-alls between rank 0 and the first of them.
    pub far: Vec<CollectiveTime>,
}

/// Measures between processes: for rank 0, which tells the others.
///
/// # Errors
/// Ranks lost each other.
pub(super) fn lead(world: &dyn World, patience: Duration) -> Result<ProcessTimes, EngineError> {
    let mut message = Vec::new();
    Command::Probe.write(&mut message);
    let told = world.tell(&mut (1..world.size()), &message, patience);
    told.map_err(|source| EngineError::World { rank: 0, source })?;
    take_part(world, patience)
}

/// What every rank does when rank 0 measures: the same collectives in the same order.
pub(crate) fn take_part(
    world: &dyn World,
    patience: Duration,
) -> Result<ProcessTimes, EngineError> {
    let mut groups = Vec::new();
    for ranks in group_sizes(world.size()) {
        for collective in Collective::ALL {
            groups.extend(between(world, (0..ranks).collect(), collective, patience)?);
        }
    }
    // Every rank has to find the same other host, and each knows its own: rank 0 says.
    let near = near_ranks(world, patience)?;
    let far = match near < world.size() {
        true => between(world, vec![0, near], Collective::AllToAll, patience)?,
        false => Vec::new(),
    };
    Ok(ProcessTimes { groups, near, far })
}

/// Numbers of ranks whose collectives are measured: powers of two, and all.
fn group_sizes(all: usize) -> impl Iterator<Item = usize> {
    let powers = std::iter::successors(Some(2usize), |ranks| ranks.checked_mul(2));
    powers.take_while(move |&ranks| ranks < all).chain((all > 1).then_some(all))
}

/// How many ranks from 0 on share rank 0's host.
fn near_ranks(world: &dyn World, patience: Duration) -> Result<usize, EngineError> {
    let all: Vec<usize> = (0..world.size()).collect();
    let near = all.iter().zip(world.neighbours()).take_while(|(rank, near)| rank == near).count();
    let rank = world.rank();
    // The others bring zeros.
    let mut value = [if rank == 0 { near as f32 } else { 0.0 }];
    let mut group = world.group(0, all, 1, patience);
    let sum = group.all_reduce(&mut value);
    sum.map_err(|source| EngineError::Comm { rank, step: 0, source })?;
    Ok(value[0] as usize)
}

/// The times of a kind of collective between `members`; none on others.
fn between(
    world: &dyn World,
    members: Vec<usize>,
    collective: Collective,
    patience: Duration,
) -> Result<Vec<CollectiveTime>, EngineError> {
    let (rank, ranks) = (world.rank(), members.len());
    if !members.contains(&rank) {
        return Ok(Vec::new());
    }
    let mut group: Link = world.group(0, members, ROOM, patience);
    let times = BYTES.into_iter().map(|bytes| {
        let seconds = sample(bytes, |calls| repeated(&mut group, collective, bytes, calls))
            .map_err(|source| EngineError::Comm { rank, step: 0, source })?;
        Ok(CollectiveTime { collective, ranks, bytes, seconds })
    });
    times.collect()
}

/// Measures between threads.
pub(super) fn measure(options: &ProbeOptions) -> Result<Vec<CollectiveTime>, EngineError> {
    let mut all = Vec::new();
    for ranks in [2, 4, MOST_RANKS].into_iter().filter(|&ranks| ranks <= options.cores) {
        let mut group = Group::new(ranks)?;
        for collective in Collective::ALL {
            for bytes in BYTES {
                let seconds = group.measure(collective, bytes)?;
                all.push(CollectiveTime { collective, ranks, bytes, seconds });
            }
        }
    }
    Ok(all)
}

/// Ranks without anything but their communicators.
struct Group {
    leaders: Team,
    ends: Vec<Mutex<ThreadComm>>,
}

impl Group {
    fn new(ranks: usize) -> Result<Group, EngineError> {
        let members: Vec<usize> = (0..ranks).collect();
        let ends = ThreadComm::group(&members, ROOM, PATIENCE);
        Ok(Group { leaders: super::team(ranks)?, ends: ends.into_iter().map(Mutex::new).collect() })
    }

    fn measure(&mut self, collective: Collective, bytes: usize) -> Result<Sample, EngineError> {
        sample(bytes, |calls| self.round(collective, bytes, calls))
    }

    /// Seconds in which the first member takes part in `calls` of them.
    fn round(
        &mut self,
        collective: Collective,
        bytes: usize,
        calls: usize,
    ) -> Result<f64, EngineError> {
        let results: Vec<Mutex<Result<f64, CommError>>> =
            self.ends.iter().map(|_| Mutex::new(Ok(0.0))).collect();
        let ends = &self.ends;
        self.leaders.run_all(&|member| {
            let mut end = ends[member].lock().expect("no member panicked");
            let took = repeated(&mut *end, collective, bytes, calls);
            *results[member].lock().expect("no member panicked") = took;
        });
        let mut first = 0.0;
        for (rank, result) in results.into_iter().enumerate().rev() {
            let result = result.into_inner().expect("no member panicked");
            first = result.map_err(|source| EngineError::Comm { rank, step: 0, source })?;
        }
        Ok(first)
    }
}

/// Seconds of one call, of rounds of several.
fn sample<E>(bytes: usize, mut round: impl FnMut(usize) -> Result<f64, E>) -> Result<Sample, E> {
    let calls = (VOLUME / bytes).clamp(CALLS.0, CALLS.1);
    let mut times = Vec::new();
    for _ in 0..=ROUNDS {
        times.push(round(calls)? / calls as f64);
    }
    // The first round finds its buffers cold.
    Ok(Sample::of(times.split_off(1)))
}

/// Seconds of `calls` of them, after one that brings the members together.
fn repeated(
    end: &mut impl Comm,
    collective: Collective,
    bytes: usize,
    calls: usize,
) -> Result<f64, CommError> {
    call(end, collective, bytes)?;
    let begun = Instant::now();
    (0..calls).try_for_each(|_| call(end, collective, bytes))?;
    Ok(begun.elapsed().as_secs_f64())
}

/// One collective as a step has it: written from a row of the stream, read into one.
fn call(end: &mut impl Comm, collective: Collective, bytes: usize) -> Result<(), CommError> {
    let (size, values) = (end.size(), bytes / size_of::<f32>());
    let fill = |message: &mut [f32]| message.fill(1.0);
    let pending = match collective {
        Collective::AllReduce => end.start_all_reduce(values, fill)?,
        Collective::AllGather => end.start_all_gather(&vec![values; size], fill)?,
        Collective::AllToAll => {
            // To each of the others a part, and as much to itself.
            let counts = vec![values / (size - 1); size];
            end.start_all_to_all(Counts { send: &counts, recv: &counts }, fill)?
        }
        Collective::Gather => {
            let counts: Vec<usize> =
                (0..size).map(|member| if member == 0 { 0 } else { values }).collect();
            end.start_gather(&counts, 0, fill)?
        }
    };
    end.finish(pending, |chunks| {
        let mut sum = 0.0;
        for chunk in (0..chunks.count()).map(|i| chunks.of(i)) {
            sum += chunk.iter().sum::<f32>();
        }
        black_box(sum)
    })?;
    Ok(())
}
