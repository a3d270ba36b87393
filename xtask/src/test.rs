//! The one place that says how the tests are run.

use std::process::Command;

use anyhow::Result;

use crate::{model, shell};

/// Where the tests find the real model; whoever has it elsewhere sets it.
const MODEL: &str = "HELIX_TEST_MODEL";

/// Runs every test of the workspace, with the real model fetched so that none skips it.
pub fn run(arguments: &[String]) -> Result<()> {
    let mut cargo = shell::cargo();
    cargo.args(["test", "--workspace"]).args(features()).args(arguments);
    if std::env::var_os(MODEL).is_none() {
        cargo.env(MODEL, model::fetch(&model::SMOLLM2)?);
    }
    shell::run(&mut cargo)
}

/// What cargo is told besides: ranks as processes are built where MPI can be.
pub fn features() -> &'static [&'static str] {
    if Command::new("mpicc").arg("-show").output().is_ok() {
        return &["--features", "helix-cli/mpi"];
    }
    eprintln!("without MPI: there is no mpicc (Debian: apt-get install libopenmpi-dev)");
    &[]
}
