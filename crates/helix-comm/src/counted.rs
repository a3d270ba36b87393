//! Counts what a communicator carries.

use crate::{Chunks, Collective, Comm, CommError, Counts, Pending, Ring};
use std::collections::VecDeque;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

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

/// Where the time of collectives went, by kind, indexed as [`Collective::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlap {
    /// Time that the member stood still for messages: spent in `finish` before it could read.
    pub exposed: [Duration; 4],
    /// Time that messages were in flight while the member did something else: from when
    /// this one's was written to when the last one was there, or to `finish` if that came first. What several
    /// collectives in flight overlap of one another counts once.
    pub hidden: [Duration; 4],
}

impl AddAssign for Overlap {
    fn add_assign(&mut self, other: Overlap) {
        for i in 0..self.exposed.len() {
            self.exposed[i] += other.exposed[i];
            self.hidden[i] += other.hidden[i];
        }
    }
}

/// One collective, as a trace shows it.
#[derive(Clone, Copy, Debug)]
pub struct Flight {
    /// What it was.
    pub collective: Collective,
    /// Bytes that this member handed over for others.
    pub bytes: u64,
    /// When this member's message was written.
    pub started: Instant,
    /// When the last message was there; when the wait ended, of a link that does not tell.
    pub landed: Instant,
    /// When this member began to wait.
    pub called: Instant,
    /// When it could read.
    pub received: Instant,
}

/// A communicator that counts and times. Groups of one member carry nothing and count nothing.
pub struct Counted<C> {
    inner: C,
    traffic: Traffic,
    overlap: Overlap,
    /// Those in flight: when they started, and their bytes.
    started: VecDeque<(Instant, u64)>,
    /// Up to when time in flight has been counted.
    counted: Instant,
    flights: Ring<Flight>,
}

impl<C: Comm> Counted<C> {
    /// Counts from zero, and logs the last `flights` collectives.
    pub fn new(inner: C, flights: usize) -> Self {
        Self {
            inner,
            traffic: Traffic::default(),
            overlap: Overlap::default(),
            started: VecDeque::with_capacity(C::IN_FLIGHT),
            counted: Instant::now(),
            flights: Ring::new(flights),
        }
    }

    /// What collectives waited for, and what they did not, since the last [`Counted::reset`].
    pub fn overlap(&self) -> Overlap {
        self.overlap
    }

    /// The last collectives, the oldest first.
    pub fn flights(&self) -> impl Iterator<Item = &Flight> {
        self.flights.iter()
    }

    /// The communicator itself, for what is not to be counted.
    pub fn uncounted(&mut self) -> &mut C {
        &mut self.inner
    }

    /// What was carried since the start or the last [`Counted::reset`].
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Counts from zero again.
    pub fn reset(&mut self) {
        self.traffic = Traffic::default();
        self.overlap = Overlap::default();
    }

    /// Starts a collective for which this member hands over `values` values.
    fn start(
        &mut self,
        collective: Collective,
        values: usize,
        write: impl FnOnce(&mut [f32]),
        start: impl FnOnce(&mut C, &mut dyn FnMut(&mut [f32])) -> Result<Pending, CommError>,
    ) -> Result<Pending, CommError> {
        let bytes = (values * size_of::<f32>()) as u64;
        if self.inner.size() > 1 {
            self.traffic.calls[collective as usize] += 1;
            self.traffic.bytes[collective as usize] += bytes;
        }
        let (mut write, mut written) = (Some(write), Instant::now());
        let pending = start(&mut self.inner, &mut |message| {
            write.take().expect("a message is written once")(message);
            written = Instant::now();
        })?;
        self.started.push_back((written, bytes));
        Ok(pending)
    }

    fn time(&mut self, flight: Flight) {
        let Flight { collective, started, landed, called, received, .. } = flight;
        let hidden = landed.min(called).saturating_duration_since(started.max(self.counted));
        self.counted = self.counted.max(if landed > called { received } else { landed });
        self.overlap.hidden[collective as usize] += hidden;
        self.overlap.exposed[collective as usize] += received - called;
        self.flights.push(flight);
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
        let values = total - counts.send[self.inner.rank()];
        self.start(Collective::AllToAll, values, write, |c, w| c.start_all_to_all(counts, w))
    }

    fn start_all_gather(
        &mut self,
        counts: &[usize],
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        let values = counts[self.inner.rank()];
        self.start(Collective::AllGather, values, write, |c, w| c.start_all_gather(counts, w))
    }

    fn start_all_reduce(
        &mut self,
        count: usize,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        self.start(Collective::AllReduce, count, write, |c, w| c.start_all_reduce(count, w))
    }

    fn start_gather(
        &mut self,
        counts: &[usize],
        root: usize,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        let values = counts[self.inner.rank()];
        self.start(Collective::Gather, values, write, |c, w| c.start_gather(counts, root, w))
    }

    fn finish<R>(
        &mut self,
        pending: Pending,
        read: impl FnOnce(Chunks<'_>) -> R,
    ) -> Result<R, CommError> {
        let (collective, called) = (pending.collective(), Instant::now());
        let (received, result) =
            self.inner.finish(pending, |chunks| (Instant::now(), read(chunks)))?;
        let (started, bytes) = self.started.pop_front().expect("a collective was started");
        if self.inner.size() > 1 {
            let landed = self.inner.landed().unwrap_or(received);
            self.time(Flight { collective, bytes, started, landed, called, received });
        }
        Ok(result)
    }

    fn landed(&self) -> Option<Instant> {
        self.inner.landed()
    }

    fn at_step(&self, step: u64) {
        self.inner.at_step(step);
    }

    fn abort(&self) {
        self.inner.abort();
    }
}
