//! Chat templates: messages to the text, or the tokens, that a model was trained on.
//!
//! A template is a Jinja program inside a model file, so it is as trustworthy as the file. It is
//! run as `transformers` runs it (blocks trimmed, Python's string methods, `raise_exception`,
//! `strftime_now`, Python's JSON), with a budget for time and memory.

mod clock;
mod engine;
mod guard;
mod json;
#[cfg(test)]
mod tests;

use std::fmt;

use minijinja::context;
use minijinja::value::Serde;
use serde::{Deserialize, Serialize};

use crate::{Gguf, ModelError, Tokenizer};
use engine::Engine;
use guard::Guard;

const TEMPLATE: &str = "tokenizer.chat_template";

/// The longest template that is read. Published ones have up to about 30 kB.
const MAX_SOURCE_BYTES: usize = 1 << 20;

/// What a template may use, in steps: instructions run, and data made in units of 64 bytes. Every
/// message adds to it, so that long chats render and small ones end soon.
const STEPS: u64 = 1 << 16;
const STEPS_PER_MESSAGE: u64 = 1 << 12;
/// Sixteen passes over what a message says.
const BYTES_PER_STEP: u64 = 4;

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or whatever else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// Why messages did not become a prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The template is longer than any model's.
    #[error("it has {bytes} bytes; Helix reads up to {limit}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The most that is read.
        limit: usize,
    },
    /// The template is not a Jinja program.
    #[error("it does not parse: {problem}")]
    Syntax {
        /// What and where.
        problem: String,
    },
    /// The template does not accept these messages: it called `raise_exception`.
    #[error("it refuses these messages: {message}")]
    Refused {
        /// The template's own words.
        message: String,
    },
    /// The template ran too long or made too much text.
    #[error("it exceeds its budget of {steps} steps; a loop in it may not end")]
    Budget {
        /// The budget that it had for these messages.
        steps: u64,
    },
    /// The template kept inside its budget of steps and did not end.
    #[error("it did not end within {seconds} s")]
    Deadline {
        /// How long it ran.
        seconds: u64,
    },
    /// The template failed otherwise.
    #[error("it fails: {problem}")]
    Failed {
        /// What and where.
        problem: String,
    },
    /// The messages use every character there is, and none is left to mark control tokens with.
    #[error("the messages contain more different characters than any text")]
    NoStandIn,
}

/// A model's chat template, ready to render.
pub struct ChatTemplate {
    engine: Engine,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// The template in a model file, if it has one.
    pub fn from_gguf(gguf: &Gguf) -> Result<Option<ChatTemplate>, ModelError> {
        let Some(source) = gguf.string(TEMPLATE)? else { return Ok(None) };
        let tokens = gguf.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
        let text = |key| -> Result<&str, ModelError> {
            let id = gguf.unsigned(key)?.and_then(|id| usize::try_from(id).ok());
            Ok(id.and_then(|id| tokens.get(id)).map_or("", String::as_str))
        };
        let bos = text("tokenizer.ggml.bos_token_id")?;
        let eos = text("tokenizer.ggml.eos_token_id")?;
        Ok(Some(ChatTemplate::new(source, bos, eos)?))
    }

    /// The template with this source; `bos_token` and `eos_token` are what it knows them by.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<ChatTemplate, ChatError> {
        let (bytes, limit) = (source.len(), MAX_SOURCE_BYTES);
        if bytes > limit {
            return Err(ChatError::TooLong { bytes, limit });
        }
        let (bos_token, eos_token) = (bos_token.to_owned(), eos_token.to_owned());
        Ok(ChatTemplate { engine: Engine::new(source)?, bos_token, eos_token })
    }

    /// The prompt that `messages` make; with `add_generation_prompt` it ends where the answer
    /// starts.
    ///
    /// It is for reading: once it is one text, a message that says `<|im_end|>` cannot be told from
    /// the end of that message. [`Tokenizer::encode_chat`] can.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let steps = messages.iter().map(|message| {
            let bytes = message.role.len() as u64 + message.content.len() as u64;
            STEPS_PER_MESSAGE + bytes / BYTES_PER_STEP
        });
        let context = context! {
            messages => Serde(messages),
            add_generation_prompt,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
            tools => (),
            documents => (),
        };
        self.engine.run(context, STEPS + steps.sum::<u64>())
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChatTemplate({:?})", self.engine.source())
    }
}

impl Tokenizer {
    /// The tokens of a chat, as the model was trained on them.
    ///
    /// Only the template makes control tokens: names of control tokens inside a message, its role
    /// included, are encoded as the text that they are, so that no message can end itself and
    /// speak for someone else. A BOS token comes first exactly if the model wants one, whether or
    /// not the template writes it.
    pub fn encode_chat(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, ChatError> {
        let guard = Guard::new(self.control(), messages, template.engine.source())?;
        let hidden: Vec<Message> = messages
            .iter()
            .map(|Message { role, content }| Message::new(guard.hide(role), guard.hide(content)))
            .collect();
        let text = template.render(&hidden, add_generation_prompt)?;
        Ok(self.encode_prompt(&text, &|part| guard.restore(part)))
    }
}
