//! One module per command.

mod bench;
mod chat;
mod inspect;
mod logits;
mod perplexity;
mod probe;
mod run;
mod verify;

use crate::args::Command;
use crate::failure::Outcome;

/// Does what the user asked for.
pub fn run(command: Command) -> Outcome {
    match command {
        Command::Run(args) => run::run(args),
        Command::Logits(args) => logits::run(args),
        Command::Perplexity(args) => perplexity::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Probe(args) => probe::run(args),
    }
}
