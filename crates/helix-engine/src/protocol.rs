//! What the front end and the other ranks tell each other, as bytes.

use crate::counters::Line;
use crate::{EngineOptions, FfnReduce, HopB, MlaUp, RankCounters};
use helix_comm::{Overlap, Traffic};
use helix_kernels::Precision;
use helix_kernels::kv::KvType;
use helix_scheduler::{Run, Step, Wanted};
use std::time::{Duration, Instant};

/// What the front end tells the other ranks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Command<'a> {
    /// Make an engine of this layout, by its name; answered by a [`Loaded`].
    Start {
        layout: &'a str,
        options: EngineOptions,
    },
    /// Run a step, which follows.
    Step(StepBytes<'a>),
    Truncate {
        slot: usize,
        len: usize,
    },
    FillWithNoise {
        slot: usize,
        from: usize,
        len: usize,
    },
    ResetCounters,
    /// Answered by the rank's counters.
    Counters,
    /// Take part in the collectives that are measured.
    Probe,
    /// Answered by a [`Time`].
    Clock,
    /// Answered by the messages of [`RankTrace::write`](crate::RankTrace).
    Trace,
    /// The engine is gone; another one may follow.
    Stop,
    /// No other one follows.
    Quit,
}

/// Whether a rank has what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Loaded<'a> {
    /// It has read so many bytes of weights.
    Ready(u64),
    /// Why not.
    Refused(&'a str),
}

/// What a rank's clock shows: nanoseconds since an instant of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) u64);

impl Time {
    pub(crate) fn since(start: Instant) -> Time {
        Time::of(start, Instant::now())
    }

    pub(crate) fn of(start: Instant, time: Instant) -> Time {
        Time(u64::try_from(time.saturating_duration_since(start).as_nanos()).unwrap_or(u64::MAX))
    }

    pub(crate) fn write(self, message: &mut Vec<u8>) {
        message.clear();
        put(message, [self.0]);
    }

    pub(crate) fn read(message: &[u8]) -> Option<Time> {
        let mut rest = message;
        let [nanos] = take(&mut rest)?;
        rest.is_empty().then_some(Time(nanos))
    }
}

/// A step that has not been read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StepBytes<'a>(&'a [u8]);

/// Bytes of a step at most: of its runs and tokens.
pub(crate) fn step_bytes(options: &EngineOptions) -> usize {
    size_of::<u64>() * (2 + 4 * options.max_sequences + options.max_step_tokens)
}

const START: u64 = 1;
const STEP: u64 = 2;
const TRUNCATE: u64 = 3;
const FILL: u64 = 4;
const RESET: u64 = 5;
const COUNTERS: u64 = 6;
const STOP: u64 = 7;
const QUIT: u64 = 8;
const CLOCK: u64 = 9;
const TRACE: u64 = 10;
const PROBE: u64 = 11;

impl<'a> Command<'a> {
    /// Writes it over what `message` held.
    pub(crate) fn write(&self, message: &mut Vec<u8>) {
        message.clear();
        match *self {
            Command::Start { layout, options } => {
                put(message, [START]);
                put(message, options_to_words(&options));
                message.extend_from_slice(layout.as_bytes());
            }
            Command::Step(StepBytes(bytes)) => {
                put(message, [STEP]);
                message.extend_from_slice(bytes);
            }
            Command::Truncate { slot, len } => put(message, [TRUNCATE, slot as u64, len as u64]),
            Command::FillWithNoise { slot, from, len } => {
                put(message, [FILL, slot as u64, from as u64, len as u64]);
            }
            Command::ResetCounters => put(message, [RESET]),
            Command::Counters => put(message, [COUNTERS]),
            Command::Clock => put(message, [CLOCK]),
            Command::Trace => put(message, [TRACE]),
            Command::Probe => put(message, [PROBE]),
            Command::Stop => put(message, [STOP]),
            Command::Quit => put(message, [QUIT]),
        }
    }

    /// Reads what [`Command::write`] wrote; `None` for anything else.
    pub(crate) fn read(message: &'a [u8]) -> Option<Command<'a>> {
        let mut rest = message;
        let size = |word: u64| usize::try_from(word).ok();
        Some(match take::<1>(&mut rest)? {
            [START] => {
                let options = options_from_words(take(&mut rest)?)?;
                Command::Start { layout: std::str::from_utf8(rest).ok()?, options }
            }
            [STEP] => Command::Step(StepBytes(rest)),
            [TRUNCATE] => {
                let [slot, len] = take(&mut rest)?;
                Command::Truncate { slot: size(slot)?, len: size(len)? }
            }
            [FILL] => {
                let [slot, from, len] = take(&mut rest)?;
                Command::FillWithNoise { slot: size(slot)?, from: size(from)?, len: size(len)? }
            }
            [RESET] => Command::ResetCounters,
            [COUNTERS] => Command::Counters,
            [CLOCK] => Command::Clock,
            [TRACE] => Command::Trace,
            [PROBE] => Command::Probe,
            [STOP] => Command::Stop,
            [QUIT] => Command::Quit,
            _ => return None,
        })
    }
}

/// Writes a [`Command::Step`]; allocates nothing where `message` has room.
pub(crate) fn write_step(step: &Step, message: &mut Vec<u8>) {
    message.clear();
    put(message, [STEP, step.runs.len() as u64]);
    for &Run { slot, start, len, logits } in &step.runs {
        let logits = match logits {
            Wanted::None => 0,
            Wanted::Last => 1,
            Wanted::All => 2,
        };
        put(message, [slot as u64, start as u64, len as u64, logits]);
    }
    step.tokens.iter().for_each(|token| message.extend_from_slice(&token.to_le_bytes()));
}

impl StepBytes<'_> {
    /// Reads the step into one that has room for it.
    pub(crate) fn read(self, step: &mut Step) -> Option<()> {
        let mut rest = self.0;
        step.clear();
        let [runs] = take(&mut rest)?;
        for _ in 0..runs {
            let [slot, start, len, logits] = take(&mut rest)?;
            let logits = match logits {
                0 => Wanted::None,
                1 => Wanted::Last,
                2 => Wanted::All,
                _ => return None,
            };
            step.runs.push(Run {
                slot: usize::try_from(slot).ok()?,
                start: usize::try_from(start).ok()?,
                len: usize::try_from(len).ok()?,
                logits,
            });
        }
        let (tokens, over) = rest.as_chunks();
        step.tokens.extend(tokens.iter().map(|token| u32::from_le_bytes(*token)));
        over.is_empty().then_some(())
    }
}

impl<'a> Loaded<'a> {
    pub(crate) fn write(&self, message: &mut Vec<u8>) {
        message.clear();
        match self {
            Loaded::Ready(bytes) => put(message, [0, *bytes]),
            Loaded::Refused(why) => {
                put(message, [1]);
                message.extend_from_slice(why.as_bytes());
            }
        }
    }

    pub(crate) fn read(message: &'a [u8]) -> Option<Loaded<'a>> {
        let mut rest = message;
        match take(&mut rest)? {
            [0] => take(&mut rest).map(|[bytes]| Loaded::Ready(bytes)),
            [1] => Some(Loaded::Refused(std::str::from_utf8(rest).ok()?)),
            _ => None,
        }
    }
}

/// Every field: one that is added is missed here.
fn options_to_words(options: &EngineOptions) -> [u64; 15] {
    let &EngineOptions {
        threads_per_rank,
        precision,
        kv_type,
        max_context,
        max_sequences,
        max_step_tokens,
        max_logits,
        rewind,
        mla_up,
        ffn_reduce,
        hopb,
        reduce_slices,
        // Of processes the links are what they are.
        delay: _,
        trace,
        deadline,
        pin,
    } = options;
    let sizes = [threads_per_rank, max_context, max_sequences, max_step_tokens, max_logits, rewind];
    let [threads, context, sequences, step_tokens, logits, rewind] = sizes.map(|size| size as u64);
    let precision = u64::from(precision == Precision::Precise);
    let kv_type = index(&KvType::ALL, &kv_type);
    let (mla_up, ffn_reduce) = (index(&MLA_UP, &mla_up), index(&FFN_REDUCE, &ffn_reduce));
    let hopb = match hopb {
        HopB::Off => 0,
        HopB::Pieces(pieces) => pieces as u64,
        HopB::Auto => u64::MAX,
    };
    let deadline = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    [
        threads,
        context,
        sequences,
        step_tokens,
        logits,
        rewind,
        precision,
        kv_type,
        mla_up,
        ffn_reduce,
        hopb,
        reduce_slices as u64,
        trace as u64,
        deadline,
        u64::from(pin),
    ]
}

fn options_from_words(words: [u64; 15]) -> Option<EngineOptions> {
    let [
        threads,
        context,
        sequences,
        step_tokens,
        logits,
        rewind,
        precision,
        kv_type,
        mla_up,
        ffn_reduce,
        hopb,
        reduce_slices,
        trace,
        deadline,
        pin,
    ] = words;
    let size = |word: u64| usize::try_from(word).ok();
    Some(EngineOptions {
        threads_per_rank: size(threads)?,
        precision: if precision == 1 { Precision::Precise } else { Precision::Fast },
        kv_type: *KvType::ALL.get(size(kv_type)?)?,
        max_context: size(context)?,
        max_sequences: size(sequences)?,
        max_step_tokens: size(step_tokens)?,
        max_logits: size(logits)?,
        rewind: size(rewind)?,
        mla_up: *MLA_UP.get(size(mla_up)?)?,
        ffn_reduce: *FFN_REDUCE.get(size(ffn_reduce)?)?,
        hopb: match hopb {
            0 => HopB::Off,
            u64::MAX => HopB::Auto,
            pieces => HopB::Pieces(size(pieces)?),
        },
        reduce_slices: size(reduce_slices)?,
        delay: None,
        trace: size(trace)?,
        deadline: Duration::from_millis(deadline),
        pin: pin == 1,
    })
}

const MLA_UP: [MlaUp; 3] = [MlaUp::Before, MlaUp::After, MlaUp::Auto];
const FFN_REDUCE: [FfnReduce; 2] = [FfnReduce::World, FfnReduce::Grid];

fn index<T: PartialEq>(all: &[T], one: &T) -> u64 {
    all.iter().position(|other| other == one).expect("one of all") as u64
}

impl RankCounters {
    /// Writes every field.
    pub(crate) fn write(&self, message: &mut Vec<u8>) {
        let &RankCounters {
            steps,
            weight_bytes,
            kv_bytes_read,
            kv_bytes_held,
            world,
            kvp,
            experts: [group, peers],
            overlap: Overlap { exposed, hidden },
            time,
        } = self;
        message.clear();
        put(message, [steps, weight_bytes, kv_bytes_read, kv_bytes_held]);
        for Traffic { calls, bytes } in [world, kvp, group, peers] {
            put(message, calls);
            put(message, bytes);
        }
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        put(message, exposed.map(nanos));
        put(message, hidden.map(nanos));
        put(message, time.map(nanos));
    }

    pub(crate) fn read(message: &[u8]) -> Option<RankCounters> {
        let mut rest = message;
        let [steps, weight_bytes, kv_bytes_read, kv_bytes_held] = take(&mut rest)?;
        let mut traffic = || Some(Traffic { calls: take(&mut rest)?, bytes: take(&mut rest)? });
        let (world, kvp, experts) = (traffic()?, traffic()?, [traffic()?, traffic()?]);
        let mut times = || Some(take::<4>(&mut rest)?.map(Duration::from_nanos));
        let overlap = Overlap { exposed: times()?, hidden: times()? };
        let time = take::<{ Line::ALL.len() }>(&mut rest)?.map(Duration::from_nanos);
        let counters = RankCounters {
            steps,
            weight_bytes,
            kv_bytes_read,
            kv_bytes_held,
            world,
            kvp,
            experts,
            overlap,
            time,
        };
        rest.is_empty().then_some(counters)
    }
}

pub(crate) fn put<const N: usize>(message: &mut Vec<u8>, words: [u64; N]) {
    words.iter().for_each(|word| message.extend_from_slice(&word.to_le_bytes()));
}

/// The next words.
pub(crate) fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u64; N]> {
    let mut words = [0; N];
    for word in &mut words {
        *word = u64::from_le_bytes(rest.split_off(..size_of::<u64>())?.try_into().ok()?);
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_the_way() {
        let options = EngineOptions {
            threads_per_rank: 3,
            precision: Precision::Precise,
            kv_type: KvType::Q8_0,
            max_context: 77,
            max_sequences: 5,
            max_step_tokens: 6,
            max_logits: 7,
            rewind: 8,
            mla_up: MlaUp::After,
            ffn_reduce: FfnReduce::Grid,
            hopb: HopB::Pieces(9),
            reduce_slices: 4,
            delay: None,
            trace: 10,
            deadline: Duration::from_millis(1234),
            pin: true,
        };
        let commands = [
            Command::Start { layout: "helix kvp=2", options },
            Command::Start { layout: "", options: EngineOptions::default() },
            Command::Start {
                layout: "tp",
                options: EngineOptions { hopb: HopB::Auto, ..EngineOptions::default() },
            },
            Command::Truncate { slot: 3, len: 1 << 40 },
            Command::FillWithNoise { slot: 1, from: 2, len: 3 },
            Command::ResetCounters,
            Command::Counters,
            Command::Clock,
            Command::Trace,
            Command::Probe,
            Command::Stop,
            Command::Quit,
        ];
        let mut message = Vec::new();
        for command in commands {
            command.write(&mut message);
            let read = Command::read(&message).expect("a command");
            assert_eq!(format!("{read:?}"), format!("{command:?}"));
        }
        assert_eq!(Command::read(&[1, 2, 3]), None);
        assert_eq!(Command::read(&99u64.to_le_bytes()), None);
    }

    #[test]
    fn steps_survive_the_way_in_the_room_that_is_reserved() {
        let mut step = Step::default();
        step.push(2, 1 << 33, &[7, u32::MAX], Wanted::All);
        step.push(0, 0, &[1, 2, 3], Wanted::None);
        step.push(1, 4, &[9], Wanted::Last);
        let options =
            EngineOptions { max_sequences: 3, max_step_tokens: 6, ..EngineOptions::default() };
        let mut message = Vec::with_capacity(step_bytes(&options));
        let room = message.capacity();
        write_step(&step, &mut message);
        assert_eq!(message.capacity(), room);
        let Some(Command::Step(bytes)) = Command::read(&message) else { panic!("a step") };
        let mut read = Step::default();
        bytes.read(&mut read).expect("a step");
        assert_eq!(read, step);
        message.pop();
        let Some(Command::Step(bytes)) = Command::read(&message) else { panic!("a step") };
        assert_eq!(bytes.read(&mut read), None);
    }

    #[test]
    fn counters_survive_the_way() {
        let mut counters = RankCounters { steps: 1, weight_bytes: 2, ..RankCounters::default() };
        counters.kv_bytes_held = u64::MAX;
        counters.experts[1].bytes[3] = 77;
        counters.overlap.hidden[2] = Duration::from_nanos(5);
        counters.time[4] = Duration::from_nanos(123_456_789);
        let mut message = Vec::new();
        counters.write(&mut message);
        let read = RankCounters::read(&message).expect("counters");
        assert_eq!(format!("{read:?}"), format!("{counters:?}"));
        assert!(RankCounters::read(&message[1..]).is_none());
    }
}
