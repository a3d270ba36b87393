//! What the server has done, in Prometheus' text form.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The model ended the text, or a stop string did.
    Stop,
    /// It got as long as was asked for, or as the context is.
    Length,
    /// The client went away.
    Cancelled,
    /// It was not taken on.
    Refused,
    /// The engine failed.
    Failed,
}

impl Outcome {
    const ALL: [(Outcome, &'static str); 5] = [
        (Outcome::Stop, "stop"),
        (Outcome::Length, "length"),
        (Outcome::Cancelled, "cancelled"),
        (Outcome::Refused, "refused"),
        (Outcome::Failed, "failed"),
    ];
}

/// Counts since the start, and how many sequences there are now.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: [AtomicU64; 5],
    /// Tokens of prompts that were run.
    pub prompt_tokens: AtomicU64,
    /// Tokens that were drawn.
    pub completion_tokens: AtomicU64,
    pub running: AtomicU64,
    pub waiting: AtomicU64,
    /// From a request's arrival to its first token.
    pub first: Histogram,
    /// From a token to the next.
    pub others: Histogram,
}

impl Metrics {
    /// One more request ended so.
    pub fn count(&self, outcome: Outcome) {
        self.requests[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// All of it as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let name = "helix_requests_total";
        head(&mut text, name, "counter", "Requests that ended, by how they did.");
        for (outcome, label) in Outcome::ALL {
            let count = self.requests[outcome as usize].load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}{{outcome=\"{label}\"}} {count}");
        }
        let numbers = [
            ("helix_prompt_tokens_total", "counter", "Tokens of prompts.", &self.prompt_tokens),
            ("helix_completion_tokens_total", "counter", "Tokens drawn.", &self.completion_tokens),
            ("helix_sequences_running", "gauge", "Sequences that run.", &self.running),
            ("helix_sequences_waiting", "gauge", "Requests that wait to run.", &self.waiting),
        ];
        for (name, kind, help, number) in numbers {
            head(&mut text, name, kind, help);
            let _ = writeln!(text, "{name} {}", number.load(Ordering::Relaxed));
        }
        let histograms = [
            ("helix_ttft_seconds", "From a request to its first token.", &self.first),
            ("helix_ttl_seconds", "From a token to the next.", &self.others),
        ];
        for (name, help, histogram) in histograms {
            head(&mut text, name, "histogram", help);
            histogram.write(&mut text, name);
        }
        text
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Upper bounds of all buckets but the last, in microseconds.
const BOUNDS_US: [u64; 16] = [
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    60_000_000,
    300_000_000,
];

/// How often which durations were seen.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// One more.
    pub fn add(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|&bound| bound < us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str) {
        let seconds = |us: u64| us as f64 / 1e6;
        let mut count = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            let bound = BOUNDS_US.get(index).map_or("+Inf".into(), |&us| seconds(us).to_string());
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(text, "{name}_sum {}", seconds(self.sum_us.load(Ordering::Relaxed)));
        let _ = writeln!(text, "{name}_count {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_has_every_outcome_and_cumulative_buckets() {
        let metrics = Metrics::default();
        metrics.count(Outcome::Length);
        metrics.count(Outcome::Length);
        metrics.count(Outcome::Failed);
        for ms in [1, 3, 3, 400_000] {
            metrics.first.add(Duration::from_millis(ms));
        }
        let text = metrics.text();
        for line in [
            "# TYPE helix_requests_total counter",
            "helix_requests_total{outcome=\"stop\"} 0",
            "helix_requests_total{outcome=\"length\"} 2",
            "helix_requests_total{outcome=\"failed\"} 1",
            "helix_ttft_seconds_bucket{le=\"0.001\"} 1",
            "helix_ttft_seconds_bucket{le=\"0.002\"} 1",
            "helix_ttft_seconds_bucket{le=\"0.005\"} 3",
            "helix_ttft_seconds_bucket{le=\"300\"} 3",
            "helix_ttft_seconds_bucket{le=\"+Inf\"} 4",
            "helix_ttft_seconds_sum 400.007",
            "helix_ttft_seconds_count 4",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in\n{text}");
        }
    }
}
