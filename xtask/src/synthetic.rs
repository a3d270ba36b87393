//! Synthetic models on disk. They are made by an example of helix-model, in release: chores depend on
//! none of our crates, and start at once.

use anyhow::{Context, Result};
use std::path::{Path, absolute};

use crate::shell;

/// Writes the shape `NAME` to `FILE`; the example says which names there are.
pub fn run(arguments: &[String]) -> Result<()> {
    let mut made = shell::cargo();
    made.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "helix-model",
        "--example",
        "synthetic",
    ]);
    made.arg("--").args(arguments.first());
    if let Some(file) = arguments.get(1) {
        // Cargo runs in the workspace's folder, we where the user is.
        made.arg(absolute(Path::new(file)).with_context(|| file.clone())?);
    }
    shell::run(&mut made)
}
