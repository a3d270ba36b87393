//! What a rank read, sent and spent.

use crate::trace::Span;
use helix_comm::{Overlap, Ring, Traffic};
pub use helix_scheduler::Line;
use std::time::{Duration, Instant};

/// One rank's counters since the start or the last reset.
#[derive(Clone, Debug, Default)]
pub struct RankCounters {
    /// Steps run.
    pub steps: u64,
    /// Bytes of weight matrices that matrix products passed over, each once per step; the
    /// embedding rows are not among them, nor experts that no token goes to.
    pub weight_bytes: u64,
    /// Bytes of keys and values that attention passed over: each run's visible tokens, once per
    /// layer, KV head and step.
    pub kv_bytes_read: u64,
    /// Bytes of keys and values that lie in the cache now.
    pub kv_bytes_held: u64,
    /// Collectives over all ranks.
    pub world: Traffic,
    /// Collectives in the KVP group.
    pub kvp: Traffic,
    /// Collectives of the FFN in two stages: in the expert group, and across groups.
    pub experts: [Traffic; 2],
    /// What all of these waited for, and what they did not.
    pub overlap: Overlap,
    /// Time per line of the step, indexed as [`Line::ALL`].
    pub time: [Duration; Line::ALL.len()],
}

/// What counts and times a rank's lines.
pub(crate) type Meters<'a> = (&'a mut RankCounters, &'a mut Clock);

/// Splits a rank's time into lines.
pub(crate) struct Clock {
    last: Instant,
    layer: Option<usize>,
    step: u64,
    spans: Ring<Span>,
}

impl Clock {
    /// Keeps the last `spans` lines for a trace.
    pub(crate) fn new(spans: usize) -> Self {
        Self { last: Instant::now(), layer: None, step: 0, spans: Ring::new(spans) }
    }

    /// A step begins.
    pub(crate) fn step(&mut self) {
        self.step += 1;
        self.layer = None;
        self.last = Instant::now();
    }

    /// The next lines are of a layer, or of none.
    pub(crate) fn enter(&mut self, layer: Option<usize>) {
        self.layer = layer;
    }

    /// All time since the last call belongs to `line`.
    pub(crate) fn lap(&mut self, counters: &mut RankCounters, line: Line) {
        let (start, end) = (self.last, Instant::now());
        counters.time[line as usize] += end - start;
        self.last = end;
        if self.spans.is_on() {
            self.spans.push(Span { line, layer: self.layer, step: self.step, start, end });
        }
    }

    /// The last lines.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.spans.iter().copied().collect()
    }
}
