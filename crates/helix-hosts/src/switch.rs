//! The switch: takes frames from the hosts' TAP devices and gives each to its receiver when it is due.
//!
//! One thread, asleep until a frame comes or is nearly due. With a real-time priority it runs before the
//! ranks, which it shares cores with: a link does not slow down because its ends compute.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
/// Frames that one host may send before another is looked at.
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

/// What happened since the last `stats`.
#[derive(Default)]
struct Counts {
    frames: u64,
    bytes: u64,
    dropped: u64,
    late_ns: u64,
    late_max_ns: u64,
}

/// The switch and the hosts' cables.
pub struct Switch {
    taps: Vec<SyncDevice>,
    control: UnixDatagram,
    star: Star,
    /// Frames to each host, in the order of their arrival.
    flying: Vec<VecDeque<Flying>>,
    /// Buffers of frames that have arrived.
    spare: Vec<Box<[u8]>>,
    /// How late timers are, a moving average; in virtual machines some 25 us.
    late_ns: u64,
    counts: Counts,
    start: Instant,
    busy_since: (Instant, u64),
    /// What the machine adds to each frame's delay by itself.
    own_ns: Arc<AtomicU64>,
}

impl Switch {
    /// A switch of links without delay; `delay-us` and `own_ns` are for the one who has measured.
    pub fn new(
        taps: Vec<SyncDevice>,
        control: UnixDatagram,
        gbit: f64,
        own_ns: Arc<AtomicU64>,
    ) -> Switch {
        Switch {
            star: Star::new(taps.len(), LinkSpeed { delay_ns: 0, gbit }),
            flying: taps.iter().map(|_| VecDeque::new()).collect(),
            taps,
            control,
            spare: Vec::new(),
            late_ns: 0,
            counts: Counts::default(),
            start: Instant::now(),
            busy_since: (Instant::now(), 0),
            own_ns,
        }
    }

    /// Switches for ever, or until a device fails.
    pub fn run(mut self) -> Result<()> {
        prefer_this_thread();
        loop {
            self.deliver();
            let ready = self.wait()?;
            for (from, _) in ready.iter().enumerate().filter(|(_, ready)| **ready) {
                if from == self.taps.len() {
                    self.answer();
                } else {
                    self.take(from)?;
                }
            }
        }
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Gives the frames that are due to their receivers.
    fn deliver(&mut self) {
        for to in 0..self.taps.len() {
            loop {
                let now = self.now_ns();
                let queue = &mut self.flying[to];
                if queue.front().is_none_or(|frame| frame.due_ns > now) {
                    break;
                }
                let Some(frame) = queue.pop_front() else { break };
                // A host whose queue is full drops it, as a network card would.
                let arrives = !self.star.is_cut(to);
                if arrives && write(self.taps[to].as_fd(), frame.bytes()).is_ok() {
                    self.counts.frames += 1;
                    self.counts.bytes += (frame.length - OFFLOAD_HEADER) as u64;
                    self.counts.late_ns += now - frame.due_ns;
                    self.counts.late_max_ns = self.counts.late_max_ns.max(now - frame.due_ns);
                } else {
                    self.counts.dropped += 1;
                }
                self.spare.push(frame.buffer);
            }
        }
    }

    /// Waits until something is to be done; says which hosts have sent, and last, whether control asks.
    ///
    /// Sleeps for as long as timers are exact enough for, and polls for the microseconds that remain.
    fn wait(&mut self) -> Result<Vec<bool>> {
        let now = self.now_ns();
        let due = self.flying.iter().filter_map(|queue| queue.front()).map(|frame| frame.due_ns);
        let has_room = |from: &usize| self.star.up_free_ns(*from) <= now + AHEAD_NS;
        let full = (0..self.taps.len()).filter(|from| !has_room(from));
        let room = full.map(|from| self.star.up_free_ns(from) - AHEAD_NS);
        let sleep_ns = due.chain(room).min().map(|at| self.sleep_ns(at.saturating_sub(now)));
        let asked = |from: usize| match has_room(&from) {
            true => PollFlags::POLLIN,
            false => PollFlags::empty(),
        };
        let taps = self.taps.iter().enumerate();
        let mut polled: Vec<PollFd> =
            taps.map(|(from, tap)| PollFd::new(tap.as_fd(), asked(from))).collect();
        polled.push(PollFd::new(self.control.as_fd(), PollFlags::POLLIN));
        let timeout = sleep_ns.map(|ns| Duration::from_nanos(ns).into());
        let slept = Instant::now();
        let count = match ppoll(&mut polled, timeout, None) {
            Ok(count) => count,
            Err(Errno::EINTR) => -1,
            Err(error) => return Err(error).context("the switch cannot wait"),
        };
        let readable = |polled: &PollFd| {
            polled.revents().is_some_and(|events| events.contains(PollFlags::POLLIN))
        };
        let readable = polled.iter().map(readable).collect();
        if let (0, Some(asked_ns @ 1..)) = (count, sleep_ns) {
            let late_ns = (slept.elapsed().as_nanos() as u64).saturating_sub(asked_ns);
            if late_ns <= LATE_MOST_NS {
                self.late_ns = (self.late_ns * 15 + late_ns) / 16;
            }
        }
        Ok(readable)
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

    /// Takes what `from` sends, until its cable is busy or it has no more.
    fn take(&mut self, from: usize) -> Result<()> {
        for _ in 0..BURST {
            let now = self.now_ns();
            if self.star.up_free_ns(from) > now + AHEAD_NS {
                break;
            }
            let mut buffer = self.spare.pop().unwrap_or_else(|| vec![0; FRAME].into());
            let length = match read(self.taps[from].as_fd(), &mut buffer) {
                Ok(length) => length,
                Err(Errno::EAGAIN | Errno::EINTR) => {
                    self.spare.push(buffer);
                    break;
                }
                Err(error) => return Err(error).context("the switch cannot read from a host"),
            };
            match receiver(&buffer[..length], self.taps.len()) {
                Some(to) if !self.star.is_cut(from) && !self.star.is_cut(to) => {
                    let bytes = length - OFFLOAD_HEADER;
                    let due_ns = self.star.arrival_ns(now, from, to, bytes);
                    // A shorter delay from now on does not let frames overtake.
                    let last_ns = self.flying[to].back().map_or(0, |frame| frame.due_ns);
                    let due_ns = due_ns.max(last_ns);
                    self.flying[to].push_back(Flying { due_ns, buffer, length });
                }
                _ => {
                    self.counts.dropped += 1;
                    self.spare.push(buffer);
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self) {
        // Another handle, since an answer changes what this one lies in.
        let Ok(socket) = self.control.try_clone() else { return };
        control::serve(&socket, |request| {
            let answer = request.and_then(|request| self.obey(&request));
            answer.unwrap_or_else(|error| format!("error: {error}"))
        });
    }

    fn obey(&mut self, request: &Request) -> Result<String, String> {
        match *request {
            Request::Cut { host, .. } if host >= self.star.hosts() => {
                return Err(format!("there are {} hosts, from host0", self.star.hosts()));
            }
            Request::Cut { host, cut } => self.star.set_cut(host, cut),
            Request::DelayUs(us) => {
                let own = self.own_ns.load(Ordering::Relaxed);
                self.star.speed.delay_ns = ((us * 1e3) as u64).saturating_sub(own);
            }
            Request::Gbit(gbit) => self.star.speed.gbit = gbit,
            Request::Stats => return Ok(self.stats()),
        }
        Ok("done".to_owned())
    }

    /// A JSON document of what was carried since the last one, and what it cost.
    fn stats(&mut self) -> String {
        let counts = std::mem::take(&mut self.counts);
        let (since, busy) = self.busy_since;
        self.busy_since = (Instant::now(), own_time_ns());
        let seconds = since.elapsed().as_secs_f64();
        let busy_seconds = (self.busy_since.1 - busy) as f64 / 1e9;
        serde_json::json!({
            "frames": counts.frames,
            "bytes": counts.bytes,
            "dropped": counts.dropped,
            "late_us_mean": counts.late_ns as f64 / 1e3 / counts.frames.max(1) as f64,
            "late_us_max": counts.late_max_ns as f64 / 1e3,
            "timer_late_us": self.late_ns as f64 / 1e3,
            "seconds": seconds,
            "core_share": busy_seconds / seconds,
        })
        .to_string()
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
