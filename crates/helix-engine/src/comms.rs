//! The groups that a rank speaks in.

use crate::options::FfnReduce;
use helix_comm::{Chunks, Comm, CommError, Counted, GROUPS, Link, Pending, ThreadComm, World};
use helix_layout::{Layout, Rank};
use std::time::Duration;

/// A rank's ends of its groups.
pub(crate) struct Comms {
    /// All ranks.
    pub(crate) world: Counted<Link>,
    /// The ranks that share this one's heads and sequences.
    pub(crate) kvp: Counted<Link>,
    /// The ranks that share this one's experts, and those that have the same columns of others;
    /// only where the FFN's results come together in two stages.
    pub(crate) experts: Option<[Counted<Link>; 2]>,
    /// The sum over the ranks that share experts, in between.
    staged: Vec<f32>,
}

/// The groups of a rank, as [`World`] numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    World,
    Kvp,
    Experts,
    ExpertPeers,
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

impl Group {
    const ALL: [Group; GROUPS] = [Group::World, Group::Kvp, Group::Experts, Group::ExpertPeers];

    /// Its members where `rank` is one.
    fn members(self, layout: &Layout, rank: Rank) -> Vec<usize> {
        let numbers = |ranks: &mut dyn Iterator<Item = Rank>| ranks.map(|rank| rank.0).collect();
        match self {
            Group::World => (0..layout.ranks()).collect(),
            Group::Kvp => layout.kvp_group(rank).collect(),
            Group::Experts => numbers(&mut layout.expert_group(rank)),
            Group::ExpertPeers => numbers(&mut layout.ep_peers(rank)),
        }
    }

    fn room(self, messages: &Messages) -> usize {
        match self {
            Group::World => messages.world,
            Group::Kvp => messages.kvp,
            Group::Experts | Group::ExpertPeers => messages.experts,
        }
    }
}

impl Comms {
    /// Every rank's, in order, of ranks that are threads of this process.
    pub(crate) fn of_all(
        layout: &Layout,
        reduce: FfnReduce,
        messages: &Messages,
        deadline: Duration,
    ) -> Vec<Comms> {
        let grid = is_grid(layout, reduce);
        let mut ends = Group::ALL.map(|group| {
            let made = grid || matches!(group, Group::World | Group::Kvp);
            let ends = made.then(|| ends(layout, group, group.room(messages), deadline));
            ends.into_iter().flatten()
        });
        let of_rank = |_| Self::new(grid, messages, |group| ends[group as usize].next());
        layout.all_ranks().map(of_rank).collect()
    }

    /// Those of a rank that is a process.
    pub(crate) fn of_process(
        world: &dyn World,
        layout: &Layout,
        rank: Rank,
        reduce: FfnReduce,
        messages: &Messages,
        deadline: Duration,
    ) -> Comms {
        Self::new(is_grid(layout, reduce), messages, |group| {
            let members = group.members(layout, rank);
            Some(world.group(group as usize, members, group.room(messages), deadline))
        })
    }

    fn new(grid: bool, messages: &Messages, mut end: impl FnMut(Group) -> Option<Link>) -> Comms {
        let mut counted = |group| Counted::new(end(group).expect("an end for each rank"));
        Comms {
            world: counted(Group::World),
            kvp: counted(Group::Kvp),
            experts: grid.then(|| [Group::Experts, Group::ExpertPeers].map(counted)),
            staged: vec![0.0; if grid { messages.experts } else { 0 }],
        }
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

/// Whether the FFN's results come together in two stages.
fn is_grid(layout: &Layout, reduce: FfnReduce) -> bool {
    reduce == FfnReduce::Grid
        && layout.degrees().tpf > 1
        && layout.degrees().ep > 1
        && layout.all_ranks().all(|rank| layout.ffn(rank).is_some())
}

/// Threads' ends of all groups of a kind, in the order of ranks.
fn ends(layout: &Layout, group: Group, values: usize, deadline: Duration) -> Vec<Link> {
    let mut groups: Vec<_> = layout.all_ranks().map(|rank| group.members(layout, rank)).collect();
    groups.sort();
    groups.dedup();
    let mut all: Vec<_> = (0..layout.ranks()).map(|_| None).collect();
    for members in groups {
        for (rank, end) in members.iter().zip(ThreadComm::group(&members, values, deadline)) {
            all[*rank] = Some(end.into());
        }
    }
    all.into_iter().map(|end| end.expect("groups that have every rank")).collect()
}
