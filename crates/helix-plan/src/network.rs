//! What a collective takes: LogGP's parameters, an algorithm for each, two levels of links.
//!
//! LogGP (Alexandrov et al., 1995): a message of `m` bytes takes `o + L + m·G + o`; a rank's
//! messages are at least `g` apart. A rank that sends to `p` peers at once is busy for
//! `p·g + bytes·G`, and the last of it arrives `L + 2·o` later.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::MachineError;
use crate::costs::{Collective, Message};
use crate::machine::profile::CollectiveKind;
use crate::machine::{Link, Machine};

/// What a transfer takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wire {
    /// Seconds that the link is busy, for which the next transfer has to wait.
    pub busy_s: f64,
    /// Seconds until the last byte is there, for which it need not.
    pub latency_s: f64,
}

impl Wire {
    /// From start to end.
    pub fn seconds(self) -> f64 {
        self.busy_s + self.latency_s
    }

    fn then(self, next: Wire) -> Wire {
        let (busy_s, latency_s) = (self.busy_s + next.busy_s, self.latency_s + next.latency_s);
        Wire { busy_s, latency_s }
    }

    fn faster(self, other: Wire) -> Wire {
        if other.seconds() < self.seconds() { other } else { self }
    }
}

/// The links of a layout's ranks.
#[derive(Debug)]
pub struct Network<'m> {
    machine: &'m Machine,
    /// Of the innermost level, and the consecutive ranks that it connects.
    near: Link,
    per_node: usize,
    /// Of the level that connects all.
    far: Link,
    measured: bool,
    known: RefCell<HashMap<(CollectiveKind, usize, u64), Option<f64>>>,
}

impl<'m> Network<'m> {
    /// The links of `ranks` ranks.
    ///
    /// # Errors
    /// The machine connects fewer.
    pub fn new(machine: &'m Machine, ranks: usize) -> Result<Network<'m>, MachineError> {
        let (_, near) = machine.link(1)?;
        let (_, far) = machine.link(ranks)?;
        let per_node = machine.ranks_per_node().unwrap_or(usize::MAX);
        let measured = !machine.profile().collective.is_empty();
        Ok(Network { machine, near, per_node, far, measured, known: RefCell::default() })
    }

    /// What one call of `message` takes.
    pub fn wire(&self, message: &Message) -> Wire {
        if self.measured
            && let Some(wire) = self.measured_wire(message)
        {
            return wire;
        }
        let group = self.group(message.ranks, message.stride);
        let &Message { collective, bytes, received, .. } = message;
        match collective {
            Collective::AllToAll => group.spread(bytes.max(received)),
            Collective::AllGather => group.all_gather(bytes),
            Collective::AllReduce => group.all_reduce(bytes),
            Collective::Gather => group.spread(received),
            Collective::Send => group.direct().spread(1, bytes),
        }
    }

    fn measured_wire(&self, message: &Message) -> Option<Wire> {
        let kind = match message.collective {
            Collective::AllToAll => CollectiveKind::AllToAll,
            Collective::AllGather => CollectiveKind::AllGather,
            Collective::AllReduce => CollectiveKind::AllReduce,
            Collective::Gather => CollectiveKind::Gather,
            Collective::Send => return None,
        };
        let key = (kind, message.ranks, message.bytes.to_bits());
        let mut known = self.known.borrow_mut();
        let seconds = *known.entry(key).or_insert_with(|| {
            self.machine.measured_collective_s(kind, message.ranks, message.bytes)
        });
        // What was measured is one call after the other: no part of it may be hidden behind the
        // next.
        seconds.map(|busy_s| Wire { busy_s, latency_s: 0.0 })
    }

    fn group(&self, ranks: usize, stride: usize) -> Group {
        let near_ranks = (self.per_node / stride.max(1)).clamp(1, ranks);
        Group { ranks, near_ranks, near: self.near, far: self.far }
    }
}

/// A group of ranks, some of which share a node.
#[derive(Clone, Copy, Debug)]
struct Group {
    ranks: usize,
    /// Of one node.
    near_ranks: usize,
    near: Link,
    far: Link,
}

impl Group {
    /// The link between any two.
    fn direct(&self) -> Link {
        if self.near_ranks < self.ranks { self.far } else { self.near }
    }

    fn nodes(&self) -> usize {
        self.ranks.div_ceil(self.near_ranks)
    }

    /// `bytes` in equal parts to all others, straight; both levels at a time.
    fn spread(&self, bytes: f64) -> Wire {
        let peers = self.ranks.saturating_sub(1);
        if peers == 0 {
            return Wire::default();
        }
        let near_peers = self.near_ranks - 1;
        let near = self.near.spread(near_peers, bytes * near_peers as f64 / peers as f64);
        let far_peers = peers - near_peers;
        let far = self.far.spread(far_peers, bytes * far_peers as f64 / peers as f64);
        Wire { busy_s: near.busy_s.max(far.busy_s), latency_s: near.latency_s.max(far.latency_s) }
    }

    /// Everyone's `bytes` to everyone: straight; or first across nodes, then inside.
    fn all_gather(&self, bytes: f64) -> Wire {
        let straight = self.spread(bytes * self.ranks.saturating_sub(1) as f64);
        if self.near_ranks == self.ranks || self.near_ranks == 1 {
            return straight;
        }
        let nodes = self.nodes();
        let across = self.far.spread(nodes - 1, bytes * (nodes - 1) as f64);
        let inside_bytes = bytes * (nodes * (self.near_ranks - 1)) as f64;
        straight.faster(across.then(self.near.spread(self.near_ranks - 1, inside_bytes)))
    }

    /// The sum of everyone's `bytes` at everyone: each sends all of it to all others; or each
    /// sums a part and spreads it; or pairs double; or parts are summed inside nodes, across
    /// them, and spread inside.
    fn all_reduce(&self, bytes: f64) -> Wire {
        let peers = self.ranks.saturating_sub(1);
        if peers == 0 {
            return Wire::default();
        }
        let once = self.spread(bytes * peers as f64);
        let part = self.spread(bytes * peers as f64 / self.ranks as f64);
        let pair = self.direct().spread(1, bytes);
        let rounds = f64::from(usize::BITS - peers.leading_zeros());
        let doubling = Wire { busy_s: pair.busy_s * rounds, latency_s: pair.latency_s * rounds };
        let flat = once.faster(part.then(part)).faster(doubling);
        if self.near_ranks == self.ranks || self.near_ranks == 1 {
            return flat;
        }
        let near = self.near_ranks as f64;
        let inside = self.near.spread(self.near_ranks - 1, bytes * (near - 1.0) / near);
        let across = Group { ranks: self.nodes(), near_ranks: 1, ..*self }.all_reduce(bytes / near);
        flat.faster(inside.then(across).then(inside))
    }
}

impl Link {
    /// `bytes` in all to `peers` others.
    fn spread(&self, peers: usize, bytes: f64) -> Wire {
        if peers == 0 {
            return Wire::default();
        }
        Wire {
            busy_s: peers as f64 * self.gap_s + bytes / self.bytes_per_s,
            latency_s: self.latency_s + 2.0 * self.overhead_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: Link = Link { latency_s: 2.0, overhead_s: 0.5, gap_s: 0.25, bytes_per_s: 1000.0 };
    const FAR: Link = Link { latency_s: 20.0, overhead_s: 1.0, gap_s: 1.0, bytes_per_s: 100.0 };

    fn group(ranks: usize, near_ranks: usize) -> Group {
        Group { ranks, near_ranks, near: NEAR, far: FAR }
    }

    #[test]
    fn an_all_to_all_by_hand() {
        let wire = group(8, 8).spread(7000.0);
        assert_eq!(wire, Wire { busy_s: 7.0 * 0.25 + 7.0, latency_s: 3.0 });
        // 3 peers in the node, 4 elsewhere, 1000 bytes to each.
        let wire = group(8, 4).spread(7000.0);
        assert_eq!(wire, Wire { busy_s: 4.0 + 40.0, latency_s: 22.0 });
        assert_eq!(group(1, 1).spread(7000.0), Wire::default());
    }

    #[test]
    fn small_all_reduces_go_once_and_large_ones_in_parts() {
        let small = group(8, 8).all_reduce(8.0);
        let once = Wire { busy_s: 7.0 * 0.25 + 7.0 * 8.0 / 1000.0, latency_s: 3.0 };
        assert_eq!(small, once);
        let large = group(8, 8).all_reduce(8e6);
        let parts = 2.0 * (7.0 * 0.25 + 7e6 / 1000.0 + 3.0);
        assert!((large.seconds() - parts).abs() < 1e-6, "{large:?}");
        // Across nodes, 1/4 of the bytes each.
        let nodes = group(8, 4).all_reduce(8e6);
        let inside = 3.0 * 0.25 + 6e6 / 1000.0 + 3.0;
        let across = 1.0 + 2e6 / 100.0 + 22.0;
        assert!((nodes.seconds() - 2.0 * inside - across).abs() < 1e-6, "{nodes:?}");
    }

    #[test]
    fn more_bytes_or_ranks_never_take_less() {
        for near in [1, 2, 4, 64] {
            for of in [Group::spread, Group::all_gather, Group::all_reduce] {
                let mut last = 0.0;
                for ranks in [1, 2, 4, 8, 16, 32, 64] {
                    let mut before = 0.0;
                    for bytes in [1.0, 1e3, 1e6] {
                        let seconds = of(&group(ranks, near.min(ranks)), bytes).seconds();
                        assert!(seconds >= before, "{near}, {ranks}, {bytes}");
                        before = seconds;
                    }
                    assert!(before >= last * 0.99, "{near}, {ranks}: {before} after {last}");
                    last = before;
                }
            }
        }
    }
}
