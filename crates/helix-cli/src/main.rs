//! The `helix` command: the only crate that reads flags and the environment, or prints.
#![forbid(unsafe_code)]

mod args;
mod bandwidth;
mod commands;
mod console;
mod failure;
mod figures;
mod generate;
mod hardware;
mod host;
#[cfg(feature = "hub")]
mod hub;
mod interrupt;
mod location;
mod output;
mod planning;
mod processes;
mod ranks;
mod setup;
#[cfg(feature = "mpi")]
mod supervisor;
mod trace;
mod whole_file;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            let _ = usage.print();
            return ExitCode::from(if usage.use_stderr() { 2 } else { 0 });
        }
    };
    commands::run(cli.command)
}
