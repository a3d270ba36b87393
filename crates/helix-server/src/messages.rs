//! `messages` of a chat: roles and text, and nothing else.

use crate::error::ApiError;
use crate::fields::{Fields, read, shown, wrong};
use helix_model::Message;
use serde_json::value::RawValue;

/// Who may speak. Tools are not served, so nobody speaks for them.
const ROLES: [&str; 4] = ["system", "developer", "user", "assistant"];
/// What clients send back with the message that they got, and which says nothing when empty.
const EMPTY: [(&str, &str); 2] = [("tool_calls", "[]"), ("annotations", "[]")];

/// The messages that the field's text lists.
pub(crate) fn parse(raw: &RawValue) -> Result<Vec<Message>, ApiError> {
    let list: Vec<&RawValue> = read(raw, "messages", "an array of messages")?;
    if list.is_empty() {
        return Err(ApiError::field("messages", "messages is empty: give at least one message"));
    }
    list.iter().enumerate().map(|(index, raw)| message(raw, index)).collect()
}

fn message(raw: &RawValue, index: usize) -> Result<Message, ApiError> {
    let mut fields = Fields::of_value(raw, &format!("messages[{index}]"))?;
    let role: Option<String> = fields.take("role", "a string")?;
    let place = fields.place("role");
    let role = role.ok_or_else(|| missing(&place))?;
    if !ROLES.contains(&role.as_str()) {
        let (role, roles) = (shown(&role), ROLES.join(", "));
        return Err(ApiError::field(
            &place,
            format!("{place} is {role:?}: this server knows the roles {roles}"),
        ));
    }
    let place = fields.place("content");
    let raw = fields.raw("content").ok_or_else(|| missing(&place))?;
    let content = match raw.get().starts_with('[') {
        true => parts(raw, &place)?,
        false => read(raw, &place, "a string or an array of text parts")?,
    };
    let says = |(name, raw): &(&str, &RawValue)| !EMPTY.contains(&(*name, raw.get()));
    if let Some((name, _)) = fields.left().find(says) {
        let place = fields.place(&shown(name));
        let message =
            format!("{place} is not supported: a message here has a role and content, no more");
        return Err(ApiError::field(&place, message));
    }
    Ok(Message { role, content })
}

/// The text of parts, one after the other.
fn parts(raw: &RawValue, place: &str) -> Result<String, ApiError> {
    let list: Vec<&RawValue> = read(raw, place, "an array of text parts")?;
    let mut text = String::new();
    for (index, raw) in list.into_iter().enumerate() {
        let place = format!("{place}[{index}]");
        let mut fields = Fields::of_value(raw, &place)?;
        let kind = fields.raw("type").ok_or_else(|| missing(&fields.place("type")))?;
        if kind.get() != "\"text\"" {
            return Err(wrong(kind, &fields.place("type"), "\"text\": this model reads text only"));
        }
        let part: Option<String> = fields.take("text", "a string")?;
        text += &part.ok_or_else(|| missing(&fields.place("text")))?;
    }
    Ok(text)
}

fn missing(place: &str) -> ApiError {
    ApiError::field(place, format!("{place} is missing"))
}
