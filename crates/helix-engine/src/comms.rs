//! The groups that a rank speaks in.

use crate::counters::Line;
use crate::options::{EngineOptions, FfnReduce};
use helix_comm::{
    Chunks, Comm, CommError, Counted, Flight, GROUPS, Link, Overlap, Pending, ThreadComm, World,
};
use helix_layout::{Layout, Rank};

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

/// The halves of a layer, each of which ends with a sum over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Attention,
    /// Its sum may come in two stages.
    Ffn,
}

impl Phase {
    /// The line of its sum.
    pub(crate) fn line(self) -> Line {
        match self {
            Phase::Attention => Line::OutAllReduce,
            Phase::Ffn => Line::FfnAllReduce,
        }
    }
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
        messages: &Messages,
        options: &EngineOptions,
    ) -> Vec<Comms> {
        Self::of_all_over(layout, messages, options, |_, comm| comm.into())
    }

    /// As [`Comms::of_all`], over what `link` makes of each rank's ends.
    pub(crate) fn of_all_over(
        layout: &Layout,
        messages: &Messages,
        options: &EngineOptions,
        link: impl Fn(usize, ThreadComm) -> Link,
    ) -> Vec<Comms> {
        let grid = is_grid(layout, options.ffn_reduce);
        let mut ends = Group::ALL.map(|group| {
            let made = grid || matches!(group, Group::World | Group::Kvp);
            let ends = made.then(|| ends(layout, group, group.room(messages), options, &link));
            ends.into_iter().flatten()
        });
        let mut end = |group: Group| ends[group as usize].next();
        let of_rank = |_| Self::new(grid, messages, options.trace, &mut end);
        layout.all_ranks().map(of_rank).collect()
    }

    /// Those of a rank that is a process.
    pub(crate) fn of_process(
        world: &dyn World,
        layout: &Layout,
        rank: Rank,
        messages: &Messages,
        options: &EngineOptions,
    ) -> Comms {
        let grid = is_grid(layout, options.ffn_reduce);
        Self::new(grid, messages, options.trace, &mut |group| {
            let members = group.members(layout, rank);
            Some(world.group(group as usize, members, group.room(messages), options.deadline))
        })
    }

    fn new(
        grid: bool,
        messages: &Messages,
        flights: usize,
        end: &mut impl FnMut(Group) -> Option<Link>,
    ) -> Comms {
        let mut counted = |group| Counted::new(end(group).expect("an end for each rank"), flights);
        Comms {
            world: counted(Group::World),
            kvp: counted(Group::Kvp),
            experts: grid.then(|| [Group::Experts, Group::ExpertPeers].map(counted)),
            staged: vec![0.0; if grid { messages.experts } else { 0 }],
        }
    }

    /// Starts the sum over a phase's ranks of the `count` values that `write` computes.
    pub(crate) fn start_sum(
        &mut self,
        phase: Phase,
        count: usize,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Pending, CommError> {
        let (Phase::Ffn, Some([group, peers])) = (phase, &mut self.experts) else {
            return self.world.start_all_reduce(count, write);
        };
        let staged = &mut self.staged[..count];
        let pending = group.start_all_reduce(count, write)?;
        group.finish(pending, |parts| parts.sum(0..count, staged))?;
        peers.start_all_reduce(count, |message| message.copy_from_slice(staged))
    }

    /// Hands what [`Comms::start_sum`] started to `read`: parts whose sum in order is the result,
    /// the same bits on every rank.
    pub(crate) fn finish_sum(
        &mut self,
        phase: Phase,
        pending: Pending,
        read: impl FnOnce(Chunks<'_>),
    ) -> Result<(), CommError> {
        match (phase, &mut self.experts) {
            (Phase::Ffn, Some([_, peers])) => peers.finish(pending, read),
            _ => self.world.finish(pending, read),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Counted<Link>> {
        [&self.world, &self.kvp].into_iter().chain(self.experts.iter().flatten())
    }

    /// Where the time of all groups' collectives went.
    pub(crate) fn overlap(&self) -> Overlap {
        let mut sum = Overlap::default();
        self.all().for_each(|comm| sum += comm.overlap());
        sum
    }

    /// The last collectives of all groups, in the order in which they started.
    pub(crate) fn flights(&self) -> Vec<Flight> {
        let mut flights: Vec<_> = self.all().flat_map(Counted::flights).copied().collect();
        flights.sort_by_key(|flight| flight.started);
        flights
    }

    /// The rank begins step number `step`.
    pub(crate) fn at_step(&self, step: u64) {
        self.world.at_step(step);
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
fn ends(
    layout: &Layout,
    group: Group,
    values: usize,
    options: &EngineOptions,
    link: &impl Fn(usize, ThreadComm) -> Link,
) -> Vec<Link> {
    let &EngineOptions { delay, deadline, .. } = options;
    let mut groups: Vec<_> = layout.all_ranks().map(|rank| group.members(layout, rank)).collect();
    groups.sort();
    groups.dedup();
    let mut all: Vec<_> = (0..layout.ranks()).map(|_| None).collect();
    for members in groups {
        let ends = ThreadComm::group_over(delay, &members, values, deadline);
        for (rank, end) in members.iter().zip(ends) {
            all[*rank] = Some(link(*rank, end));
        }
    }
    all.into_iter().map(|end| end.expect("groups that have every rank")).collect()
}
