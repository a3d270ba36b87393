//! Who stores which position of a sequence.

/// Positions dealt to KVP shards round-robin, `block` at a time.
///
/// Shard `s` stores positions `[(i·shards + s)·block, (i·shards + s + 1)·block)` for every `i`,
/// densely and in order: its local index `j` counts its own positions only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Blocks {
    /// Shards that take turns.
    pub shards: usize,
    /// Consecutive positions of a turn.
    pub block: usize,
}

impl Blocks {
    /// The shard that stores `position`.
    pub fn owner(self, position: usize) -> usize {
        position / self.block % self.shards
    }

    /// How many of the positions `0..len` `shard` stores.
    pub fn owned_before(self, shard: usize, len: usize) -> usize {
        let (blocks, partial) = (len / self.block, len % self.block);
        let (rounds, dealt) = (blocks / self.shards, blocks % self.shards);
        let last_round = match shard.cmp(&dealt) {
            std::cmp::Ordering::Less => self.block,
            std::cmp::Ordering::Equal => partial,
            std::cmp::Ordering::Greater => 0,
        };
        rounds * self.block + last_round
    }

    /// The position at index `local` of what `shard` stores, or nothing where it overflows.
    pub fn position(self, shard: usize, local: usize) -> Option<usize> {
        let block = (local / self.block).checked_mul(self.shards)?.checked_add(shard)?;
        block.checked_mul(self.block)?.checked_add(local % self.block)
    }
}

#[cfg(test)]
mod tests {
    use super::Blocks;

    #[test]
    fn every_position_has_one_owner_and_one_local_index() {
        for shards in 1..=16 {
            for block in [1, 3, 16, 32] {
                let blocks = Blocks { shards, block };
                let mut stored = vec![0; shards];
                // Three rounds and a bit: every length, so every place a block can end.
                for position in 0..block * shards * 3 + block + 1 {
                    for (shard, &local) in stored.iter().enumerate() {
                        let what = (shards, block, shard, position);
                        assert_eq!(blocks.owned_before(shard, position), local, "{what:?}");
                    }
                    let owner = blocks.owner(position);
                    assert_eq!(blocks.position(owner, stored[owner]), Some(position));
                    stored[owner] += 1;
                }
                let spread = stored.iter().max().unwrap() - stored.iter().min().unwrap();
                assert!(spread <= block, "shards differ by at most one block: {stored:?}");
            }
        }
    }

    #[test]
    fn a_block_stays_together_and_the_next_one_moves_on() {
        let blocks = Blocks { shards: 3, block: 4 };
        let owners: Vec<_> = (0..16).map(|p| blocks.owner(p)).collect();
        assert_eq!(owners, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0]);
        assert_eq!(blocks.position(1, 4), Some(16));
        assert_eq!(blocks.owned_before(1, 17), 5);
    }

    #[test]
    fn the_largest_lengths_do_not_overflow() {
        let blocks = Blocks { shards: 1024, block: 1 << 16 };
        let total: usize = (0..1024).map(|s| blocks.owned_before(s, usize::MAX)).sum();
        assert_eq!(total, usize::MAX);
        assert!(blocks.owner(usize::MAX) < 1024);
        assert_eq!(blocks.position(1023, usize::MAX), None);
    }
}
