//! Everything a change must pass, the cheapest first.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::{directions, mpi, shell, test, unsafe_homes};

type Check = (&'static str, fn() -> Result<()>);

const CHECKS: [Check; 7] = [
    ("dependency directions", directions::check),
    ("homes of raw memory access", unsafe_homes::check),
    ("licences and origins of dependencies", licences),
    ("format", || shell::run(shell::cargo().args(["fmt", "--all", "--check"]))),
    ("lints", || {
        let mut clippy = shell::cargo();
        clippy.args(["clippy", "--workspace", "--all-targets"]).args(mpi::features());
        clippy.args(["--", "--deny", "warnings"]);
        shell::run(&mut clippy)
    }),
    ("documentation", || {
        let mut doc = shell::cargo();
        doc.env("RUSTDOCFLAGS", "--deny warnings").args(["doc", "--workspace", "--no-deps"]);
        doc.args(mpi::features());
        shell::run(&mut doc)
    }),
    ("tests", || test::run(&[])),
];

/// Runs every check; stops at the first that fails.
pub fn run() -> Result<()> {
    let mut times = Vec::new();
    for (name, check) in CHECKS {
        eprintln!("\n== {name}");
        let start = Instant::now();
        check().context(name)?;
        times.push(format!("{name} {:.0} s", start.elapsed().as_secs_f64()));
    }
    eprintln!("\nall checks passed: {}", times.join(", "));
    Ok(())
}

/// Where the machine has cargo-deny: it takes minutes to install, and fetches nothing itself.
fn licences() -> Result<()> {
    let installed = shell::cargo().args(["deny", "--version"]).output();
    if !installed.is_ok_and(|output| output.status.success()) {
        eprintln!("not checked: `cargo install cargo-deny --locked` brings what checks them");
        return Ok(());
    }
    shell::run(shell::cargo().args(["deny", "check", "licenses", "bans", "sources"]))
}
