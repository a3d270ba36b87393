//! Collectives as messages between pairs: state machines that move when they are polled.
#![allow(unsafe_code)]

mod messages;

use super::wire::{Buffer, MpiError, Requests, Wire};
use crate::GROUPS;
use helix_layout::split;
pub(crate) use messages::{Lost, Tag};
use messages::{MESSAGE_BYTES, SIGNS};
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

/// Polls between two looks for a [`Tag::Lost`], which costs as much as a poll.
const POLLS_PER_LOOK: u32 = 64;

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
    sign: Requests<u8>,
    /// By rank: it has let hear of itself since somebody asked, and its last message was received.
    heard: Vec<bool>,
    left: Vec<bool>,
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
        let signs = Buffer::new(SIGNS.len());
        // SAFETY: nobody else has the buffer.
        unsafe { signs.write(0..SIGNS.len()) }.copy_from_slice(&SIGNS);
        Progress {
            outbox: Requests::new(Arc::new(Buffer::new(MESSAGE_BYTES)), others),
            inbox: Requests::new(Arc::new(Buffer::new(MESSAGE_BYTES)), 1),
            alarm: Requests::new(Arc::new(Buffer::new(alarm_bytes)), others + 1),
            pulse: Requests::new(Arc::new(signs), 2 * others),
            sign: Requests::new(Arc::new(Buffer::new(1)), 1),
            heard: vec![false; wire.size()],
            left: vec![false; wire.size()],
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
