//! What messages cost.

use super::curve::Curve;
use super::profile::{CollectiveKind, Level};
use super::{Machine, MachineError};

const MICRO: f64 = 1e-6;

/// A level of links, in seconds and bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// L: from when the first byte leaves until it is there.
    pub latency_s: f64,
    /// o: what a message costs the processor at each end.
    pub overhead_s: f64,
    /// g: between two messages of one rank.
    pub gap_s: f64,
    /// 1/G, per rank and direction.
    pub bytes_per_s: f64,
}

impl Link {
    /// LogGP's time of one message: `o + L + bytes·G + o`.
    pub fn message_s(&self, bytes: f64) -> f64 {
        2.0 * self.overhead_s + self.latency_s + bytes / self.bytes_per_s
    }
}

impl From<&Level> for Link {
    fn from(level: &Level) -> Self {
        Self {
            latency_s: level.latency_us.value * MICRO,
            overhead_s: level.overhead_us.value * MICRO,
            gap_s: level.gap_us.value * MICRO,
            bytes_per_s: level.bandwidth_gb_s.value * level.reachable.value * 1e9,
        }
    }
}

impl Machine {
    /// Consecutive ranks that the innermost links connect; `None` where they connect any number.
    pub fn ranks_per_node(&self) -> Option<usize> {
        self.profile.level[0].ranks
    }

    /// The index of the innermost level that connects `span` consecutive ranks, and its links.
    ///
    /// # Errors
    /// No level connects so many.
    pub fn link(&self, span: usize) -> Result<(usize, Link), MachineError> {
        let levels = &self.profile.level;
        let connects = |level: &Level| level.ranks.is_none_or(|ranks| ranks >= span);
        match levels.iter().position(connects) {
            Some(index) => Ok((index, Link::from(&levels[index]))),
            None => Err(MachineError::Ranks {
                machine: self.profile.name.clone(),
                ranks: span,
                most: levels.last().and_then(|level| level.ranks).unwrap_or(0),
            }),
        }
    }

    /// The measured time of a collective over `ranks` ranks to which each contributes `bytes`;
    /// between measured numbers of ranks in proportion. `None` where nothing was measured for as
    /// many ranks: the level's parameters are what there is.
    pub fn measured_collective_s(
        &self,
        kind: CollectiveKind,
        ranks: usize,
        bytes: f64,
    ) -> Option<f64> {
        let mut points: Vec<(f64, f64)> = Vec::new();
        for row in self.profile.collective.iter().filter(|row| row.kind == kind) {
            let curve = Curve::new(&row.bytes, row.us.iter().copied());
            points.push((row.ranks as f64, curve.growing(bytes) * MICRO));
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (first, last) = (points.first()?.0, points.last()?.0);
        if !(first..=last).contains(&(ranks as f64)) {
            return None;
        }
        let at: Vec<f64> = points.iter().map(|(ranks, _)| *ranks).collect();
        Some(Curve::new(&at, points.iter().map(|(_, s)| *s)).within(ranks as f64))
    }
}
