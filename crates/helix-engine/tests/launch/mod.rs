//! Starts programs as MPI processes, and never waits for them for ever.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Names a launcher other than `mpirun`, as where several MPIs are installed: `mpirun.mpich`.
const LAUNCHER: &str = "HELIX_MPIRUN";

fn name() -> String {
    std::env::var(LAUNCHER).unwrap_or_else(|_| "mpirun".to_owned())
}

/// What the launcher says of itself.
fn version() -> Option<String> {
    match Command::new(name()).arg("--version").output() {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) => {
            assert!(std::env::var_os(LAUNCHER).is_none(), "{LAUNCHER}={}: {error}", name());
            println!("skipped: there is no mpirun on the PATH");
            None
        }
    }
}

/// Whether the launcher is MPICH's Hydra, which ends all ranks without a word when one was killed.
pub fn is_hydra() -> bool {
    version().is_some_and(|version| version.contains("HYDRA"))
}

/// A launcher of `processes` processes of this machine; `None`, said in one line, where there is
/// none. One that was named has to be there.
pub fn mpirun(processes: usize) -> Option<Command> {
    version()?;
    let mut command = Command::new(name());
    command.args(["-n", &processes.to_string()]);
    // More processes than cores, as whoever tests: Open MPI asks to be told. Others don't mind.
    let settings = [
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ("OMPI_MCA_hwloc_base_binding_policy", "none"),
        ("OMPI_MCA_mpi_yield_when_idle", "1"),
    ];
    command.envs(settings).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(command)
}

/// Says to a test's process that it is a rank.
const MEMBER: &str = "HELIX_TEST_RANK";

/// Whether this process is a rank that [`this_test`] has started.
pub fn is_rank() -> bool {
    std::env::var_os(MEMBER).is_some()
}

/// The named test of this program as `processes` ranks.
pub fn this_test(name: &str, processes: usize) -> Option<Command> {
    let mut command = mpirun(processes)?;
    let program = std::env::current_exe().expect("this program");
    command.arg(Path::new(&program)).args(["--exact", name, "--nocapture"]).env(MEMBER, "1");
    Some(command)
}

/// Waits for a program; kills it, and fails, after `limit`.
pub fn within(mut child: Child, limit: Duration) -> Output {
    let end = Instant::now() + limit;
    // Its output is read beside it: a full pipe would hold it up.
    let mut out = child.stdout.take().expect("a pipe");
    let mut err = child.stderr.take().expect("a pipe");
    let read = |from: &mut dyn std::io::Read| {
        let mut text = Vec::new();
        let _ = from.read_to_end(&mut text);
        text
    };
    std::thread::scope(|scope| {
        let stdout = scope.spawn(|| read(&mut out));
        let stderr = scope.spawn(|| read(&mut err));
        let mut status = None;
        while status.is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
            status = child.try_wait().expect("a status");
        }
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let (stdout, stderr) = (stdout.join().expect("text"), stderr.join().expect("text"));
        let status = status.unwrap_or_else(|| {
            let text = String::from_utf8_lossy(&stderr);
            panic!("it did not end in {limit:?}: {text}")
        });
        Output { status, stdout, stderr }
    })
}

/// Runs the named test as `processes` ranks, and fails if one of them does.
pub fn pass_as_ranks(name: &str, processes: usize, limit: Duration) {
    let Some(mut command) = this_test(name, processes) else { return };
    let output = within(command.spawn().expect("mpirun starts"), limit);
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    assert!(out.contains("test result: ok. 1 passed"), "{out}\n{err}");
}
