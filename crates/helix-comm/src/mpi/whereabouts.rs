//! Where a rank is, for a process that outlives it.
#![allow(unsafe_code)]

use crate::Collective;
use memmap2::MmapMut;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// A few numbers in memory that two processes share: the rank writes them, and whoever started it
/// reads them when it has ended without a word.
pub struct Whereabouts {
    /// The fields, one after the other.
    memory: MmapMut,
}

#[derive(Clone, Copy)]
enum Field {
    /// One more than the rank; zero before it has joined the others.
    Rank,
    Step,
    /// One more than the collective's place in [`Collective::ALL`]; zero between collectives.
    Collective,
    Number,
    Others,
    /// Not zero once the rank has said how it ended.
    Concluded,
}

const BYTES: usize = 6 * size_of::<AtomicU64>();

/// The members of a group beside this rank: a bit for each of the first 64 ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Others(u64);

/// Where a rank was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The rank; none before it has joined the others.
    pub rank: Option<u64>,
    /// Its step, counted from the start; 0 before the first.
    pub step: u64,
    /// The collective that it was in, its number in its group, and with whom.
    pub collective: Option<(Collective, u64, Others)>,
}

impl Others {
    pub(super) fn new(members: &[usize], own: usize) -> Others {
        let others = members.iter().filter(|&&rank| rank != own);
        Others(
            others.filter_map(|&rank| 1u64.checked_shl(rank as u32)).fold(0, |all, bit| all | bit),
        )
    }
}

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranks = (0..u64::BITS).filter(|rank| self.0 >> rank & 1 == 1);
        let names: Vec<String> = ranks.map(|rank| rank.to_string()).collect();
        match names.len() {
            0 => f.write_str("others"),
            1 => write!(f, "rank {}", names[0]),
            _ => write!(f, "ranks {}", names.join(", ")),
        }
    }
}

impl Whereabouts {
    /// Of a rank that has not started yet.
    ///
    /// # Errors
    /// The file exists, or the system refuses it.
    pub fn create(path: &Path) -> io::Result<Whereabouts> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(BYTES as u64)?;
        Whereabouts::map(&file)
    }

    /// Of this process, in the file that another one has created.
    ///
    /// # Errors
    /// There is no such file, or it is another.
    pub fn open(path: &Path) -> io::Result<Whereabouts> {
        let file = File::options().read(true).write(true).open(path)?;
        match file.metadata()?.len() {
            length if length == BYTES as u64 => Whereabouts::map(&file),
            length => Err(io::Error::other(format!("{length} bytes, not {BYTES}"))),
        }
    }

    fn map(file: &File) -> io::Result<Whereabouts> {
        // SAFETY: the file is as long as the fields, is never cut, and is only reached as atomics.
        let memory = unsafe { MmapMut::map_mut(file)? };
        Ok(Whereabouts { memory })
    }

    fn field(&self, field: Field) -> &AtomicU64 {
        let at = self.memory.as_ptr().cast::<AtomicU64>();
        // SAFETY: mappings start at pages and hold all fields; nobody reads or writes them otherwise.
        unsafe { &*at.add(field as usize) }
    }

    fn set(&self, field: Field, value: u64) {
        self.field(field).store(value, Ordering::Relaxed);
    }

    fn get(&self, field: Field) -> u64 {
        self.field(field).load(Ordering::Relaxed)
    }

    pub(super) fn join(&self, rank: usize) {
        self.set(Field::Rank, rank as u64 + 1);
    }

    pub(super) fn at_step(&self, step: u64) {
        self.set(Field::Step, step);
    }

    pub(super) fn enter(&self, collective: Collective, number: u64, others: Others) {
        self.set(Field::Number, number);
        self.set(Field::Others, others.0);
        self.set(Field::Collective, collective as u64 + 1);
    }

    pub(super) fn leave(&self) {
        self.set(Field::Collective, 0);
    }

    /// The rank has said how it ended: nobody else need say it.
    pub fn conclude(&self) {
        self.set(Field::Concluded, 1);
    }

    /// Whether the rank has said how it ended.
    #[must_use]
    pub fn is_concluded(&self) -> bool {
        self.get(Field::Concluded) != 0
    }

    /// Where the rank is, or was at its end.
    #[must_use]
    pub fn place(&self) -> Place {
        let collective = self.get(Field::Collective).checked_sub(1);
        let collective = collective.and_then(|index| Collective::ALL.get(index as usize));
        Place {
            rank: self.get(Field::Rank).checked_sub(1),
            step: self.get(Field::Step),
            collective: collective.map(|collective| {
                (*collective, self.get(Field::Number), Others(self.get(Field::Others)))
            }),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank {
            None => return f.write_str("a rank that had not joined the others"),
            Some(rank) => write!(f, "rank {rank}")?,
        }
        if self.step > 0 {
            write!(f, ", step {}", self.step)?;
        }
        match self.collective {
            Some((collective, number, others)) => {
                write!(f, ", in {collective} number {number} with {others}")
            }
            None => f.write_str(", between collectives"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_process_writes_another_reads() {
        let path = std::env::temp_dir().join(format!("helix-whereabouts-{}", std::process::id()));
        let reader = Whereabouts::create(&path).expect("a new file");
        assert!(Whereabouts::create(&path).is_err(), "a file that exists is somebody else's");
        let writer = Whereabouts::open(&path).expect("the same file");
        std::fs::write(&path, [0; 3]).expect("the file is ours");
        let cut = Whereabouts::open(&path).is_err();
        std::fs::write(&path, [0; BYTES]).expect("the file is ours");
        std::fs::remove_file(&path).expect("the file is ours");
        assert!(cut, "a file of another size is not mapped");

        assert_eq!(reader.place().to_string(), "a rank that had not joined the others");
        writer.join(3);
        assert_eq!(reader.place().to_string(), "rank 3, between collectives");
        writer.at_step(7);
        let others = Others::new(&[1, 3, 64], 3);
        writer.enter(Collective::Gather, 41, others);
        let collective = Some((Collective::Gather, 41, others));
        let place = Place { rank: Some(3), step: 7, collective };
        assert_eq!(reader.place(), place);
        assert_eq!(place.to_string(), "rank 3, step 7, in gather number 41 with rank 1");
        writer.enter(Collective::AllReduce, 0, Others::new(&[0, 2, 3, 63], 3));
        let text = reader.place().to_string();
        assert_eq!(text, "rank 3, step 7, in all-reduce number 0 with ranks 0, 2, 63");
        writer.leave();
        assert_eq!(reader.place().to_string(), "rank 3, step 7, between collectives");
        assert!(!reader.is_concluded());
        writer.conclude();
        assert!(reader.is_concluded());
    }
}
