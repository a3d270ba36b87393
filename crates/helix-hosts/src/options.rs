//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::{control, host, measure, world};

#[derive(Parser)]
#[command(name = "helix-hosts", about = "Several hosts on one machine, for tests of many hosts")]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Makes hosts, runs a command on the first of them, and takes everything down
    Run(Run),
    /// Cuts and heals cables, changes the links, or asks what they carried
    Control {
        /// cut HOST | heal HOST | delay-us N | gbit N | stats
        #[arg(required = true, num_args = 1..=2)]
        request: Vec<String>,
    },
    /// Runs a command on a host, such as host1; only inside `run`
    Enter {
        /// The host's name
        host: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// What mpirun starts in the place of ssh: a command line for the shell of a host
    Agent {
        /// Options of ssh, a host, and the command line
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Measures round trips and throughput between hosts, beside what was asked; only inside `run`
    Measure {
        /// Prints one JSON document
        #[arg(long)]
        json: bool,
    },
    /// The first process of the new process namespace
    #[command(hide = true)]
    Inside(Inside),
    /// Becomes a command that is killed with its parent
    #[command(hide = true)]
    Attached {
        /// The command and its arguments
        #[arg(required = true, last = true)]
        command: Vec<OsString>,
    },
}

/// What `run` is asked for.
#[derive(Args, Clone)]
pub struct Run {
    /// How many hosts: host0 with address 10.77.0.1, host1 with 10.77.0.2 and so on
    #[arg(value_parser = clap::value_parser!(u8).range(1..=32))]
    pub hosts: u8,
    #[command(flatten)]
    pub links: Links,
    /// Ranks that mpirun puts on a host before it turns to the next
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub slots: u32,
    /// Cores of a host, of its own when the machine has enough; 0: hosts are not pinned
    #[arg(long, default_value_t = 1)]
    pub cores: usize,
    /// No namespaces, as where they are not permitted: ranks over loopback, without delay
    #[arg(long, conflicts_with = "self_test")]
    pub loopback: bool,
    /// Measures round trips and throughput instead of running a command
    #[arg(long, conflicts_with = "command")]
    pub self_test: bool,
    /// The command, run on host0; mpirun in it starts ranks on all hosts
    #[arg(last = true, required_unless_present = "self_test")]
    pub command: Vec<OsString>,
}

/// What every link is like.
#[derive(Args, Clone, Copy)]
pub struct Links {
    /// One-way delay between two hosts, in microseconds
    #[arg(long, default_value_t = 50.0, value_parser = delay_us)]
    pub delay_us: f64,
    /// Bandwidth of each host's link, each way, in Gbit/s
    #[arg(long, default_value_t = 10.0, value_parser = gbit)]
    pub gbit: f64,
}

/// What the process inside is told: the request, and where the files of this run are.
#[derive(Args)]
pub struct Inside {
    /// The folder of this run
    #[arg(long)]
    pub folder: PathBuf,
    /// Why there can be no namespaces
    #[arg(long)]
    pub refused: Option<String>,
    #[command(flatten)]
    pub run: Run,
}

/// A delay in microseconds: from 0 to a second.
pub fn delay_us(text: &str) -> Result<f64, String> {
    number(text, "a delay", 0.0..=1e6, "microseconds")
}

/// A bandwidth in Gbit/s, from 1 Mbit/s to what one thread cannot reach.
pub fn gbit(text: &str) -> Result<f64, String> {
    number(text, "a bandwidth", 0.001..=1000.0, "Gbit/s")
}

fn number(
    text: &str,
    what: &str,
    range: std::ops::RangeInclusive<f64>,
    unit: &str,
) -> Result<f64, String> {
    let (low, high) = (range.start(), range.end());
    let value = text.parse().ok().filter(|value| range.contains(value));
    value.ok_or_else(|| format!("{what} is a number from {low} to {high} {unit}"))
}

/// Does what the command line says; the status is the command's own where one was run.
pub fn main() -> ExitCode {
    let done = match Arguments::parse().action {
        Action::Run(run) => world::run(&run),
        Action::Attached { command } => world::attached(&command),
        Action::Inside(inside) => world::inside(&inside),
        Action::Control { request } => control::ask(&request.join(" ")).map(|answer| {
            println!("{answer}");
            0
        }),
        Action::Enter { host, command } => host::enter(&host, &command),
        Action::Agent { words } => host::agent(&words),
        Action::Measure { json } => measure::report(json),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
