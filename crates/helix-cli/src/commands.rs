//! One module per command.

mod bench;
mod chat;
mod inspect;
mod logits;
mod perplexity;
pub mod plan;
mod probe;
mod run;
mod serve;
mod verify;

use crate::args::Command;
use crate::failure::{Failure, Outcome};
use crate::processes::Ranks;
#[cfg(feature = "mpi")]
use crate::{args::Transport, supervisor};
use std::process::ExitCode;

/// Does what the user asked for, and says why if it can't.
pub fn run(command: Command) -> ExitCode {
    let Some((transport, threads)) = command.transport() else {
        return lead(command, &Ranks::Threads).map_or_else(Failure::report, |()| ExitCode::SUCCESS);
    };
    #[cfg(feature = "mpi")]
    if transport.transport == Transport::Mpi {
        match supervisor::stand_by() {
            Ok(None) => {}
            Ok(Some(status)) => return status,
            Err(failure) => return failure.report(),
        }
    }
    let ranks = match Ranks::join(transport, threads, command.terms()) {
        Ok(ranks) => ranks,
        Err(failure) => return failure.report(),
    };
    let done = match ranks.follows() {
        true => ranks.follow(command.engine()),
        false => lead(command, &ranks),
    };
    let status = done.map_or_else(Failure::report, |()| ExitCode::SUCCESS);
    #[cfg(feature = "mpi")]
    supervisor::has_concluded();
    ranks.dismiss();
    status
}

fn lead(command: Command, ranks: &Ranks) -> Outcome {
    match command {
        Command::Run(args) => run::run(args, ranks),
        Command::Serve(args) => serve::run(args, ranks),
        Command::Logits(args) => logits::run(args, ranks),
        Command::Perplexity(args) => perplexity::run(args, ranks),
        Command::Bench(args) => bench::run(args, ranks),
        Command::Inspect(args) => inspect::run(args, ranks),
        Command::Verify(args) => verify::run(args, ranks),
        Command::Plan(args) => plan::run(*args),
        Command::Probe(args) => probe::run(args, ranks),
    }
}
