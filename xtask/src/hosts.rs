//! Emulated hosts: a crate of its own, built when it is wanted, so that other chores start at once.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::shell;

/// Builds the tool and runs it where the user is; its status is that of the command on the hosts.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    shell::run(shell::cargo().args(["build", "--quiet", "--package", "helix-hosts"]))?;
    let metadata = shell::metadata()?;
    let target = metadata["target_directory"].as_str().context("no target folder")?;
    let mut hosts = Command::new(Path::new(target).join("debug").join("helix-hosts"));
    let status = hosts.arg("run").args(arguments).status().context("cannot start helix-hosts")?;
    Ok(ExitCode::from(status.code().unwrap_or(1) as u8))
}
