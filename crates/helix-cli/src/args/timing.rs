//! What is recorded of a run, and links to run over.

use super::at_least;
use crate::failure::{Failure, Outcome};
use clap::Args;
use helix_comm::Delay;
use std::path::PathBuf;
use std::time::Duration;

/// A trace.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Trace")]
pub struct TraceArgs {
    /// Write what each rank did when, for ui.perfetto.dev: a track of lines and one of messages for
    /// each rank
    #[arg(long, value_name = "FILE.json")]
    pub trace: Option<PathBuf>,
    /// Lines, and collectives, that are kept of each rank: the last ones
    #[arg(long, value_name = "N", default_value = "100000", value_parser = at_least(1), requires = "trace")]
    pub trace_events: usize,
}

/// Links between ranks of one process that are as slow as those between hosts.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Emulated links")]
pub struct LinkArgs {
    /// Delay each message between ranks by so many microseconds. A rank that waits sleeps. Ranks
    /// still share this machine's cores and memory: only links are as between hosts
    #[arg(long, value_name = "US", allow_negative_numbers = true)]
    link_us: Option<f64>,
    /// Let messages leave a rank at no more than so many gigabits per second
    #[arg(long, value_name = "GBIT", allow_negative_numbers = true)]
    link_gbit: Option<f64>,
}

impl LinkArgs {
    /// The links that are asked for, if any are.
    pub fn delay(&self) -> Outcome<Option<Delay>> {
        if self.link_us.is_none() && self.link_gbit.is_none() {
            return Ok(None);
        }
        let latency_us = self.link_us.unwrap_or(0.0);
        if !(0.0..=1e6).contains(&latency_us) {
            let text = format!("--link-us {latency_us}: give microseconds from 0 to 1000000");
            return Err(Failure::request(text));
        }
        let gbit = self.link_gbit.unwrap_or(f64::INFINITY);
        if gbit.is_nan() || gbit < 1e-3 {
            let text = format!("--link-gbit {gbit}: give gigabits per second, at least 0.001");
            return Err(Failure::request(text));
        }
        let latency = Duration::from_secs_f64(latency_us / 1e6);
        Ok(Some(Delay { latency, bytes_per_s: gbit * 1e9 / 8.0 }))
    }
}
