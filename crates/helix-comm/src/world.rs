//! Ranks that are processes of their own: what the front end tells them, and their groups.

use crate::Link;
use std::time::Duration;

/// Why a message did not go through. The world is of no more use after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorldError {
    /// The processes did not come together.
    #[error("the ranks' processes did not come together: {0}")]
    Start(String),
    /// A rank is late.
    #[error("rank {rank} did not {what} in {seconds} s")]
    Late {
        /// Who.
        rank: usize,
        /// With what.
        what: &'static str,
        /// How long this rank waited.
        seconds: u64,
    },
    /// This process was told to end.
    #[error("the launcher ended this rank while it waited for rank {rank}")]
    Ended {
        /// Who was waited for.
        rank: usize,
    },
    /// A rank gave up.
    #[error("rank {rank} failed")]
    Lost {
        /// Who is to blame.
        rank: usize,
    },
    /// The library that carries messages failed.
    #[error("a message with rank {rank}: {problem}")]
    Library {
        /// Whom it was for, or from.
        rank: usize,
        /// The library's words.
        problem: String,
    },
}

/// All processes that were started together, from one of them. Rank 0 is the front end: it sends
/// commands, the others reply.
pub trait World: Send + Sync {
    /// This process's rank.
    fn rank(&self) -> usize;

    /// Ranks.
    fn size(&self) -> usize;

    /// The ranks on this host, this one among them: they share its memory.
    fn neighbours(&self) -> &[usize];

    /// The processors that are this rank's to use: its share of those of the host, or what its
    /// launcher has bound it to.
    fn processors(&self) -> &[usize];

    /// Sends `message`, which is not empty, to each of `to`.
    ///
    /// # Errors
    /// One of them does not take it in time, or a rank has failed.
    fn tell(
        &self,
        to: &mut dyn Iterator<Item = usize>,
        message: &[u8],
        patience: Duration,
    ) -> Result<(), WorldError>;

    /// The next command, however long it takes to come, while rank 0 is alive: it lets hear of
    /// itself several times in `patience`.
    ///
    /// # Errors
    /// A rank has failed, or rank 0 is silent.
    fn next_command(&self, message: &mut Vec<u8>, patience: Duration) -> Result<(), WorldError>;

    /// Sends `message`, which is not empty, to rank 0.
    ///
    /// # Errors
    /// As [`World::tell`].
    fn reply(&self, message: &[u8], patience: Duration) -> Result<(), WorldError>;

    /// The next reply of `from`, as [`World::next_command`] for rank 0.
    ///
    /// # Errors
    /// A rank has failed, or `from` is silent.
    fn reply_of(
        &self,
        from: usize,
        message: &mut Vec<u8>,
        patience: Duration,
    ) -> Result<(), WorldError>;

    /// This rank's end of its group number `group`, below [`GROUPS`]; all `members` make theirs.
    /// Messages hold up to `max_values` f32 each. Groups of the same number have no members in
    /// common.
    ///
    /// # Panics
    /// This rank is no member, or is in a group of this number.
    fn group(
        &self,
        group: usize,
        members: Vec<usize>,
        max_values: usize,
        deadline: Duration,
    ) -> Link;

    /// Tells the others that this rank fails, which ends what they wait for.
    fn abort(&self);

    /// Whether a rank was lost: this one, or another.
    fn is_broken(&self) -> bool;
}

/// Groups that a rank is in at a time.
pub const GROUPS: usize = 4;
