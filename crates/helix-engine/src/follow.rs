//! Ranks that are processes: rank 0 is the front end, the others do what it tells them.

use crate::clocks::ClockFit;
use crate::comms::Comms;
use crate::engine::{check_embedding, check_memory};
use crate::local::LocalRanks;
use crate::probe::collectives::take_part;
use crate::protocol::{Command, Loaded, Time, step_bytes, write_step};
use crate::rank::largest_messages;
use crate::{EngineError, EngineOptions, RankCounters, RankTrace};
use helix_comm::{World, WorldError};
use helix_layout::{Layout, LayoutSpec, Rank as RankId};
use helix_model::Model;
use helix_scheduler::Step;
use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The other processes, as the front end's engine sees them.
pub(crate) struct Followers {
    world: Arc<dyn World>,
    /// Ranks of the layout; the world may have more.
    ranks: usize,
    options: EngineOptions,
    message: Mutex<Vec<u8>>,
    /// Of ranks 1 and on, where a trace is kept.
    clocks: Vec<ClockFit>,
}

impl Followers {
    /// Has the other processes make their part of an engine.
    pub(crate) fn start(
        world: Arc<dyn World>,
        layout: &Layout,
        options: &EngineOptions,
    ) -> Result<Followers, EngineError> {
        let message = Mutex::new(Vec::with_capacity(step_bytes(options)));
        let ranks = layout.ranks();
        let traced = 1..if options.trace > 0 { ranks } else { 1 };
        let clocks = traced.map(|rank| ClockFit::new(&*world, rank, options.deadline));
        let clocks = clocks.collect::<Result<_, _>>()?;
        let followers = Followers { world, ranks, options: *options, message, clocks };
        followers.tell_all(&Command::Start { layout: &layout.name(), options: *options })?;
        Ok(followers)
    }

    /// Waits until all have loaded their shards, however long that takes: the bytes of weights that
    /// each of ranks 1 and on has read.
    ///
    /// # Errors
    /// The first of them that did not.
    pub(crate) fn are_ready(&self) -> Result<Vec<u64>, EngineError> {
        let mut message = self.message();
        let mut refusal = None;
        let mut read = Vec::new();
        for rank in 1..self.world.size() {
            self.world.reply_of(rank, &mut message, self.options.deadline).map_err(first)?;
            match Loaded::read(&message) {
                Some(Loaded::Ready(bytes)) => read.push(bytes),
                Some(Loaded::Refused(why)) => {
                    refusal.get_or_insert(EngineError::Refused { rank, why: why.to_owned() });
                }
                None => return Err(EngineError::Protocol { rank }),
            }
        }
        read.truncate(self.ranks - 1);
        refusal.map_or(Ok(read), Err)
    }

    pub(crate) fn step(&self, step: &Step) -> Result<(), EngineError> {
        let mut message = self.message();
        write_step(step, &mut message);
        let mut ranks = 1..self.ranks;
        self.world.tell(&mut ranks, &message, self.options.deadline).map_err(first)
    }

    /// A command to the layout's ranks.
    pub(crate) fn tell(&self, command: &Command<'_>) -> Result<(), EngineError> {
        self.send(command, self.ranks)
    }

    fn tell_all(&self, command: &Command<'_>) -> Result<(), EngineError> {
        self.send(command, self.world.size())
    }

    fn send(&self, command: &Command<'_>, ranks: usize) -> Result<(), EngineError> {
        let mut message = self.message();
        command.write(&mut message);
        self.world.tell(&mut (1..ranks), &message, self.options.deadline).map_err(first)
    }

    /// The counters of ranks 1 and on.
    pub(crate) fn counters(&self) -> Result<Vec<RankCounters>, EngineError> {
        self.tell(&Command::Counters)?;
        let mut message = self.message();
        let counters = (1..self.ranks).map(|rank| {
            self.world.reply_of(rank, &mut message, self.options.deadline).map_err(first)?;
            RankCounters::read(&message).ok_or(EngineError::Protocol { rank })
        });
        counters.collect()
    }

    /// What ranks 1 and on did, on this process's clock; nothing where no trace is kept.
    pub(crate) fn traces(&self) -> Result<Vec<RankTrace>, EngineError> {
        let patience = self.options.deadline;
        let traces = (1..).zip(&self.clocks).map(|(rank, &clock)| {
            let mut clock = clock;
            clock.renew(&*self.world, rank, patience)?;
            let mut message = self.message();
            Command::Trace.write(&mut message);
            self.world.tell(&mut std::iter::once(rank), &message, patience).map_err(first)?;
            let mut trace = RankTrace {
                rank,
                spans: Vec::new(),
                flights: Vec::new(),
                clock_error: clock.uncertainty(),
            };
            loop {
                self.world.reply_of(rank, &mut message, patience).map_err(first)?;
                let last = trace.read(&message, |nanos| clock.here(nanos));
                if last.ok_or(EngineError::Protocol { rank })? {
                    return Ok(trace);
                }
            }
        });
        traces.collect()
    }

    fn message(&self) -> MutexGuard<'_, Vec<u8>> {
        self.message.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        if !self.world.is_broken() && !std::thread::panicking() {
            // Whoever can't be told has ended, or will as its waits end.
            let _ = self.tell_all(&Command::Stop);
        }
    }
}

/// Tells the other processes that there is nothing more to do. For rank 0.
///
/// # Errors
/// One of them does not take it.
pub fn dismiss(world: &dyn World, patience: Duration) -> Result<(), EngineError> {
    let mut message = Vec::new();
    Command::Quit.write(&mut message);
    world.tell(&mut (1..world.size()), &message, patience).map_err(first)
}

/// Does what the front end says, until it says that there is nothing more to do. For ranks other
/// than 0, of which each runs `threads` threads, and waits for `patience` to hear of rank 0. Without a model the rank only waits for the end:
/// the front end knows.
///
/// # Errors
/// Ranks lost each other. That this rank can't load its part is the front end's to say.
///
/// # Panics
/// As a rank does.
pub fn follow(
    world: &Arc<dyn World>,
    model: Option<&Arc<Model>>,
    threads: usize,
    patience: Duration,
) -> Result<(), EngineError> {
    let lost = |source| EngineError::World { rank: world.rank(), source };
    let mut message = Vec::new();
    let start = Instant::now();
    loop {
        world.next_command(&mut message, patience).map_err(lost)?;
        match (Command::read(&message), model) {
            (Some(Command::Start { layout, options }), Some(model)) => {
                let options = EngineOptions { threads_per_rank: threads, ..options };
                let layout = layout.to_owned();
                serve(world, model, &layout, options, start, &mut message)?;
            }
            (Some(Command::Probe), _) => {
                take_part(&**world, patience)?;
            }
            (Some(Command::Clock), _) => {
                Time::since(start).write(&mut message);
                world.reply(&message, patience).map_err(lost)?;
            }
            (Some(Command::Stop), _) => {}
            (Some(Command::Quit), _) => return Ok(()),
            _ => return Err(EngineError::Protocol { rank: 0 }),
        }
    }
}

/// One engine, from its start to its end; the rank's clock began at `start`.
fn serve(
    world: &Arc<dyn World>,
    model: &Arc<Model>,
    layout: &str,
    options: EngineOptions,
    start: Instant,
    message: &mut Vec<u8>,
) -> Result<(), EngineError> {
    let lost = |source| EngineError::World { rank: world.rank(), source };
    let read = Cell::new(0);
    let progress = |bytes| read.set(read.get() + bytes);
    let made = part(world, model, layout, &options, &progress);
    match &made {
        Ok(_) => Loaded::Ready(read.get()).write(message),
        Err(error) => Loaded::Refused(&error.to_string()).write(message),
    }
    world.reply(message, options.deadline).map_err(lost)?;
    let Ok(Some(mut ranks)) = made else { return Ok(()) };
    let mut step = Step::with_capacity(options.max_step_tokens, options.max_sequences);
    message.reserve(step_bytes(&options));
    loop {
        world.next_command(message, options.deadline).map_err(lost)?;
        match Command::read(message) {
            Some(Command::Step(bytes)) => {
                bytes.read(&mut step).ok_or(EngineError::Protocol { rank: 0 })?;
                ranks.step(&step)?;
            }
            Some(Command::Truncate { slot, len }) => ranks.truncate(slot, len),
            Some(Command::FillWithNoise { slot, from, len }) => {
                ranks.fill_with_noise(slot, from, len);
            }
            Some(Command::ResetCounters) => ranks.reset_counters(),
            Some(Command::Counters) => {
                let counters = ranks.counters().next().expect("a rank");
                counters.write(message);
                world.reply(message, options.deadline).map_err(lost)?;
            }
            Some(Command::Clock) => {
                Time::since(start).write(message);
                world.reply(message, options.deadline).map_err(lost)?;
            }
            Some(Command::Trace) => {
                let trace = ranks.trace().next().expect("a rank");
                trace
                    .write(start, message, |chunk| world.reply(chunk, options.deadline))
                    .map_err(lost)?;
            }
            Some(Command::Stop) => return Ok(()),
            _ => return Err(EngineError::Protocol { rank: 0 }),
        }
    }
}

/// What rank 0 lost.
fn first(source: WorldError) -> EngineError {
    EngineError::World { rank: 0, source }
}

/// This process's rank of a layout, if it has one.
pub(crate) fn part(
    world: &Arc<dyn World>,
    model: &Arc<Model>,
    layout: &str,
    options: &EngineOptions,
    progress: &dyn Fn(u64),
) -> Result<Option<LocalRanks>, EngineError> {
    let refused = |error: &dyn std::fmt::Display| EngineError::Layout(error.to_string());
    let spec = LayoutSpec::read(layout, &model.shape()).map_err(|error| refused(&error))?;
    let layout = Layout::new(&model.shape(), spec).map_err(|error| refused(&error))?;
    if world.rank() >= layout.ranks() {
        return Ok(None);
    }
    load(world, model, &layout, options, progress).map(Some)
}

/// This process's rank of a layout.
pub(crate) fn load(
    world: &Arc<dyn World>,
    model: &Arc<Model>,
    layout: &Layout,
    options: &EngineOptions,
    progress: &dyn Fn(u64),
) -> Result<LocalRanks, EngineError> {
    let rank = RankId(world.rank());
    let neighbours = world.neighbours().iter().filter(|&&rank| rank < layout.ranks());
    let neighbours: Vec<RankId> = neighbours.map(|&rank| RankId(rank)).collect();
    check_memory(model, layout, &neighbours, options)?;
    // All ranks together check all of it, and each reads as much of it as of an LM head.
    check_embedding(model, layout.vocab_rows(rank))?;
    let messages = largest_messages(model, layout, options);
    let comms = Comms::of_process(&**world, layout, rank, &messages, options);
    let one = std::iter::once((rank, comms));
    let mut ranks = LocalRanks::load(model, layout, one, options, progress)?;
    if options.pin {
        ranks.pin(world.processors())?;
    }
    Ok(ranks)
}
