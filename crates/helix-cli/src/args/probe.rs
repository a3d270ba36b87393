//! `helix probe`.

use super::{OutputArgs, TransportArgs, between};
use clap::Args;
use std::path::PathBuf;

/// `helix probe`.
#[derive(Args, Debug)]
#[command(after_help = "Takes about a minute and up to 3 GB of memory. Run it while nothing \
    else does: every figure is a median over repetitions, and their spread is printed, but a \
    neighbour that never rests is part of the machine as far as anyone can tell.\n\n\
    helix run, bench and whatever else takes --ranks choose layouts by what is written; the file is \
    also one that helix plan --hardware and helix bench --compare-plan read.\n\n\
    Under mpirun, with --transport mpi, collectives are measured between the processes that it has\n\
    started, and everything else on the machine of rank 0.\n\n\
    Example:\n  helix probe && helix run model.gguf -p 'Once upon a time' --ranks 2\n  \
    helix probe --out machine.toml && helix bench model.gguf --compare-plan machine.toml")]
pub struct ProbeArgs {
    /// The file to write [default: helix/machine.toml in the user's cache directory, where --ranks
    /// finds it]
    #[arg(long, value_name = "FILE.toml")]
    pub out: Option<PathBuf>,
    /// What reports call the machine [default: its processor and cores]
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    /// Cores to measure with [default: all that this process may use]
    #[arg(long, value_name = "N", value_parser = between(1, 1024))]
    pub cores: Option<usize>,
    #[command(flatten)]
    pub transport: TransportArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}
