//! A server on a small random model, a client, and the engine alone for what the server must say.
#![allow(dead_code, reason = "each test file uses its part")]

use helix_engine::{Engine, EngineOptions, sampler};
use helix_layout::{Layout, LayoutSpec, Strategy};
use helix_model::synthetic::{Spec, gguf};
use helix_model::{Arch, Message, Model, Tokenizer};
use helix_scheduler::{Step, Wanted};
use helix_server::{Handle, Listener, Served, Server, ServerError};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What clients call the model.
pub const NAME: &str = "tiny";
/// Longer than any test: for texts that do not end.
pub const CONTEXT: usize = 1 << 17;

/// 2 layers, 300 tokens; every byte is one of them.
pub fn model() -> Arc<Model> {
    let spec = Spec { context: CONTEXT, ..Spec::tiny(Arch::Llama) };
    Arc::new(Model::from_gguf_bytes(gguf(&spec, 7)).expect("a model"))
}

/// Room for so many sequences.
pub fn options(sequences: usize) -> EngineOptions {
    EngineOptions {
        max_context: CONTEXT,
        max_sequences: sequences,
        max_step_tokens: 16,
        max_logits: sequences,
        ..EngineOptions::default()
    }
}

/// The model over `kvp` shards of the sequence.
pub fn engine(kvp: usize, options: EngineOptions) -> Engine {
    let model = model();
    let layout = Layout::new(&model.shape(), LayoutSpec::new(Strategy::Helix, kvp, 1));
    Engine::new(model, layout.expect("a layout"), options, &|_| {}).expect("an engine")
}

/// A server that runs in a thread of its own, and is drained when it is dropped.
pub struct Running {
    pub url: String,
    pub handle: Handle,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

/// Serves an engine that `make` makes, so that it need not change threads.
pub fn serve(max_waiting: usize, make: impl FnOnce() -> Engine + Send + 'static) -> Running {
    serve_text_of(model, max_waiting, make)
}

/// As [`serve`], with the tokenizer and the template of another model.
pub fn serve_text_of(
    model: fn() -> Arc<Model>,
    max_waiting: usize,
    make: impl FnOnce() -> Engine + Send + 'static,
) -> Running {
    let listener = Listener::bind("127.0.0.1", 0).expect("a port");
    let url = format!("http://{}", listener.address().expect("an address"));
    let (send, receive) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let model = model();
        let served = Served {
            name: NAME.into(),
            tokenizer: model.tokenizer().expect("a tokenizer"),
            template: model.chat_template().expect("a template"),
            max_waiting,
        };
        let server = Server::start(listener, make(), served)?;
        send.send(server.handle()).expect("the test waits");
        server.run()
    });
    let handle = receive.recv().expect("the server starts");
    Running { url, handle, thread: Some(thread) }
}

/// A server for so many sequences and waiting requests.
pub fn server(sequences: usize, max_waiting: usize) -> Running {
    serve(max_waiting, move || engine(1, options(sequences)))
}

impl Running {
    /// How the server ended.
    pub fn end(mut self) -> Result<(), ServerError> {
        self.thread.take().expect("it has not ended").join().expect("no panic")
    }

    /// The status and the document of an answer.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.post_bytes(path, body.to_string().as_bytes());
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    /// The status and the text of an answer.
    pub fn post_bytes(&self, path: &str, body: &[u8]) -> (u16, String) {
        let mut response = self.send(path, body);
        let text = response.body_mut().read_to_string().expect("text");
        (response.status().as_u16(), text)
    }

    /// An answer that is yet to be read.
    pub fn send(&self, path: &str, body: &[u8]) -> ureq::http::Response<ureq::Body> {
        let url = format!("{}{path}", self.url);
        // A connection of its own: that it is dropped closes it.
        agent().post(&url).send(body).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        let mut response = agent().get(format!("{}{path}", self.url)).call().expect("an answer");
        let text = response.body_mut().read_to_string().expect("text");
        (response.status().as_u16(), text)
    }

    /// An answer that went well.
    pub fn complete(&self, path: &str, body: &Value) -> Value {
        let (status, document) = self.post(path, body);
        assert_eq!(status, 200, "{document}");
        document
    }

    /// The pieces of a stream.
    pub fn stream(&self, path: &str, body: &Value) -> Pieces {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let response = self.send(path, body.to_string().as_bytes());
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Pieces(BufReader::new(Box::new(response.into_body().into_reader())))
    }

    /// A number that the server publishes.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{name} in {text}"))
    }

    /// Waits until a number is so.
    pub fn wait_for(&self, name: &str, value: f64) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.metric(name) != value {
            assert!(Instant::now() < end, "{name} is {}, not {value}", self.metric(name));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.drain();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_idle_connections(0)
        .timeout_global(Some(Duration::from_secs(120)))
        .build()
        .into()
}

/// The data of a stream's events, one by one; a stream that is dropped is closed.
pub struct Pieces(BufReader<Box<dyn Read>>);

impl Iterator for Pieces {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut line = String::new();
        while self.0.read_line(&mut line).expect("a line") > 0 {
            match line.trim_end() {
                // A colon alone says that the server is alive.
                "" | ":" => line.clear(),
                text => return Some(text.strip_prefix("data: ").expect("data").to_owned()),
            }
        }
        None
    }
}

impl Pieces {
    /// The documents before `[DONE]`, after which nothing comes.
    pub fn documents(self) -> Vec<Value> {
        let mut all: Vec<String> = self.collect();
        assert_eq!(all.pop().as_deref(), Some("[DONE]"));
        all.iter().map(|text| serde_json::from_str(text).expect("JSON")).collect()
    }
}

/// What the engine alone makes of a prompt, greedily: `count` tokens, whether or not they end a
/// text.
pub fn alone(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut engine = engine(1, EngineOptions { max_context: 1024, ..options(1) });
    let (mut step, mut made) = (Step::default(), Vec::new());
    let (mut position, mut next) = (0, prompt.to_vec());
    while made.len() < count {
        // Nobody else is there, so all that the engine takes at once is one piece.
        for piece in next.chunks(16) {
            step.clear();
            step.push(0, position, piece, Wanted::Last);
            engine.step(&step).expect("a step");
            position += piece.len();
        }
        let token = sampler::greedy(engine.logits());
        made.push(token);
        next = vec![token];
    }
    made
}

/// The model's tokenizer.
pub fn tokenizer() -> Tokenizer {
    model().tokenizer().expect("a tokenizer")
}

/// The text that the engine alone makes of a text.
pub fn text_alone(prompt: &str, count: usize) -> String {
    let tokenizer = tokenizer();
    tokenizer.decode(&alone(&tokenizer.encode_with_control(prompt, true), count))
}

/// The text that it answers to a user.
pub fn answer_alone(content: &str, count: usize) -> String {
    let (model, tokenizer) = (model(), tokenizer());
    let template = model.chat_template().expect("a template").expect("it has one");
    let prompt = tokenizer.encode_chat(&template, &[Message::new("user", content)], true);
    tokenizer.decode(&alone(&prompt.expect("a prompt"), count))
}

/// A completion of `count` tokens, greedily, past ends.
pub fn completion(prompt: impl Into<Value>, count: usize) -> Value {
    let prompt = prompt.into();
    json!({"prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": true})
}

/// A text that goes on for as long as it is let.
pub fn endless() -> Value {
    completion("on and on", CONTEXT)
}
