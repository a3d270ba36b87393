//! Collectives between the ranks of a process.

use super::{ProbeOptions, Sample};
use crate::EngineError;
use helix_comm::{Collective, Comm, CommError, Counts, Team, ThreadComm};
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
const ROUNDS: usize = 9;
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that go round in one measurement, and bounds of how often.
const VOLUME: usize = 4 << 20;
const CALLS: (usize, usize) = (8, 500);

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
        // An all-to-all's own chunk lies in the message too.
        let room = 2 * BYTES[BYTES.len() - 1] / size_of::<f32>();
        let members: Vec<usize> = (0..ranks).collect();
        let ends = ThreadComm::group(&members, room, PATIENCE);
        Ok(Group { leaders: super::team(ranks)?, ends: ends.into_iter().map(Mutex::new).collect() })
    }

    fn measure(&mut self, collective: Collective, bytes: usize) -> Result<Sample, EngineError> {
        let calls = (VOLUME / bytes).clamp(CALLS.0, CALLS.1);
        let mut times = Vec::new();
        for _ in 0..=ROUNDS {
            times.push(self.round(collective, bytes, calls)? / calls as f64);
        }
        // The first round finds its buffers cold.
        Ok(Sample::of(times.split_off(1)))
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
