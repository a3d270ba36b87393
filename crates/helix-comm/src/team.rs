//! A fork-join team of threads: the ranks of a process, and the threads of a rank.
#![allow(unsafe_code)]

use crate::backoff::Backoff;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

/// `state` holds the job's number above, whether it still takes threads, and how many work on it.
const OPEN: u64 = 1 << 31;
const ACTIVE: u64 = OPEN - 1;
const NUMBER: u32 = 32;

/// A job as workers see it: a pointer to the leader's `&dyn Fn`, alive while the job is.
type Job<'a> = &'a (dyn Fn(usize) + Sync + 'a);

struct Shared {
    state: AtomicU64,
    job: AtomicPtr<()>,
    sleepers: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// `size` threads, of which the caller is the first; the others wait for [`Team::run`].
///
/// Waiting threads spin for some microseconds, then yield, then park: a team that idles costs
/// nothing, and one whose core is shared with a foreign process gives way. A thread that is late
/// for a job is not waited for: a job hands its work out piece by piece (see
/// `helix_kernels::SharedColumns`), so whoever runs takes it.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
}

impl Team {
    /// Starts `size - 1` threads named `name-1`, `name-2`, and so on.
    ///
    /// # Errors
    /// The system refuses another thread.
    ///
    /// # Panics
    /// `size` is 0.
    pub fn new(name: &str, size: usize) -> std::io::Result<Team> {
        assert!(size > 0, "a team has at least its leader");
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut team = Team { shared, workers: Vec::new(), handles: Vec::new() };
        for index in 1..size {
            let shared = Arc::clone(&team.shared);
            let worker = std::thread::Builder::new()
                .name(format!("{name}-{index}"))
                .spawn(move || worker(&shared, index))?;
            team.handles.push(worker.thread().clone());
            team.workers.push(worker);
        }
        Ok(team)
    }

    /// Threads in the team, the leader among them.
    pub fn size(&self) -> usize {
        self.workers.len() + 1
    }

    /// Binds each thread, the leader among them, to a processor of its own, or to one after the other
    /// where there are fewer. Says whether the system let it.
    ///
    /// # Panics
    /// There are no processors.
    pub fn pin(&mut self, processors: &[usize]) -> bool {
        let refused = AtomicBool::new(false);
        self.run_all(&|thread| {
            let id = processors[thread % processors.len()];
            if !core_affinity::set_for_current(core_affinity::CoreId { id }) {
                refused.store(true, Ordering::Relaxed);
            }
        });
        !refused.into_inner()
    }

    /// Runs `job(thread)` on the leader (thread 0) and on every worker that arrives while the
    /// leader is at it; returns when all of them are done. Allocates nothing.
    ///
    /// Not every thread is sure to take part, so `job` must share its work out dynamically, or be
    /// one that [`Team::run_all`] suits better.
    ///
    /// # Panics
    /// With the payload of a thread whose `job` panicked.
    pub fn run(&mut self, job: Job<'_>) {
        if self.workers.is_empty() {
            return job(0);
        }
        self.publish(&job);
        let led = catch_unwind(AssertUnwindSafe(|| job(0)));
        self.join();
        self.rethrow(led);
    }

    /// Runs `job(thread)` exactly once on every thread of the team.
    ///
    /// # Panics
    /// As [`Team::run`].
    pub fn run_all(&mut self, job: Job<'_>) {
        let arrived = AtomicUsize::new(1);
        let size = self.size();
        self.run(&|thread| {
            if thread > 0 {
                arrived.fetch_add(1, Ordering::Relaxed);
            }
            let done = catch_unwind(AssertUnwindSafe(|| job(thread)));
            if thread == 0 {
                let mut backoff = Backoff::new();
                while arrived.load(Ordering::Relaxed) < size {
                    backoff.wait();
                }
            }
            if let Err(payload) = done {
                resume_unwind(payload);
            }
        });
    }

    fn publish(&mut self, job: &Job<'_>) {
        self.shared.job.store(std::ptr::from_ref(job).cast_mut().cast(), Ordering::Relaxed);
        let number = (self.shared.state.load(Ordering::Relaxed) >> NUMBER).wrapping_add(1);
        self.shared.state.store(number << NUMBER | OPEN, Ordering::SeqCst);
        if self.shared.sleepers.load(Ordering::SeqCst) > 0 {
            self.handles.iter().for_each(Thread::unpark);
        }
    }

    fn join(&mut self) {
        let mut state = self.shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut backoff = Backoff::new();
        while state & ACTIVE != 0 {
            backoff.wait();
            state = self.shared.state.load(Ordering::Acquire);
        }
    }

    fn rethrow(&self, led: std::thread::Result<()>) {
        let worker = self.shared.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Err(payload) = led {
            resume_unwind(payload);
        }
        if let Some(payload) = worker {
            resume_unwind(payload);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let number = (self.shared.state.load(Ordering::Relaxed) >> NUMBER).wrapping_add(1);
        self.shared.state.store(number << NUMBER, Ordering::SeqCst);
        self.handles.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn worker(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let state = next_job(shared, seen);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        seen = state >> NUMBER;
        if enter(shared, state) {
            // SAFETY: the pointer is the leader's `&Job`, stored before the job opened. The leader
            // keeps both it and what it points to alive until no thread is active in the job, and
            // `enter` has just made this thread active while the job was open.
            let job: Job<'_> = unsafe { *shared.job.load(Ordering::Relaxed).cast::<Job<'_>>() };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(index))) {
                *shared.panic.lock().unwrap_or_else(|e| e.into_inner()) = Some(payload);
            }
            shared.state.fetch_sub(1, Ordering::Release);
        }
    }
}

/// Waits for a job other than `seen`.
fn next_job(shared: &Shared, seen: u64) -> u64 {
    let mut backoff = Backoff::new();
    loop {
        let state = shared.state.load(Ordering::Acquire);
        if state >> NUMBER != seen {
            return state;
        }
        if backoff.is_tired() {
            shared.sleepers.fetch_add(1, Ordering::SeqCst);
            if shared.state.load(Ordering::SeqCst) >> NUMBER == seen {
                std::thread::park();
            }
            shared.sleepers.fetch_sub(1, Ordering::SeqCst);
        } else {
            backoff.wait();
        }
    }
}

/// Counts this thread into the job of `state`, unless the job has closed meanwhile.
fn enter(shared: &Shared, mut state: u64) -> bool {
    let number = state >> NUMBER;
    while state & OPEN != 0 && state >> NUMBER == number {
        let entered = shared.state.compare_exchange_weak(
            state,
            state + 1,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        match entered {
            Ok(_) => return true,
            Err(now) => state = now,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_of_work_is_done_once() {
        for size in [1, 2, 3, 5] {
            let mut team = Team::new("t", size).unwrap();
            for _ in 0..2000 {
                let next = AtomicUsize::new(0);
                let sum = AtomicUsize::new(0);
                team.run(&|_| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= 10 {
                            break;
                        }
                        sum.fetch_add(i, Ordering::Relaxed);
                    }
                });
                assert_eq!(sum.into_inner(), 45);
            }
        }
    }

    #[test]
    fn run_all_reaches_every_thread_even_from_sleep() {
        let mut team = Team::new("t", 4).unwrap();
        for round in 0..50 {
            if round % 10 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            let hits: Vec<AtomicUsize> = (0..4).map(|_| AtomicUsize::new(0)).collect();
            team.run_all(&|t| {
                hits[t].fetch_add(1, Ordering::Relaxed);
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1), "round {round}");
        }
    }

    #[test]
    fn a_panic_on_any_thread_reaches_the_caller() {
        let mut team = Team::new("t", 3).unwrap();
        for bad in 0..3 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                team.run_all(&|t| assert_ne!(t, bad, "thread {bad} fails"));
            }));
            assert!(caught.is_err(), "thread {bad}");
        }
        team.run_all(&|_| {});
    }
}
