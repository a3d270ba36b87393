//! Counts what a communicator carries.

use crate::{Chunks, Collective, Comm, CommError, Counts, Pending};
use std::ops::AddAssign;

/// Calls and payload of one communicator, by kind of collective.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Calls, indexed as [`Collective::ALL`].
    pub calls: [u64; 4],
    /// Payload in bytes that this member handed over for others, indexed as [`Collective::ALL`]:
    /// an all-to-all's chunks without its own; an all-gather's, all-reduce's or gather's `send`
    /// once. What an algorithm makes of it on the wire is the cost model's matter.
    pub bytes: [u64; 4],
}

impl Traffic {
    /// Calls and bytes of one kind.
    pub fn of(&self, collective: Collective) -> (u64, u64) {
        (self.calls[collective as usize], self.bytes[collective as usize])
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Traffic) {
        for i in 0..self.calls.len() {
            self.calls[i] += other.calls[i];
            self.bytes[i] += other.bytes[i];
        }
    }
}

/// A communicator that counts. Groups of one member carry nothing and count nothing.
pub struct Counted<C> {
    inner: C,
    traffic: Traffic,
}

impl<C: Comm> Counted<C> {
    /// Counts from zero.
    pub fn new(inner: C) -> Self {
        Self { inner, traffic: Traffic::default() }
    }

    /// What was carried since the start or the last [`Counted::reset`].
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Counts from zero again.
    pub fn reset(&mut self) {
        self.traffic = Traffic::default();
    }

    fn count(&mut self, collective: Collective, values: usize) {
        if self.inner.size() > 1 {
            self.traffic.calls[collective as usize] += 1;
            self.traffic.bytes[collective as usize] += (values * size_of::<f32>()) as u64;
        }
    }
}

impl<C: Comm> Comm for Counted<C> {
    const IN_FLIGHT: usize = C::IN_FLIGHT;

    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn start_all_to_all(
        &mut self,
        counts: Counts<'_>,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        let total: usize = counts.send.iter().sum();
        self.count(Collective::AllToAll, total - counts.send[self.inner.rank()]);
        self.inner.start_all_to_all(counts, write)
    }

    fn start_all_gather(
        &mut self,
        counts: &[usize],
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        self.count(Collective::AllGather, counts[self.inner.rank()]);
        self.inner.start_all_gather(counts, write)
    }

    fn start_all_reduce(
        &mut self,
        count: usize,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        self.count(Collective::AllReduce, count);
        self.inner.start_all_reduce(count, write)
    }

    fn start_gather(
        &mut self,
        counts: &[usize],
        root: usize,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        self.count(Collective::Gather, counts[self.inner.rank()]);
        self.inner.start_gather(counts, root, write)
    }

    fn finish<R>(
        &mut self,
        pending: Pending,
        read: impl FnOnce(Chunks<'_>) -> R,
    ) -> Result<R, CommError> {
        self.inner.finish(pending, read)
    }

    fn abort(&self) {
        self.inner.abort();
    }
}
