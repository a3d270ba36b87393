//! Ranks of one process: collectives over shared memory.
#![allow(unsafe_code)]

use crate::backoff::Backoff;
use crate::delay::{Delay, wait_until};
use crate::{Chunks, Collective, Comm, CommError, Counts, Pending};
use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Messages of a member that may wait to be read; see [`Comm::IN_FLIGHT`].
const RING: usize = 4;

/// One member's message for one collective.
struct Message {
    /// Which values are for which member.
    chunks: Vec<Range<usize>>,
    values: Vec<f32>,
    /// When it is there for which member.
    there: Vec<Instant>,
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
    /// Ranks of the members.
    ranks: Vec<usize>,
    /// 1 + the member that gave up; 0 while none has.
    failed: AtomicUsize,
    deadline: Duration,
    delay: Option<Delay>,
}

/// One member's end of a group of ranks in this process.
///
/// Messages are allocated once, for the largest; the receivers read them where they were written.
pub struct ThreadComm {
    group: Arc<Group>,
    rank: usize,
    started: u64,
    finished: u64,
    /// 1 + the number of the message that lies in each place of this member's ring; 0 for none.
    held: [u64; RING],
    /// When all that this member has sent has left it.
    idle: Instant,
    landed: Instant,
}

impl ThreadComm {
    /// The ends of a group of these ranks, whose messages hold up to `max_values` f32 each.
    ///
    /// A wait longer than `deadline` is an error: threads of one process are late only when one
    /// has died or hangs.
    ///
    /// # Panics
    /// There are none.
    pub fn group(ranks: &[usize], max_values: usize, deadline: Duration) -> Vec<ThreadComm> {
        Self::group_over(None, ranks, max_values, deadline)
    }

    /// As [`ThreadComm::group`], over links that are as slow as `delay` says.
    ///
    /// # Panics
    /// As `group`.
    pub fn group_over(
        delay: Option<Delay>,
        ranks: &[usize],
        max_values: usize,
        deadline: Duration,
    ) -> Vec<ThreadComm> {
        assert!(!ranks.is_empty(), "a group has at least one member");
        let (size, now) = (ranks.len(), Instant::now());
        let message = || {
            let values = vec![0.0; max_values];
            UnsafeCell::new(Message { chunks: vec![0..0; size], values, there: vec![now; size] })
        };
        let member = || Member {
            sent: AtomicU64::new(0),
            done: AtomicU64::new(0),
            places: Default::default(),
            ring: std::array::from_fn(|_| message()),
        };
        let members = (0..size).map(|_| member()).collect();
        let (ranks, failed) = (ranks.to_vec(), AtomicUsize::new(0));
        let group = Arc::new(Group { members, ranks, failed, deadline, delay });
        let end = |rank| {
            let group = Arc::clone(&group);
            let held = [0; RING];
            ThreadComm { group, rank, started: 0, finished: 0, held, idle: now, landed: now }
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
        for member in members {
            let mut backoff = Backoff::new();
            while counter(&self.group.members[member]).load(Ordering::Acquire) <= number {
                let failed = self.group.failed.load(Ordering::Relaxed);
                if failed > 0 {
                    let rank = self.group.ranks[failed - 1];
                    return Err(CommError::PeerFailed { rank, collective, number });
                }
                if backoff.elapsed() > self.group.deadline {
                    let seconds = self.group.deadline.as_secs();
                    let rank = self.group.ranks[member];
                    return Err(CommError::Timeout { rank, collective, number, seconds });
                }
                backoff.wait();
            }
        }
        Ok(())
    }

    /// This member's next message: `write` fills its `len` values, `cut` says which of them are
    /// for which member.
    fn post(
        &mut self,
        collective: Collective,
        len: usize,
        root: Option<usize>,
        cut: impl Fn(&mut [Range<usize>]),
        write: impl FnOnce(&mut [f32]),
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
        assert!(len <= room, "{collective} of {len} values, room for {room}");
        write(&mut message.values[..len]);
        cut(&mut message.chunks);
        let now = Instant::now();
        message.there.fill(now);
        if let Some(delay) = self.group.delay {
            let receives = |to: usize| to != self.rank && root.is_none_or(|root| root == to);
            self.idle = self.idle.max(now);
            let chunks = message.chunks.iter().zip(&mut message.there).enumerate();
            for (_, (chunk, there)) in chunks.filter(|(to, _)| receives(*to)) {
                self.idle = delay.left(self.idle, size_of_val(&message.values[chunk.clone()]));
                *there = self.idle + delay.latency;
            }
        }
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

    /// What `from` sent to this member in collective `number`.
    fn chunk(&self, from: usize, number: u64) -> &[f32] {
        let message = self.message(from, number);
        &message.values[message.chunks[self.rank].clone()]
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

    fn start_all_to_all(
        &mut self,
        counts: Counts<'_>,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        assert_eq!(counts.send.len(), self.size(), "all-to-all: a count for each member");
        assert_eq!(counts.recv.len(), self.size(), "all-to-all: a count from each member");
        let cut = |chunks: &mut [Range<usize>]| {
            let mut end = 0;
            for (chunk, count) in chunks.iter_mut().zip(counts.send) {
                *chunk = end..end + count;
                end += count;
            }
        };
        self.post(Collective::AllToAll, counts.send.iter().sum(), None, cut, write)
    }

    fn start_all_gather(
        &mut self,
        counts: &[usize],
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        assert_eq!(counts.len(), self.size(), "all-gather: a count of each member");
        let len = counts[self.rank];
        self.post(Collective::AllGather, len, None, for_everyone(len), write)
    }

    fn start_all_reduce(
        &mut self,
        count: usize,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        self.post(Collective::AllReduce, count, None, for_everyone(count), write)
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
        let len = counts[self.rank];
        self.post(Collective::Gather, len, Some(root), for_everyone(len), write)
    }

    fn finish<R>(
        &mut self,
        pending: Pending,
        read: impl FnOnce(Chunks<'_>) -> R,
    ) -> Result<R, CommError> {
        let Pending { collective, number, root } = pending;
        assert_eq!(number, self.finished, "collectives finish in the order they started");
        let count = if root.is_none_or(|root| root == self.rank) { self.size() } else { 0 };
        self.wait(0..count, |m| &m.sent, number, collective)?;
        if collective == Collective::AllReduce {
            let own = self.chunk(self.rank, number).len();
            let equal = (0..count).all(|from| self.chunk(from, number).len() == own);
            assert!(equal, "all-reduce: lengths differ between members");
        }
        let there = (0..count).map(|from| self.message(from, number).there[self.rank]);
        self.landed = there.max().unwrap_or_else(Instant::now);
        if self.group.delay.is_some() {
            wait_until(self.landed);
        }
        let result = read(Chunks::new(count, &|from| self.chunk(from, number)));
        self.finished += 1;
        self.group.members[self.rank].done.store(self.finished, Ordering::Release);
        Ok(result)
    }

    fn landed(&self) -> Option<Instant> {
        Some(self.landed)
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
            let ranks: Vec<usize> = (0..size).collect();
            for comm in ThreadComm::group(&ranks, 4096, PATIENCE) {
                scope.spawn(|| run(comm));
            }
        });
    }

    /// Everything that came.
    fn all(chunks: Chunks<'_>) -> Vec<Vec<f32>> {
        (0..chunks.count()).map(|from| chunks.of(from).to_vec()).collect()
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
                    let counts = Counts { send: &send_counts, recv: &recv_counts };
                    let pending = comm.start_all_to_all(counts, |m| m.copy_from_slice(&send));
                    let recv = comm.finish(pending.unwrap(), all).unwrap();
                    let expected = (0..size).flat_map(|a| {
                        let start: usize = (0..me).map(|b| count(a, b, round)).sum();
                        (start..start + count(a, me, round)).map(move |i| value(a, round, i))
                    });
                    assert_eq!(
                        recv.concat(),
                        expected.collect::<Vec<_>>(),
                        "member {me} round {round}"
                    );
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
                    let values: Vec<Vec<f32>> =
                        (0..size).map(|r| (0..len).map(|i| value(r, round, i)).collect()).collect();
                    let mut sum = own.clone();
                    comm.all_reduce(&mut sum).unwrap();
                    let expected: Vec<f32> = (0..len)
                        .map(|i| values[1..].iter().fold(values[0][i], |s, x| s + x[i]))
                        .collect();
                    assert_eq!(sum, expected);
                    let write = |message: &mut [f32]| message.copy_from_slice(&own);
                    let pending = comm.start_all_gather(&vec![len; size], write).unwrap();
                    assert_eq!(comm.finish(pending, all).unwrap(), values);
                    let root = round % size;
                    let counts: Vec<_> =
                        (0..size).map(|m| if m == root { 0 } else { len }).collect();
                    let write =
                        |message: &mut [f32]| message.copy_from_slice(&own[..message.len()]);
                    let pending = comm.start_gather(&counts, root, write).unwrap();
                    let gathered = comm.finish(pending, all).unwrap();
                    let mut expected = values;
                    expected[root].clear();
                    assert_eq!(gathered, if me == root { expected } else { vec![] });
                }
            });
        }
    }

    #[test]
    fn collectives_in_flight_finish_in_order() {
        let start = |comm: &mut ThreadComm, send: &[f32; 2]| {
            comm.start_all_reduce(2, |message| message.copy_from_slice(send)).unwrap()
        };
        on_every_member(3, |mut comm| {
            for round in 0..200 {
                let sends: Vec<[f32; 2]> =
                    (0..RING).map(|k| [value(comm.rank(), round, k), k as f32]).collect();
                let pending: Vec<_> = sends.iter().map(|send| start(&mut comm, send)).collect();
                for (k, pending) in pending.into_iter().enumerate() {
                    let mut sum = [0.0; 2];
                    comm.finish(pending, |parts| parts.sum(0..2, &mut sum)).unwrap();
                    let expected = (1..3).fold(value(0, round, k), |s, r| s + value(r, round, k));
                    assert_eq!(sum, [expected, 3.0 * k as f32]);
                }
            }
        });
    }

    #[test]
    fn a_slow_link_delays_those_who_wait_and_nobody_else() {
        // Long beside what a busy system keeps a thread waiting.
        const LATENCY: Duration = Duration::from_millis(200);
        // A message of 1000 values takes 10 ms to leave.
        let delay = Delay { latency: LATENCY, bytes_per_s: 4e5 };
        let ends = ThreadComm::group_over(Some(delay), &[0, 1], 4096, PATIENCE);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for mut comm in ends {
                scope.spawn(move || {
                    let called = Instant::now();
                    let first = comm.start_all_reduce(1000, |m| m.fill(1.0)).unwrap();
                    let second = comm.start_all_reduce(1000, |m| m.fill(2.0)).unwrap();
                    assert!(called.elapsed() < LATENCY / 2, "starting takes no time");
                    comm.finish(first, |_| ()).unwrap();
                    let landed = comm.landed().unwrap();
                    assert!(start.elapsed() >= LATENCY + Duration::from_millis(10));
                    comm.finish(second, |_| ()).unwrap();
                    let behind = comm.landed().unwrap() - landed;
                    assert!(behind >= Duration::from_millis(9), "one behind the other: {behind:?}");
                    // What has had the time is there at once.
                    let pending = comm.start_all_reduce(1, |m| m.fill(1.0)).unwrap();
                    std::thread::sleep(4 * LATENCY);
                    let called = Instant::now();
                    comm.finish(pending, |_| ()).unwrap();
                    assert!(comm.landed().unwrap() < called);
                });
            }
        });
    }

    #[test]
    fn a_failed_or_absent_member_ends_the_others_waits() {
        let mut ends = ThreadComm::group(&[3, 5], 8, PATIENCE);
        ends[0].abort();
        let error = ends[1].all_reduce(&mut [1.0]).unwrap_err();
        let collective = Collective::AllReduce;
        assert_eq!(error, CommError::PeerFailed { rank: 3, collective, number: 0 });
        let mut ends = ThreadComm::group(&[3, 5], 8, Duration::from_millis(30));
        let error = ends[1].all_reduce(&mut [1.0]).unwrap_err();
        assert!(matches!(error, CommError::Timeout { rank: 3, .. }), "{error}");
    }
}
