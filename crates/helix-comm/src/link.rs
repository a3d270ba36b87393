//! An end of a group, whichever way its messages go.

#[cfg(feature = "mpi")]
use crate::mpi::MpiComm;
use crate::{Chunks, Comm, CommError, Counts, Faulty, Pending, ThreadComm};
use std::time::Instant;

/// A [`Comm`] of either transport, so that what runs over it is one type.
pub enum Link {
    /// Ranks of one process.
    Threads(ThreadComm),
    /// The same, as they fail: for tests.
    Faulty(Faulty<ThreadComm>),
    /// Ranks that are processes.
    #[cfg(feature = "mpi")]
    Mpi(MpiComm),
}

/// The same on whichever it is.
macro_rules! on {
    ($link:expr, $comm:ident => $call:expr) => {
        match $link {
            Link::Threads($comm) => $call,
            Link::Faulty($comm) => $call,
            #[cfg(feature = "mpi")]
            Link::Mpi($comm) => $call,
        }
    };
}

impl Comm for Link {
    const IN_FLIGHT: usize = ThreadComm::IN_FLIGHT;

    fn rank(&self) -> usize {
        on!(self, comm => comm.rank())
    }

    fn size(&self) -> usize {
        on!(self, comm => comm.size())
    }

    fn start_all_to_all(
        &mut self,
        counts: Counts<'_>,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        on!(self, comm => comm.start_all_to_all(counts, write))
    }

    fn start_all_gather(
        &mut self,
        counts: &[usize],
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        on!(self, comm => comm.start_all_gather(counts, write))
    }

    fn start_all_reduce(
        &mut self,
        count: usize,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        on!(self, comm => comm.start_all_reduce(count, write))
    }

    fn start_gather(
        &mut self,
        counts: &[usize],
        root: usize,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        on!(self, comm => comm.start_gather(counts, root, write))
    }

    fn finish<R>(
        &mut self,
        pending: Pending,
        read: impl FnOnce(Chunks<'_>) -> R,
    ) -> Result<R, CommError> {
        on!(self, comm => comm.finish(pending, read))
    }

    fn landed(&self) -> Option<Instant> {
        on!(self, comm => comm.landed())
    }

    fn at_step(&self, step: u64) {
        on!(self, comm => comm.at_step(step));
    }

    fn abort(&self) {
        on!(self, comm => comm.abort());
    }
}

impl From<ThreadComm> for Link {
    fn from(comm: ThreadComm) -> Link {
        Link::Threads(comm)
    }
}

impl From<Faulty<ThreadComm>> for Link {
    fn from(comm: Faulty<ThreadComm>) -> Link {
        Link::Faulty(comm)
    }
}

#[cfg(feature = "mpi")]
impl From<MpiComm> for Link {
    fn from(comm: MpiComm) -> Link {
        Link::Mpi(comm)
    }
}
