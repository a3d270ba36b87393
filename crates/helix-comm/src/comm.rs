//! The collectives that Helix needs, as a trait.

use std::fmt;

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
    /// Another member gave up first.
    #[error("member {member} of {size} failed; {collective} number {number} can't complete")]
    PeerFailed {
        /// Who failed.
        member: usize,
        /// Members in the group.
        size: usize,
        /// What this member was waiting in.
        collective: Collective,
        /// Its number, counted from the start.
        number: u64,
    },
    /// A member did not arrive in time.
    #[error("member {member} of {size} did not reach {collective} number {number} in {seconds} s")]
    Timeout {
        /// Who is late.
        member: usize,
        /// Members in the group.
        size: usize,
        /// What this member was waiting in.
        collective: Collective,
        /// Its number, counted from the start.
        number: u64,
        /// How long this member waited.
        seconds: u64,
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

/// Collectives over the members of one group. All members call the same ones in the same order.
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

    /// Starts an all-to-all: chunk `i` of `send`, `counts.send[i]` long, goes to member `i`.
    ///
    /// # Errors
    /// A member failed or is late.
    fn start_all_to_all(&mut self, send: &[f32], counts: Counts<'_>) -> Result<Pending, CommError>;

    /// Starts an all-gather: `send` goes to every member.
    ///
    /// # Errors
    /// A member failed or is late.
    fn start_all_gather(&mut self, send: &[f32]) -> Result<Pending, CommError>;

    /// Starts an all-reduce of `send`, the same length on every member.
    ///
    /// # Errors
    /// A member failed or is late.
    fn start_all_reduce(&mut self, send: &[f32]) -> Result<Pending, CommError>;

    /// Starts a gather: `send` goes to member `root`. The root sends nothing: its own chunk lies
    /// already at its place in what it passes to `finish`.
    ///
    /// # Errors
    /// A member failed or is late.
    fn start_gather(&mut self, send: &[f32], root: usize) -> Result<Pending, CommError>;

    /// Waits for the oldest collective in flight and writes what it brought: the members' chunks
    /// one behind the other in member order, or the sum, added in member order, so that every
    /// member holds the same bits. For a gather, the root's own chunk in `recv` stays as it is,
    /// and members other than the root pass an empty `recv`.
    ///
    /// # Errors
    /// A member failed or is late.
    fn finish(&mut self, pending: Pending, recv: &mut [f32]) -> Result<(), CommError>;

    /// [`Comm::start_all_to_all`], finished at once.
    ///
    /// # Errors
    /// A member failed or is late.
    fn all_to_all(
        &mut self,
        send: &[f32],
        counts: Counts<'_>,
        recv: &mut [f32],
    ) -> Result<(), CommError> {
        let pending = self.start_all_to_all(send, counts)?;
        self.finish(pending, recv)
    }

    /// [`Comm::start_all_gather`], finished at once.
    ///
    /// # Errors
    /// A member failed or is late.
    fn all_gather(&mut self, send: &[f32], recv: &mut [f32]) -> Result<(), CommError> {
        let pending = self.start_all_gather(send)?;
        self.finish(pending, recv)
    }

    /// Replaces `x` by the sum of all members' `x`.
    ///
    /// # Errors
    /// A member failed or is late.
    fn all_reduce(&mut self, x: &mut [f32]) -> Result<(), CommError> {
        if self.size() == 1 {
            return Ok(());
        }
        let pending = self.start_all_reduce(x)?;
        self.finish(pending, x)
    }

    /// [`Comm::start_gather`], finished at once.
    ///
    /// # Errors
    /// A member failed or is late.
    fn gather(&mut self, send: &[f32], root: usize, recv: &mut [f32]) -> Result<(), CommError> {
        let pending = self.start_gather(send, root)?;
        self.finish(pending, recv)
    }

    /// Tells the others that this member will not come: their waits end with an error.
    fn abort(&self);
}
