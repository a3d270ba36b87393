//! A rank's end of a group of processes.
#![allow(unsafe_code)]

use super::progress::{Exchange, RING, TwoStages};
use super::whereabouts::Others;
use super::wire::Buffer;
use super::world::{Shared, Wait};
use crate::{Chunks, Collective, Comm, CommError, Counts, Pending};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Values from which an all-reduce of three or more members goes in two stages: half as many bytes
/// or less, and twice the latency. Measured: docs/mpi.md.
const TWO_STAGES_FROM: usize = 16 << 10;

/// One member's end of a group of ranks that are processes.
///
/// A collective in flight has a buffer of its own, in which messages are written, sent, received
/// and read; nothing is copied on the way but by the link.
pub struct MpiComm {
    shared: Arc<Shared>,
    /// Which of this process's groups it is.
    group: usize,
    /// Ranks of the members.
    members: Vec<usize>,
    own: usize,
    others: Others,
    deadline: Duration,
    places: [Slot; RING],
    /// Ranges of a buffer that go to and come from each member.
    send: Vec<Range<usize>>,
    receive: Vec<Range<usize>>,
    started: u64,
    finished: u64,
}

/// A collective in flight, as its reader sees it.
struct Slot {
    buffer: Arc<Buffer<f32>>,
    /// Where what it brings lies.
    chunks: Vec<Range<usize>>,
}

impl MpiComm {
    pub(super) fn new(
        shared: &Arc<Shared>,
        group: usize,
        members: Vec<usize>,
        max_values: usize,
        deadline: Duration,
    ) -> MpiComm {
        let size = members.len();
        let rank = shared.rank();
        let own = members.iter().position(|&member| member == rank).expect("a member of the group");
        // What everyone sends, and what this member sends itself.
        let room = match size {
            1 => max_values,
            _ => (max_values * (size + 1)).max(TwoStages::room(max_values, size)),
        };
        let buffers = std::array::from_fn(|_| Arc::new(Buffer::new(room)));
        shared.lock().join(group, members.clone(), own, &buffers);
        MpiComm {
            shared: Arc::clone(shared),
            group,
            own,
            others: Others::new(&members, rank),
            deadline,
            places: buffers.map(|buffer| Slot { buffer, chunks: Vec::with_capacity(size) }),
            send: vec![0..0; size],
            receive: vec![0..0; size],
            members,
            started: 0,
            finished: 0,
        }
    }

    /// The place of the next collective, when all is gone that was sent from it before.
    fn next(&mut self, collective: Collective) -> Result<usize, CommError> {
        let in_flight = self.started - self.finished;
        assert!(in_flight < RING as u64, "{RING} collectives are in flight already");
        let (group, place) = (self.group, self.started as usize % RING);
        let free = self
            .shared
            .wait(Some(self.deadline), |progress| Ok(progress.is_free(group, place).then_some(())));
        free.map_err(|wait| self.error(wait, place, collective, self.started))?;
        self.places[place].chunks.clear();
        Ok(place)
    }

    /// Says that this rank starts a collective, or waits for it.
    fn enter(&self, collective: Collective, number: u64) {
        if let Some(whereabouts) = self.shared.whereabouts() {
            whereabouts.enter(collective, number, self.others);
        }
    }

    /// Starts the collective at `place` whose ranges are set, with the message in `message`.
    fn start(
        &mut self,
        place: usize,
        (collective, root): (Collective, Option<usize>),
        stages: Option<TwoStages>,
        message: Range<usize>,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        let (number, at) = (self.started, (self.group, place));
        let buffer = &self.places[place].buffer;
        let room = buffer.len();
        let ends = self.receive.iter().chain(&self.send).map(|range| range.end);
        let end = ends.max().unwrap_or(0).max(message.end);
        assert!(end <= room, "{collective} of {end} values, room for {room}");
        // SAFETY: the place is free: `next` has waited until nothing is sent from it, and what it
        // received before has been read (`finish` has returned).
        write(unsafe { buffer.write(message) });
        self.enter(collective, number);
        let mut progress = self.shared.lock();
        // SAFETY: only `finish` reads the buffer, after all is received, and only `start` writes
        // it, after `next` has waited until all is sent.
        let posted = unsafe {
            match stages {
                Some(stages) => progress.reduce(at, number, stages),
                None => {
                    let exchange = Exchange { send: &self.send, receive: &self.receive };
                    progress.exchange(at, number, &exchange)
                }
            }
        };
        self.shared.set_busy();
        drop(progress);
        posted.map_err(|error| self.error(Wait::Library(error), place, collective, number))?;
        self.started += 1;
        Ok(Pending { collective, number, root })
    }

    /// A chunk of each member, one behind the other.
    fn lay_out(chunks: &mut Vec<Range<usize>>, counts: impl Iterator<Item = usize>) {
        let mut end = 0;
        chunks.extend(counts.map(|count| {
            end += count;
            end - count..end
        }));
    }

    /// Everyone's chunk goes to everyone, from its place in the result.
    fn share_out(&mut self, place: usize) -> Range<usize> {
        let chunks = &self.places[place].chunks;
        self.send.fill(chunks[self.own].clone());
        self.receive.clone_from(chunks);
        chunks[self.own].clone()
    }

    fn error(&self, wait: Wait, place: usize, collective: Collective, number: u64) -> CommError {
        let late = || {
            let member = self.shared.lock().waits_for(self.group, place).unwrap_or(self.own);
            self.members[member]
        };
        match wait {
            Wait::Late => {
                let rank = late();
                self.shared.give_up(rank);
                let seconds = self.deadline.as_secs();
                CommError::Timeout { rank, collective, number, seconds }
            }
            Wait::Ended => CommError::Ended { rank: late(), collective, number },
            Wait::Lost(lost) => CommError::PeerFailed { rank: lost.because_of, collective, number },
            Wait::Library(error) => {
                let rank = late();
                self.shared.give_up(rank);
                CommError::Library { rank, collective, number, problem: error.to_string() }
            }
        }
    }
}

impl Comm for MpiComm {
    const IN_FLIGHT: usize = RING;

    fn rank(&self) -> usize {
        self.own
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn start_all_to_all(
        &mut self,
        counts: Counts<'_>,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        assert_eq!(counts.send.len(), self.size(), "all-to-all: a count for each member");
        assert_eq!(counts.recv.len(), self.size(), "all-to-all: a count from each member");
        assert_eq!(counts.send[self.own], counts.recv[self.own], "all-to-all: its own chunk");
        let place = self.next(Collective::AllToAll)?;
        self.send.clear();
        Self::lay_out(&mut self.send, counts.send.iter().copied());
        let sent = self.send.last().map_or(0, |range| range.end);
        let chunks = &mut self.places[place].chunks;
        Self::lay_out(chunks, counts.recv.iter().copied());
        chunks.iter_mut().for_each(|range| *range = sent + range.start..sent + range.end);
        // What stays here is read where it was written.
        chunks[self.own] = self.send[self.own].clone();
        self.receive.clone_from(chunks);
        self.start(place, (Collective::AllToAll, None), None, 0..sent, write)
    }

    fn start_all_gather(
        &mut self,
        counts: &[usize],
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        assert_eq!(counts.len(), self.size(), "all-gather: a count of each member");
        let place = self.next(Collective::AllGather)?;
        Self::lay_out(&mut self.places[place].chunks, counts.iter().copied());
        let message = self.share_out(place);
        self.start(place, (Collective::AllGather, None), None, message, write)
    }

    fn start_all_reduce(
        &mut self,
        count: usize,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        let place = self.next(Collective::AllReduce)?;
        let (size, kind) = (self.size(), (Collective::AllReduce, None));
        if size > 2 && count >= TWO_STAGES_FROM {
            let stages = TwoStages { values: count, members: size };
            self.places[place].chunks.push(stages.sum());
            return self.start(place, kind, Some(stages), 0..count, write);
        }
        Self::lay_out(&mut self.places[place].chunks, (0..size).map(|_| count));
        let message = self.share_out(place);
        self.start(place, kind, None, message, write)
    }

    fn start_gather(
        &mut self,
        counts: &[usize],
        root: usize,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        assert!(root < self.size(), "gather: root {root} of {} members", self.size());
        assert_eq!(counts.len(), self.size(), "gather: a count of each member");
        assert_eq!(counts[root], 0, "gather: the root sends nothing");
        let place = self.next(Collective::Gather)?;
        self.send.fill(0..0);
        self.receive.fill(0..0);
        let message = 0..counts[self.own];
        if root == self.own {
            let chunks = &mut self.places[place].chunks;
            Self::lay_out(chunks, counts.iter().copied());
            self.receive.clone_from(chunks);
        } else {
            self.send[root] = message.clone();
        }
        self.start(place, (Collective::Gather, Some(root)), None, message, write)
    }

    fn finish<R>(
        &mut self,
        pending: Pending,
        read: impl FnOnce(Chunks<'_>) -> R,
    ) -> Result<R, CommError> {
        let Pending { collective, number, .. } = pending;
        assert_eq!(number, self.finished, "collectives finish in the order they started");
        self.enter(collective, number);
        let (group, place) = (self.group, number as usize % RING);
        let received = self.shared.wait(Some(self.deadline), |progress| {
            Ok(progress.take_received(group, place).then_some(()))
        });
        received.map_err(|wait| self.error(wait, place, collective, number))?;
        let Slot { buffer, chunks } = &self.places[place];
        // SAFETY: all is received, and what may still be sent from the buffer is only read;
        // nobody writes before the next `start` at this place.
        let chunk = |member: usize| unsafe { buffer.read(chunks[member].clone()) };
        let result = read(Chunks::new(chunks.len(), &chunk));
        self.finished += 1;
        if let Some(whereabouts) = self.shared.whereabouts() {
            whereabouts.leave();
        }
        Ok(result)
    }

    fn at_step(&self, step: u64) {
        if let Some(whereabouts) = self.shared.whereabouts() {
            whereabouts.at_step(step);
        }
    }

    fn abort(&self) {
        self.shared.give_up(self.members[self.own]);
    }
}

impl Drop for MpiComm {
    /// What was sent is seen off, unless a rank was lost.
    fn drop(&mut self) {
        let group = self.group;
        let quiet =
            |progress: &mut super::progress::Progress| Ok(progress.is_quiet(group).then_some(()));
        if !std::thread::panicking() {
            // Whoever does not take it will be missed by the others.
            let _ = self.shared.wait(Some(self.deadline), quiet);
        }
        self.shared.lock().leave(group);
    }
}
