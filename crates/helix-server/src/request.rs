//! A request's body: what is asked for, or which field is wrong.
//!
//! Fields that change nothing here are ignored; those that ask for what Helix does not do are
//! refused, unless their value asks for nothing; so are fields that nobody knows.

use crate::error::ApiError;
use crate::fields::{Fields, read, shown, wrong};
use crate::messages;
use helix_engine::sampler::{SamplerError, SamplerOptions};
use helix_model::Message;
use serde_json::value::RawValue;
use std::hash::{BuildHasher, RandomState};

/// As OpenAI's API has it.
const MAX_STOPS: usize = 4;
/// Of one stop string: text may be held back for as long.
const MAX_STOP_BYTES: usize = 1024;
/// What completions generate unless they are told, as in OpenAI's API.
const COMPLETION_TOKENS: usize = 16;

/// For the client's and OpenAI's own use, or about how an answer is made and not which.
const IGNORED: [&str; 10] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "parallel_tool_calls",
    "tool_choice",
];

/// What Helix does not do, and the values that ask for nothing.
const UNSUPPORTED: [(&str, &[&str]); 20] = [
    ("n", &["1"]),
    ("best_of", &["1"]),
    ("echo", &["false"]),
    ("suffix", &["\"\""]),
    ("logprobs", &["false"]),
    ("top_logprobs", &["0"]),
    ("logit_bias", &["{}"]),
    ("tools", &["[]"]),
    ("functions", &["[]"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("response_format", &["{\"type\":\"text\"}", "{\"type\": \"text\"}"]),
    ("modalities", &["[\"text\"]"]),
    ("audio", &[]),
    ("reasoning_effort", &[]),
    ("verbosity", &[]),
    ("web_search_options", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
];

/// Which endpoint a body was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// What is to be continued.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    /// A chat, by the model's template.
    Chat(Vec<Message>),
    /// A text as it stands.
    Text(String),
    /// A text's tokens.
    Tokens(Vec<u32>),
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ask {
    pub endpoint: Endpoint,
    /// The model's name, if it is given.
    pub model: Option<String>,
    pub prompt: Prompt,
    pub max_new_tokens: usize,
    pub sampling: SamplerOptions,
    /// Not empty, each of them.
    pub stops: Vec<String>,
    /// Whether tokens that end a text end it.
    pub ends: bool,
    /// Whether the answer is a stream, and of what.
    pub stream: Option<Stream>,
}

/// A stream's options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    /// Whether its last chunk counts tokens.
    pub usage: bool,
}

impl Ask {
    /// Reads a body that was sent to `endpoint`.
    pub fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Ask, ApiError> {
        let mut fields = Fields::of_body(body)?;
        let fields = &mut fields;
        let ask = Ask {
            endpoint,
            model: fields.take("model", "a string")?,
            prompt: prompt(endpoint, fields)?,
            max_new_tokens: max_new_tokens(endpoint, fields)?,
            sampling: sampling(fields)?,
            stops: stops(fields)?,
            ends: !fields.take("ignore_eos", "true or false")?.unwrap_or(false),
            stream: stream(fields)?,
        };
        refuse_rest(fields)?;
        Ok(ask)
    }
}

fn prompt(endpoint: Endpoint, fields: &mut Fields<'_>) -> Result<Prompt, ApiError> {
    let name = match endpoint {
        Endpoint::Chat => "messages",
        Endpoint::Completions => "prompt",
    };
    let missing = || ApiError::field(name, format!("{name} is missing"));
    let raw = fields.raw(name).ok_or_else(missing)?;
    match endpoint {
        Endpoint::Chat => messages::parse(raw).map(Prompt::Chat),
        Endpoint::Completions => text_or_tokens(raw),
    }
}

/// A string, tokens, or an array of one of these.
fn text_or_tokens(raw: &RawValue) -> Result<Prompt, ApiError> {
    const WHAT: &str = "a string or an array of tokens' ids";
    let Some(inside) = raw.get().strip_prefix('[') else {
        return read(raw, "prompt", WHAT).map(Prompt::Text);
    };
    if !inside.trim_start().starts_with(['"', '[']) {
        return read(raw, "prompt", WHAT).map(Prompt::Tokens);
    }
    match read::<Vec<&RawValue>>(raw, "prompt", WHAT)?[..] {
        [one] if one.get().starts_with('[') => read(one, "prompt[0]", WHAT).map(Prompt::Tokens),
        [one] => read(one, "prompt[0]", WHAT).map(Prompt::Text),
        ref several => {
            let count = several.len();
            let message = format!("prompt has {count} prompts: send one request for each");
            Err(ApiError::field("prompt", message))
        }
    }
}

fn max_new_tokens(endpoint: Endpoint, fields: &mut Fields<'_>) -> Result<usize, ApiError> {
    const WHAT: &str = "an integer from 1";
    let names = ["max_completion_tokens", "max_tokens"];
    let mut found = None;
    for name in names {
        let Some(raw) = fields.raw(name) else { continue };
        let value: usize = read(raw, name, WHAT)?;
        if value == 0 {
            return Err(wrong(raw, name, WHAT));
        }
        if found.is_some_and(|other| other != value) {
            let message = "max_completion_tokens and max_tokens differ: give one of them";
            return Err(ApiError::field(name, message));
        }
        found = Some(value);
    }
    Ok(found.unwrap_or(match endpoint {
        Endpoint::Chat => usize::MAX,
        Endpoint::Completions => COMPLETION_TOKENS,
    }))
}

fn sampling(fields: &mut Fields<'_>) -> Result<SamplerOptions, ApiError> {
    let plain = SamplerOptions::default();
    let mut number = |name, otherwise| {
        fields.take::<f32>(name, "a number").map(|value| value.unwrap_or(otherwise))
    };
    let options = SamplerOptions {
        temperature: number("temperature", 1.0)?,
        top_p: number("top_p", plain.top_p)?,
        min_p: number("min_p", plain.min_p)?,
        repetition_penalty: number("repetition_penalty", plain.repetition_penalty)?,
        presence_penalty: number("presence_penalty", plain.presence_penalty)?,
        frequency_penalty: number("frequency_penalty", plain.frequency_penalty)?,
        top_k: top_k(fields)?,
        seed: seed(fields)?,
        ..plain
    };
    options.validate().map_err(|error| match &error {
        SamplerError::Option { name, .. } => {
            ApiError::field(&name.replace(['-', ' '], "_"), error.to_string())
        }
        SamplerError::NotFinite { .. } => ApiError::request(error.to_string()),
    })?;
    Ok(options)
}

/// -1 and 0 are all tokens.
fn top_k(fields: &mut Fields<'_>) -> Result<usize, ApiError> {
    const WHAT: &str = "an integer from 1, or 0 or -1 for all tokens";
    let Some(raw) = fields.raw("top_k") else { return Ok(0) };
    match read::<i64>(raw, "top_k", WHAT)? {
        -1 => Ok(0),
        k => usize::try_from(k).map_err(|_| wrong(raw, "top_k", WHAT)),
    }
}

/// Any integer of 64 bits; without one, another seed for every request.
fn seed(fields: &mut Fields<'_>) -> Result<u64, ApiError> {
    let Some(raw) = fields.raw("seed") else { return Ok(RandomState::new().hash_one(())) };
    let signed = raw.get().parse::<i64>().map(i64::cast_unsigned);
    let seed = signed.or_else(|_| raw.get().parse::<u64>());
    seed.map_err(|_| wrong(raw, "seed", "an integer of 64 bits"))
}

fn stops(fields: &mut Fields<'_>) -> Result<Vec<String>, ApiError> {
    const WHAT: &str = "a string, or an array of up to 4 strings";
    let Some(raw) = fields.raw("stop") else { return Ok(Vec::new()) };
    let stops = match raw.get().starts_with('[') {
        false => vec![read(raw, "stop", WHAT)?],
        true => {
            let list: Vec<&RawValue> = read(raw, "stop", WHAT)?;
            if list.len() > MAX_STOPS {
                let count = list.len();
                let message = format!("stop has {count} strings: it may have up to {MAX_STOPS}");
                return Err(ApiError::field("stop", message));
            }
            let read = |raw: &RawValue| read::<String>(raw, "stop", WHAT);
            list.into_iter().map(read).collect::<Result<_, _>>()?
        }
    };
    for stop in &stops {
        let bytes = stop.len();
        if !(1..=MAX_STOP_BYTES).contains(&bytes) {
            let message = format!(
                "a string of stop has {bytes} bytes: each must have from 1 to {MAX_STOP_BYTES}"
            );
            return Err(ApiError::field("stop", message));
        }
    }
    Ok(stops)
}

fn stream(fields: &mut Fields<'_>) -> Result<Option<Stream>, ApiError> {
    let streams: bool = fields.take("stream", "true or false")?.unwrap_or(false);
    let Some(raw) = fields.raw("stream_options") else {
        return Ok(streams.then_some(Stream { usage: false }));
    };
    if !streams {
        let message = "stream_options is only for \"stream\": true";
        return Err(ApiError::field("stream_options", message));
    }
    let mut options = Fields::of_value(raw, "stream_options")?;
    let usage: Option<bool> = options.take("include_usage", "true or false")?;
    // Padding against observers, which Helix does not add, and which is no part of the answer.
    let _: Option<bool> = options.take("include_obfuscation", "true or false")?;
    if let Some((name, _)) = options.left().next() {
        let place = options.place(&shown(name));
        return Err(ApiError::field(&place, format!("{place} is not known")));
    }
    Ok(Some(Stream { usage: usage.unwrap_or(false) }))
}

fn refuse_rest(fields: &Fields<'_>) -> Result<(), ApiError> {
    for (name, raw) in fields.left().filter(|(name, _)| !IGNORED.contains(name)) {
        let Some((_, nothing)) = UNSUPPORTED.iter().find(|(known, _)| *known == name) else {
            let name = shown(name);
            let message = format!("{name:?} is no field that this server knows: leave it out");
            return Err(ApiError::field(&name, message));
        };
        if nothing.contains(&raw.get()) {
            continue;
        }
        let hint = match nothing.first() {
            Some(value) => format!("leave it out, or send {value}"),
            None => "leave it out".to_owned(),
        };
        let message = format!("{name} is not supported by this server: {hint}");
        return Err(ApiError::field(name, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
