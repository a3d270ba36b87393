//! What each rank did when: lines of the layer, and messages on their way.

use crate::counters::Line;
use helix_comm::Flight;
use std::time::Instant;

/// A line of a step.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Which.
    pub line: Line,
    /// Of which layer, if of one.
    pub layer: Option<usize>,
    /// Of which step, counted from 1.
    pub step: u64,
    /// From when.
    pub start: Instant,
    /// To when.
    pub end: Instant,
}

/// The last of what a rank did, the oldest first.
#[derive(Clone, Debug)]
pub struct RankTrace {
    /// Who.
    pub rank: usize,
    /// Lines, one after the other.
    pub spans: Vec<Span>,
    /// Collectives of all its groups, in the order in which they started.
    pub flights: Vec<Flight>,
}
