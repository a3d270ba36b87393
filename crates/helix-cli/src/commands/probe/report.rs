//! What was measured, with its spread.

use crate::figures::rounded;
use crate::output::Table;
use helix_engine::probe::{Findings, Place, Sample};
use serde::Serialize;

/// A measurement.
#[derive(Debug, Serialize)]
pub struct Row {
    what: String,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
}

const GB_S: &str = "GB/s";
const US: &str = "us";

/// All of them.
pub fn rows(findings: &Findings) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |what: String, unit, sample: Sample, scale: f64| {
        let [median, min, max] =
            [sample.median, sample.min, sample.max].map(|value| rounded(value * scale, 3));
        rows.push(Row { what, unit, median, min, max });
    };
    let place = |place| if place == Place::Memory { "from memory" } else { "from the cache" };
    for read in &findings.reads {
        let what =
            format!("read {} MB again and again, {} threads", read.bytes >> 20, read.threads);
        add(what, GB_S, read.rate, 1e-9);
    }
    for (threads, sample) in &findings.overheads.layers {
        let what = format!("a layer with next to nothing to do, {threads} threads");
        add(what, US, *sample, 1e6);
    }
    for missed in &findings.missed {
        let what = format!("products over {} MB again and again", missed.bytes >> 20);
        add(what, "from memory", missed.part, 1.0);
    }
    add("a dimension of a key, appended".to_owned(), "ns", findings.line, 1e9);
    let elements = findings.overheads.elements;
    add("normalise and quantise, 1 thread".to_owned(), "10^9 values/s", elements, 1e-9);
    for product in &findings.products {
        let (format, place) = (product.format, place(product.place));
        let (threads, tokens) = (product.threads, product.tokens);
        let what = format!("products of {format} {place}, {tokens} tokens, {threads} threads");
        add(what, GB_S, product.rate, 1e-9);
    }
    for rate in &findings.attention {
        let (kv, place) = (rate.kv_type, place(rate.place));
        let kind = if rate.latent { "latents" } else { "keys and values" };
        let (threads, queries) = (rate.threads, rate.queries);
        let what =
            format!("attention over {kv} {kind} {place}, {queries} queries, {threads} threads");
        add(what, GB_S, rate.rate, 1e-9);
    }
    for time in findings.collectives.groups() {
        let (collective, ranks, bytes) = (time.collective, time.ranks, time.bytes);
        add(format!("{collective} of {bytes} bytes, {ranks} ranks"), US, time.seconds, 1e6);
    }
    rows
}

/// As a table.
pub fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(1, ["measured", "median", "min - max", "unit"]);
    for Row { what, unit, median, min, max } in rows {
        let spread = format!("{min:.2} - {max:.2}");
        table.row(vec![what.clone(), format!("{median:.2}"), spread, (*unit).to_owned()]);
    }
    table
}
