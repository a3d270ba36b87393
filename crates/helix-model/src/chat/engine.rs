//! The template engine, set up as `transformers` sets Jinja up, within bounds.
//!
//! Fuel pays for every instruction and for the data that templates make. A few things are paid for
//! only once they exist: the arguments of some methods are therefore looked at before, and what a
//! list of lists of lists prints as is left to the deadline.

use std::error::Error as _;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{fmt, thread};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::{ChatError, clock, json};

const NAME: &str = "chat template";

/// Far longer than any template takes; it bounds what a file made to hang this program achieves.
const DEADLINE_SECONDS: u64 = 5;

/// Stack for each step. Values that contain each other are compared, written and freed by
/// recursion, and a template can nest them once in about four steps.
const STACK_BYTES_PER_STEP: usize = 1 << 10;

/// Bytes of a template at most: thirty times the longest that models come with.
const MAX_SOURCE: usize = 256 << 10;

/// Stack for each byte of a template while it is parsed: an expression as simple as `1+1+1` nests
/// once in two bytes. It is reserved, and touched only as far as the template goes.
const STACK_BYTES_PER_SOURCE_BYTE: usize = 8 << 10;

/// Stack for parsing the shortest template.
const LEAST_STACK: usize = 1 << 20;

/// Characters that an error quotes of what a template says.
const MAX_QUOTED: usize = 500;

/// Bytes of data that one step pays for.
const BYTES_PER_STEP: usize = 64;

/// A parsed template.
pub(super) struct Engine {
    source: String,
    environment: Environment<'static>,
}

impl Engine {
    /// Parses on a thread of its own, whose stack fits the template: what it nests is compiled and
    /// freed by recursion.
    pub fn new(source: &str) -> Result<Engine, ChatError> {
        let wrong = |problem: String| ChatError::Syntax { problem };
        if source.len() > MAX_SOURCE {
            let len = source.len();
            return Err(wrong(format!("it has {len} bytes; Helix reads up to {MAX_SOURCE}")));
        }
        let source = without_generation_blocks(source);
        let stack = LEAST_STACK + source.len() * STACK_BYTES_PER_SOURCE_BYTE;
        let parse = thread::Builder::new().name(NAME.to_owned()).stack_size(stack);
        let parse = parse.spawn(move || Engine::parse(source));
        let parse = parse.map_err(|_| wrong("there is no memory to parse it".to_owned()))?;
        let parsed =
            parse.join().map_err(|_| wrong("the template engine broke on it".to_owned()))?;
        parsed.map_err(|error| wrong(describe(&error)))
    }

    fn parse(source: String) -> Result<Engine, Error> {
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_recursion_limit(100);
        environment.set_unknown_method_callback(method);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", clock::strftime_now);
        environment.add_filter("tojson", json::tojson);
        // In Python, nothing is not an empty list.
        environment
            .add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment.add_template_owned(NAME, source.clone())?;
        Ok(Engine { source, environment })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Runs the template on a thread of its own, whose stack fits the budget. If it passes the
    /// deadline it is abandoned.
    pub fn run(&self, context: Value, steps: u64) -> Result<String, ChatError> {
        let failed = |problem: &str| ChatError::Failed { problem: problem.to_owned() };
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(steps));
        let (send, receive) = mpsc::sync_channel(1);
        let stack = usize::try_from(steps).unwrap_or(usize::MAX);
        thread::Builder::new()
            .name(NAME.to_owned())
            .stack_size(stack.saturating_mul(STACK_BYTES_PER_STEP))
            .spawn(move || {
                let result = environment.get_template(NAME).and_then(|found| found.render(context));
                // Nobody listens after the deadline.
                let _ = send.send(result.map_err(|error| failure(&error, steps)));
            })
            .map_err(|_| failed("there is no memory for its stack"))?;
        // Second by second, so that a process which was suspended does not miss the deadline.
        for _ in 0..DEADLINE_SECONDS {
            match receive.recv_timeout(Duration::from_secs(1)) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(failed("the template engine broke on it"));
                }
            }
        }
        Err(ChatError::Deadline { seconds: DEADLINE_SECONDS })
    }
}

fn failure(error: &Error, steps: u64) -> ChatError {
    match (error.kind(), raised(error)) {
        (ErrorKind::OutOfFuel, _) => ChatError::Budget { steps },
        (_, Some(message)) => ChatError::Refused { message: quoted(message) },
        (_, None) => ChatError::Failed { problem: describe(error) },
    }
}

/// An error of the template engine in one line.
fn describe(error: &Error) -> String {
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    let problem = error.detail().map_or_else(|| error.kind().to_string(), quoted);
    format!("{problem}{line}")
}

/// A template's words in one line that does not drive the terminal, and has an end.
fn quoted(text: &str) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut words: String = chars.by_ref().take(MAX_QUOTED).collect();
    if chars.next().is_some() {
        words.push_str("...");
    }
    words
}

/// What a template threw.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: String) -> Result<String, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Raised(message)))
}

fn raised(error: &Error) -> Option<&str> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message);
        }
        source = error.source();
    }
    None
}

/// Python's methods of strings, lists and maps. Those whose result can be much larger than their
/// arguments are paid for first.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let text = |index: usize| args.get(index).and_then(Value::as_str).unwrap_or_default();
    let bytes = match (name, value.as_str()) {
        ("replace", Some(value)) => value.matches(text(0)).count().saturating_mul(text(1).len()),
        ("join", Some(value)) => match args.first().map(Value::try_iter) {
            Some(Ok(items)) => items
                .map(|item| value.len() + item.as_str().map_or(0, str::len))
                .fold(0, usize::saturating_add),
            _ => 0,
        },
        // A field's width: no template pads to a thousand columns.
        ("format", Some(value)) => longest_number(value).saturating_sub(3).saturating_mul(1 << 40),
        _ => 0,
    };
    state.consume_fuel((bytes / BYTES_PER_STEP) as u64)?;
    pycompat::unknown_method_callback(state, value, name, args)
}

/// Digits in the longest number in `text`.
fn longest_number(text: &str) -> usize {
    text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0)
}

/// `{% generation %}` marks the assistant's words for training in `transformers`; here it is a
/// block like any other.
fn without_generation_blocks(source: &str) -> String {
    let mut source = source.to_owned();
    for (tag, same) in [("generation", "if true"), ("endgeneration", "endif")] {
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            let block = format!("{open} {tag} {close}");
            source = source.replace(&block, &format!("{open} {same} {close}"));
        }
    }
    source
}
