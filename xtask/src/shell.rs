//! Running other programs: where the workspace is, what they are called, what a failure says.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The workspace's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Cargo itself, in the workspace: the one that runs us.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Runs a command that shows its own output; an error if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|error| explain(command, error))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs a command and returns its standard output; its standard error is shown.
pub fn read(command: &mut Command) -> Result<String> {
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|error| explain(command, error))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", shown(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of `{}`", shown(command)))
}

/// Builds the release binary and says where it is.
pub fn build_helix() -> Result<PathBuf> {
    run(cargo().args(["build", "--release", "--package", "helix-cli"]))?;
    let metadata = metadata()?;
    let target =
        metadata["target_directory"].as_str().context("cargo metadata: no target folder")?;
    Ok(Path::new(target).join("release").join(format!("helix{}", std::env::consts::EXE_SUFFIX)))
}

/// What `cargo metadata` says of the workspace's own packages.
pub fn metadata() -> Result<serde_json::Value> {
    let text = read(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    serde_json::from_str(&text).context("cargo metadata printed no JSON")
}

fn explain(command: &Command, error: std::io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy();
    if error.kind() == ErrorKind::NotFound {
        return anyhow::anyhow!("`{program}` is not installed, or not on the PATH");
    }
    anyhow::Error::from(error).context(format!("cannot start `{program}`"))
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
