//! What is sent: the objects of OpenAI's API.

use crate::job::Finish;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use serde::Serialize;

/// A body of JSON.
pub(crate) fn json(value: &impl Serialize) -> ([(HeaderName, &'static str); 1], String) {
    ([(CONTENT_TYPE, "application/json")], text(value))
}

/// A value as JSON: of ours, none has what JSON lacks.
pub(crate) fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("objects of strings and numbers")
}

/// What all objects of one answer begin with.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Head {
    pub id: String,
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
}

/// A whole answer, or a piece of one.
#[derive(Debug, Serialize)]
pub(crate) struct Completion<'a> {
    #[serde(flatten)]
    pub head: &'a Head,
    pub choices: Vec<Choice<'a>>,
    #[serde(flatten)]
    pub usage: UsageField,
}

/// `usage`, which most pieces of a stream do not have.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct UsageField {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// Tokens that a request took.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
}

/// The one choice.
#[derive(Debug, Serialize)]
pub(crate) struct Choice<'a> {
    pub index: usize,
    #[serde(flatten)]
    pub content: Content<'a>,
    /// Not computed: null.
    pub logprobs: Option<()>,
    pub finish_reason: Option<Finish>,
}

/// What a choice says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Content<'a> {
    /// Of a chat.
    Message(Said<'a>),
    /// Of a chat's stream.
    Delta(Said<'a>),
    /// Of a completion.
    Text(&'a str),
}

/// What the assistant says.
#[derive(Debug, Serialize)]
pub(crate) struct Said<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
}

/// `/v1/models`.
#[derive(Debug, Serialize)]
pub(crate) struct Models<'a> {
    pub object: &'static str,
    pub data: [Model<'a>; 1],
}

/// The model that is served.
#[derive(Debug, Serialize)]
pub(crate) struct Model<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub owned_by: &'static str,
    /// Positions that a sequence may have; under the name that vLLM gives it.
    pub max_model_len: usize,
}
