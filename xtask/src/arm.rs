//! The kernels' and the engine's tests as 64-bit Arm code, on emulated processors.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Result, ensure};

use crate::shell;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";
/// Where Debian's cross compiler has the libraries that a test loads.
const LIBRARIES: &str = "/usr/aarch64-linux-gnu";

/// Processors to emulate, and the strongest instruction set that must be found on each: one without
/// dot products, and one with all that the emulator knows.
const PROCESSORS: [(&str, &str); 2] = [("cortex-a72", "neon"), ("max", "neon-dot")];

/// Arguments of `cargo test`: all of the kernels' tests, and of the engine's those that end within
/// minutes and say most: logits of transformers, and equal bits on every instruction set.
const TESTS: [&[&str]; 4] = [
    &["-p", "helix-kernels"],
    &["-p", "helix-engine", "--test", "transformers", "logits_match_on_one_rank"],
    &["-p", "helix-engine", "--test", "huggingface", "every_fixture_on_one_rank"],
    &["-p", "helix-engine", "--test", "instruction_sets"],
];

/// Runs the tests, or `cargo test` with `arguments` if there are any; status 2 where something that
/// they need is missing.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let missing = missing()?;
    if !missing.is_empty() {
        eprintln!("error: not on this machine: {}", missing.join("; "));
        return Ok(ExitCode::from(2));
    }
    for (processor, strongest) in PROCESSORS {
        let isa = ["run", "--quiet", "-p", "helix-kernels", "--example", "isa"];
        let found = shell::read(cargo(processor).args(isa).args(["--target", TARGET]))?;
        let found = found.trim();
        ensure!(found == strongest, "{processor} has {found}, not {strongest}");
        eprintln!("\n== {processor}: {found}");
        if arguments.is_empty() {
            for tests in TESTS {
                shell::run(cargo(processor).args(["test", "--target", TARGET]).args(tests))?;
            }
        } else {
            shell::run(cargo(processor).args(["test", "--target", TARGET]).args(arguments))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Cargo that links for the target and runs what it built on an emulated `processor`.
fn cargo(processor: &str) -> Command {
    let variable =
        |name| format!("CARGO_TARGET_{}_{name}", TARGET.to_uppercase().replace('-', "_"));
    let mut cargo = shell::cargo();
    cargo.env(variable("LINKER"), LINKER);
    cargo.env(variable("RUNNER"), format!("{EMULATOR} -cpu {processor} -L {LIBRARIES}"));
    cargo
}

/// What is not there, each with how to get it.
fn missing() -> Result<Vec<String>> {
    let mut missing = Vec::new();
    let libdir =
        shell::read(Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]))?;
    if !Path::new(libdir.trim()).is_dir() {
        missing.push(format!("Rust's library for {TARGET} (rustup target add {TARGET})"));
    }
    if !starts(LINKER) || !Path::new(LIBRARIES).is_dir() {
        missing.push(format!("{LINKER} (apt install gcc-aarch64-linux-gnu)"));
    }
    if !starts(EMULATOR) {
        missing.push(format!("{EMULATOR} (apt install qemu-user)"));
    }
    Ok(missing)
}

fn starts(program: &str) -> bool {
    let status = Command::new(program).arg("--version").stdout(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
