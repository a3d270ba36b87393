//! The project's own chores: `cargo x demo | test | arm | ci | model | synthetic |
//! hosts | fixtures | paper | bench`.
#![forbid(unsafe_code)]

mod arm;
mod ci;
mod demo;
mod directions;
mod hosts;
mod model;
mod mpi;
mod python;
mod shell;
mod synthetic;
mod test;
mod unsafe_homes;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo x", about = "The project's own chores")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Fetches a small model, decodes it over 2 ranks and shows what each of them held and read
    Demo,
    /// Runs every test of the workspace; what follows goes to `cargo test`
    Test {
        /// Arguments of `cargo test`, such as `-p helix-engine` or a test's name
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs the kernels' tests, and the engine's that matter, for 64-bit Arm under emulation
    Arm {
        /// Arguments of `cargo test` to run in place of these, such as `-p helix-engine --test exact`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Everything a change must pass: format, lints, docs, dependency directions, tests
    Ci,
    /// Fetches a model into the user's cache directory and prints where it is
    Model {
        /// One of the names that `cargo x model` lists when the name is unknown
        #[arg(default_value = model::SMOLLM2.name)]
        name: String,
    },
    /// Writes a model of random weights and a real shape, for benches; without names it lists them
    Synthetic {
        /// The shape's name, and the .gguf file to write
        #[arg(value_names = ["NAME", "FILE"], num_args = 0..=2)]
        arguments: Vec<String>,
    },
    /// Runs a command on emulated hosts: `cargo x hosts 2 --delay-us 50 --gbit 10 -- mpirun -n 2 ...`
    Hosts {
        /// Arguments of `helix-hosts run`; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Makes the committed test fixtures again (Python, torch and transformers: some gigabytes)
    Fixtures(python::Interpreter),
    /// Computes the paper's evaluation again and writes docs/paper.md
    Paper,
    /// Measures Helix beside llama.cpp; what follows `--` goes to bench/vs_llama.py
    Bench {
        #[command(flatten)]
        python: python::Interpreter,
        /// Arguments of bench/vs_llama.py
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().chore {
        Chore::Demo => demo::run(),
        Chore::Test { arguments } => test::run(&arguments),
        Chore::Arm { arguments } => match arm::run(&arguments) {
            Ok(status) => return status,
            Err(error) => Err(error),
        },
        Chore::Ci => ci::run(),
        Chore::Model { name } => {
            model::fetch_named(&name).map(|path| println!("{}", path.display()))
        }
        Chore::Synthetic { arguments } => synthetic::run(&arguments),
        Chore::Hosts { arguments } => match hosts::run(&arguments) {
            Ok(status) => return status,
            Err(error) => Err(error),
        },
        Chore::Fixtures(python) => python.fixtures(),
        Chore::Paper => paper(),
        Chore::Bench { python, arguments } => python.bench(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The planner is no part of this program, so it is run.
fn paper() -> anyhow::Result<()> {
    let run = ["run", "--quiet", "--package", "helix-plan", "--example", "paper", "docs/paper.md"];
    shell::run(shell::cargo().args(run))
}
