//! Runs the built `helix` on small random models.
#![allow(dead_code, reason = "each test file uses its part")]

#[path = "../../../helix-engine/tests/fixtures/directories.rs"]
pub mod directories;

use helix_model::config::Arch;
use helix_model::synthetic::{self, Spec};
use serde_json::Value;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A directory for this test program's files.
pub fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<TempDir> = OnceLock::new();
    DIRECTORY.get_or_init(|| tempfile::tempdir().expect("a temporary directory")).path()
}

/// A file in it.
pub fn file(name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = directory().join(name);
    std::fs::write(&path, bytes).expect("a temporary file");
    path
}

/// The bytes of a model with 2 layers, and 6 query heads over 2 KV heads.
pub fn model_bytes() -> Vec<u8> {
    synthetic::gguf(&Spec::tiny(Arch::Llama), 7)
}

/// Its file.
pub fn model() -> &'static str {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| file("tiny.gguf", model_bytes())).to_str().expect("UTF-8")
}

/// A tiny model of the engine's tests: a Hugging Face directory.
pub fn fixture(name: &str) -> String {
    directories::path(name).into_os_string().into_string().expect("a path in UTF-8")
}

/// The command, with nothing on standard input.
pub fn helix<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_helix"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // What the user's cache holds, a profile of the machine among it, is not for tests.
    command.env("XDG_CACHE_HOME", directory());
    command
}

/// Runs `helix` with the words of `line`, in which `MODEL` stands for the model.
pub fn run(line: &str) -> Output {
    helix(words(line)).output().expect("helix runs")
}

/// As [`run`], with `input` on standard input.
pub fn run_with(line: &str, input: &str) -> Output {
    let mut child = start(line);
    let mut stdin = child.stdin.take().expect("a pipe");
    // It may have ended before it read all.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("helix ends")
}

/// Starts `helix` with pipes for all it reads and writes.
pub fn start(line: &str) -> Child {
    helix(words(line)).stdin(Stdio::piped()).spawn().expect("helix runs")
}

/// The words of a line; single quotes hold words together.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        match index % 2 {
            1 => words.push(part.to_owned()),
            _ => words.extend(part.split_whitespace().map(str::to_owned)),
        }
    }
    words.into_iter().map(|word| if word == "MODEL" { model().to_owned() } else { word }).collect()
}

/// The one document on standard output of a run that went well.
pub fn json(line: &str) -> Value {
    let output = run(&format!("{line} --json"));
    assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{line}: {error}: {}", stdout(&output)))
}

/// Standard output as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Sends Ctrl-C.
pub fn interrupt(child: &Child) {
    signal(child, "INT");
}

/// Sends a signal by its name.
pub fn signal(child: &Child, name: &str) {
    let kill = format!("kill -{name} {}", child.id());
    let status = Command::new("sh").args(["-c", &kill]).status().expect("a shell");
    assert!(status.success(), "{kill}");
}

/// The exit status, which must come soon.
pub fn status(child: &mut Child) -> Option<i32> {
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        if let Some(status) = child.try_wait().expect("a child") {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    panic!("it does not end");
}

/// A number of a document.
pub fn number(from: &Value, field: &str) -> f64 {
    from[field].as_f64().unwrap_or_else(|| panic!("{field} of {from}"))
}

/// An array of a document.
pub fn array<'a>(from: &'a Value, field: &str) -> &'a [Value] {
    from[field].as_array().unwrap_or_else(|| panic!("{field} of {from}"))
}
