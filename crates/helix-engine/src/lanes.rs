//! A rank's threads, each with scratch of its own.

use helix_comm::Team;
use helix_kernels::Lse;
use helix_kernels::attention::{Scratch, Sees};
use std::sync::Mutex;

/// Tokens below which a token-by-token line stays on the leader: forking costs more than it saves.
const FEW_TOKENS: usize = 4;

/// What a thread needs for itself while it works on a line.
pub(crate) struct Lane {
    /// Which of its rank's threads it is.
    pub(crate) thread: usize,
    /// For attention.
    pub(crate) attention: Scratch,
    /// A state per query row, before it is folded.
    pub(crate) states: Vec<f32>,
    /// Query rows of one item, gathered.
    pub(crate) queries: Vec<f32>,
    /// What each query row sees.
    pub(crate) sees: Vec<Sees>,
    /// One row of activations.
    pub(crate) row: Vec<f32>,
    /// The log-sum-exps that a merge weighs.
    pub(crate) lse: Vec<Lse>,
}

/// A team of threads and their lanes.
pub(crate) struct Lanes {
    team: Team,
    lanes: Vec<Mutex<Lane>>,
}

impl Lanes {
    pub(crate) fn new(team: Team, lane: impl Fn(usize) -> Lane) -> Lanes {
        let lanes = (0..team.size()).map(|thread| Mutex::new(lane(thread))).collect();
        Lanes { team, lanes }
    }

    pub(crate) fn threads(&self) -> usize {
        self.lanes.len()
    }

    /// Binds the threads of rank `index` of a process to its processors; whether the system lets it.
    pub(crate) fn pin(&mut self, processors: &[usize], index: usize) -> bool {
        let first = index * self.threads();
        let own = (0..self.threads()).map(|thread| processors[(first + thread) % processors.len()]);
        let own: Vec<usize> = own.collect();
        self.team.pin(&own)
    }

    /// The leader's row of activations.
    pub(crate) fn leader_row(&mut self, len: usize) -> &mut [f32] {
        &mut self.lanes[0].get_mut().expect("a thread panicked").row[..len]
    }

    /// Runs `work` on every thread that is free; it takes its work piece by piece.
    pub(crate) fn share(&mut self, work: impl Fn(&mut Lane) + Sync) {
        let lanes = &self.lanes;
        self.team.run(&|thread| work(&mut lanes[thread].lock().expect("a thread panicked")));
    }

    /// [`Lanes::share`] for a line that goes token by token; a few tokens stay on the leader.
    pub(crate) fn by_token(&mut self, tokens: usize, work: impl Fn(&mut Lane) + Sync) {
        if tokens < FEW_TOKENS {
            work(self.lanes[0].get_mut().expect("a thread panicked"));
        } else {
            self.share(work);
        }
    }
}
