//! The one place that says how the tests are run.

use anyhow::Result;

use crate::{model, mpi, shell};

/// Where the tests find the real model; whoever has it elsewhere sets it.
const MODEL: &str = "HELIX_TEST_MODEL";

/// Runs every test of the workspace, with the real model fetched so that none skips it.
pub fn run(arguments: &[String]) -> Result<()> {
    let mut cargo = shell::cargo();
    cargo.args(["test", "--workspace"]).args(mpi::features()).args(arguments);
    if std::env::var_os(MODEL).is_none() {
        cargo.env(MODEL, model::fetch(&model::SMOLLM2)?);
    }
    shell::run(&mut cargo)
}
