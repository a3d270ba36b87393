//! Whether what needs MPI can be built here.

use std::process::{Command, Stdio};

/// Cargo's flags for it: none, said in one line, where MPI's compiler is not on the PATH.
pub fn features() -> &'static [&'static str] {
    let mut mpicc = Command::new("mpicc");
    let there = mpicc.arg("-show").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        return &["--features", "helix-cli/mpi"];
    }
    eprintln!(
        "without MPI: there is no mpicc on the PATH (libopenmpi-dev, openmpi-bin, libclang-dev)"
    );
    &[]
}
