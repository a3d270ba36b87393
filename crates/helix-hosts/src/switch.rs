//! The switch: takes frames from the hosts' TAP devices and gives each to its receiver when it is due.
//!
//! Every host has a port: a thread on the host's own cores, asleep until its host sends or a frame is
//! nearly due. What two hosts send each other goes both ways at once, as it does between network
//! cards. With a real-time priority a port runs before the ranks, which it shares cores with: a link
//! does not slow down because its ends compute.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{read, write};
use thread_priority::unix::{
    RealtimeThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};
use thread_priority::{ThreadPriority, ThreadPriorityValue};
use tun_rs::SyncDevice;

use crate::control::{self, Request};
use crate::host;
use crate::link::{LinkSpeed, Star};

/// Before each frame, a TAP device puts what is left to do of its checksum and its segments.
const OFFLOAD_HEADER: usize = 10;
/// The largest frame: a TCP segment of 64 KiB before it is cut up, and headers.
const FRAME: usize = OFFLOAD_HEADER + 14 + 65536;
/// A cable that is busy for longer than this is given no more: the sender's kernel keeps it.
const AHEAD_NS: u64 = 50_000;
/// Frames that a host may send before those that are due are looked at.
const BURST: usize = 32;

/// A timer that is later than this was held up: it says nothing about the next one.
const LATE_MOST_NS: u64 = 60_000;

/// A frame on its way. Its buffer is as long as the longest frame, so that nobody clears it.
struct Flying {
    due_ns: u64,
    buffer: Box<[u8]>,
    length: usize,
}

impl Flying {
    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

/// What happened at all ports since the last `stats`.
#[derive(Default)]
struct Counts {
    frames: u64,
    bytes: u64,
    dropped: u64,
    late_ns: u64,
    late_max_ns: u64,
}

/// The hosts' cables, and what all ports have to agree about.
pub struct Switch {
    taps: Vec<SyncDevice>,
    star: Mutex<Star>,
    counts: Mutex<Counts>,
    /// Of each port: how late its timers are, and the processor time that it has taken.
    late_ns: Vec<AtomicU64>,
    busy_ns: Vec<AtomicU64>,
    start: Instant,
    /// What the machine adds to each frame's delay by itself.
    own_ns: AtomicU64,
}

impl Switch {
    /// A switch of links without delay, which `delay-us` changes.
    pub fn new(taps: Vec<SyncDevice>, gbit: f64) -> Switch {
        let zeros = || taps.iter().map(|_| AtomicU64::new(0)).collect();
        Switch {
            star: Mutex::new(Star::new(taps.len(), LinkSpeed { delay_ns: 0, gbit })),
            counts: Mutex::default(),
            late_ns: zeros(),
            busy_ns: zeros(),
            taps,
            start: Instant::now(),
            own_ns: AtomicU64::new(0),
        }
    }

    /// Starts the hosts' ports, and a thread that answers `control`.
    pub fn start(self: &Arc<Switch>, folder: &Path, control: UnixDatagram) {
        for from in 0..self.taps.len() {
            let (port, folder) = (Port::new(self.clone(), from), folder.to_owned());
            std::thread::spawn(move || {
                // Without its switch, a test would measure nothing.
                if let Err(error) = port.run(&folder) {
                    eprintln!("error: {error:#}");
                    std::process::exit(1);
                }
            });
        }
        let switch = self.clone();
        std::thread::spawn(move || {
            let mut since = (Instant::now(), switch.busy_ns());
            control::serve(&control, |request| {
                let answer = request.and_then(|request| switch.obey(&request, &mut since));
                answer.unwrap_or_else(|error| format!("error: {error}"))
            });
        });
    }

    /// Delays asked for from now on are shorter by what the machine takes.
    pub fn set_own_delay(&self, ns: u64) {
        self.own_ns.store(ns, Ordering::Relaxed);
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn busy_ns(&self) -> u64 {
        self.busy_ns.iter().map(|busy| busy.load(Ordering::Relaxed)).sum()
    }

    fn obey(&self, request: &Request, since: &mut (Instant, u64)) -> Result<String, String> {
        let mut star = lock(&self.star);
        match *request {
            Request::Cut { host, .. } if host >= star.hosts() => {
                return Err(format!("there are {} hosts, from host0", star.hosts()));
            }
            Request::Cut { host, cut } => star.set_cut(host, cut),
            Request::DelayUs(us) => {
                let own = self.own_ns.load(Ordering::Relaxed);
                star.speed.delay_ns = ((us * 1e3) as u64).saturating_sub(own);
            }
            Request::Gbit(gbit) => star.speed.gbit = gbit,
            Request::Stats => return Ok(self.stats(since)),
        }
        Ok("done".to_owned())
    }

    /// A JSON document of what was carried since the last one, and what it cost.
    fn stats(&self, since: &mut (Instant, u64)) -> String {
        let counts = std::mem::take(&mut *lock(&self.counts));
        let (then, busy_then) = std::mem::replace(since, (Instant::now(), self.busy_ns()));
        let seconds = then.elapsed().as_secs_f64();
        let late = self.late_ns.iter().map(|late| late.load(Ordering::Relaxed)).max();
        serde_json::json!({
            "frames": counts.frames,
            "bytes": counts.bytes,
            "dropped": counts.dropped,
            "late_us_mean": counts.late_ns as f64 / 1e3 / counts.frames.max(1) as f64,
            "late_us_max": counts.late_max_ns as f64 / 1e3,
            "timer_late_us": late.unwrap_or(0) as f64 / 1e3,
            "seconds": seconds,
            "core_share": (since.1 - busy_then) as f64 / 1e9 / seconds,
        })
        .to_string()
    }
}

/// Nothing is left half done by a thread that panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what one host sends, and delivers it.
struct Port {
    switch: Arc<Switch>,
    from: usize,
    /// Frames to each host, in the order in which they are due.
    flying: Vec<VecDeque<Flying>>,
    /// Until when the host's cable is busy.
    up_free_ns: u64,
    /// Buffers of frames that have arrived.
    spare: Vec<Box<[u8]>>,
    /// How late timers are, a moving average; in virtual machines some 25 us.
    late_ns: u64,
}

impl Port {
    fn new(switch: Arc<Switch>, from: usize) -> Port {
        let flying = switch.taps.iter().map(|_| VecDeque::new()).collect();
        Port { switch, from, flying, up_free_ns: 0, spare: Vec::new(), late_ns: 0 }
    }

    /// Switches for ever, or until a device fails.
    fn run(mut self, folder: &Path) -> Result<()> {
        host::pin(folder, self.from)?;
        prefer_this_thread();
        loop {
            self.deliver();
            if self.wait()? {
                self.take()?;
            }
            self.switch.busy_ns[self.from].store(own_time_ns(), Ordering::Relaxed);
        }
    }

    /// Gives the frames that are due to their receivers.
    fn deliver(&mut self) {
        for to in 0..self.flying.len() {
            loop {
                let now = self.switch.now_ns();
                let queue = &mut self.flying[to];
                if queue.front().is_none_or(|frame| frame.due_ns > now) {
                    break;
                }
                let Some(frame) = queue.pop_front() else { break };
                // A host whose queue is full drops it, as a network card would.
                let arrives = !lock(&self.switch.star).is_cut(to)
                    && write(self.switch.taps[to].as_fd(), frame.bytes()).is_ok();
                let mut counts = lock(&self.switch.counts);
                if arrives {
                    counts.frames += 1;
                    counts.bytes += (frame.length - OFFLOAD_HEADER) as u64;
                    counts.late_ns += now - frame.due_ns;
                    counts.late_max_ns = counts.late_max_ns.max(now - frame.due_ns);
                } else {
                    counts.dropped += 1;
                }
                self.spare.push(frame.buffer);
            }
        }
    }

    /// Waits until something is to be done; says whether the host has sent.
    ///
    /// Sleeps for as long as timers are exact enough for, and polls for the microseconds that remain.
    fn wait(&mut self) -> Result<bool> {
        let now = self.switch.now_ns();
        let due = self.flying.iter().filter_map(|queue| queue.front()).map(|frame| frame.due_ns);
        let room = self.up_free_ns.saturating_sub(AHEAD_NS);
        let has_room = room <= now;
        let next = due.chain((!has_room).then_some(room)).min();
        let sleep_ns = next.map(|at| self.sleep_ns(at.saturating_sub(now)));
        let asked = if has_room { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut polled = [PollFd::new(self.switch.taps[self.from].as_fd(), asked)];
        let timeout = sleep_ns.map(|ns| Duration::from_nanos(ns).into());
        let slept = Instant::now();
        let count = match ppoll(&mut polled, timeout, None) {
            Ok(count) => count,
            Err(Errno::EINTR) => -1,
            Err(error) => return Err(error).context("the switch cannot wait"),
        };
        let has_sent = polled[0].revents().is_some_and(|is| is.contains(PollFlags::POLLIN));
        if let (0, Some(asked_ns @ 1..)) = (count, sleep_ns) {
            let late_ns = (slept.elapsed().as_nanos() as u64).saturating_sub(asked_ns);
            if late_ns <= LATE_MOST_NS {
                self.late_ns = (self.late_ns * 15 + late_ns) / 16;
                self.switch.late_ns[self.from].store(self.late_ns, Ordering::Relaxed);
            }
        }
        Ok(has_sent)
    }

    /// How long to sleep when something is due in `left_ns`; 0 where any sleep would be too long.
    ///
    /// Whoever shares the core computes meanwhile, so a sleep that may be a little late is taken.
    fn sleep_ns(&self, left_ns: u64) -> u64 {
        if left_ns <= self.late_ns / 4 * 3 {
            return 0;
        }
        left_ns.saturating_sub(self.late_ns).max(1)
    }

    /// Takes what the host sends, until its cable is busy or it has no more.
    fn take(&mut self) -> Result<()> {
        let (from, hosts) = (self.from, self.flying.len());
        for _ in 0..BURST {
            let now = self.switch.now_ns();
            if self.up_free_ns > now + AHEAD_NS {
                break;
            }
            let mut buffer = self.spare.pop().unwrap_or_else(|| vec![0; FRAME].into());
            let length = match read(self.switch.taps[from].as_fd(), &mut buffer) {
                Ok(length) => length,
                Err(Errno::EAGAIN | Errno::EINTR) => {
                    self.spare.push(buffer);
                    break;
                }
                Err(error) => return Err(error).context("the switch cannot read from a host"),
            };
            let mut star = lock(&self.switch.star);
            match receiver(&buffer[..length], hosts) {
                Some(to) if !star.is_cut(from) && !star.is_cut(to) => {
                    let due_ns = star.arrival_ns(now, from, to, length - OFFLOAD_HEADER);
                    self.up_free_ns = star.up_free_ns(from);
                    // A shorter delay from now on does not let frames overtake.
                    let last_ns = self.flying[to].back().map_or(0, |frame| frame.due_ns);
                    let due_ns = due_ns.max(last_ns);
                    self.flying[to].push_back(Flying { due_ns, buffer, length });
                }
                _ => {
                    lock(&self.switch.counts).dropped += 1;
                    self.spare.push(buffer);
                }
            }
        }
        Ok(())
    }
}

/// The host that a frame is addressed to; none for broadcasts, which emulated hosts have no use for.
fn receiver(bytes: &[u8], hosts: usize) -> Option<usize> {
    let hardware = bytes.get(OFFLOAD_HEADER..OFFLOAD_HEADER + 6)?;
    let index = usize::from(hardware[5]);
    (index < hosts && hardware == host::hardware_address(index)).then_some(index)
}

/// Processor time of this thread.
fn own_time_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// A real-time priority and exact timers; without the right to it, the switch is as late as others let it be.
fn prefer_this_thread() {
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    let middle = ThreadPriorityValue::try_from(50).expect("50 of 99");
    let preferred = set_thread_priority_and_policy(
        thread_native_id(),
        ThreadPriority::Crossplatform(middle),
        policy,
    );
    if let Err(error) = preferred {
        eprintln!("hosts: the switch has no real-time priority ({error}): delays vary more");
    }
    // Only timers of other priorities have slack; nothing to do where this fails.
    let _ = nix::sys::prctl::set_timerslack(1);
}
