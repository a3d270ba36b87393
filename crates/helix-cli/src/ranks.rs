//! What each rank held, read and sent, from the engine's counters.

use crate::figures;
use crate::output::Table;
use helix_comm::Collective;
use helix_engine::{Line, RankCounters};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// One rank's part in decoding.
#[derive(Debug, Serialize)]
pub struct RankReport {
    rank: usize,
    /// Steps that the figures per token are means over.
    steps: u64,
    kv_bytes_held: u64,
    weight_bytes_per_token: u64,
    kv_bytes_per_token: u64,
    read_bytes_per_token: u64,
    /// Calls and bytes sent of each kind of collective, in all.
    collectives: Map<String, Value>,
    /// Mean time of a step, by line.
    time_us: Map<String, Value>,
}

/// Reports on counters of steps of one token each.
pub fn reports(counters: &[RankCounters]) -> Vec<RankReport> {
    counters.iter().enumerate().map(|(rank, counters)| report(rank, counters)).collect()
}

fn report(rank: usize, counters: &RankCounters) -> RankReport {
    let steps = counters.steps.max(1);
    let weight_bytes_per_token = counters.weight_bytes / steps;
    let kv_bytes_per_token = counters.kv_bytes_read / steps;
    RankReport {
        rank,
        steps: counters.steps,
        kv_bytes_held: counters.kv_bytes_held,
        weight_bytes_per_token,
        kv_bytes_per_token,
        read_bytes_per_token: weight_bytes_per_token + kv_bytes_per_token,
        collectives: collectives(counters),
        time_us: times(counters),
    }
}

fn collectives(counters: &RankCounters) -> Map<String, Value> {
    let mut traffic = counters.world;
    traffic += counters.kvp;
    counters.experts.iter().for_each(|stage| traffic += *stage);
    let kinds = Collective::ALL.into_iter().map(|kind| {
        let (calls, bytes) = traffic.of(kind);
        (kind.to_string(), json!({ "calls": calls, "bytes": bytes }))
    });
    kinds.collect()
}

/// Mean microseconds of a step, by line.
pub fn times(counters: &RankCounters) -> Map<String, Value> {
    let mean = |line: Line| {
        let us = counters.time[line as usize].as_secs_f64() * 1e6 / counters.steps.max(1) as f64;
        (line.name().to_owned(), json!(figures::rounded(us, 2)))
    };
    Line::ALL.into_iter().map(mean).collect()
}

/// The reports as a table.
pub fn table(reports: &[RankReport]) -> Table {
    let titles = ["rank", "KV held", "weights/token", "KV/token", "read/token"];
    let mut table = Table::new(0, titles);
    for report in reports {
        table.row(vec![
            report.rank.to_string(),
            figures::bytes(report.kv_bytes_held),
            figures::bytes(report.weight_bytes_per_token),
            figures::bytes(report.kv_bytes_per_token),
            figures::bytes(report.read_bytes_per_token),
        ]);
    }
    table
}
