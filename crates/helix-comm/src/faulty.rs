//! A communicator that fails as networks and processes do, by a seed.

use crate::{Chunks, Collective, Comm, CommError, Counts, Pending};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What goes wrong, and how often: one in so many collectives of a member; 0 for never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A member is slow.
    pub delays: u64,
    /// By so much at most.
    pub longest_delay: Duration,
    /// A member's message never arrives.
    pub losses: u64,
    /// A member dies without a word.
    pub deaths: u64,
    /// How long members wait: as the communicator's own.
    pub deadline: Duration,
}

/// A communicator whose member is slow, unheard or dead at times that a seed decides.
pub struct Faulty<C> {
    inner: C,
    fate: Fate,
    /// Collectives that were started.
    started: u64,
}

/// What becomes of a rank: all its groups share it.
#[derive(Clone, Debug)]
pub struct Fate {
    rank: usize,
    faults: Faults,
    course: Arc<Mutex<Course>>,
}

#[derive(Debug)]
struct Course {
    random: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Well,
    /// Its message was lost: nobody goes on, and neither does it.
    Unheard,
    Dead,
}

impl Fate {
    /// The faults of rank `rank` depend on it and on `seed`.
    pub fn new(rank: usize, faults: Faults, seed: u64) -> Fate {
        let random = seed ^ (rank as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let course = Arc::new(Mutex::new(Course { random, state: State::Well }));
        Fate { rank, faults, course }
    }

    /// Whether something was done to the rank that ends it.
    pub fn is_sealed(&self) -> bool {
        self.course().state != State::Well
    }

    fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn happens(&self, one_in: u64) -> bool {
        one_in > 0 && self.course().random().is_multiple_of(one_in)
    }

    fn delay(&self) {
        if self.happens(self.faults.delays) {
            let nanos = u64::try_from(self.faults.longest_delay.as_nanos()).unwrap_or(u64::MAX);
            let nanos = self.course().random() % nanos.max(1);
            std::thread::sleep(Duration::from_nanos(nanos));
        }
    }
}

impl Course {
    /// The next number of a stream (Steele, Lea and Flood's SplitMix64).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl<C: Comm> Faulty<C> {
    /// A communicator of the rank whose fate it is.
    pub fn new(inner: C, fate: Fate) -> Faulty<C> {
        Faulty { inner, fate, started: 0 }
    }

    /// What happens as a collective starts; a dead or unheard member goes no further.
    fn before(&mut self, collective: Collective) -> Result<(), CommError> {
        let Fate { rank, faults, .. } = self.fate;
        self.fate.delay();
        if !self.fate.is_sealed() && self.inner.size() > 1 {
            if self.fate.happens(faults.deaths) {
                self.fate.course().state = State::Dead;
            } else if self.fate.happens(faults.losses) {
                self.fate.course().state = State::Unheard;
                // Its own wait, for the others that wait for it.
                std::thread::sleep(faults.deadline);
            }
        }
        let (number, seconds) = (self.started, faults.deadline.as_secs());
        self.started += 1;
        let state = self.fate.course().state;
        match state {
            State::Well => Ok(()),
            State::Unheard => Err(CommError::Timeout { rank, collective, number, seconds }),
            State::Dead => Err(CommError::PeerFailed { rank, collective, number }),
        }
    }
}

impl<C: Comm> Comm for Faulty<C> {
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
        self.before(Collective::AllToAll)?;
        self.inner.start_all_to_all(counts, write)
    }

    fn start_all_gather(
        &mut self,
        counts: &[usize],
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        self.before(Collective::AllGather)?;
        self.inner.start_all_gather(counts, write)
    }

    fn start_all_reduce(
        &mut self,
        count: usize,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        self.before(Collective::AllReduce)?;
        self.inner.start_all_reduce(count, write)
    }

    fn start_gather(
        &mut self,
        counts: &[usize],
        root: usize,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        self.before(Collective::Gather)?;
        self.inner.start_gather(counts, root, write)
    }

    fn finish<R>(
        &mut self,
        pending: Pending,
        read: impl FnOnce(Chunks<'_>) -> R,
    ) -> Result<R, CommError> {
        self.fate.delay();
        self.inner.finish(pending, read)
    }

    fn landed(&self) -> Option<Instant> {
        self.inner.landed()
    }

    /// The dead say nothing.
    fn abort(&self) {
        if self.fate.course().state != State::Dead {
            self.inner.abort();
        }
    }
}
