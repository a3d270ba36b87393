//! What each rank did when: lines of the layer, and messages on their way.

use crate::counters::Line;
use crate::protocol::{Time, put, take};
use helix_comm::{Collective, Flight};
use std::time::{Duration, Instant};

/// A line of a step.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Which.
    pub line: Line,
    /// Of which layer, if of one.
    pub layer: Option<usize>,
    /// Of which step, counted from 1.
    pub step: u64,
    /// From when.
    pub start: Instant,
    /// To when.
    pub end: Instant,
}

/// The last of what a rank did, the oldest first.
#[derive(Clone, Debug)]
pub struct RankTrace {
    /// Who.
    pub rank: usize,
    /// Lines, one after the other.
    pub spans: Vec<Span>,
    /// Collectives of all its groups, in the order in which they started.
    pub flights: Vec<Flight>,
    /// By how much its times are wrong at most beside those of rank 0: of a rank that is a process
    /// they are of another clock, which is known by round trips.
    pub clock_error: Duration,
}

/// Entries of a message.
const CHUNK: usize = 1 << 13;
/// What entries a message has.
const SPANS: u64 = 0;
const FLIGHTS: u64 = 1;
const END: u64 = 2;
/// A line of no layer.
const NO_LAYER: u64 = u64::MAX;

impl RankTrace {
    /// Hands `send` the trace message by message, times as of a clock that began at `start`.
    pub(crate) fn write<E>(
        &self,
        start: Instant,
        message: &mut Vec<u8>,
        mut send: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let nanos = |time| Time::of(start, time).0;
        for spans in self.spans.chunks(CHUNK) {
            message.clear();
            put(message, [SPANS]);
            for &Span { line, layer, step, start, end } in spans {
                let layer = layer.map_or(NO_LAYER, |layer| layer as u64);
                put(message, [line as u64, layer, step, nanos(start), nanos(end)]);
            }
            send(message)?;
        }
        for flights in self.flights.chunks(CHUNK) {
            message.clear();
            put(message, [FLIGHTS]);
            for &Flight { collective, bytes, started, landed, called, received } in flights {
                let times = [started, landed, called, received].map(nanos);
                put(message, [collective as u64, bytes]);
                put(message, times);
            }
            send(message)?;
        }
        message.clear();
        put(message, [END]);
        send(message)
    }

    /// Adds what a message of [`RankTrace::write`] has, `here` the times of this process's clock;
    /// whether it was the last. `None` for anything else.
    pub(crate) fn read(&mut self, message: &[u8], here: impl Fn(u64) -> Instant) -> Option<bool> {
        let mut rest = message;
        let [kind] = take(&mut rest)?;
        while !rest.is_empty() {
            match kind {
                SPANS => {
                    let [line, layer, step, start, end] = take(&mut rest)?;
                    let line = *Line::ALL.get(usize::try_from(line).ok()?)?;
                    let layer = match layer {
                        NO_LAYER => None,
                        layer => Some(usize::try_from(layer).ok()?),
                    };
                    self.spans.push(Span { line, layer, step, start: here(start), end: here(end) });
                }
                FLIGHTS => {
                    let [collective, bytes] = take(&mut rest)?;
                    let collective = *Collective::ALL.get(usize::try_from(collective).ok()?)?;
                    let [started, landed, called, received] = take(&mut rest)?.map(&here);
                    let flight = Flight { collective, bytes, started, landed, called, received };
                    self.flights.push(flight);
                }
                _ => return None,
            }
        }
        (kind <= END).then_some(kind == END)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_survives_the_way_on_another_clock() {
        let start = Instant::now();
        let at = |nanos| start + Duration::from_nanos(nanos);
        let span = |i: u64| Span {
            line: Line::ALL[i as usize % Line::ALL.len()],
            layer: (!i.is_multiple_of(5)).then_some(i as usize % 5),
            step: i / 3,
            start: at(10 * i),
            end: at(10 * i + 9),
        };
        let flight = |i: u64| Flight {
            collective: Collective::ALL[i as usize % 4],
            bytes: i * i,
            started: at(i),
            landed: at(i + 1),
            called: at(i + 2),
            received: at(i + 3),
        };
        let trace = RankTrace {
            rank: 3,
            spans: (0..2 * CHUNK as u64 + 5).map(span).collect(),
            flights: (0..7).map(flight).collect(),
            clock_error: Duration::ZERO,
        };
        let later = start + Duration::from_secs(9);
        let mut found = RankTrace {
            rank: 3,
            spans: Vec::new(),
            flights: Vec::new(),
            clock_error: Duration::ZERO,
        };
        let mut ends = Vec::new();
        let sent = trace.write(start, &mut Vec::new(), |message| {
            ends.push(found.read(message, |nanos| later + Duration::from_nanos(nanos)));
            let cut = &message[..message.len() - 1];
            assert_eq!(found.clone().read(cut, |_| later), None);
            Ok::<_, ()>(())
        });
        sent.expect("all is sent");
        assert_eq!(ends, [Some(false), Some(false), Some(false), Some(false), Some(true)]);
        let expected = |time: Instant| later + (time - start);
        for (found, sent) in found.spans.iter().zip(&trace.spans) {
            let Span { line, layer, step, start, end } = *sent;
            let sent = Span { line, layer, step, start: expected(start), end: expected(end) };
            assert_eq!(format!("{found:?}"), format!("{sent:?}"));
        }
        let of = |flight: &Flight| (flight.collective, flight.bytes);
        assert_eq!(found.spans.len(), trace.spans.len());
        assert!(found.flights.iter().map(of).eq(trace.flights.iter().map(of)));
        let (found, sent) = (found.flights[6], trace.flights[6]);
        assert_eq!([found.started, found.landed], [sent.started, sent.landed].map(expected));
        assert_eq!([found.called, found.received], [sent.called, sent.received].map(expected));
    }
}
