//! The groups that a rank speaks in.

use crate::options::FfnReduce;
use helix_comm::{Chunks, Comm, CommError, Counted, Pending, ThreadComm};
use helix_layout::{Layout, Rank};
use std::time::Duration;

/// A rank's ends of its groups.
pub(crate) struct Comms {
    /// All ranks.
    pub(crate) world: Counted<ThreadComm>,
    /// The ranks that share this one's heads and sequences.
    pub(crate) kvp: Counted<ThreadComm>,
    /// The ranks that share this one's experts, and those that have the same columns of others;
    /// only where the FFN's results come together in two stages.
    pub(crate) experts: Option<[Counted<ThreadComm>; 2]>,
    /// The sum over the ranks that share experts, in between.
    staged: Vec<f32>,
}

/// Values of the largest messages, by group.
pub(crate) struct Messages {
    /// Of the stream, or of logits.
    pub(crate) world: usize,
    /// Of queries or of attention's outputs.
    pub(crate) kvp: usize,
    /// Of the stream.
    pub(crate) experts: usize,
}

impl Comms {
    /// Every rank's, in order.
    pub(crate) fn of_all(
        layout: &Layout,
        reduce: FfnReduce,
        messages: &Messages,
        deadline: Duration,
    ) -> Vec<Comms> {
        let ranks = layout.ranks();
        let all: Vec<Vec<usize>> = vec![(0..ranks).collect()];
        let world = ends(ranks, all, messages.world, deadline);
        let groups = unique(layout, |rank| layout.kvp_group(rank).collect());
        let kvp = ends(ranks, groups, messages.kvp, deadline);
        let grid = reduce == FfnReduce::Grid
            && layout.degrees().tpf > 1
            && layout.degrees().ep > 1
            && layout.all_ranks().all(|rank| layout.ffn(rank).is_some());
        let stage = |groups| ends(ranks, groups, messages.experts, deadline);
        let numbers = |ranks: &mut dyn Iterator<Item = Rank>| ranks.map(|rank| rank.0).collect();
        let experts = grid.then(|| {
            let group = unique(layout, |rank| numbers(&mut layout.expert_group(rank)));
            let peers = unique(layout, |rank| numbers(&mut layout.ep_peers(rank)));
            stage(group).into_iter().zip(stage(peers))
        });
        let mut experts = experts.into_iter().flatten();
        let both = world.into_iter().zip(kvp);
        both.map(|(world, kvp)| Comms {
            world,
            kvp,
            experts: experts.next().map(|(group, peers)| [group, peers]),
            staged: vec![0.0; if grid { messages.experts } else { 0 }],
        })
        .collect()
    }

    /// Starts the sum over the ranks of the FFN of the `count` values that `write` computes.
    pub(crate) fn start_ffn(
        &mut self,
        count: usize,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        let Some([group, peers]) = &mut self.experts else {
            return self.world.start_all_reduce(count, write);
        };
        let staged = &mut self.staged[..count];
        let pending = group.start_all_reduce(count, write)?;
        group.finish(pending, |parts| parts.sum(0..count, staged))?;
        peers.start_all_reduce(count, |message| message.copy_from_slice(staged))
    }

    /// Hands what [`Comms::start_ffn`] started to `read`: parts whose sum in order is the result,
    /// the same bits on every rank.
    pub(crate) fn finish_ffn(
        &mut self,
        pending: Pending,
        read: impl FnOnce(Chunks<'_>),
    ) -> Result<(), CommError> {
        match &mut self.experts {
            None => self.world.finish(pending, read),
            Some([_, peers]) => peers.finish(pending, read),
        }
    }

    /// Tells the others that this rank will not come.
    pub(crate) fn abort(&self) {
        self.world.abort();
        self.kvp.abort();
        self.experts.iter().flatten().for_each(Comm::abort);
    }

    pub(crate) fn reset(&mut self) {
        self.world.reset();
        self.kvp.reset();
        self.experts.iter_mut().flatten().for_each(Counted::reset);
    }
}

/// The different groups that ranks have.
fn unique(layout: &Layout, group: impl Fn(Rank) -> Vec<usize>) -> Vec<Vec<usize>> {
    let mut all: Vec<Vec<usize>> = layout.all_ranks().map(group).collect();
    all.sort();
    all.dedup();
    all
}

/// Communicators of groups that together have each of `ranks` once, in the order of ranks.
fn ends(
    ranks: usize,
    groups: Vec<Vec<usize>>,
    values: usize,
    deadline: Duration,
) -> Vec<Counted<ThreadComm>> {
    let mut all: Vec<_> = (0..ranks).map(|_| None).collect();
    for group in groups {
        for (rank, end) in group.iter().zip(ThreadComm::group(group.len(), values, deadline)) {
            all[*rank] = Some(Counted::new(end));
        }
    }
    all.into_iter().map(|end| end.expect("groups that have every rank")).collect()
}
