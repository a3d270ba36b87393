//! Emulated hosts as their users see them. Where namespaces are not permitted, the tests say so and
//! check what is left: that the command runs.
#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

const TOOL: &str = env!("CARGO_BIN_EXE_helix-hosts");

/// One test at a time: they measure.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(arguments: &[&str]) -> Command {
    let mut command = Command::new(TOOL);
    command.arg("run").args(arguments).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a script on host0 prints; `None` where there are no namespaces.
fn on_hosts(arguments: &[&str], script: &str) -> Option<String> {
    let output = run(&[arguments, &["--", "bash", "-c", script]].concat()).output().unwrap();
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    if errors.contains("no namespaces here") {
        eprintln!("passed over: {errors}");
        return None;
    }
    Some(text(&output.stdout))
}

fn measured(arguments: &[&str]) -> Option<Value> {
    let report = on_hosts(arguments, &format!("{TOOL} measure --json"))?;
    Some(serde_json::from_str(&report).expect(&report))
}

#[test]
fn each_host_has_its_name_and_address() {
    let _alone = alone();
    let script = format!(
        "for i in 0 1 2 3; do {TOOL} enter host$i bash -c 'hostname; ip -4 -o address show eth0'; done"
    );
    let Some(printed) = on_hosts(&["4"], &script) else { return };
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 8, "{printed}");
    for host in 0..4 {
        assert_eq!(lines[2 * host], format!("host{host}"));
        assert!(lines[2 * host + 1].contains(&format!("10.77.0.{}/24", host + 1)), "{printed}");
    }
}

/// The band: a tenth of the trips at most 40 us shorter than asked, and 20 % and 60 us longer.
/// An idle machine does much better; this one may be building something at the same time.
fn assert_round_trips(arguments: &[&str], delay_us: f64) {
    let Some(report) = measured(arguments) else { return };
    for trip in report["round_trip_us"].as_array().unwrap() {
        let number = |key: &str| trip[key].as_f64().unwrap();
        assert!(number("p10") > 2.0 * delay_us - 40.0, "too short: {trip}");
        assert!(number("p10") < 2.0 * delay_us * 1.2 + 60.0, "too long: {trip}");
    }
}

#[test]
fn round_trips_take_what_was_asked() {
    let _alone = alone();
    assert_round_trips(&["2", "--delay-us", "50"], 50.0);
    assert_round_trips(&["2", "--delay-us", "500"], 500.0);
    assert_round_trips(&["4", "--delay-us", "200"], 200.0);
}

#[test]
fn no_link_exceeds_its_bandwidth() {
    let _alone = alone();
    let Some(report) = measured(&["4", "--gbit", "1", "--delay-us", "100"]) else { return };
    // Three senders at once share the cable of host0.
    for what in ["one_stream_gbit", "all_to_host0_gbit"] {
        let gbit = report[what].as_f64().unwrap();
        assert!((0.7..1.05).contains(&gbit), "{what}: {gbit}");
    }
}

/// A refused connection shows that the other host answers; a silent one runs out of time.
const PROBE: &str = "probe() { timeout 1 bash -c 'exec 3<>/dev/tcp/host1/9' 2>/dev/null; echo $?; }; \
                     ask() { \"$0\" control $* > /dev/null || exit 3; }; ";

#[test]
fn a_cut_host_is_silent_until_it_is_healed() {
    let _alone = alone();
    let script = format!("{PROBE} probe; ask cut host1; probe; ask heal host1; probe");
    let script = script.replace("\"$0\"", TOOL);
    let Some(printed) = on_hosts(&["2"], &script) else { return };
    assert_eq!(printed.split_whitespace().collect::<Vec<_>>(), ["1", "124", "1"]);
}

#[test]
fn a_cut_between_other_hosts_is_not_felt() {
    let _alone = alone();
    let script = format!("{PROBE} ask cut host2; probe; ask cut host7").replace("\"$0\"", TOOL);
    let output = run(&["3", "--", "bash", "-c", &script]).output().unwrap();
    if text(&output.stderr).contains("no namespaces here") {
        return;
    }
    assert_eq!(text(&output.stdout).trim(), "1");
    assert!(text(&output.stderr).contains("there are 3 hosts"), "{}", text(&output.stderr));
}

#[test]
fn the_status_is_the_commands() {
    let _alone = alone();
    for network in [&["2"][..], &["2", "--loopback"]] {
        let status = |script: &str| {
            let output = run(&[network, &["--", "sh", "-c", script]].concat()).output().unwrap();
            (output.status.code(), text(&output.stderr))
        };
        for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
            let (code, errors) = status(script);
            assert_eq!(code, Some(expected), "{script}: {errors}");
        }
    }
}

#[test]
fn wrong_requests_are_refused() {
    let refused = |arguments: &[&str]| {
        let Output { status, stderr, .. } = run(arguments).output().unwrap();
        assert_eq!(status.code(), Some(2), "{arguments:?}: {}", text(&stderr));
    };
    refused(&["0", "--", "true"]);
    refused(&["2"]);
    refused(&["2", "--gbit", "0", "--", "true"]);
    refused(&["2", "--delay-us", "-5", "--", "true"]);
    let outside = Command::new(TOOL).args(["control", "stats"]).output().unwrap();
    assert_eq!(outside.status.code(), Some(1));
    assert!(text(&outside.stderr).contains("not on emulated hosts"));
}

/// A run of a command that says that it started and then waits, on all hosts; `mark` tells its processes.
fn start_waiting(network: &[&str], mark: &str, temporary: &Path) -> Child {
    let waits = match network.contains(&"--loopback") {
        true => format!("echo up; exec sleep {mark}"),
        false => format!("setsid {TOOL} enter host1 sleep {mark} & echo up; exec sleep {mark}"),
    };
    let mut command = run(&[network, &["--", "bash", "-c", &waits]].concat());
    let mut child = command.env("TMPDIR", temporary).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    child
}

/// Processes that wait for `mark`, by their command lines.
fn waiting(mark: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.map(|line| text(&line)).filter(|line| line.contains(mark)).collect()
}

fn assert_gone(mark: &str) {
    let start = Instant::now();
    while !waiting(mark).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10), "left: {:?}", waiting(mark));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn folders(temporary: &Path) -> usize {
    let users = std::fs::read_dir(temporary).unwrap().flatten().map(|user| user.path());
    let runs = users.flat_map(|user| std::fs::read_dir(user).unwrap().flatten());
    runs.filter(|run| run.path().is_dir()).count()
}

#[test]
fn a_killed_run_leaves_nothing_for_the_next() {
    let _alone = alone();
    for (network, mark) in [(&["2"][..], "86401.25"), (&["2", "--loopback"], "86402.25")] {
        let temporary = tempfile::tempdir().unwrap();
        let mut killed = start_waiting(network, mark, temporary.path());
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert_gone(mark);
        // A new run makes the same hosts, and takes the folder of the old one with its own.
        let next = run(&["2", "--", "true"]).env("TMPDIR", temporary.path()).status().unwrap();
        assert!(next.success());
        assert_eq!(folders(temporary.path()), 0);
    }
}

#[test]
fn signals_end_everything() {
    let _alone = alone();
    for (signal, mark) in [("-INT", "86403.25"), ("-TERM", "86404.25")] {
        let temporary = tempfile::tempdir().unwrap();
        let mut ended = start_waiting(&["2"], mark, temporary.path());
        let kill = Command::new("kill").args([signal, &ended.id().to_string()]).status().unwrap();
        assert!(kill.success());
        assert_eq!(ended.wait().unwrap().code(), Some(128 + 15), "the command is told to end");
        assert_gone(mark);
        assert_eq!(folders(temporary.path()), 0);
    }
}

/// Whether mpirun is here; a machine without it has nothing to test.
fn has_mpirun() -> bool {
    let has = Command::new("mpirun").arg("--version").output().is_ok();
    if !has {
        eprintln!("passed over: no mpirun (Debian: apt-get install openmpi-bin)");
    }
    has
}

#[test]
fn mpirun_starts_a_rank_on_each_host() {
    let _alone = alone();
    if !has_mpirun() {
        return;
    }
    let names = |arguments: &[&str], ranks: usize| {
        let printed = on_hosts(arguments, &format!("mpirun -n {ranks} hostname"))?;
        let mut names: Vec<String> = printed.lines().map(str::to_owned).collect();
        names.sort();
        Some(names.join(" "))
    };
    let Some(two) = names(&["2"], 2) else { return };
    assert_eq!(two, "host0 host1");
    assert_eq!(names(&["4"], 4).unwrap(), "host0 host1 host2 host3");
    assert_eq!(names(&["2", "--slots", "2"], 4).unwrap(), "host0 host0 host1 host1");
}

#[test]
fn mpirun_over_loopback_has_all_ranks_here() {
    let _alone = alone();
    if has_mpirun() {
        let command = ["--", "mpirun", "-n", "4", "echo", "rank"];
        let output = run(&[&["4", "--loopback"][..], &command].concat()).output().unwrap();
        assert_eq!(text(&output.stdout), "rank\n".repeat(4), "{}", text(&output.stderr));
    }
}
