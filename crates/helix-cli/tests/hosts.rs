//! Ranks on several hosts, emulated ones: the bits of threads, and the end of a run when a rank is killed, is
//! stopped, or is cut off. Where there are no namespaces the tests say so, and bits are compared over loopback;
//! `mpi.rs` has what happens to ranks there. Where there is no mpirun they pass over.
#![cfg(all(feature = "mpi", target_os = "linux"))]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use common::{file, model};
use helix_model::config::Arch;
use helix_model::synthetic::{self, Spec};

const HELIX: &str = env!("CARGO_BIN_EXE_helix");

/// One test at a time: each takes the machine's cores.
static ALONE: Mutex<()> = Mutex::new(());

/// The tool of helix-hosts, which lies beside helix once it is built.
fn hosts_tool() -> PathBuf {
    let tool = Path::new(HELIX).with_file_name("helix-hosts");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package", "helix-hosts"]);
    if tool.parent().is_some_and(|folder| folder.ends_with("release")) {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo runs").success());
    tool
}

/// What a command on the first of `hosts` gives, or over loopback, as `flags` or the system want; `None` where there
/// is no mpirun.
fn on_hosts_or_loopback(
    flags: &[&str],
    hosts: usize,
    folder: &Path,
    command: &[&str],
) -> Option<Output> {
    if Command::new("mpirun").arg("--version").output().is_err() {
        println!("passed over: there is no mpirun on the PATH");
        return None;
    }
    let mut run = Command::new(hosts_tool());
    run.arg("run").args(flags).args([&hosts.to_string(), "--"]).args(command);
    let output = run.current_dir(folder).stdin(Stdio::null()).output().expect("hosts");
    if let Some(why) = no_hosts(&output) {
        println!("{why}");
    }
    Some(output)
}

/// Why a command ran over loopback, if it did.
fn no_hosts(output: &Output) -> Option<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    errors.lines().find(|line| line.contains("no namespaces here")).map(str::to_owned)
}

/// What a command on the first of `hosts` gives; `None` where there is nothing to run it with.
fn on_hosts(hosts: usize, folder: &Path, command: &[&str]) -> Option<Output> {
    on_hosts_or_loopback(&[], hosts, folder, command).filter(|output| no_hosts(output).is_none())
}

/// Logits of 40 tokens, as bytes: a file but for its header, whose fields have no order.
fn logits(name: &str, run: impl FnOnce(&[&str]) -> Option<Output>) -> Option<Vec<u8>> {
    let out = common::directory().join(name);
    let tokens = (1..=40).map(|i| (i * 7 % 250).to_string()).collect::<Vec<_>>().join(",");
    let output = run(&["logits", model(), "--tokens", &tokens, "--out", out.to_str().unwrap()])?;
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let mut bytes = std::fs::read(out).expect("logits");
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let values = bytes.split_off(8 + header);
    assert_eq!(values.len(), 40 * 300 * 4, "all tokens, the whole vocabulary");
    Some(values)
}

/// Compares what layouts give over threads and over processes that `helix-hosts run FLAGS` starts.
fn compare(flags: &[&str], layouts: &[(usize, &str)]) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for (ranks, layout) in layouts {
        let layout: Vec<&str> = layout.split(' ').chain(["-t", "1"]).collect();
        let expected = logits("threads", |command| {
            Some(Command::new(HELIX).args(command).args(&layout).output().expect("helix runs"))
        });
        let count = ranks.to_string();
        let found = logits("processes", |command| {
            let start = ["mpirun", "-n", &count, HELIX];
            let line = [&start, command, &layout, &["--transport", "mpi"]].concat();
            on_hosts_or_loopback(flags, *ranks, common::directory(), &line)
        });
        let Some(found) = found else { return };
        assert!(Some(found) == expected, "{ranks} hosts and threads differ: {layout:?}");
    }
}

#[test]
fn hosts_give_the_bits_of_threads() {
    let layouts = [
        (2, "--kvp 2"),
        (2, "--strategy tp --tpa 2"),
        (2, "--strategy medha --kvp 2"),
        (4, "--kvp 4"),
        (4, "--kvp 2 --tpa 2"),
    ];
    compare(&[], &layouts);
}

/// As where namespaces are not permitted.
#[test]
fn loopback_gives_the_bits_of_threads() {
    compare(&["--loopback"], &[(2, "--kvp 2"), (4, "--kvp 2 --tpa 2")]);
}

/// Lines of `fault.sh`, which describes them.
fn fault(name: &str) -> Option<String> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let long = Spec { context: 1 << 16, ..Spec::tiny(Arch::Llama) };
    let model = file("long.gguf", synthetic::gguf(&long, 7));
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hosts/fault.sh");
    let tool = hosts_tool();
    let arguments = [name, HELIX, tool.to_str().unwrap(), model.to_str().unwrap(), "20"];
    let output = on_hosts(2, folder.path(), &[&["bash", script][..], &arguments].concat())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!said.contains(" runs"), "a rank is left:\n{said}");
    Some(said)
}

/// What `who` did after `status`, if that is how it ended, within the deadline of 4 s and what a machine at work takes.
fn why<'a>(said: &'a str, who: &str, status: i32) -> &'a str {
    let start = format!("{who}: status {status} after ");
    let line = said.lines().find_map(|line| line.strip_prefix(&start));
    let line = line.unwrap_or_else(|| panic!("no `{start}` in:\n{said}"));
    let (after_ms, why) = line.split_once(" ms: ").expect("a time");
    assert!(after_ms.parse::<u64>().expect("a number") < 12_000, "{line}");
    why
}

/// `rank` names `other`: in a step with the step and the collective; between steps there is none.
fn assert_gave_up(said: &str, rank: usize, other: usize) {
    let why = why(said, &format!("rank {rank}"), 1);
    let in_a_step = why.contains(&format!("rank {other} did not reach ")) && why.contains("step ");
    let between = format!("rank {other} did not let hear of itself in 4 s");
    assert!(in_a_step || why.contains(&between), "{why}");
}

/// `rank` was ended by MPI, which sees the connection end, or by its launcher: where it was is said.
fn assert_was_ended(said: &str, rank: usize) {
    let why = why(said, &format!("rank {rank}"), 1);
    assert!(why.contains(&format!("rank {rank}, step ")), "{why}");
    let other = format!("with rank {}", 1 - rank);
    let waited = why.contains(" number ") && why.contains(&other);
    let between = why.contains("between collectives") || why.contains("waited for rank 1");
    assert!(waited || between, "{why}");
}

#[test]
fn a_killed_rank_ends_the_run() {
    let Some(said) = fault("kill") else { return };
    assert_was_ended(&said, 0);
    assert_was_ended(&said, 1);
    assert!(why(&said, "rank 1", 1).contains("signal 9 SIGKILL ended this rank"), "{said}");
    why(&said, "mpirun", 1);
}

/// A rank does not outlive the process that its launcher knows.
#[test]
fn a_rank_whose_parent_is_killed_ends_with_it() {
    let Some(said) = fault("parent") else { return };
    assert!(!said.contains("outlives"), "{said}");
    assert_was_ended(&said, 0);
    why(&said, "rank 1", 137);
    let why = why(&said, "mpirun", 137);
    assert!(why.contains("process rank 1 ") && why.contains("host1"), "{why}");
}

#[test]
fn a_stopped_rank_is_named_and_ends_the_run() {
    let Some(said) = fault("stop") else { return };
    assert_gave_up(&said, 0, 1);
    why(&said, "mpirun", 1);
}

#[test]
fn a_host_that_is_cut_off_is_named_on_both_sides() {
    let Some(said) = fault("cut") else { return };
    assert_gave_up(&said, 0, 1);
    assert_gave_up(&said, 1, 0);
}
