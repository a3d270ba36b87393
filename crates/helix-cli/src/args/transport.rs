//! How ranks come to be, and how they speak.

use clap::{Args, ValueEnum};
use std::time::Duration;

/// Threads of one process, or processes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Transport")]
pub struct TransportArgs {
    /// What ranks are: threads of this process, or processes that mpirun, srun or another launcher
    /// has started, of which rank 0 reads and prints
    #[arg(long, value_name = "HOW", default_value = "threads")]
    pub transport: Transport,
    /// Seconds that a rank waits for another before it gives up
    #[arg(long, value_name = "S", default_value = "30", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    comm_timeout: u64,
    /// Of ranks that are processes: a thread that moves messages while the rank computes. auto: on
    /// where -t leaves a processor free for it, off where none is
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub comm_thread: CommThreadArg,
}

/// What ranks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// Threads of one process
    Threads,
    /// Processes, over MPI
    Mpi,
}

/// Who moves messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CommThreadArg {
    /// On where a processor is free for it
    Auto,
    /// A thread that never naps
    On,
    /// A thread that naps
    Nap,
    /// No thread
    Off,
}

impl TransportArgs {
    /// How long a rank waits.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.comm_timeout)
    }
}
