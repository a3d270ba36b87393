//! How long a step takes on a machine, line by line.

use crate::costs::{Collective, Message, Visitor, Work};
use crate::machine::profile::RowKind;
use crate::machine::{Rate, Sharing};
use crate::network::Network;
use crate::pipeline::{Piece, pipelined_equal};
use crate::{Costs, Line, Load, Machine, MachineError, Model, Part};
use std::collections::HashSet;

/// A machine as a model's steps see it.
#[derive(Debug)]
pub struct Timer<'m> {
    network: Network<'m>,
    /// Of products, by part of the model.
    weights: Vec<Rate>,
    attention: Rate,
    operation_s: f64,
    pass_s: f64,
    fork_s: f64,
    line_s: f64,
    threads: f64,
    elements_per_s: f64,
    /// Bytes of memory of a rank.
    pub memory_bytes: f64,
    /// What a reader must be told: rates that were extrapolated.
    pub notes: Vec<String>,
}

/// Seconds of a step by line, over all layers, indexed as [`Line::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTime {
    /// Seconds.
    pub lines: [f64; Line::ALL.len()],
    /// Pieces that HOP-B cut the batch into; 1 without.
    pub pieces: usize,
}

impl StepTime {
    /// Seconds of one line.
    pub fn of(&self, line: Line) -> f64 {
        self.lines[line as usize]
    }

    /// Seconds of all lines inside layers.
    pub fn layers_s(&self) -> f64 {
        self.lines.iter().sum::<f64>() - self.outside_s()
    }

    /// Seconds of the lines outside layers, which one stage has.
    pub fn outside_s(&self) -> f64 {
        self.of(Line::Embedding) + self.of(Line::Head) + self.of(Line::LogitsGather)
    }
}

/// How communication meets computation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlap {
    /// What becomes of the all-to-all.
    pub exchange: Exchange,
    /// The part of each all-reduce that nothing hides: 1 in the engine.
    pub exposed_reduce: f64,
}

/// How the all-to-all of a batch's partial outputs meets their attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// One for the whole batch, when all attention is done: the engine without HOP-B.
    Whole,
    /// One for each request, one after the other, when all attention is done: figure 3's lockstep,
    /// whose communication takes as long as there are requests.
    Lockstep,
    /// A request's runs while the next one's attention does, in as many pieces as take least.
    Hopb,
    /// In the pieces that [`Choices::pieces`](crate::costs::Choices) names, each while the next
    /// one's attention runs.
    Pieces,
}

impl<'m> Timer<'m> {
    /// `machine` for steps of `model` over `ranks` ranks of `threads` threads.
    ///
    /// # Errors
    /// The machine connects fewer ranks, or has no rate for the model's formats.
    pub fn new(
        machine: &'m Machine,
        model: &Model,
        ranks: usize,
        threads: usize,
    ) -> Result<Timer<'m>, MachineError> {
        Timer::of_steps(machine, model, ranks, threads, f64::INFINITY)
    }

    /// [`Timer::new`] of steps in which all ranks together read `step_bytes`: where a machine's
    /// cache was measured, what it holds from one step to the next need not come from memory.
    ///
    /// # Errors
    /// As [`Timer::new`].
    pub fn of_steps(
        machine: &'m Machine,
        model: &Model,
        ranks: usize,
        threads: usize,
        step_bytes: f64,
    ) -> Result<Timer<'m>, MachineError> {
        let of_node = machine.ranks_per_node().map_or(ranks, |node| node.min(ranks));
        let on_node = step_bytes * of_node as f64 / ranks as f64;
        let rank = machine.rank(Sharing { ranks: of_node, threads }).reading(on_node);
        let (mut weights, mut notes) = (Vec::new(), Vec::from_iter(rank.note()));
        for part in Part::ALL {
            let of_part = rank.weights(model.formats.of(part).name)?;
            weights.push(of_part.rate);
            notes.extend(of_part.note);
        }
        let row = match model.shape.mla {
            Some(_) => RowKind::Latent,
            None => RowKind::KeyValue,
        };
        let attention = rank.attention(model.formats.kv.name, row)?;
        notes.extend(attention.note);
        // Several parts may be of one format.
        let mut seen = HashSet::new();
        notes.retain(|note| seen.insert(note.clone()));
        Ok(Timer {
            network: Network::new(machine, ranks)?,
            weights,
            attention: attention.rate,
            operation_s: rank.operation_s(),
            pass_s: rank.pass_s(),
            fork_s: rank.fork_s(),
            line_s: rank.line_s(),
            threads: threads as f64,
            elements_per_s: rank.elements_per_s(),
            memory_bytes: rank.memory_bytes(),
            notes,
        })
    }

    /// Seconds of a step that brings `load` to the rank of `costs`.
    pub fn step(&self, costs: &Costs<'_>, load: &Load, overlap: Overlap) -> StepTime {
        let mut lines = Lines {
            timer: self,
            overlap,
            requests: load.own_tokens,
            attention: Work::default(),
            product: Work::default(),
            time: StepTime { pieces: 1, ..StepTime::default() },
        };
        costs.visit(load, &mut lines);
        lines.time
    }

    /// Seconds to hand `bytes` to the next stage.
    pub fn send_s(&self, bytes: f64, stride: usize) -> f64 {
        let message = Message {
            collective: Collective::Send,
            ranks: 2,
            stride,
            calls: 1.0,
            bytes,
            received: bytes,
        };
        self.network.wire(&message).seconds()
    }

    /// Seconds of a line: the longer of its bytes and its arithmetic, its passes over activations,
    /// and what each of its operations costs besides.
    fn work_s(&self, work: &Work) -> f64 {
        let of_part = |part: Part| {
            self.weights[part as usize].seconds(work.weight_bytes, work.ops, work.meets)
        };
        self.busy(work.part.map_or(0.0, of_part), work)
    }

    fn attention_s(&self, work: &Work) -> f64 {
        let read = self.attention.seconds(work.kv_bytes, work.ops, work.meets);
        self.busy(read, work)
    }

    /// Seconds of `work`, which takes `whole` in one go, until the last of as many messages as it is
    /// cut into is there. Each piece costs its operation and its message.
    fn pipelined(&self, whole: f64, work: &Work, pieces: f64, message: &Message) -> f64 {
        let operation = work.launches * (self.operation_s + self.fork_s);
        let compute_s = (whole - operation) / pieces + operation;
        pipelined_equal(pieces, Piece { compute_s, wire: self.network.wire(message) })
    }

    /// Seconds past the end of `work` until the last of a message's calls is there, each of which
    /// starts as its part of the work is done.
    fn past(&self, whole: f64, work: &Work, message: &Message) -> f64 {
        match message.calls {
            1.0 => self.network.wire(message).seconds(),
            calls => self.pipelined(whole, work, calls, message) - whole,
        }
    }

    fn busy(&self, main: f64, work: &Work) -> f64 {
        let forks = work.launches + work.passes - work.alone;
        let operations =
            work.launches * self.operation_s + work.passes * self.pass_s + forks * self.fork_s;
        let lines = work.lines * self.line_s / self.threads.min(work.parts.max(1.0));
        main + work.elements / self.elements_per_s + operations + lines
    }
}

/// Adds up lines as they are told.
struct Lines<'a, 'm> {
    timer: &'a Timer<'m>,
    overlap: Overlap,
    /// Requests whose attention is this rank's.
    requests: f64,
    /// The attention that the next all-to-all belongs to.
    attention: Work,
    /// The product whose results the next all-reduce sums.
    product: Work,
    time: StepTime,
}

impl Visitor for Lines<'_, '_> {
    fn line(&mut self, line: Line, layers: f64, work: Work, message: Option<Message>) {
        let timer = self.timer;
        let seconds = match line {
            Line::Attention => {
                self.attention = work;
                timer.attention_s(&work)
            }
            Line::OutProjection | Line::FfnDown => {
                self.product = work;
                timer.work_s(&work)
            }
            _ => timer.work_s(&work),
        };
        let sent = message.map_or(0.0, |message| match (line, message.collective) {
            (Line::AllToAll, _) => self.exchange(&message),
            (_, Collective::AllReduce) => {
                let product = timer.work_s(&self.product);
                timer.past(product, &self.product, &message) * self.overlap.exposed_reduce
            }
            _ => message.calls * timer.network.wire(&message).seconds(),
        });
        self.time.lines[line as usize] += layers * (seconds + sent);
    }
}

impl Lines<'_, '_> {
    /// Seconds past the end of attention until every partial output is there.
    fn exchange(&mut self, message: &Message) -> f64 {
        let network = &self.timer.network;
        let requests = self.requests.max(1.0);
        match self.overlap.exchange {
            Exchange::Whole => network.wire(message).seconds(),
            Exchange::Lockstep => {
                let wire = network.wire(&part(message, requests));
                requests * wire.busy_s + wire.latency_s
            }
            Exchange::Hopb => self.hopb(message),
            Exchange::Pieces => {
                self.time.pieces = self.time.pieces.max(message.calls as usize);
                let whole = self.timer.attention_s(&self.attention);
                self.timer.past(whole, &self.attention, message)
            }
        }
    }

    /// Seconds past the end of attention until the last all-to-all is there, with the batch cut
    /// into as many pieces as take the least time.
    fn hopb(&mut self, message: &Message) -> f64 {
        let timer = self.timer;
        let whole = timer.attention_s(&self.attention);
        let of =
            |pieces: f64| timer.pipelined(whole, &self.attention, pieces, &part(message, pieces));
        let (mut best, mut count) = (of(1.0), 1.0);
        let mut pieces = 2.0;
        while pieces < 2.0 * self.requests {
            let tried = f64::min(pieces, self.requests);
            let seconds = of(tried);
            if seconds < best {
                (best, count) = (seconds, tried);
            }
            pieces *= 2.0;
        }
        self.time.pieces = count as usize;
        best - whole
    }
}

/// One of `pieces` equal parts of a message.
fn part(message: &Message, pieces: f64) -> Message {
    let (bytes, received) = (message.bytes / pieces, message.received / pieces);
    Message { bytes, received, ..*message }
}
