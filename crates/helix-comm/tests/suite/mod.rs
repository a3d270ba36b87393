//! Programs of collectives that every communicator runs, and what each of them has to bring.
#![allow(dead_code, reason = "each test file uses its part")]

use helix_comm::{Chunks, Collective, Comm, CommError, Counts, Pending};

/// A stream of numbers that all members draw alike.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
}

/// One collective, the same on all members.
#[derive(Clone, Debug)]
pub struct Call {
    pub kind: Collective,
    pub number: usize,
    /// `counts[a][b]`: values that `a` has for `b`. Of others than an all-to-all a row is alike.
    pub counts: Vec<Vec<usize>>,
    pub root: usize,
}

impl Call {
    pub fn random(random: &mut Random, members: usize, number: usize, largest: usize) -> Call {
        let kind = Collective::ALL[random.below(4)];
        let root = random.below(members);
        let mut count = |_: usize| match random.below(4) {
            0 => 0,
            1 => random.below(8),
            _ => random.below(largest),
        };
        let all = count(0);
        let counts = (0..members).map(|from| match kind {
            Collective::AllToAll => (0..members).map(&mut count).collect(),
            Collective::AllReduce => vec![all; members],
            Collective::Gather if from == root => vec![0; members],
            Collective::Gather | Collective::AllGather => vec![count(from); members],
        });
        let counts = counts.collect();
        Call { kind, number, counts, root }
    }

    /// What member `from` sends to member `to` as value `i`: numbers that do not add up exactly.
    fn value(&self, from: usize, to: usize, i: usize) -> f32 {
        let to = if self.kind == Collective::AllToAll { to + 1 } else { 0 };
        let x = (from * 7919 + to * 104_729 + self.number * 1009 + i * 31) % 65_521;
        (x as f32 - 32_000.0) * 1.37e-3 * [1.0, 1e3, 1e-3][x % 3]
    }

    fn chunk(&self, from: usize, to: usize) -> Vec<f32> {
        (0..self.counts[from][to]).map(|i| self.value(from, to, i)).collect()
    }

    pub fn start(&self, comm: &mut impl Comm) -> Result<Pending, CommError> {
        let own = comm.rank();
        let members = comm.size();
        let message = match self.kind {
            Collective::AllToAll => (0..members).flat_map(|to| self.chunk(own, to)).collect(),
            _ => self.chunk(own, own),
        };
        let write = |to: &mut [f32]| to.copy_from_slice(&message);
        let firsts: Vec<usize> = self.counts.iter().map(|row| row[0]).collect();
        match self.kind {
            Collective::AllToAll => {
                let recv: Vec<usize> = self.counts.iter().map(|row| row[own]).collect();
                let counts = Counts { send: &self.counts[own], recv: &recv };
                comm.start_all_to_all(counts, write)
            }
            Collective::AllGather => comm.start_all_gather(&firsts, write),
            Collective::AllReduce => comm.start_all_reduce(firsts[0], write),
            Collective::Gather => comm.start_gather(&firsts, self.root, write),
        }
    }

    /// Whether what came is what this member is owed, to the bit.
    pub fn finish(&self, comm: &mut impl Comm, pending: Pending) -> Result<bool, CommError> {
        let (own, members) = (comm.rank(), comm.size());
        comm.finish(pending, |found| match self.kind {
            Collective::AllReduce => {
                let mut sum = vec![f32::NAN; self.counts[0][0]];
                found.sum(0..sum.len(), &mut sum);
                let expected = (0..sum.len()).map(|i| {
                    let first = self.value(0, 0, i);
                    (1..members).fold(first, |sum, from| sum + self.value(from, 0, i))
                });
                same(&sum, &expected.collect::<Vec<_>>())
            }
            Collective::Gather if own != self.root => found.count() == 0,
            _ => self.is_all(found, own, members),
        })
    }

    fn is_all(&self, found: Chunks<'_>, own: usize, members: usize) -> bool {
        found.count() == members
            && (0..members).all(|from| same(found.of(from), &self.chunk(from, own)))
    }
}

fn same(found: &[f32], expected: &[f32]) -> bool {
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// A program: calls of which several may be in flight.
pub struct Program {
    pub calls: Vec<Call>,
    /// How many are started before the oldest is finished, by call.
    pub in_flight: Vec<usize>,
}

impl Program {
    pub fn random(seed: u64, members: usize, calls: usize, largest: usize) -> Program {
        let mut random = Random::new(seed);
        let in_flight = (0..calls).map(|_| 1 + random.below(4)).collect();
        let calls = (0..calls).map(|i| Call::random(&mut random, members, i, largest)).collect();
        Program { calls, in_flight }
    }

    /// Runs it: the calls that were finished, all of them right, and why it ended if it did.
    ///
    /// # Panics
    /// A call brought something wrong.
    pub fn run(&self, comm: &mut impl Comm) -> (usize, Option<CommError>) {
        let mut pending = std::collections::VecDeque::new();
        let mut done = 0;
        for (index, call) in self.calls.iter().enumerate() {
            match call.start(comm) {
                Ok(started) => pending.push_back((call, started)),
                Err(error) => return (done, Some(error)),
            }
            let rest = index + 1 == self.calls.len();
            while pending.len() >= self.in_flight[index] || rest && !pending.is_empty() {
                let (call, started) = pending.pop_front().expect("one is in flight");
                match call.finish(comm, started) {
                    Ok(right) => assert!(right, "member {}: {call:?} is wrong", comm.rank()),
                    Err(error) => return (done, Some(error)),
                }
                done += 1;
            }
        }
        (done, None)
    }
}
