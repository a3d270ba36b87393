//! The collectives that Helix needs, as a trait.

use std::fmt;
use std::ops::Range;
use std::time::Instant;

/// How many f32 values go to and come from each member, in member order.
#[derive(Clone, Copy, Debug)]
pub struct Counts<'a> {
    /// Values for member `i`; a member may get none.
    pub send: &'a [usize],
    /// Values from member `i`.
    pub recv: &'a [usize],
}

/// The kinds of collective, as errors and counters name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Collective {
    /// Every member sends a chunk of its own to every other.
    AllToAll,
    /// Every member ends with everyone's chunk.
    AllGather,
    /// Every member ends with the sum of everyone's values.
    AllReduce,
    /// One member ends with everyone's chunk.
    Gather,
}

impl Collective {
    /// All kinds, in the order of [`crate::Traffic`]'s rows.
    pub const ALL: [Collective; 4] =
        [Collective::AllToAll, Collective::AllGather, Collective::AllReduce, Collective::Gather];
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Collective::AllToAll => "all-to-all",
            Collective::AllGather => "all-gather",
            Collective::AllReduce => "all-reduce",
            Collective::Gather => "gather",
        })
    }
}

/// Why a collective did not complete. The communicator is of no more use after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    /// Another rank gave up first.
    #[error("rank {rank} failed; {collective} number {number} can't complete")]
    PeerFailed {
        /// Who failed.
        rank: usize,
        /// What this rank was waiting in.
        collective: Collective,
        /// Its number, counted from the start.
        number: u64,
    },
    /// A rank did not arrive in time.
    #[error("rank {rank} did not reach {collective} number {number} in {seconds} s")]
    Timeout {
        /// Who is late.
        rank: usize,
        /// What this rank was waiting in.
        collective: Collective,
        /// Its number, counted from the start.
        number: u64,
        /// How long this rank waited.
        seconds: u64,
    },
    /// This process was told to end.
    #[error(
        "the launcher ended this rank while {collective} number {number} waited for rank {rank}"
    )]
    Ended {
        /// Who was waited for.
        rank: usize,
        /// What this rank was in.
        collective: Collective,
        /// Its number, counted from the start.
        number: u64,
    },
    /// The library that carries messages failed.
    #[error("{collective} number {number}, where rank {rank} is waited for: {problem}")]
    Library {
        /// Who was waited for.
        rank: usize,
        /// What this rank was in.
        collective: Collective,
        /// Its number, counted from the start.
        number: u64,
        /// The library's words.
        problem: String,
    },
}

/// A collective that was started: hand it to `finish` of the same communicator.
///
/// Between the two lies all the overlap there is: HOP-B starts one request's all-to-all and
/// computes the next request's attention before it finishes the first.
#[derive(Debug)]
#[must_use = "a started collective has to be finished by every member"]
pub struct Pending {
    pub(crate) collective: Collective,
    pub(crate) number: u64,
    pub(crate) root: Option<usize>,
}

impl Pending {
    /// What was started.
    pub fn collective(&self) -> Collective {
        self.collective
    }
}

/// What a collective brought: a chunk from each member, where it lies. Nothing is copied for the
/// reader, and several threads may read.
#[derive(Clone, Copy)]
pub struct Chunks<'a> {
    of: &'a (dyn Fn(usize) -> &'a [f32] + Sync),
    count: usize,
}

impl<'a> Chunks<'a> {
    /// `count` chunks, the `i`th of which is `of(i)`.
    pub fn new(count: usize, of: &'a (dyn Fn(usize) -> &'a [f32] + Sync)) -> Chunks<'a> {
        Chunks { of, count }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Chunk `i`: member `i`'s, or part `i` of a sum.
    ///
    /// # Panics
    /// There are no more than `i`.
    pub fn of(&self, i: usize) -> &'a [f32] {
        assert!(i < self.count, "chunk {i} of {}", self.count);
        (self.of)(i)
    }

    /// Adds up some values of all chunks, in order: what an all-reduce's chunks stand for.
    pub fn sum(&self, range: Range<usize>, sum: &mut [f32]) {
        sum.copy_from_slice(&self.of(0)[range.clone()]);
        for i in 1..self.count {
            let values = &self.of(i)[range.clone()];
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
    }
}

/// Collectives over the members of one group. All members call the same ones in the same order.
///
/// Messages are written and read where they lie: `start_*` hands its message to a closure that
/// fills it, `finish` hands what came to one that reads it. So a collective costs no copies but
/// those of the link, and a communicator owns the memory that the link works on in between.
///
/// At most [`Comm::IN_FLIGHT`] collectives may be started and not finished; they finish in the
/// order in which they started. Lengths that don't fit are bugs of the caller and panic.
pub trait Comm: Send {
    /// How many collectives may be in flight at a time.
    const IN_FLIGHT: usize = 4;

    /// This member's index in the group.
    fn rank(&self) -> usize;

    /// Members in the group.
    fn size(&self) -> usize;

    /// Starts an all-to-all: of the message, member `i` gets chunk `i`, `counts.send[i]` long; the
    /// chunks lie one behind the other.
    ///
    /// # Errors
    /// A member failed or is late.
    fn start_all_to_all(
        &mut self,
        counts: Counts<'_>,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError>;

    /// Starts an all-gather: member `i`'s message, `counts[i]` long, goes to every member.
    ///
    /// # Errors
    /// A member failed or is late.
    fn start_all_gather(
        &mut self,
        counts: &[usize],
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError>;

    /// Starts an all-reduce of messages of `count` values.
    ///
    /// # Errors
    /// A member failed or is late.
    fn start_all_reduce(
        &mut self,
        count: usize,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError>;

    /// Starts a gather: member `i`'s message, `counts[i]` long, goes to member `root`, whose own
    /// is empty.
    ///
    /// # Errors
    /// A member failed or is late.
    fn start_gather(
        &mut self,
        counts: &[usize],
        root: usize,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError>;

    /// Waits for the oldest collective in flight and hands what it brought to `read`: a chunk from
    /// each member, in member order; of an all-reduce the parts whose sum in this order
    /// ([`Chunks::sum`]) is the result, so that every member ends with the same bits. Of a gather
    /// members other than the root get no chunks.
    ///
    /// # Errors
    /// A member failed or is late.
    fn finish<R>(
        &mut self,
        pending: Pending,
        read: impl FnOnce(Chunks<'_>) -> R,
    ) -> Result<R, CommError>;

    /// When the last message of the collective that was finished last was there, if the link
    /// tells: before that it was in flight, whoever waited.
    fn landed(&self) -> Option<Instant> {
        None
    }

    /// Replaces `x` by the sum of all members' `x`.
    ///
    /// # Errors
    /// A member failed or is late.
    fn all_reduce(&mut self, x: &mut [f32]) -> Result<(), CommError> {
        if self.size() == 1 {
            return Ok(());
        }
        let pending = self.start_all_reduce(x.len(), |message| message.copy_from_slice(x))?;
        self.finish(pending, |parts| sum_tiles(parts, x))
    }

    /// The rank begins step number `step`, counted from 1: for links that tell a process that
    /// outlives this one.
    fn at_step(&self, step: u64) {
        let _ = step;
    }

    /// Tells the others that this member will not come: their waits end with an error.
    fn abort(&self);
}

/// Sums a tile at a time, so that what is added to stays in a near cache.
fn sum_tiles(parts: Chunks<'_>, sum: &mut [f32]) {
    const TILE: usize = 2048;
    for (tile, sum) in sum.chunks_mut(TILE).enumerate() {
        parts.sum(tile * TILE..tile * TILE + sum.len(), sum);
    }
}
