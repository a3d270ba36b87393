//! A client of `helix serve`.
#![allow(dead_code, reason = "each test file uses its part")]

use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr};
use std::time::Duration;

/// A server that has said where it is.
pub struct Served {
    pub child: Child,
    url: String,
    /// What it said on standard error until then.
    pub said: String,
    rest: BufReader<ChildStderr>,
}

impl Served {
    /// Waits until `child`, which is or launches `helix serve --port 0`, says where.
    pub fn new(mut child: Child) -> Served {
        let mut rest = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut said = String::new();
        loop {
            let before = said.len();
            assert!(rest.read_line(&mut said).expect("text") > 0, "it does not serve: {said}");
            if let Some((_, url)) = said[before..].split_once(" at http://") {
                let url = format!("http://{}", url.trim_end().trim_end_matches("/v1"));
                return Served { child, url, said, rest };
            }
        }
    }

    /// What it said since.
    pub fn words(&mut self) -> String {
        let mut text = String::new();
        self.rest.read_to_string(&mut text).expect("text");
        text
    }

    /// An answer that is yet to be read.
    pub fn send(&self, path: &str, body: &Value) -> ureq::http::Response<ureq::Body> {
        let url = format!("{}{path}", self.url);
        agent().post(url).send(body.to_string()).expect("an answer")
    }

    /// The status and the document of an answer.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        read(self.send(path, body))
    }

    /// As [`Served::post`], without a body.
    pub fn get(&self, path: &str) -> (u16, Value) {
        read(agent().get(format!("{}{path}", self.url)).call().expect("an answer"))
    }
}

fn read(mut response: ureq::http::Response<ureq::Body>) -> (u16, Value) {
    let text = response.body_mut().read_to_string().expect("text");
    let document = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    (response.status().as_u16(), document)
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(Duration::from_secs(60))).build().into()
}
