//! From measurements to a profile of the machine.

use crate::figures::rounded;
use crate::hardware::USUAL_MEMORY;
use helix_comm::Collective as Kind;
use helix_engine::probe::{
    self, AttentionRate, CollectiveTime, Collectives, FORKED, Findings, Missed, OPERATIONS,
    ProductRate, ReadRate, Sample,
};
use helix_kernels::Format;
use helix_plan::machine::profile::{
    Attention, Cache, Collective, CollectiveKind, Cores, Level, Matvec, Memory, Overhead, Place,
    RowKind,
};
use helix_plan::machine::{Origin, Profile, Quantity};
use std::collections::BTreeMap;

/// The profile of a machine of `cores` cores and `memory` bytes.
pub fn of(findings: &Findings, name: String, cores: usize, memory: Option<usize>) -> Profile {
    Profile {
        name,
        note: Some(
            "Measured by helix probe; what ranks have depends on how many share the cores.".into(),
        ),
        memory: of_memory(&findings.reads, memory),
        arithmetic: arithmetic(findings, cores),
        overhead: overhead(findings, cores),
        cores: Some(of_cores(findings, cores)),
        cache: Some(cache(&findings.missed)),
        level: levels(&findings.collectives),
        matvec: matvec(&findings.products),
        attention: attention(&findings.attention),
        collective: collectives(findings.collectives.groups()),
    }
}

/// A number with its spread as its source.
fn measured(sample: Sample, scale: f64, what: &str) -> Quantity {
    let Sample { median, min, max } = sample;
    let [median, min, max] = [median, min, max].map(|value| digits(value * scale));
    Quantity::sourced(median, format!("measured: {what}; {min} to {max}"))
}

/// Four digits are more than any of these measurements has.
fn digits(value: f64) -> f64 {
    if value == 0.0 {
        return 0.0;
    }
    rounded(value, 3 - value.abs().log10().floor() as i32)
}

/// The readings of the most threads, by bytes.
fn of_all_threads(reads: &[ReadRate]) -> Vec<ReadRate> {
    let most = reads.iter().map(|read| read.threads).max();
    reads.iter().copied().filter(|read| Some(read.threads) == most).collect()
}

fn of_memory(reads: &[ReadRate], memory: Option<usize>) -> Memory {
    let read = of_all_threads(reads).pop().expect("something was read");
    let capacity = memory.unwrap_or(USUAL_MEMORY) as f64 / 1e9;
    Memory {
        capacity_gb: match memory {
            Some(_) => Quantity::sourced(digits(capacity), "the system's total"),
            None => Quantity {
                value: digits(capacity),
                origin: Origin::Assumed { why: "the system doesn't say".into(), range: None },
            },
        },
        bandwidth_gb_s: measured(read.rate, 1e-9, "reads by all cores"),
        reachable: Quantity::sourced(1.0, "the bandwidth is what was measured"),
    }
}

fn arithmetic(findings: &Findings, cores: usize) -> BTreeMap<String, Quantity> {
    let [int8, f32] = findings.overheads.peaks.map(|peak| digits(peak * cores as f64 / 1e12));
    let source = |what| format!("measured: {what} from registers on one core, times {cores}");
    BTreeMap::from([
        ("int8".to_owned(), Quantity::sourced(int8, source("dot products"))),
        ("f32".to_owned(), Quantity::sourced(f32, source("multiply-adds"))),
    ])
}

/// The products that have most to compute: what they reach of the peak.
fn reached(findings: &Findings, cores: usize) -> f64 {
    let ops = |product: &ProductRate| {
        // Operations per byte: two for each weight and token.
        let weights = product.format.block_len() as f64 / product.format.block_bytes() as f64;
        product.rate.median * weights * 2.0 * product.tokens as f64
    };
    let of_int8 = findings.products.iter().filter(|product| product.format == Format::Q8_0);
    let best = of_int8.map(ops).fold(0.0, f64::max);
    (best / (findings.overheads.peaks[0] * cores as f64)).clamp(0.01, 1.0)
}

fn overhead(findings: &Findings, cores: usize) -> Overhead {
    let overheads = &findings.overheads;
    let alone = overheads.layers.first().expect("one thread was measured").1;
    Overhead {
        reachable_arithmetic: Quantity::sourced(
            digits(reached(findings, cores)),
            "measured: products of Q8_0 with many tokens against the peak",
        ),
        operation_us: measured(
            alone,
            1e6 / OPERATIONS as f64,
            "an operation with next to nothing to do, one thread",
        ),
        elements_g_s: Some(measured(overheads.elements, 1e-9, "norm and quantisation, one core")),
        line_ns: Some(measured(findings.line, 1e9, "a dimension of a key, appended")),
    }
}

fn of_cores(findings: &Findings, cores: usize) -> Cores {
    let mut reads: BTreeMap<usize, f64> = BTreeMap::new();
    for read in &findings.reads {
        // Ascending in bytes: the last is from memory.
        reads.insert(read.threads, digits(read.rate.median / 1e9));
    }
    let layers = &findings.overheads.layers;
    let alone = layers.first().map_or(0.0, |one| one.1.median);
    // What a team costs more than one thread.
    let fork = |seconds: f64| digits((seconds - alone).max(0.0) * 1e6 / FORKED as f64);
    Cores {
        count: cores,
        active: reads.keys().map(|&threads| threads as f64).collect(),
        read_gb_s: reads.into_values().collect(),
        threads: layers.iter().map(|layer| layer.0 as f64).collect(),
        fork_us: layers.iter().map(|layer| fork(layer.1.median)).collect(),
    }
}

/// The part that comes from memory.
fn cache(missed: &[Missed]) -> Cache {
    let mut cache = Cache { step_mb: Vec::new(), missed: Vec::new() };
    let mut most = 0.0;
    for missed in missed {
        // More bytes never come from a cache more often: what says so is noise.
        most = f64::max(most, missed.part.median);
        let step_mb = digits(missed.bytes as f64 / 1e6);
        // Where there are no more matrices a larger footprint is the one before.
        if cache.step_mb.last().is_some_and(|&before| step_mb <= before) {
            cache.step_mb.pop();
            cache.missed.pop();
        }
        cache.step_mb.push(step_mb);
        cache.missed.push(rounded(most, 3));
    }
    cache
}

/// The links between ranks, the nearest first.
fn levels(collectives: &Collectives) -> Vec<Level> {
    let times = match collectives {
        Collectives::Threads(times) => return vec![level("threads of one process", None, times)],
        Collectives::Processes(times) => times,
    };
    let of_one_host = "processes of one host";
    match (times.far.is_empty(), times.near) {
        (true, _) => vec![level(of_one_host, None, &times.groups)],
        // The first two ranks are on different hosts.
        (false, 1) => vec![level("processes of different hosts", None, &times.groups)],
        (false, near) => vec![
            level(of_one_host, Some(near), &times.groups),
            level("processes of different hosts", None, &times.far),
        ],
    }
}

/// LogGP's parameters, of the all-to-all of two ranks: each sends one message.
fn level(name: &str, ranks: Option<usize>, times: &[CollectiveTime]) -> Level {
    let of_two = |time: &&CollectiveTime| time.ranks == 2 && time.collective == Kind::AllToAll;
    let times: Vec<&CollectiveTime> = times.iter().filter(of_two).collect();
    let (small, large) = (times[0], times[times.len() - 1]);
    let us = small.seconds.median * 1e6;
    let source = |part: &str| format!("measured: {part} of an all-to-all of {} bytes", small.bytes);
    let seconds = (large.seconds.median - small.seconds.median).max(1e-9);
    let gb_s = (large.bytes - small.bytes) as f64 / seconds / 1e9;
    Level {
        name: name.to_owned(),
        ranks,
        latency_us: Quantity::sourced(digits(us / 2.0), source("half")),
        overhead_us: Quantity::sourced(digits(us / 4.0), source("a quarter, at each end,")),
        gap_us: Quantity::sourced(0.0, "members read each other's messages where they lie"),
        bandwidth_gb_s: Quantity::sourced(
            digits(gb_s),
            format!("measured: an all-to-all of {} bytes", large.bytes),
        ),
        reachable: Quantity::sourced(1.0, "the bandwidth is what was measured"),
    }
}

fn place(place: probe::Place) -> Place {
    match place {
        probe::Place::Memory => Place::Memory,
        probe::Place::Cache => Place::Cache,
    }
}

fn gb_s(rate: Sample) -> f64 {
    digits(rate.median / 1e9)
}

fn matvec(products: &[ProductRate]) -> Vec<Matvec> {
    let mut rows: Vec<Matvec> = Vec::new();
    for product in products {
        let (format, place, cores) =
            (product.format.name().to_lowercase(), place(product.place), product.threads);
        let (tokens, rate) = (product.tokens as f64, gb_s(product.rate));
        let same =
            |row: &&mut Matvec| (&row.format, row.place, row.cores) == (&format, place, cores);
        match rows.iter_mut().find(same) {
            Some(row) => {
                row.tokens.push(tokens);
                row.gb_s.push(rate);
            }
            None => {
                rows.push(Matvec { format, place, cores, tokens: vec![tokens], gb_s: vec![rate] })
            }
        }
    }
    rows
}

fn attention(rates: &[AttentionRate]) -> Vec<Attention> {
    let mut rows: Vec<Attention> = Vec::new();
    for rate in rates {
        let kind = if rate.latent { RowKind::Latent } else { RowKind::KeyValue };
        let (kv, place, cores) = (rate.kv_type.name(), place(rate.place), rate.threads);
        let (queries, gb_s) = (rate.queries as f64, gb_s(rate.rate));
        let same = |row: &&mut Attention| {
            (&*row.kv, row.row, row.place, row.cores) == (kv, kind, place, cores)
        };
        match rows.iter_mut().find(same) {
            Some(row) => {
                row.queries.push(queries);
                row.gb_s.push(gb_s);
            }
            None => rows.push(Attention {
                kv: kv.to_owned(),
                row: kind,
                place,
                cores,
                queries: vec![queries],
                gb_s: vec![gb_s],
            }),
        }
    }
    rows
}

fn collectives(times: &[CollectiveTime]) -> Vec<Collective> {
    let mut rows: Vec<Collective> = Vec::new();
    for time in times {
        let kind = match time.collective {
            Kind::AllReduce => CollectiveKind::AllReduce,
            Kind::AllGather => CollectiveKind::AllGather,
            Kind::AllToAll => CollectiveKind::AllToAll,
            Kind::Gather => CollectiveKind::Gather,
        };
        let (bytes, us) = (time.bytes as f64, digits(time.seconds.median * 1e6));
        match rows.iter_mut().find(|row| (row.kind, row.ranks) == (kind, time.ranks)) {
            Some(row) => {
                row.bytes.push(bytes);
                row.us.push(us);
            }
            None => {
                rows.push(Collective { kind, ranks: time.ranks, bytes: vec![bytes], us: vec![us] })
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use helix_engine::probe::Sample;

    #[test]
    fn footprints_that_hold_the_same_matrices_are_one_point() {
        let missed = [(10, 0.25), (40, 0.125), (40, 0.5), (40, 0.75), (90, 1.0)];
        let missed = missed.map(|(mb, part)| Missed {
            bytes: mb * 1_000_000,
            part: Sample { median: part, min: part, max: part },
        });
        let cache = cache(&missed);
        assert_eq!(cache.step_mb, [10.0, 40.0, 90.0]);
        assert_eq!(cache.missed, [0.25, 0.75, 1.0]);
    }
}
