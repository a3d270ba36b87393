//! A log of bounded length.

/// The last entries of a log. Memory is taken at the start; of a ring with room for none, nothing
/// is kept.
#[derive(Clone, Debug)]
pub struct Ring<T> {
    entries: Vec<T>,
    room: usize,
    /// The oldest, once the ring is full.
    oldest: usize,
}

impl<T> Ring<T> {
    /// Room for so many entries.
    pub fn new(room: usize) -> Ring<T> {
        Ring { entries: Vec::with_capacity(room), room, oldest: 0 }
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.room > 0
    }

    /// Adds an entry, in the place of the oldest if there is no room.
    pub fn push(&mut self, entry: T) {
        if self.entries.len() < self.room {
            self.entries.push(entry);
        } else if let Some(oldest) = self.entries.get_mut(self.oldest) {
            *oldest = entry;
            self.oldest = (self.oldest + 1) % self.room;
        }
    }

    /// The entries, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let (new, old) = self.entries.split_at(self.oldest);
        old.iter().chain(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_entries_are_kept_in_order() {
        for room in 0..6 {
            let mut ring = Ring::new(room);
            assert_eq!(ring.is_on(), room > 0);
            for entry in 0..20usize {
                ring.push(entry);
                let first = (entry + 1).saturating_sub(room);
                assert!(ring.iter().copied().eq(first..=entry), "room {room}, {entry}");
            }
        }
    }
}
