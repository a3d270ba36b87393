//! A model that runs on all ranks of a layout: what commands drive.

use crate::comms::Comms;
use crate::counters::RankCounters;
use crate::follow::{self, Followers};
use crate::hopb::MAX_PIECES;
use crate::local::LocalRanks;
use crate::protocol::Command;
use crate::rank::{kv_sizes, largest_messages};
use crate::slices::MAX_SLICES;
use crate::{EngineError, EngineOptions, HopB, RankTrace};
use helix_comm::{World, allowed_processors};
use helix_layout::pieces::hidden_before;
use helix_layout::{Layout, Rank as RankId};
use helix_model::Model;
use helix_scheduler::Step;
use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

/// A model that runs. The ranks of its layout are thread teams of this process over shared memory,
/// or processes of which this one is rank 0.
///
/// The caller of [`Engine::step`] is rank 0's leader, so a step costs no hand-over. All memory is
/// allocated at the start; steps allocate nothing.
pub struct Engine {
    layout: Layout,
    options: EngineOptions,
    vocab: usize,
    /// Ranks that are processes of their own.
    followers: Option<Followers>,
    /// Those of this process.
    ranks: LocalRanks,
    /// Bytes of weights that each process has read.
    read: Vec<u64>,
    /// Positions of the sequence in each slot.
    lens: Vec<usize>,
    /// How far each may be truncated.
    floors: Vec<usize>,
    /// Of layers that have one.
    window: Option<usize>,
    /// Rows of logits that the last step left.
    rows: usize,
    broken: bool,
}

impl Engine {
    /// Loads every rank's shards; `progress` is told bytes of weights as they are read.
    ///
    /// # Errors
    /// A model file lacks what a rank needs; an option is absurd; the KV cache does not fit in
    /// memory.
    pub fn new(
        model: Arc<Model>,
        layout: Layout,
        options: EngineOptions,
        progress: &dyn Fn(u64),
    ) -> Result<Engine, EngineError> {
        validate(&options)?;
        let all: Vec<RankId> = layout.all_ranks().collect();
        check_memory(&model, &layout, &all, &options)?;
        check_embedding(&model, 0..model.config.vocab)?;
        let messages = largest_messages(&model, &layout, &options);
        let comms = Comms::of_all(&layout, &messages, &options);
        let ranks = layout.all_ranks().zip(comms);
        let read = Cell::new(0);
        let progress = |bytes| {
            read.set(read.get() + bytes);
            progress(bytes);
        };
        let mut ranks = LocalRanks::load(&model, &layout, ranks, &options, &progress)?;
        if options.pin {
            ranks.pin(&allowed_processors())?;
        }
        Ok(Self::of(&model, layout, options, None, ranks, vec![read.get()]))
    }

    /// As [`Engine::new`], of processes: this is rank 0, the others [`follow`](crate::follow), and
    /// each loads its own shards. `progress` is told what this one reads.
    ///
    /// # Errors
    /// As [`Engine::new`], of any rank; or ranks lost each other.
    ///
    /// # Panics
    /// The layout has more ranks than the world.
    pub fn lead(
        world: &Arc<dyn World>,
        model: Arc<Model>,
        layout: Layout,
        options: EngineOptions,
        progress: &dyn Fn(u64),
    ) -> Result<Engine, EngineError> {
        assert!(layout.ranks() <= world.size(), "{layout} on {} processes", world.size());
        validate(&options)?;
        let followers = Followers::start(Arc::clone(world), &layout, &options)?;
        let own = Cell::new(0);
        let progress = |bytes| {
            own.set(own.get() + bytes);
            progress(bytes);
        };
        let ranks = follow::load(world, &model, &layout, &options, &progress);
        let mut read = vec![own.get()];
        read.extend(followers.are_ready()?);
        Ok(Self::of(&model, layout, options, Some(followers), ranks?, read))
    }

    fn of(
        model: &Model,
        layout: Layout,
        options: EngineOptions,
        followers: Option<Followers>,
        ranks: LocalRanks,
        read: Vec<u64>,
    ) -> Engine {
        Engine {
            layout,
            options,
            vocab: model.config.vocab,
            followers,
            ranks,
            read,
            lens: vec![0; options.max_sequences],
            floors: vec![0; options.max_sequences],
            window: model.config.window,
            rows: 0,
            broken: false,
        }
    }

    /// Bytes of KV cache that all ranks of `layout` would reserve together.
    pub fn kv_bytes(model: &Model, layout: &Layout, options: &EngineOptions) -> Option<u64> {
        kv_bytes(model, layout, layout.all_ranks(), options)
    }

    /// Runs one step on all ranks: appends its tokens to their sequences and gives the wanted rows
    /// of logits, `[rows, vocab]`, in the order of the runs.
    ///
    /// # Errors
    /// The step does not fit the engine or its sequences, in which case nothing was changed; or
    /// ranks lost each other, after which the engine refuses every step.
    ///
    /// # Panics
    /// With the payload of a rank that panicked.
    pub fn step(&mut self, step: &Step) -> Result<&mut [f32], EngineError> {
        self.check(step)?;
        self.broken = true;
        if let Some(followers) = &self.followers {
            followers.step(step)?;
        }
        self.ranks.step(step)?;
        self.broken = false;
        for run in &step.runs {
            self.lens[run.slot] = run.start + run.len;
            self.pass(run.slot, run.start);
        }
        self.rows = step.wanted_rows();
        Ok(self.logits())
    }

    /// A run from `position` on may have lost what queries before it see, but for what is kept.
    fn pass(&mut self, slot: usize, position: usize) {
        if hidden_before(self.window, position) > self.options.rewind {
            let kept = position - self.options.rewind;
            self.floors[slot] = self.floors[slot].max(kept);
        }
    }

    /// The rows of logits that the last step left, `[rows, vocab]`.
    pub fn logits(&mut self) -> &mut [f32] {
        &mut self.ranks.logits()[..self.rows * self.vocab]
    }

    /// Tells the ranks that are processes, if there are any.
    fn tell(&mut self, command: &Command<'_>) {
        if let Some(followers) = &self.followers {
            // Whoever does not hear it is missed in the next step, which says so.
            self.broken |= followers.tell(command).is_err();
        }
    }

    fn check(&self, step: &Step) -> Result<(), EngineError> {
        let wrong = |text: String| Err(EngineError::Step(text));
        let options = &self.options;
        let total = step.runs.iter().try_fold(0usize, |sum, run| sum.checked_add(run.len));
        if total != Some(step.tokens.len()) {
            return wrong("its runs and its tokens differ in length".into());
        }
        let limits = [
            ("tokens", step.tokens.len(), options.max_step_tokens),
            ("wanted rows of logits", step.wanted_rows(), options.max_logits),
        ];
        for (what, count, max) in limits {
            if count > max {
                return wrong(format!("it has {count} {what}, the engine was sized for {max}"));
            }
        }
        if self.broken {
            return wrong("an earlier step failed, so the sequences are in no known state".into());
        }
        if step.tokens.is_empty() {
            return wrong("it has no tokens".into());
        }
        if let Some(id) = step.tokens.iter().find(|&&id| id as usize >= self.vocab) {
            return wrong(format!("token {id} is not one of the vocabulary's {}", self.vocab));
        }
        for (index, run) in step.runs.iter().enumerate() {
            let Some(&len) = self.lens.get(run.slot) else {
                return wrong(format!("slot {} of {}", run.slot, self.lens.len()));
            };
            if run.start != len || run.len == 0 {
                let (slot, start) = (run.slot, run.start);
                return wrong(format!(
                    "slot {slot} holds {len} positions; a run starts at {start}"
                ));
            }
            if run.start + run.len > options.max_context {
                let end = run.start + run.len;
                return wrong(format!(
                    "position {end} is past the context of {}",
                    options.max_context
                ));
            }
            if step.runs[..index].iter().any(|other| other.slot == run.slot) {
                return wrong(format!("slot {} has two runs", run.slot));
            }
        }
        Ok(())
    }

    /// Forgets the sequence in `slot`.
    pub fn release(&mut self, slot: usize) {
        self.truncate(slot, 0);
    }

    /// Whether `slot`'s sequence can go back to `len` positions: it is as long, and sliding windows
    /// have not passed what would be needed again.
    pub fn can_truncate(&self, slot: usize, len: usize) -> bool {
        len <= self.lens[slot] && (len == 0 || len >= self.floors[slot])
    }

    /// Forgets the positions of `slot`'s sequence from `len` on.
    ///
    /// # Panics
    /// There is no such slot, its sequence is shorter, or sliding windows have passed positions
    /// that would be needed again: [`Engine::can_truncate`], [`EngineOptions::rewind`].
    pub fn truncate(&mut self, slot: usize, len: usize) {
        assert!(len <= self.lens[slot], "slot {slot} holds {} positions", self.lens[slot]);
        let floor = self.floors[slot];
        assert!(
            len == 0 || len >= floor,
            "windows of slot {slot} have passed {len}: {floor} is kept"
        );
        if len == 0 {
            self.floors[slot] = 0;
        }
        self.lens[slot] = len;
        self.tell(&Command::Truncate { slot, len });
        self.ranks.truncate(slot, len);
    }

    /// Lengthens `slot`'s sequence to `len` positions whose keys and values are seeded noise: a
    /// long context for a benchmark, without the hours that computing one takes.
    ///
    /// # Panics
    /// There is no such slot, its sequence is longer, or `len` is past the context.
    pub fn fill_with_noise(&mut self, slot: usize, len: usize) {
        assert!(len <= self.options.max_context, "{len} is past the context");
        assert!(len >= self.lens[slot], "slot {slot} holds {} positions", self.lens[slot]);
        let from = std::mem::replace(&mut self.lens[slot], len);
        self.pass(slot, len);
        self.tell(&Command::FillWithNoise { slot, from, len });
        self.ranks.fill_with_noise(slot, from, len);
    }

    /// Positions of the sequence in `slot`.
    pub fn len(&self, slot: usize) -> usize {
        self.lens[slot]
    }

    /// Whether the engine holds no sequence.
    pub fn is_empty(&self) -> bool {
        self.lens.iter().all(|&len| len == 0)
    }

    /// Bytes of weights that each process has read from disk, in the order of ranks.
    pub fn bytes_loaded(&self) -> &[u64] {
        &self.read
    }

    /// The layout that it runs.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What it was sized for.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Columns of a row of logits.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// What each rank read, sent and spent since the start or the last reset.
    ///
    /// # Errors
    /// Ranks that are processes lost each other.
    pub fn counters(&self) -> Result<Vec<RankCounters>, EngineError> {
        let mut counters: Vec<_> = self.ranks.counters().collect();
        if let Some(followers) = &self.followers {
            counters.extend(followers.counters()?);
        }
        Ok(counters)
    }

    /// The last of what the ranks did, as [`EngineOptions::trace`] says, on this process's clock.
    ///
    /// # Errors
    /// Ranks that are processes lost each other.
    pub fn trace(&self) -> Result<Vec<RankTrace>, EngineError> {
        let mut traces: Vec<_> = self.ranks.trace().collect();
        if let Some(followers) = &self.followers {
            traces.extend(followers.traces()?);
        }
        Ok(traces)
    }

    /// Counts from zero again.
    pub fn reset_counters(&mut self) {
        self.tell(&Command::ResetCounters);
        self.ranks.reset_counters();
    }
}

fn validate(options: &EngineOptions) -> Result<(), EngineError> {
    let pieces = match options.hopb {
        HopB::Off | HopB::Auto => 1,
        HopB::Pieces(pieces) => pieces,
    };
    let checks = [
        ("threads per rank", options.threads_per_rank, 1024),
        ("context", options.max_context, u32::MAX as usize),
        ("sequences", options.max_sequences, 1 << 20),
        ("tokens of a step", options.max_step_tokens, 1 << 16),
        ("rows of logits", options.max_logits, 1 << 16),
        ("pieces of attention", pieces, MAX_PIECES),
        ("slices of a sum", options.reduce_slices, MAX_SLICES),
    ];
    for (name, value, max) in checks {
        if !(1..=max).contains(&value) {
            return Err(EngineError::Option { name, value, max });
        }
    }
    Ok(())
}

/// Refuses a KV cache of `ranks`, which share this host's memory, that is larger than what the
/// system says is free: it would be killed half-way.
pub(crate) fn check_memory(
    model: &Model,
    layout: &Layout,
    ranks: &[RankId],
    options: &EngineOptions,
) -> Result<(), EngineError> {
    let needed = kv_bytes(model, layout, ranks.iter().copied(), options).unwrap_or(u64::MAX);
    let Some(available) = available_memory() else { return Ok(()) };
    if needed <= available {
        return Ok(());
    }
    Err(EngineError::KvMemory {
        ranks: ranks.len(),
        needed_mib: needed >> 20,
        available_mib: available >> 20,
        sequences: options.max_sequences,
        context: options.max_context,
    })
}

fn kv_bytes(
    model: &Model,
    layout: &Layout,
    mut ranks: impl Iterator<Item = RankId>,
    options: &EngineOptions,
) -> Option<u64> {
    ranks.try_fold(0u64, |sum, rank| {
        let size = kv_sizes(model, layout, rank, options).bytes()?;
        sum.checked_add(size as u64)
    })
}

/// Refuses an embedding of which one of `rows` is no number: they are read one by one, in the middle
/// of steps. One that is the LM head as well is checked when the ranks load that.
pub(crate) fn check_embedding(model: &Model, rows: Range<usize>) -> Result<(), EngineError> {
    let mut rows = if model.config.tied_head { 0..0 } else { rows };
    let mut row = vec![0.0; model.config.hidden];
    rows.try_for_each(|token| Ok(model.embedding_row(token as u32, &mut row)?))
}

/// Linux's estimate of what can be allocated without swapping.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
