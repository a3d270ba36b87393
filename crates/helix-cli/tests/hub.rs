//! `hf:ORG/NAME`: downloads from a server with the Hub's API shape, its cache, and what is said
//! where there is no network.
#![cfg(feature = "hub")]

mod common;

use common::{fixture, helix, stderr, stdout};
use socket2::{Domain, Socket, Type};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A Hub with one model, `tiny/model`: a fixture, and files that nobody needs.
struct Hub {
    endpoint: String,
    /// Lines of requests.
    requests: Arc<Mutex<Vec<String>>>,
}

/// How the Hub serves a file of weights.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Serving {
    Whole,
    /// The connection ends in the middle.
    Cut,
    /// It stays open in the middle, and nothing more comes.
    Stalled,
}

impl Hub {
    fn start(name: &str, serving: Serving) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(fixture(name))
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, std::fs::read(entry.path()).unwrap())
            })
            .collect();
        for name in ["pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors"] {
            files.push((name.to_owned(), vec![0; 1000]));
        }
        let (files, log) = (Arc::new(files), Arc::clone(&requests));
        // Ends with the test program.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, log) = (Arc::clone(&files), Arc::clone(&log));
                thread::spawn(move || answer(stream, &files, serving, &log));
            }
        });
        Hub { endpoint, requests }
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

fn answer(
    stream: TcpStream,
    files: &[(String, Vec<u8>)],
    serving: Serving,
    log: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    log.lock().unwrap().push(format!("{method} {path}"));
    let path = path.split('?').next().unwrap_or("");
    let tree = || {
        let entry = |(path, bytes): &(String, Vec<u8>)| {
            let size = bytes.len();
            format!(r#"{{"type": "file", "oid": "{path}", "size": {size}, "path": "{path}"}}"#)
        };
        format!("[{}]", files.iter().map(entry).collect::<Vec<_>>().join(","))
    };
    let revision = |rev: &str| path == format!("/api/models/tiny/model/revision/{rev}");
    let found = if revision("main") || revision(COMMIT) || revision("v1") {
        Some(("x".to_owned(), format!(r#"{{"id": "tiny/model", "sha": "{COMMIT}"}}"#).into_bytes()))
    } else if path == format!("/api/models/tiny/model/tree/{COMMIT}") {
        Some(("x".to_owned(), tree().into_bytes()))
    } else {
        let name = path.strip_prefix(&format!("/tiny/model/resolve/{COMMIT}/"));
        files.iter().find(|(file, _)| Some(file.as_str()) == name).cloned()
    };
    let mut out = &stream;
    let Some((name, body)) = found else {
        let text = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        return out.write_all(text.as_bytes());
    };
    let (tag, size) = (name.replace('/', "-"), body.len());
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nETag: \"{tag}\"\r\nX-Repo-Commit: {COMMIT}\
         \r\nConnection: close\r\n\r\n"
    );
    out.write_all(head.as_bytes())?;
    let whole = serving == Serving::Whole || !name.ends_with(".safetensors");
    let sent = if whole { size } else { size / 2 };
    out.write_all(if method == "HEAD" { &[] } else { &body[..sent] })?;
    if !whole && serving == Serving::Stalled && method != "HEAD" {
        loop {
            thread::park(); // with the connection open
        }
    }
    Ok(())
}

/// An address of this machine where nobody listens.
fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// `helix` with a cache and a Hub of its own.
fn command(arguments: &[&str], endpoint: &str, home: &Path) -> Command {
    let mut command = helix(arguments);
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HTTP_PROXY", "http_proxy"] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", endpoint).env("HF_HOME", home).env("NO_PROXY", "127.0.0.1");
    command
}

fn run(arguments: &[&str], endpoint: &str, home: &Path, offline: bool) -> Output {
    let mut command = command(arguments, endpoint, home);
    command.env("HF_HUB_OFFLINE", if offline { "1" } else { "0" }).output().unwrap()
}

/// Runs with a Hub that may be silent for seconds only.
fn run_impatient(endpoint: &str, home: &Path) -> Output {
    let mut command = command(&RUN, endpoint, home);
    command.env("HF_HUB_ETAG_TIMEOUT", ANSWER_S).env("HF_HUB_DOWNLOAD_TIMEOUT", BYTES_S);
    command.env("HF_HUB_OFFLINE", "0").output().unwrap()
}

/// How long it may then be silent.
const ANSWER_S: &str = "4";
const BYTES_S: &str = "5";

const RUN: [&str; 8] = ["run", "hf:tiny/model", "-p", "hello", "-n", "4", "--ignore-eos", "--json"];

fn home() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn refused(output: &Output, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(output.stdout.is_empty() && !text.contains("panicked"), "{output:?}");
    for word in words {
        assert!(text.contains(word), "{word:?} in {text}");
    }
}

#[test]
fn models_are_downloaded_once_and_cached_snapshots_serve_offline() {
    for name in ["llama3", "gpt-oss"] {
        let (hub, home) = (Hub::start(name, Serving::Whole), home());
        let first = run(&RUN, &hub.endpoint, home.path(), false);
        assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
        let local = fixture(name);
        let mut arguments = RUN;
        arguments[1] = &local;
        let expected = run(&arguments, &nowhere(), home.path(), false);
        let tokens = |output: &Output| {
            let document: serde_json::Value = serde_json::from_str(&stdout(output)).unwrap();
            document["tokens"].clone()
        };
        assert_eq!(tokens(&first), tokens(&expected), "{name}");
        let asked = hub.requests();
        assert!(asked.iter().any(|line| line.ends_with("tokenizer.json")), "{asked:?}");
        for useless in ["pytorch_model.bin", "consolidated", "onnx"] {
            assert!(!asked.iter().any(|line| line.contains(useless)), "{useless} of {asked:?}");
        }

        let again = run(&RUN, &hub.endpoint, home.path(), false);
        assert_eq!(tokens(&again), tokens(&first));
        let asked = hub.requests();
        assert!(!asked.iter().any(|line| line.contains("/resolve/")), "{asked:?}");

        let unreachable = run(&RUN, &nowhere(), home.path(), false);
        assert_eq!(tokens(&unreachable), tokens(&first), "{}", stderr(&unreachable));
        assert!(stderr(&unreachable).contains("is out of reach"), "{}", stderr(&unreachable));
    }
}

#[test]
fn revisions_are_asked_for_and_cached_commits_are_not() {
    let (hub, home) = (Hub::start("qwen3", Serving::Whole), home());
    let inspect = |revision: &str| {
        let model = format!("hf:tiny/model@{revision}");
        run(&["inspect", &model, "-q"], &hub.endpoint, home.path(), false)
    };
    assert_eq!(inspect("v1").status.code(), Some(0));
    assert!(hub.requests().iter().any(|line| line.ends_with("/revision/v1")));
    assert_eq!(inspect(COMMIT).status.code(), Some(0));
    assert_eq!(hub.requests(), [""; 0], "the commit is in the cache");
    refused(&inspect("v2"), &["shows no hf:tiny/model@v2", "HF_TOKEN"]);
    let other = run(&["inspect", "hf:tiny/other"], &hub.endpoint, home.path(), false);
    refused(&other, &["shows no hf:tiny/other", "check the name"]);
}

#[test]
fn without_network_it_says_what_it_tried_and_what_to_do() {
    let home = home();
    let endpoint = nowhere();
    let output = run(&RUN, &endpoint, home.path(), false);
    let path = home.path().to_string_lossy();
    let help = ["give its directory as MODEL", "models--tiny--model", "HF_HOME", "is cached in"];
    refused(&output, &help);
    refused(&output, &[&endpoint, "/api/models/tiny/model/revision/main", &path]);
    let offline = run(&RUN, &endpoint, home.path(), true);
    refused(&offline, &["HF_HUB_OFFLINE", "give its directory as MODEL"]);
}

#[test]
fn a_download_that_ends_early_leaves_no_model() {
    let (hub, home) = (Hub::start("mistral", Serving::Cut), home());
    let output = run(&RUN, &hub.endpoint, home.path(), false);
    refused(&output, &["lacks model.safetensors"]);
    let offline = run(&RUN, &hub.endpoint, home.path(), true);
    refused(&offline, &["lacks model.safetensors"]);
    let whole = Hub::start("mistral", Serving::Whole);
    let output = run(&RUN, &whole.endpoint, home.path(), false);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

/// Runs with a Hub that is silent, and says so within the time it may be and some seconds.
fn silent(endpoint: &str, home: &Path, limit: &str, words: &[&str]) {
    let start = Instant::now();
    refused(&run_impatient(endpoint, home), words);
    let (taken, limit) = (start.elapsed().as_secs_f64(), limit.parse::<f64>().unwrap());
    assert!(taken >= limit && taken < limit + 20.0, "{taken} s");
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let home = home();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let open = thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    let words = [&endpoint, "has not answered for 4 s", "give its directory as MODEL"];
    silent(&endpoint, home.path(), ANSWER_S, &words);
    assert!(!open.is_finished(), "it accepts");
}

/// A port of this machine that leaves requests for a connection without any answer, as a network
/// does that drops packets: as many wait there as may.
#[test]
fn an_address_that_drops_connections_is_given_up() {
    let home = home();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(1));
    let waiting: Vec<_> = std::iter::from_fn(|| connect().ok()).take(64).collect();
    assert!(waiting.len() < 64 && connect().is_err(), "{address} drops");
    let endpoint = format!("http://{address}");
    silent(&endpoint, home.path(), ANSWER_S, &[&endpoint, "has not answered for 4 s"]);
}

#[test]
fn a_download_that_stalls_is_given_up_and_a_cached_model_serves() {
    let (hub, home) = (Hub::start("mistral", Serving::Stalled), home());
    let words = ["has sent nothing for 5 s", "lacks model.safetensors"];
    silent(&hub.endpoint, home.path(), BYTES_S, &words);
    let whole = Hub::start("mistral", Serving::Whole);
    let output = run(&RUN, &whole.endpoint, home.path(), false);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap(); // never accepts
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let cached = run_impatient(&endpoint, home.path());
    assert_eq!(cached.status.code(), Some(0), "{}", stderr(&cached));
    let tokens = |output: &Output| {
        let document: serde_json::Value = serde_json::from_str(&stdout(output)).unwrap();
        document["tokens"].clone()
    };
    assert_eq!(tokens(&cached), tokens(&output));
    assert!(stderr(&cached).contains("has not answered for 4 s, so that it is out of reach"));
}

#[test]
fn times_that_are_none_are_refused() {
    for time in ["", "soon", "0", "-1", "nan", "inf", "1e30"] {
        let home = home();
        let mut command = command(&RUN, &nowhere(), home.path());
        command.env("HF_HUB_OFFLINE", "0").env("HF_HUB_ETAG_TIMEOUT", time);
        refused(&command.output().unwrap(), &["HF_HUB_ETAG_TIMEOUT", "a number of seconds"]);
    }
}

#[test]
fn names_that_are_none_are_refused() {
    let home = home();
    for name in ["hf:", "hf:gpt2", "hf:a/b/c", "hf:../../etc", "hf:a/b@", "hf:a/b@../x"] {
        let output = run(&["inspect", name], &nowhere(), home.path(), false);
        refused(&output, &["names no model of the Hub", "hf:ORG/NAME"]);
    }
}
