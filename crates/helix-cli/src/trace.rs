//! `--trace`: what each rank did when, for Perfetto (ui.perfetto.dev) or chrome://tracing.

use crate::args::TraceArgs;
use crate::failure::Outcome;
use crate::whole_file::WholeFile;
use helix_comm::Flight;
use helix_engine::{Engine, RankTrace, Span};
use serde_json::{Value, json};
use std::io::Write;
use std::time::Instant;

/// A trace to write, if one was asked for.
#[derive(Debug)]
pub struct Trace {
    target: Option<(WholeFile, usize)>,
}

impl Trace {
    /// Checks what was asked for.
    pub fn new(args: &TraceArgs) -> Outcome<Trace> {
        let Some(path) = &args.trace else { return Ok(Trace { target: None }) };
        Ok(Trace { target: Some((WholeFile::new("--trace", path)?, args.trace_events)) })
    }

    /// Events of each rank that the engine keeps for it.
    pub fn events(&self) -> usize {
        self.target.as_ref().map_or(0, |(_, events)| *events)
    }

    /// Writes what `engine` did last.
    pub fn write(&self, engine: &Engine) -> Outcome {
        let Some((file, _)) = &self.target else { return Ok(()) };
        let ranks = engine.trace()?;
        file.write(|mut out| write(&mut out, &ranks, &engine.layout().name()))
    }
}

/// Threads of a rank in the trace.
const LINES: u32 = 0;
const MESSAGES: u32 = 1;

/// Chrome's trace event format: a process for each rank, a thread for its lines and one for its
/// communication.
fn write(out: &mut impl Write, ranks: &[RankTrace], layout: &str) -> std::io::Result<()> {
    let spans = ranks.iter().filter_map(|rank| rank.spans.first()).map(|span| span.start);
    let zero = spans.min().unwrap_or_else(Instant::now);
    let error = ranks.iter().map(|rank| rank.clock_error).max().unwrap_or_default();
    let other = json!({ "layout": layout, "clock_error_us": error.as_nanos() as f64 / 1e3 });
    write!(out, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{other},\"traceEvents\":[")?;
    let mut separator = "\n";
    let mut event = |out: &mut dyn Write, event: Value| {
        let done = write!(out, "{separator}{event}");
        separator = ",\n";
        done
    };
    for RankTrace { rank, spans, flights, .. } in ranks {
        let name = |what: &str, thread: u32, name: String| json!({ "ph": "M", "pid": rank, "tid": thread, "name": what, "args": { "name": name } });
        event(out, name("process_name", LINES, format!("rank {rank}")))?;
        event(out, name("thread_name", LINES, "lines".into()))?;
        event(out, name("thread_name", MESSAGES, "communication".into()))?;
        for span in spans {
            event(out, line(*rank, span, zero))?;
        }
        // Older messages belong to lines that are not kept.
        let kept = flights.iter().filter(|flight| flight.started >= zero);
        for (number, flight) in kept.enumerate() {
            for half in message(*rank, number, flight, spans, zero) {
                event(out, half)?;
            }
        }
    }
    writeln!(out, "\n]}}")
}

fn us(time: Instant, zero: Instant) -> f64 {
    time.saturating_duration_since(zero).as_nanos() as f64 / 1e3
}

/// A line of a step.
fn line(rank: usize, span: &Span, zero: Instant) -> Value {
    json!({
        "ph": "X", "pid": rank, "tid": LINES, "cat": "line", "name": span.line.name(),
        "ts": us(span.start, zero), "dur": us(span.end, span.start),
        "args": { "step": span.step, "layer": span.layer },
    })
}

/// A message's way, as two events: several may be on their way at a time.
fn message(
    rank: usize,
    number: usize,
    flight: &Flight,
    spans: &[Span],
    zero: Instant,
) -> [Value; 2] {
    // It starts as the line ends that computes and sends it, or within it.
    let at = spans.partition_point(|span| span.end < flight.started);
    let place = spans.get(at).map(|span| (span.step, span.layer));
    let (step, layer) = place.map_or((None, None), |(step, layer)| (Some(step), layer));
    let half = |phase: &str, time| {
        json!({
            "ph": phase, "pid": rank, "tid": MESSAGES, "cat": "communication",
            "id": format!("{rank}.{number}"), "name": flight.collective.to_string(),
            "ts": us(time, zero),
        })
    };
    let mut start = half("b", flight.started);
    start["args"] = json!({
        "step": step, "layer": layer, "bytes": flight.bytes,
        "waited_us": us(flight.received, flight.called),
    });
    [start, half("e", flight.landed)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use helix_comm::Collective;
    use helix_engine::Line;
    use std::time::Duration;

    #[test]
    fn a_trace_is_json_with_a_track_of_lines_and_one_of_messages() {
        let zero = Instant::now();
        let at = |us| zero + Duration::from_micros(us);
        let span = |line, start, end| Span {
            line,
            layer: Some(3),
            step: 7,
            start: at(start),
            end: at(end),
        };
        let flight = Flight {
            collective: Collective::AllToAll,
            bytes: 44,
            started: at(12),
            landed: at(30),
            called: at(20),
            received: at(31),
        };
        let old = Flight { started: zero - Duration::from_secs(1), ..flight };
        let rank = RankTrace {
            rank: 1,
            spans: vec![span(Line::Attention, 0, 10), span(Line::AllToAll, 10, 13)],
            flights: vec![old, flight],
            clock_error: Duration::from_nanos(1500),
        };
        let mut text = Vec::new();
        write(&mut text, &[rank], "helix kvp=2").unwrap();
        let trace: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(trace["otherData"]["clock_error_us"], 1.5);
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 3 + 2 + 2);
        let attention = &events[3];
        assert_eq!(attention["name"], "partial attention");
        assert_eq!((&attention["ts"], &attention["dur"]), (&json!(0.0), &json!(10.0)));
        assert_eq!(attention["args"], json!({ "step": 7, "layer": 3 }));
        let (start, end) = (&events[5], &events[6]);
        assert_eq!((&start["ph"], &end["ph"]), (&json!("b"), &json!("e")));
        assert_eq!((&start["ts"], &end["ts"]), (&json!(12.0), &json!(30.0)));
        assert_eq!(start["id"], end["id"]);
        assert_eq!(start["args"]["layer"], 3);
        assert_eq!(start["args"]["waited_us"], 11.0);
    }
}
