//! Collectives as messages between pairs: state machines that move when they are polled.
#![allow(unsafe_code)]

use super::wire::{Buffer, MpiError, Requests, Wire};
use crate::GROUPS;
use helix_layout::split;
use std::ffi::c_int;
use std::ops::Range;
use std::sync::Arc;

/// Collectives of a group that may be in flight; see [`crate::Comm::IN_FLIGHT`].
pub(crate) const RING: usize = 4;

/// Collectives of a group that are told apart by tags. Of two members one may be ahead by two rings:
/// it has finished what the other has started, and started more.
const NUMBERS: u64 = 16;
/// Tags of groups end here; what follows is the world's.
const GROUP_TAGS: c_int = (GROUPS as u64 * NUMBERS * 2) as c_int;

/// Tags of messages outside collectives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// From the front end.
    Command = GROUP_TAGS as isize,
    /// To the front end.
    Reply,
    /// A rank gives up, and says because of whom.
    Lost,
    /// Between the front end and each other rank: it is alive.
    Alive,
}

/// The longest message outside collectives.
const MESSAGE_BYTES: usize = 4 << 20;
/// Polls between two looks for a [`Tag::Lost`], which costs as much as a poll.
const POLLS_PER_LOOK: u32 = 64;

/// A rank that gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Who gave up.
    pub(crate) by: usize,
    /// Because of whom: another rank that it waited for, or itself.
    pub(crate) because_of: usize,
}

/// All messages of this process, and the collectives that they make up. Behind a lock: MPI sees one
/// thread at a time.
pub(crate) struct Progress {
    wire: Wire,
    groups: [Option<Group>; GROUPS],
    outbox: Requests<u8>,
    inbox: Requests<u8>,
    /// Length of the message that is being received.
    incoming: Option<usize>,
    /// [`Tag::Lost`] in and out.
    alarm: Requests<u8>,
    lost: Option<Lost>,
    /// [`Tag::Alive`], out and in.
    pulse: Requests<u8>,
    heard: Requests<u8>,
    polls: u32,
}

/// A rank's end of a group, as the messages see it.
struct Group {
    /// Ranks of the members.
    members: Vec<usize>,
    own: usize,
    places: [Place; RING],
}

/// A collective in flight.
struct Place {
    sends: Requests<f32>,
    receives: Requests<f32>,
    stage: Stage,
    tag: c_int,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing is in flight; sends of the last collective may be.
    Idle,
    /// Messages that bring the result.
    Last,
    /// Parts of a sum of so many values; the sums of the parts come next.
    Parts(usize),
    /// All there.
    Received,
}

/// What a collective sends and receives: ranges of its buffer by member. A member's own are not
/// sent.
#[derive(Debug)]
pub(crate) struct Exchange<'a> {
    pub(crate) send: &'a [Range<usize>],
    pub(crate) receive: &'a [Range<usize>],
}

/// How an all-reduce in two stages uses its buffer: its own values, everyone's values of its own
/// part, the sum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TwoStages {
    pub(crate) values: usize,
    pub(crate) members: usize,
}

impl TwoStages {
    /// The values of member `member`'s part.
    fn part(self, member: usize) -> Range<usize> {
        split(self.values, self.members, 1, member)
    }

    /// Where member `from`'s values of `own`'s part go.
    fn copy(self, own: usize, from: usize) -> Range<usize> {
        let start = self.values + from * self.values.div_ceil(self.members);
        start..start + self.part(own).len()
    }

    /// Where the sum goes.
    pub(crate) fn sum(self) -> Range<usize> {
        let start = self.values + self.members * self.values.div_ceil(self.members);
        start..start + self.values
    }

    fn sum_of(self, member: usize) -> Range<usize> {
        let (part, start) = (self.part(member), self.sum().start);
        start + part.start..start + part.end
    }

    /// Values of a buffer that has room for it.
    pub(crate) fn room(values: usize, members: usize) -> usize {
        TwoStages { values, members }.sum().end
    }
}

impl Progress {
    pub(crate) fn new(wire: Wire) -> Progress {
        let others = wire.size().saturating_sub(1).max(1);
        let alarm_bytes = 2 * size_of::<u64>();
        Progress {
            outbox: Requests::new(Arc::new(Buffer::new(MESSAGE_BYTES)), others),
            inbox: Requests::new(Arc::new(Buffer::new(MESSAGE_BYTES)), 1),
            alarm: Requests::new(Arc::new(Buffer::new(alarm_bytes)), others + 1),
            pulse: Requests::new(Arc::new(Buffer::new(1)), others),
            heard: Requests::new(Arc::new(Buffer::new(1)), 1),
            incoming: None,
            lost: None,
            polls: 0,
            groups: [const { None }; GROUPS],
            wire,
        }
    }

    pub(crate) fn rank(&self) -> usize {
        self.wire.rank()
    }

    pub(crate) fn size(&self) -> usize {
        self.wire.size()
    }

    pub(crate) fn lost(&self) -> Option<Lost> {
        self.lost
    }

    /// Joins group number `group`, with a buffer for each collective in flight.
    pub(crate) fn join(
        &mut self,
        group: usize,
        members: Vec<usize>,
        own: usize,
        buffers: &[Arc<Buffer<f32>>; RING],
    ) {
        assert!(self.groups[group].is_none(), "group {group} is in use");
        let others = members.len() - 1;
        let place = |buffer: &Arc<Buffer<f32>>| Place {
            sends: Requests::new(Arc::clone(buffer), 2 * others),
            receives: Requests::new(Arc::clone(buffer), others),
            stage: Stage::Idle,
            tag: 0,
        };
        let places = buffers.each_ref().map(place);
        self.groups[group] = Some(Group { members, own, places });
    }

    /// Leaves group number `group`. What is still in flight is given up.
    pub(crate) fn leave(&mut self, group: usize) {
        self.groups[group] = None;
    }

    fn place(&mut self, group: usize, place: usize) -> (&mut Group, usize, &mut Wire) {
        let group = self.groups[group].as_mut().expect("a group that was joined");
        (group, place, &mut self.wire)
    }

    /// Whether the buffer of `place` is free: all that was sent from it is gone.
    pub(crate) fn is_free(&self, group: usize, place: usize) -> bool {
        let group = self.groups[group].as_ref().expect("a group that was joined");
        let place = &group.places[place];
        assert_eq!(place.stage, Stage::Idle, "collectives in flight have places of their own");
        place.sends.is_empty()
    }

    /// Whether nothing of a group is on its way.
    pub(crate) fn is_quiet(&self, group: usize) -> bool {
        let group = self.groups[group].as_ref().expect("a group that was joined");
        group.places.iter().all(|place| place.sends.is_empty() && place.receives.is_empty())
    }

    /// The member that collective at `place` waits for: to send, or to receive.
    pub(crate) fn waits_for(&self, group: usize, place: usize) -> Option<usize> {
        let group = self.groups[group].as_ref().expect("a group that was joined");
        let place = &group.places[place];
        place.receives.first_open().or(place.sends.first_open())
    }

    /// Starts collective `number` of a group.
    ///
    /// # Safety
    /// Until [`Progress::take_received`] nobody touches what is received, and until
    /// [`Progress::is_free`] nobody writes what is sent.
    pub(crate) unsafe fn exchange(
        &mut self,
        (group, place): (usize, usize),
        number: u64,
        exchange: &Exchange<'_>,
    ) -> Result<(), MpiError> {
        let tag = tag(group, number);
        let (group, place, wire) = self.place(group, place);
        let Group { members, own, places } = group;
        let place = &mut places[place];
        (place.stage, place.tag) = (Stage::Last, tag);
        // SAFETY: the caller's promise.
        unsafe {
            place.post(
                wire,
                members,
                *own,
                tag,
                |m| exchange.send[m].clone(),
                |m| exchange.receive[m].clone(),
            )
        }
    }

    /// Starts an all-reduce in two stages as collective `number` of a group.
    ///
    /// # Safety
    /// As for [`Progress::exchange`], of the whole buffer.
    pub(crate) unsafe fn reduce(
        &mut self,
        (group, place): (usize, usize),
        number: u64,
        stages: TwoStages,
    ) -> Result<(), MpiError> {
        let tag = tag(group, number);
        let (group, place, wire) = self.place(group, place);
        let Group { members, own, places } = group;
        let place = &mut places[place];
        (place.stage, place.tag) = (Stage::Parts(stages.values), tag);
        // SAFETY: the caller's promise.
        unsafe {
            place.post(wire, members, *own, tag, |m| stages.part(m), |m| stages.copy(*own, m))
        }
    }

    /// Whether all is there that the collective at `place` brings; if so it is the reader's.
    pub(crate) fn take_received(&mut self, group: usize, place: usize) -> bool {
        let (group, place, _) = self.place(group, place);
        let stage = &mut group.places[place].stage;
        let received = *stage == Stage::Received;
        if received {
            *stage = Stage::Idle;
        }
        received
    }

    /// Lets MPI work, and moves on what can move on. Whether anything is still on its way.
    pub(crate) fn poll(&mut self) -> Result<bool, MpiError> {
        let mut busy = false;
        for group in self.groups.iter_mut().flatten() {
            let Group { members, own, places } = group;
            for place in places {
                busy |= place.poll(&mut self.wire, members, *own)?;
            }
        }
        self.alarm.test()?;
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(POLLS_PER_LOOK) {
            self.look()?;
        }
        Ok(busy)
    }

    /// Looks whether a rank has given up. The first to do so is the one to name.
    fn look(&mut self) -> Result<(), MpiError> {
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
    /// last time.
    pub(crate) fn beat(&mut self) -> Result<(), MpiError> {
        self.pulse.test()?;
        if self.pulse.is_empty() {
            let to = if self.rank() == 0 { 1..self.size() } else { 0..1 };
            for to in to {
                // SAFETY: nobody ever writes the byte.
                unsafe { self.wire.send(&mut self.pulse, 0..1, (to, to), Tag::Alive as c_int)? };
            }
        }
        Ok(())
    }

    /// Whether `from` has let hear of itself since the last call.
    pub(crate) fn hears(&mut self, from: usize) -> Result<bool, MpiError> {
        let mut heard = false;
        while self.wire.probe(Some(from), Tag::Alive as c_int)?.is_some() {
            heard = true;
            // SAFETY: nobody reads the byte.
            unsafe { self.wire.receive(&mut self.heard, 0..1, (from, from), Tag::Alive as c_int)? };
            while !self.heard.is_empty() {
                self.heard.test()?;
            }
        }
        Ok(heard)
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

/// The tag of the first stage of a collective; the second stage's follows.
fn tag(group: usize, number: u64) -> c_int {
    ((group as u64 * NUMBERS + number % NUMBERS) * 2) as c_int
}

impl Place {
    /// Receives come first, so that what arrives finds its place.
    ///
    /// # Safety
    /// As for [`Progress::exchange`].
    unsafe fn post(
        &mut self,
        wire: &mut Wire,
        members: &[usize],
        own: usize,
        tag: c_int,
        send: impl Fn(usize) -> Range<usize>,
        receive: impl Fn(usize) -> Range<usize>,
    ) -> Result<(), MpiError> {
        let others = || members.iter().copied().enumerate().filter(|(member, _)| *member != own);
        for (member, rank) in others() {
            // SAFETY: the caller's promise.
            unsafe { wire.receive(&mut self.receives, receive(member), (member, rank), tag)? };
        }
        // Everyone starts with the next one: not all at once with the first.
        for (member, rank) in others().skip(own).chain(others().take(own)) {
            // SAFETY: the caller's promise.
            unsafe { wire.send(&mut self.sends, send(member), (member, rank), tag)? };
        }
        self.settle(wire, members, own)
    }

    fn poll(&mut self, wire: &mut Wire, members: &[usize], own: usize) -> Result<bool, MpiError> {
        self.sends.test()?;
        if matches!(self.stage, Stage::Last | Stage::Parts(_)) {
            self.receives.test()?;
            self.settle(wire, members, own)?;
        }
        Ok(!self.sends.is_empty() || !self.receives.is_empty())
    }

    /// Goes to the next stage if all is there that this one waits for.
    fn settle(&mut self, wire: &mut Wire, members: &[usize], own: usize) -> Result<(), MpiError> {
        if !self.receives.is_empty() {
            return Ok(());
        }
        let Stage::Parts(values) = self.stage else {
            self.stage = Stage::Received;
            return Ok(());
        };
        let stages = TwoStages { values, members: members.len() };
        let buffer = Arc::clone(self.receives.buffer());
        // SAFETY: everyone's values of this part have come; its place in the sum is not yet sent.
        let sum = unsafe { buffer.write(stages.sum_of(own)) };
        for member in 0..members.len() {
            let from = if member == own { stages.part(own) } else { stages.copy(own, member) };
            // SAFETY: as above; the rank's own values are being sent at most.
            let values = unsafe { buffer.read(from) };
            match member {
                0 => sum.copy_from_slice(values),
                _ => sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
            }
        }
        self.stage = Stage::Last;
        let tag = self.tag + 1;
        // SAFETY: the buffer is this collective's until it is received.
        unsafe { self.post(wire, members, own, tag, |_| stages.sum_of(own), |m| stages.sum_of(m)) }
    }
}
