//! Chats, Ctrl-C and closed pipes.
#![cfg(unix)]

mod common;

use common::{interrupt, run_with, start, status, stderr, stdout};
use std::io::{Read, Write};
use std::process::Child;

/// Generates for as long as nobody stops it.
const ENDLESS: &str = "--ignore-eos -n 1000000 -c 1000000";

/// Waits until something is on standard output.
fn first_words(child: &mut Child) {
    let mut bytes = [0; 16];
    let out = child.stdout.as_mut().expect("a pipe");
    assert!(out.read(&mut bytes).expect("a pipe") > 0, "it said nothing");
}

fn complaints(mut child: Child) -> String {
    let mut text = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut text).expect("UTF-8");
    text
}

/// Reads what a child says so that it is never blocked by a full pipe.
fn drain(child: &mut Child) {
    let mut out = child.stdout.take().expect("a pipe");
    std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
}

#[test]
fn ctrl_c_stops_a_text_and_prints_the_summary() {
    let mut child = start(&format!("run MODEL -p hello {ENDLESS}"));
    first_words(&mut child);
    interrupt(&child);
    drain(&mut child);
    assert_eq!(status(&mut child), Some(0));
    let text = complaints(child);
    assert!(text.contains("(interrupted)"), "{text}");
}

#[test]
fn ctrl_c_in_a_chat_returns_to_the_prompt_and_there_ends_it() {
    let mut child = start(&format!("run MODEL -i {ENDLESS}"));
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"hello\n").expect("a pipe");
    first_words(&mut child);
    interrupt(&child);
    drain(&mut child);
    // It reads on: a command that it answers, and then the end.
    input.write_all(b"/help\n/exit\n").expect("a pipe");
    assert_eq!(status(&mut child), Some(0));
    let text = complaints(child);
    assert!(text.contains("(interrupted)") && text.contains("/system TEXT"), "{text}");

    let mut child = start("run MODEL -i -n 4 --ignore-eos");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"hello\n").expect("a pipe");
    let mut bytes = [0; 1];
    let out = child.stdout.as_mut().expect("a pipe");
    while bytes[0] != b'\n' {
        out.read_exact(&mut bytes).expect("an answer");
    }
    interrupt(&child);
    assert_eq!(status(&mut child), Some(130));
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let mut child = start(&format!("run MODEL -p hello {ENDLESS}"));
    first_words(&mut child);
    drop(child.stdout.take());
    assert_eq!(status(&mut child), Some(0));
    let text = complaints(child);
    assert!(!text.contains("panicked") && !text.contains("error"), "{text}");
}

#[test]
fn chats_run_from_a_script() {
    let script = "hello\n\n/system be terse\nhello\n/clear\nhello\n/nonsense\n/help\n";
    let output = run_with("run MODEL -i -n 6 --ignore-eos", script);
    let (said, noted) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(0), "{noted}");
    assert!(said.lines().count() >= 3, "three answers:\n{said}");
    assert!(noted.contains("there is no /nonsense") && noted.contains("/exit"), "{noted}");
    assert_eq!(noted.matches("[6 tokens (-n)").count(), 3, "{noted}");
}

#[test]
fn a_chat_runs_only_what_is_new() {
    let output = run_with("run MODEL -i -n 2 --ignore-eos", "hello\nhello\n");
    let noted = stderr(&output);
    let prompt = |line: &str| -> usize {
        let (before, _) = line.split_once(" prompt tokens").expect("a summary");
        before.rsplit('(').next().and_then(|n| n.parse().ok()).expect("a number")
    };
    let counts: Vec<usize> =
        noted.lines().filter(|line| line.contains("prompt tokens")).map(prompt).collect();
    assert_eq!(counts.len(), 2, "{noted}");
    // The second prompt holds the first and more, of which the cache has what was said.
    assert!(counts[1] < 2 * counts[0], "{counts:?}");
}

#[test]
fn a_chat_goes_on_after_a_message_that_does_not_fit() {
    let script = format!("{}\nhi\n", "long ".repeat(100));
    let output = run_with("run MODEL -i -n 2 -c 60 --ignore-eos", &script);
    let noted = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{noted}");
    assert!(noted.contains("past the context of 60"), "{noted}");
    assert!(noted.contains("2 tokens"), "{noted}");
}
