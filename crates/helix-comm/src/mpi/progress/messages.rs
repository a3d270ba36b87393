//! Messages outside collectives: commands, replies, alarms and signs of life.
#![allow(unsafe_code)]

use super::{GROUP_TAGS, Progress};
use crate::mpi::wire::MpiError;
use std::ffi::c_int;
use std::ops::Range;

/// Tags of messages outside collectives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// From the front end.
    Command = GROUP_TAGS as isize,
    /// To the front end.
    Reply,
    /// A rank gives up, and says because of whom.
    Lost,
    /// Between the front end and each other rank: it is alive, or has nothing more to say.
    Alive,
}

/// What a rank says as [`Tag::Alive`]: that it lives, and as its last message that it leaves.
pub(super) const SIGNS: [u8; 2] = [ALIVE, LEAVES];
const ALIVE: u8 = 0;
const LEAVES: u8 = 1;

/// The longest.
pub(super) const MESSAGE_BYTES: usize = 4 << 20;

/// A rank that gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Who gave up.
    pub(crate) by: usize,
    /// Because of whom: another rank that it waited for, or itself.
    pub(crate) because_of: usize,
}

impl Progress {
    /// Looks whether a rank has given up. The first to do so is the one to name.
    pub(super) fn look(&mut self) -> Result<(), MpiError> {
        if self.lost.is_some() {
            return Ok(());
        }
        let Some((from, bytes)) = self.wire.probe(None, Tag::Lost as c_int)? else { return Ok(()) };
        let word = size_of::<u64>();
        assert_eq!(bytes, word, "an alarm is a rank");
        // SAFETY: the second half of the buffer is received into once, here, and `lost` is set when
        // that is done, so that it is not done again.
        let text = unsafe {
            self.wire.receive(&mut self.alarm, word..2 * word, (from, from), Tag::Lost as c_int)?;
            while !self.alarm.is_empty() {
                self.alarm.test()?;
            }
            self.alarm.buffer().read(word..2 * word)
        };
        let because_of = u64::from_le_bytes(text.try_into().expect("a word")) as usize;
        self.lost = Some(Lost { by: from, because_of });
        Ok(())
    }

    /// Tells all others that this rank gives up, if nobody has yet.
    pub(crate) fn give_up(&mut self, because_of: usize) -> Result<(), MpiError> {
        if self.lost.is_some() {
            return Ok(());
        }
        let (own, word) = (self.rank(), size_of::<u64>());
        self.lost = Some(Lost { by: own, because_of });
        // SAFETY: the first half of the buffer is written once, here, where `lost` is set.
        unsafe {
            let text = self.alarm.buffer().write(0..word);
            text.copy_from_slice(&(because_of as u64).to_le_bytes());
            for to in (0..self.size()).filter(|&to| to != own) {
                self.wire.send(&mut self.alarm, 0..word, (to, to), Tag::Lost as c_int)?;
            }
        }
        self.alarm.test()
    }

    /// Tells rank 0, or rank 0 all others, that this rank is alive, unless they have not heard the
    /// last time; and takes what they say of themselves, which would pile up where nobody asks.
    pub(crate) fn beat(&mut self) -> Result<(), MpiError> {
        for other in self.listeners() {
            self.take_signs(other)?;
        }
        self.pulse.test()?;
        if self.pulse.is_empty() { self.sign(ALIVE) } else { Ok(()) }
    }

    /// Tells those that [`Progress::beat`] tells that this was its last message.
    pub(crate) fn say_last(&mut self) -> Result<(), MpiError> {
        self.sign(LEAVES)
    }

    fn sign(&mut self, sign: u8) -> Result<(), MpiError> {
        let at = usize::from(sign);
        for to in self.listeners() {
            // SAFETY: nobody writes the bytes after the start.
            unsafe { self.wire.send(&mut self.pulse, at..at + 1, (to, to), Tag::Alive as c_int)? };
        }
        Ok(())
    }

    /// Ranks that hear this one's signs of life, and that it hears.
    pub(crate) fn listeners(&self) -> Range<usize> {
        if self.rank() == 0 { 1..self.size() } else { 0..1 }
    }

    /// Takes the signs of life of `from` that have come: how many.
    pub(crate) fn take_signs(&mut self, from: usize) -> Result<usize, MpiError> {
        let mut signs = 0;
        while self.wire.probe(Some(from), Tag::Alive as c_int)?.is_some() {
            signs += 1;
            // SAFETY: nobody touches the byte until it is there.
            let sign = unsafe {
                self.wire.receive(&mut self.sign, 0..1, (from, from), Tag::Alive as c_int)?;
                while !self.sign.is_empty() {
                    self.sign.test()?;
                }
                self.sign.buffer().read(0..1)[0]
            };
            self.left[from] |= sign == LEAVES;
        }
        self.heard[from] |= signs > 0;
        Ok(signs)
    }

    /// Whether `from` has let hear of itself since the last call.
    pub(crate) fn hears(&mut self, from: usize) -> Result<bool, MpiError> {
        self.take_signs(from)?;
        Ok(std::mem::take(&mut self.heard[from]))
    }

    /// Whether the last message of `from` was heard.
    pub(crate) fn has_left(&self, from: usize) -> bool {
        self.left[from]
    }

    /// Starts to send a message to each of `to`; the one before must be gone.
    pub(crate) fn send(
        &mut self,
        to: impl Iterator<Item = usize>,
        tag: Tag,
        message: &[u8],
    ) -> Result<(), MpiError> {
        assert!(self.outbox.is_empty(), "one message at a time");
        assert!(message.len() <= MESSAGE_BYTES, "a message of {} bytes", message.len());
        // SAFETY: nothing is being sent from the buffer, and nobody writes it until nothing is.
        unsafe {
            self.outbox.buffer().write(0..message.len()).copy_from_slice(message);
            for to in to {
                self.wire.send(&mut self.outbox, 0..message.len(), (to, to), tag as c_int)?;
            }
        }
        Ok(())
    }

    /// The first rank that has not taken the last message; `None` when it is gone.
    pub(crate) fn unsent(&mut self) -> Result<Option<usize>, MpiError> {
        self.outbox.test()?;
        Ok(self.outbox.first_open())
    }

    /// The next message from `from`, if all of it is there.
    pub(crate) fn receive(
        &mut self,
        from: usize,
        tag: Tag,
        message: &mut Vec<u8>,
    ) -> Result<Option<()>, MpiError> {
        if self.incoming.is_none() {
            let Some((_, bytes)) = self.wire.probe(Some(from), tag as c_int)? else {
                return Ok(None);
            };
            assert!(bytes <= MESSAGE_BYTES, "a message of {bytes} bytes");
            // SAFETY: nothing is being received, and nobody reads the buffer until it is done.
            unsafe { self.wire.receive(&mut self.inbox, 0..bytes, (from, from), tag as c_int)? };
            self.incoming = Some(bytes);
        }
        self.inbox.test()?;
        let Some(bytes) = self.incoming.take_if(|_| self.inbox.is_empty()) else {
            return Ok(None);
        };
        message.clear();
        // SAFETY: the message is there.
        message.extend_from_slice(unsafe { self.inbox.buffer().read(0..bytes) });
        Ok(Some(()))
    }
}
