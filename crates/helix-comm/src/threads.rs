//! Ranks of one process: collectives over shared memory.
#![allow(unsafe_code)]

use crate::backoff::Backoff;
use crate::{Collective, Comm, CommError, Counts, Pending};
use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Messages of a member that may wait to be read; see [`Comm::IN_FLIGHT`].
const RING: usize = 4;

/// One member's message for one collective.
struct Message {
    /// Which values are for which member.
    chunks: Vec<Range<usize>>,
    values: Vec<f32>,
}

/// What a member shows the others. On cache lines of its own: the counters are polled.
#[repr(align(128))]
struct Member {
    /// Collectives that this member has started: message `n` may be read once `sent > n`.
    sent: AtomicU64,
    /// Collectives that it has finished: it reads nobody's message `n` any more once `done > n`.
    done: AtomicU64,
    /// Where in the ring message `n` lies: `places[n % RING]`.
    places: [AtomicUsize; RING],
    ring: [UnsafeCell<Message>; RING],
}

// SAFETY: a place of the ring is written by its owner alone, and only when every member's `done`
// has passed the message that lay there before (`ThreadComm::post`); message `n` is read by others
// only after its owner's `sent` has passed `n` and before their own `done` does
// (`ThreadComm::message`). Both counters are stored with Release and loaded with Acquire, so writes
// and reads don't overlap. `places[n % RING]` changes only when all are done with `n − RING`.
unsafe impl Sync for Member {}

struct Group {
    members: Vec<Member>,
    /// 1 + the member that gave up; 0 while none has.
    failed: AtomicUsize,
    deadline: Duration,
}

/// One member's end of a group of ranks in this process.
///
/// Buffers are allocated once for the largest message; a collective is one copy into the sender's
/// buffer and one read by each receiver.
pub struct ThreadComm {
    group: Arc<Group>,
    rank: usize,
    started: u64,
    finished: u64,
    /// 1 + the number of the message that lies in each place of this member's ring; 0 for none.
    held: [u64; RING],
}

impl ThreadComm {
    /// The ends of a group of `size`, whose messages hold up to `max_values` f32 each.
    ///
    /// A wait longer than `deadline` is an error: threads of one process are late only when one
    /// has died or hangs.
    ///
    /// # Panics
    /// `size` is 0.
    pub fn group(size: usize, max_values: usize, deadline: Duration) -> Vec<ThreadComm> {
        assert!(size > 0, "a group has at least one member");
        let message = || {
            let values = vec![0.0; max_values];
            UnsafeCell::new(Message { chunks: vec![0..0; size], values })
        };
        let member = || Member {
            sent: AtomicU64::new(0),
            done: AtomicU64::new(0),
            places: Default::default(),
            ring: std::array::from_fn(|_| message()),
        };
        let members = (0..size).map(|_| member()).collect();
        let group = Arc::new(Group { members, failed: AtomicUsize::new(0), deadline });
        let end = |rank| {
            let group = Arc::clone(&group);
            ThreadComm { group, rank, started: 0, finished: 0, held: [0; RING] }
        };
        (0..size).map(end).collect()
    }

    /// Waits until `counter` of each member in `members` exceeds `number`.
    fn wait(
        &self,
        members: Range<usize>,
        counter: impl Fn(&Member) -> &AtomicU64,
        number: u64,
        collective: Collective,
    ) -> Result<(), CommError> {
        let size = self.size();
        for member in members {
            let mut backoff = Backoff::new();
            while counter(&self.group.members[member]).load(Ordering::Acquire) <= number {
                let failed = self.group.failed.load(Ordering::Relaxed);
                if failed > 0 {
                    return Err(CommError::PeerFailed {
                        member: failed - 1,
                        size,
                        collective,
                        number,
                    });
                }
                if backoff.elapsed() > self.group.deadline {
                    let seconds = self.group.deadline.as_secs();
                    return Err(CommError::Timeout { member, size, collective, number, seconds });
                }
                backoff.wait();
            }
        }
        Ok(())
    }

    /// Makes `send` this member's next message; `cut` says which of it is for which member.
    fn post(
        &mut self,
        collective: Collective,
        send: &[f32],
        root: Option<usize>,
        cut: impl Fn(&mut [Range<usize>]),
    ) -> Result<Pending, CommError> {
        let number = self.started;
        assert!(number - self.finished < RING as u64, "{RING} collectives are in flight already");
        let place = self.place();
        let before = self.held[place].max((number + 1).saturating_sub(RING as u64));
        if before > 0 {
            self.wait(0..self.size(), |m| &m.done, before - 1, collective)?;
        }
        self.held[place] = number + 1;
        let own = &self.group.members[self.rank];
        own.places[number as usize % RING].store(place, Ordering::Relaxed);
        // SAFETY: only this member writes its ring (`&mut self`), and all members are done with
        // the message that lay in this place: the wait above.
        let message = unsafe { &mut *own.ring[place].get() };
        let room = message.values.len();
        assert!(send.len() <= room, "{collective} of {} values, room for {room}", send.len());
        message.values[..send.len()].copy_from_slice(send);
        cut(&mut message.chunks);
        own.sent.store(number + 1, Ordering::Release);
        self.started += 1;
        Ok(Pending { collective, number, root })
    }

    /// Where the next message goes: the first place that is not in flight and does not hold the
    /// message before, which others may still be reading. Collectives one after the other take
    /// turns at two places, which stay in a near cache.
    fn place(&self) -> usize {
        let free = |held: u64| held <= self.finished;
        let rested = self.held.iter().position(|&held| free(held) && held != self.started);
        let any = || self.held.iter().position(|&held| free(held));
        rested.or_else(any).expect("fewer collectives are in flight than there are places")
    }

    /// Member `from`'s message `number`; it has been waited for.
    fn message(&self, from: usize, number: u64) -> &Message {
        debug_assert!(self.group.members[from].sent.load(Ordering::Relaxed) > number);
        let member = &self.group.members[from];
        let place = member.places[number as usize % RING].load(Ordering::Relaxed);
        // SAFETY: `from` has posted it (`finish` waited for `sent`) and will not write there again
        // before this member's `done` passes `number`, which `finish` stores last.
        unsafe { &*member.ring[place].get() }
    }

    fn collect(&self, pending: &Pending, recv: &mut [f32]) {
        let number = pending.number;
        let chunk = |from| {
            let message = self.message(from, number);
            &message.values[message.chunks[self.rank].clone()]
        };
        // A gather's root has its own chunk in place: it is as long as the others leave room for.
        let in_place = match pending.root {
            Some(_) => {
                let received: usize = (0..self.size()).map(|from| chunk(from).len()).sum();
                recv.len().saturating_sub(received)
            }
            None => 0,
        };
        let mut filled = 0;
        for from in 0..self.size() {
            if pending.root == Some(from) {
                filled += in_place;
                continue;
            }
            let chunk = chunk(from);
            let end = filled + chunk.len();
            assert!(end <= recv.len(), "{} brings more than its buffer holds", pending.collective);
            recv[filled..end].copy_from_slice(chunk);
            filled = end;
        }
        assert_eq!(filled, recv.len(), "{} brings less than expected", pending.collective);
    }

    /// Adds in member order, a tile at a time: each message is read once, the sum written once.
    fn sum(&self, number: u64, recv: &mut [f32]) {
        const TILE: usize = 2048;
        for from in 0..self.size() {
            let len = self.message(from, number).chunks[self.rank].len();
            assert_eq!(len, recv.len(), "all-reduce: lengths differ between members");
        }
        for (tile, recv) in recv.chunks_mut(TILE).enumerate() {
            for from in 0..self.size() {
                let message = self.message(from, number);
                let start = message.chunks[self.rank].start + tile * TILE;
                let values = &message.values[start..start + recv.len()];
                if from == 0 {
                    recv.copy_from_slice(values);
                } else {
                    recv.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                }
            }
        }
    }
}

/// The whole message goes to every member.
fn for_everyone(len: usize) -> impl Fn(&mut [Range<usize>]) {
    move |chunks| chunks.fill(0..len)
}

impl Comm for ThreadComm {
    const IN_FLIGHT: usize = RING;

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.group.members.len()
    }

    fn start_all_to_all(&mut self, send: &[f32], counts: Counts<'_>) -> Result<Pending, CommError> {
        let total = counts.send.iter().sum::<usize>();
        assert_eq!(counts.send.len(), self.size(), "all-to-all: a count for each member");
        assert_eq!(counts.recv.len(), self.size(), "all-to-all: a count from each member");
        assert_eq!(send.len(), total, "all-to-all: counts and values differ");
        self.post(Collective::AllToAll, send, None, |chunks| {
            let mut end = 0;
            for (chunk, count) in chunks.iter_mut().zip(counts.send) {
                *chunk = end..end + count;
                end += count;
            }
        })
    }

    fn start_all_gather(&mut self, send: &[f32]) -> Result<Pending, CommError> {
        self.post(Collective::AllGather, send, None, for_everyone(send.len()))
    }

    fn start_all_reduce(&mut self, send: &[f32]) -> Result<Pending, CommError> {
        self.post(Collective::AllReduce, send, None, for_everyone(send.len()))
    }

    fn start_gather(&mut self, send: &[f32], root: usize) -> Result<Pending, CommError> {
        assert!(root < self.size(), "gather: root {root} of {} members", self.size());
        assert!(root != self.rank || send.is_empty(), "gather: the root sends nothing");
        self.post(Collective::Gather, send, Some(root), for_everyone(send.len()))
    }

    fn finish(&mut self, pending: Pending, recv: &mut [f32]) -> Result<(), CommError> {
        assert_eq!(pending.number, self.finished, "collectives finish in the order they started");
        let reads = pending.root.is_none_or(|root| root == self.rank);
        if reads {
            self.wait(0..self.size(), |m| &m.sent, pending.number, pending.collective)?;
            match pending.collective {
                Collective::AllReduce => self.sum(pending.number, recv),
                _ => self.collect(&pending, recv),
            }
        } else {
            assert!(recv.is_empty(), "gather: only the root receives");
        }
        self.finished += 1;
        self.group.members[self.rank].done.store(self.finished, Ordering::Release);
        Ok(())
    }

    fn abort(&self) {
        let failed = &self.group.failed;
        // The first to fail is the one to name.
        let _ = failed.compare_exchange(0, self.rank + 1, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn on_every_member(size: usize, run: impl Fn(ThreadComm) + Sync) {
        std::thread::scope(|scope| {
            for comm in ThreadComm::group(size, 4096, PATIENCE) {
                scope.spawn(|| run(comm));
            }
        });
    }

    /// What member `rank` sends as value `i` of collective `round`.
    fn value(rank: usize, round: usize, i: usize) -> f32 {
        (rank * 1_000_003 + round * 1009 + i) as f32 * 0.37
    }

    #[test]
    fn all_to_all_with_uneven_counts() {
        for size in 1..=5 {
            on_every_member(size, |mut comm| {
                let me = comm.rank();
                // Member a sends (3a + b + round) % 5 values to member b: some chunks are empty.
                let count = |a: usize, b: usize, round: usize| (3 * a + b + round) % 5;
                for round in 0..300 {
                    let send_counts: Vec<_> = (0..size).map(|b| count(me, b, round)).collect();
                    let recv_counts: Vec<_> = (0..size).map(|a| count(a, me, round)).collect();
                    let total = send_counts.iter().sum();
                    let send: Vec<_> = (0..total).map(|i| value(me, round, i)).collect();
                    let mut recv = vec![f32::NAN; recv_counts.iter().sum()];
                    let counts = Counts { send: &send_counts, recv: &recv_counts };
                    comm.all_to_all(&send, counts, &mut recv).unwrap();
                    let expected = (0..size).flat_map(|a| {
                        let start: usize = (0..me).map(|b| count(a, b, round)).sum();
                        (start..start + count(a, me, round)).map(move |i| value(a, round, i))
                    });
                    assert_eq!(recv, expected.collect::<Vec<_>>(), "member {me} round {round}");
                }
            });
        }
    }

    #[test]
    fn reductions_and_gathers_in_member_order() {
        for size in 1..=4 {
            on_every_member(size, |mut comm| {
                let me = comm.rank();
                for round in 0..300 {
                    let len = (round * 7) % 50;
                    let own: Vec<_> = (0..len).map(|i| value(me, round, i)).collect();
                    let all: Vec<Vec<f32>> =
                        (0..size).map(|r| (0..len).map(|i| value(r, round, i)).collect()).collect();
                    let mut sum = own.clone();
                    comm.all_reduce(&mut sum).unwrap();
                    let expected: Vec<f32> = (0..len)
                        .map(|i| all[1..].iter().fold(all[0][i], |s, x| s + x[i]))
                        .collect();
                    assert_eq!(sum, expected);
                    let mut gathered = vec![f32::NAN; len * size];
                    comm.all_gather(&own, &mut gathered).unwrap();
                    assert_eq!(gathered, all.concat());
                    let root = round % size;
                    let mut at_root = vec![f32::NAN; if me == root { len * size } else { 0 }];
                    let send = if me == root { &[] } else { &own[..] };
                    if me == root {
                        at_root[me * len..(me + 1) * len].copy_from_slice(&own);
                    }
                    comm.gather(send, root, &mut at_root).unwrap();
                    assert!(me != root || at_root == all.concat());
                }
            });
        }
    }

    #[test]
    fn collectives_in_flight_finish_in_order() {
        on_every_member(3, |mut comm| {
            for round in 0..200 {
                let sends: Vec<[f32; 2]> =
                    (0..RING).map(|k| [value(comm.rank(), round, k), k as f32]).collect();
                let pending: Vec<_> =
                    sends.iter().map(|send| comm.start_all_reduce(send).unwrap()).collect();
                for (k, pending) in pending.into_iter().enumerate() {
                    let mut sum = [0.0; 2];
                    comm.finish(pending, &mut sum).unwrap();
                    let expected = (1..3).fold(value(0, round, k), |s, r| s + value(r, round, k));
                    assert_eq!(sum, [expected, 3.0 * k as f32]);
                }
            }
        });
    }

    #[test]
    fn a_failed_or_absent_member_ends_the_others_waits() {
        let mut ends = ThreadComm::group(2, 8, PATIENCE);
        ends[0].abort();
        let error = ends[1].all_reduce(&mut [1.0]).unwrap_err();
        let collective = Collective::AllReduce;
        assert_eq!(error, CommError::PeerFailed { member: 0, size: 2, collective, number: 0 });
        let mut ends = ThreadComm::group(2, 8, Duration::from_millis(30));
        let error = ends[1].all_reduce(&mut [1.0]).unwrap_err();
        assert!(matches!(error, CommError::Timeout { member: 0, .. }), "{error}");
    }
}
