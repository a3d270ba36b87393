//! All processes: start and end, the communication thread, messages of the front end.

use super::group::MpiComm;
use super::progress::{Lost, Progress, Tag};
use super::whereabouts::Whereabouts;
use super::wire::{MpiError, Wire};
use crate::backoff::Backoff;
use crate::{Link, World, WorldError, allowed_processors, share};
use mpi::Threading;
use mpi::environment::Universe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Polls of a wait before the core is given away in between: a poll takes about a microsecond.
const POLLS: u32 = 16;
/// How often the communication thread looks whether there is something to do.
const NAP: Duration = Duration::from_micros(50);
/// Naps without anything to do after which it waits to be woken.
const NAPS: u32 = 200;
/// How often messages are moved while a rank waits for its end.
const SLEEP: Duration = Duration::from_millis(1);
/// How often ranks let hear of themselves in the time that others wait for them.
const PULSES: u32 = 5;
/// How long a rank that gives up stays, so that the others take note of it and can say so.
const FAREWELL: Duration = Duration::from_millis(500);

/// Who drives messages while a rank computes: MPI moves them only when it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommThread {
    /// Nobody: small messages leave when they are started, others when a rank waits.
    Off,
    /// A thread that looks every 50 us: where all cores compute.
    Napping,
    /// A thread that looks all the time, and yields in between: where a core is free.
    Eager,
}

/// All processes that were started together. One per process.
pub struct MpiWorld {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Ends MPI when it is dropped.
    universe: Option<Universe>,
    rank: usize,
    size: usize,
    neighbours: Vec<usize>,
    processors: Vec<usize>,
    /// How long others may be silent at the end.
    patience: Option<Duration>,
}

/// What the ends of groups, the communication thread and the world have in common.
pub(crate) struct Shared {
    progress: Mutex<Progress>,
    /// Something is on its way.
    busy: AtomicBool,
    /// The communication thread, where it drives messages, and whether it waits to be woken.
    driver: OnceLock<Thread>,
    parked: AtomicBool,
    /// Threads that wait, and poll themselves.
    waiting: AtomicUsize,
    stop: AtomicBool,
    /// The process was told to end.
    ended: Arc<AtomicBool>,
    /// Where this rank is, for a process that outlives it.
    whereabouts: OnceLock<Arc<Whereabouts>>,
}

/// Why a wait ended without what was waited for.
#[derive(Debug)]
pub(crate) enum Wait {
    Late,
    Ended,
    Lost(Lost),
    Library(MpiError),
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn rank(&self) -> usize {
        self.lock().rank()
    }

    pub(crate) fn whereabouts(&self) -> Option<&Whereabouts> {
        self.whereabouts.get().map(Arc::as_ref)
    }

    /// There is something to drive. Called while the lock is held.
    pub(crate) fn set_busy(&self) {
        self.busy.store(true, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst)
            && let Some(driver) = self.driver.get()
        {
            driver.unpark();
        }
    }

    /// The communication thread waits until there is something to drive, at most for `most`.
    fn park(&self, most: Duration) {
        self.parked.store(true, Ordering::SeqCst);
        // Either it is seen here, or who sets it sees `parked`.
        if !self.busy.load(Ordering::SeqCst) {
            std::thread::park_timeout(most);
        }
        self.parked.store(false, Ordering::SeqCst);
    }

    /// Drives messages until `done` has something.
    pub(crate) fn wait<R>(
        &self,
        deadline: Option<Duration>,
        mut done: impl FnMut(&mut Progress) -> Result<Option<R>, MpiError>,
    ) -> Result<R, Wait> {
        if let Some(result) = done(&mut self.lock()).map_err(Wait::Library)? {
            return Ok(result);
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let result = self.poll_until(deadline, done);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        result
    }

    fn poll_until<R>(
        &self,
        deadline: Option<Duration>,
        mut done: impl FnMut(&mut Progress) -> Result<Option<R>, MpiError>,
    ) -> Result<R, Wait> {
        let mut backoff = Backoff::with_spins(POLLS);
        loop {
            let mut progress = self.lock();
            self.poll(&mut progress).map_err(Wait::Library)?;
            if let Some(result) = done(&mut progress).map_err(Wait::Library)? {
                return Ok(result);
            }
            if let Some(lost) = progress.lost() {
                return Err(Wait::Lost(lost));
            }
            drop(progress);
            if self.ended.load(Ordering::Relaxed) {
                return Err(Wait::Ended);
            }
            if deadline.is_some_and(|deadline| backoff.elapsed() > deadline) {
                return Err(Wait::Late);
            }
            backoff.wait();
        }
    }

    fn poll(&self, progress: &mut Progress) -> Result<(), MpiError> {
        let busy = progress.poll()?;
        self.busy.store(busy, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the others time to hear why this rank ends, before its launcher ends them.
    fn say_farewell(&self) {
        let end = Instant::now() + FAREWELL;
        while Instant::now() < end {
            let _ = self.lock().poll();
            std::thread::sleep(SLEEP);
        }
    }

    /// Tells all others that this rank gives up, because of a rank.
    pub(crate) fn give_up(&self, because_of: usize) {
        // That it can't be told is what the others' deadlines are for.
        let _ = self.lock().give_up(because_of);
    }
}

impl MpiWorld {
    /// Joins the processes that `mpirun`, `srun` or another launcher has started; a process that was
    /// started by itself is a world of one. Waits end when `ended` is set.
    ///
    /// # Errors
    /// The library does not start, or can't be called from more than one thread.
    pub fn join(ended: Arc<AtomicBool>) -> Result<MpiWorld, WorldError> {
        let started = mpi::initialize_with_threading(Threading::Serialized);
        let (universe, threading) = started.ok_or_else(|| refused(&"it was started before"))?;
        if threading < Threading::Serialized {
            return Err(refused(&"the library was built without support for threads"));
        }
        let wire = Wire::new(&universe.world()).map_err(|error| refused(&error))?;
        let (rank, size) = (wire.rank(), wire.size());
        let neighbours = wire.neighbours(&allowed_processors());
        let neighbours = neighbours.map_err(|error| refused(&error))?;
        let (neighbours, allowed): (Vec<_>, Vec<_>) = neighbours.into_iter().unzip();
        let own = neighbours.iter().position(|&other| other == rank);
        let own = own.ok_or_else(|| refused(&"a rank is not on its own host"))?;
        let shared = Arc::new(Shared {
            progress: Mutex::new(Progress::new(wire)),
            busy: AtomicBool::new(false),
            driver: OnceLock::new(),
            parked: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            ended,
            whereabouts: OnceLock::new(),
        });
        Ok(MpiWorld {
            shared,
            thread: None,
            universe: Some(universe),
            rank,
            size,
            neighbours,
            processors: share(&allowed, own),
            patience: None,
        })
    }

    /// Starts the communication thread, which also tells others several times in `patience` that
    /// this rank is alive; with [`CommThread::Off`] it does that alone.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn drive(&mut self, mode: CommThread, patience: Duration) -> Result<(), WorldError> {
        self.patience = Some(patience);
        if self.size > 1 {
            let (shared, pulse) = (Arc::clone(&self.shared), patience / PULSES);
            let spawned = std::thread::Builder::new()
                .name("helix-comm".to_owned())
                .spawn(move || drive(&shared, mode, pulse));
            let none = |error| refused(&format!("the system refuses a thread: {error}"));
            let thread = spawned.map_err(none)?;
            if mode != CommThread::Off {
                self.shared.driver.get_or_init(|| thread.thread().clone());
            }
            self.thread = Some(thread);
        }
        Ok(())
    }

    /// From here on `whereabouts` say where this rank is.
    pub fn report_to(&self, whereabouts: Arc<Whereabouts>) {
        whereabouts.join(self.rank);
        // The first ones stay.
        let _ = self.shared.whereabouts.set(whereabouts);
    }

    fn send(
        &self,
        to: &mut dyn Iterator<Item = usize>,
        tag: Tag,
        message: &[u8],
        patience: Duration,
    ) -> Result<(), WorldError> {
        let library = |error| self.error(Wait::Library(error), self.rank, "", patience);
        self.shared.lock().send(to, tag, message).map_err(library)?;
        let mut late = self.rank;
        let sent = self.shared.wait(Some(patience), |progress| {
            let first = progress.unsent()?;
            late = first.unwrap_or(late);
            Ok(first.is_none().then_some(()))
        });
        sent.map_err(|wait| self.error(wait, late, "take a message", patience))
    }

    /// Waits for a message; it is late only when nothing was heard of its sender either.
    fn listen(
        &self,
        from: usize,
        tag: Tag,
        message: &mut Vec<u8>,
        patience: Duration,
    ) -> Result<(), WorldError> {
        loop {
            let receive = |progress: &mut Progress| progress.receive(from, tag, message);
            let wait = match self.shared.wait(Some(patience), receive) {
                Ok(()) => return Ok(()),
                Err(wait) => wait,
            };
            let alive = matches!(wait, Wait::Late)
                && self.shared.lock().hears(from).is_ok_and(|heard| heard);
            if !alive {
                return Err(self.error(wait, from, "let hear of itself", patience));
            }
        }
    }

    /// Says this rank's last message and waits for the others': the library wants none left over
    /// at its end. Whether all have come.
    fn part(&self) -> bool {
        let mut progress = self.shared.lock();
        let (said, mut others) = (progress.say_last(), progress.listeners());
        drop(progress);
        said.is_ok() && others.all(|other| self.sees_off(other))
    }

    /// Waits until `other` has left, which may take it long while it is alive.
    fn sees_off(&self, other: usize) -> bool {
        loop {
            let mut heard = false;
            let wait = self.shared.wait(self.patience, |progress| {
                heard |= progress.hears(other)?;
                Ok(progress.has_left(other).then_some(()))
            });
            match wait {
                Ok(()) => return true,
                Err(Wait::Late) if heard => {}
                Err(_) => return false,
            }
        }
    }

    fn error(&self, wait: Wait, rank: usize, what: &'static str, after: Duration) -> WorldError {
        match wait {
            Wait::Late => {
                self.shared.give_up(rank);
                WorldError::Late { rank, what, seconds: after.as_secs() }
            }
            Wait::Ended => WorldError::Ended { rank },
            Wait::Lost(lost) => WorldError::Lost { rank: lost.because_of },
            Wait::Library(error) => {
                self.shared.give_up(rank);
                WorldError::Library { rank, problem: error.to_string() }
            }
        }
    }
}

impl World for MpiWorld {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn neighbours(&self) -> &[usize] {
        &self.neighbours
    }

    fn processors(&self) -> &[usize] {
        &self.processors
    }

    fn tell(
        &self,
        to: &mut dyn Iterator<Item = usize>,
        message: &[u8],
        patience: Duration,
    ) -> Result<(), WorldError> {
        self.send(to, Tag::Command, message, patience)
    }

    fn next_command(&self, message: &mut Vec<u8>, patience: Duration) -> Result<(), WorldError> {
        self.listen(0, Tag::Command, message, patience)
    }

    fn reply(&self, message: &[u8], patience: Duration) -> Result<(), WorldError> {
        self.send(&mut std::iter::once(0), Tag::Reply, message, patience)
    }

    fn reply_of(
        &self,
        from: usize,
        message: &mut Vec<u8>,
        patience: Duration,
    ) -> Result<(), WorldError> {
        self.listen(from, Tag::Reply, message, patience)
    }

    fn group(
        &self,
        group: usize,
        members: Vec<usize>,
        max_values: usize,
        deadline: Duration,
    ) -> Link {
        MpiComm::new(&self.shared, group, members, max_values, deadline).into()
    }

    fn abort(&self) {
        self.shared.give_up(self.rank);
    }

    fn is_broken(&self) -> bool {
        self.shared.lock().lost().is_some()
    }
}

impl Drop for MpiWorld {
    /// Ends MPI, which takes all ranks; where one was lost the process has to end without.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort();
        }
        if self.is_broken() {
            self.shared.say_farewell();
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        if self.is_broken() || !self.part() {
            std::mem::forget(self.universe.take());
        }
    }
}

fn refused(problem: &dyn std::fmt::Display) -> WorldError {
    WorldError::Start(problem.to_string())
}

/// The communication thread. Where it drives no messages, or there are none, it sleeps until it is
/// time for a sign of life.
fn drive(shared: &Shared, mode: CommThread, pulse: Duration) {
    let mut idle = 0u32;
    let mut beaten: Option<Instant> = None;
    while !shared.stop.load(Ordering::Relaxed) {
        let since = beaten.map(|beaten| beaten.elapsed());
        let rest = since.map_or(Duration::ZERO, |since| pulse.saturating_sub(since));
        if rest.is_zero() {
            beaten = Some(Instant::now());
            // Whoever can't be told misses it, which is what it is for.
            let _ = shared.lock().beat();
            continue;
        }
        if mode == CommThread::Off {
            std::thread::park_timeout(rest);
            continue;
        }
        let needed = shared.busy.load(Ordering::Relaxed);
        if !needed || shared.waiting.load(Ordering::Relaxed) > 0 {
            idle = if needed { 0 } else { idle.saturating_add(1) };
            match idle > NAPS {
                true => shared.park(rest),
                false => std::thread::sleep(NAP.min(rest)),
            }
            continue;
        }
        idle = 0;
        // Whoever waits for what failed will meet the same error.
        let _ = shared.poll(&mut shared.lock());
        match mode {
            CommThread::Eager => std::thread::yield_now(),
            CommThread::Napping | CommThread::Off => std::thread::sleep(NAP),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Comm, launch};

    /// A server may run for weeks without anybody waiting long enough to ask for them.
    #[test]
    fn signs_of_life_do_not_pile_up() {
        const LIMIT: Duration = Duration::from_secs(60);
        if !launch::is_rank() {
            let name = "mpi::world::tests::signs_of_life_do_not_pile_up";
            return launch::pass_as_ranks(name, 2, LIMIT);
        }
        let mut world = MpiWorld::join(Arc::default()).expect("MPI starts");
        // A sign every 10 ms.
        world.drive(CommThread::Off, PULSES * Duration::from_millis(10)).expect("a thread");
        world.patience = Some(LIMIT);
        let mut both = world.group(0, vec![0, 1], 1, LIMIT);
        for _ in 0..500 {
            both.all_reduce(&mut [1.0]).expect("both are there");
            std::thread::sleep(Duration::from_millis(2));
        }
        let other = 1 - world.rank();
        let waiting = world.shared.lock().take_signs(other).expect("signs");
        assert!(waiting < 20, "{waiting} signs of some 100 wait to be taken");
        assert!(world.shared.lock().hears(other).expect("signs"), "they were heard");
        both.all_reduce(&mut [1.0]).expect("both are there");
    }
}
