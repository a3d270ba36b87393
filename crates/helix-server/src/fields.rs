//! A JSON object whose fields are read one by one, each as what it must be.

use crate::error::ApiError;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fmt;

/// More than any client sends: an object is not taken apart further.
const MAX_FIELDS: usize = 64;
/// How much of a wrong value an error shows, in characters.
const SHOWN: usize = 40;

/// What is left of an object.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    /// Where it is in the request: empty, or such as `messages[2].`.
    place: String,
    values: BTreeMap<String, &'a RawValue>,
}

impl<'a> Fields<'a> {
    /// The fields of a request's body.
    pub fn of_body(body: &'a [u8]) -> Result<Fields<'a>, ApiError> {
        let text = std::str::from_utf8(body).map_err(|error| {
            let at = error.valid_up_to();
            ApiError::request(format!("the body is not UTF-8, from byte {at} on"))
        })?;
        Fields::of(text, "the body", String::new())
    }

    /// The fields of the object at `place`, whose fields are at `place.`.
    pub fn of_value(value: &'a RawValue, place: &str) -> Result<Fields<'a>, ApiError> {
        Fields::of(value.get(), place, format!("{place}."))
    }

    fn of(text: &'a str, what: &str, place: String) -> Result<Fields<'a>, ApiError> {
        let Object(values) = serde_json::from_str(text).map_err(|error| {
            ApiError::request(format!("{what} is not a JSON object of fields: {error}"))
        })?;
        Ok(Fields { place, values })
    }

    /// Where a field of that name is.
    pub fn place(&self, name: &str) -> String {
        format!("{}{name}", self.place)
    }

    /// The field's text; none if it is missing or `null`.
    pub fn raw(&mut self, name: &str) -> Option<&'a RawValue> {
        self.values.remove(name).filter(|value| value.get() != "null")
    }

    /// The field's value, which is `what`; none if it is missing or `null`.
    pub fn take<T: Deserialize<'a>>(
        &mut self,
        name: &str,
        what: &str,
    ) -> Result<Option<T>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        read(raw, &self.place(name), what).map(Some)
    }

    /// The names of the fields that are not `null` and were not taken.
    pub fn left(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        let values = self.values.iter().filter(|(_, value)| value.get() != "null");
        values.map(|(name, value)| (name.as_str(), *value))
    }
}

/// The value at `place`, which is `what`.
pub(crate) fn read<'a, T: Deserialize<'a>>(
    raw: &'a RawValue,
    place: &str,
    what: &str,
) -> Result<T, ApiError> {
    serde_json::from_str(raw.get()).map_err(|_| wrong(raw, place, what))
}

/// What is said of a value that is not what it must be.
pub(crate) fn wrong(raw: &RawValue, place: &str, what: &str) -> ApiError {
    ApiError::field(place, format!("{place} is {}: it must be {what}", shown(raw.get())))
}

/// A text's beginning.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

struct Object<'a>(BTreeMap<String, &'a RawValue>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
        let mut values = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
            if values.len() == MAX_FIELDS {
                return Err(A::Error::custom(format!("it has more than {MAX_FIELDS} fields")));
            }
            if values.contains_key(&name) {
                return Err(A::Error::custom(format!("it has two fields {:?}", shown(&name))));
            }
            values.insert(name, value);
        }
        Ok(Object(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(body: &[u8]) -> String {
        let error = Fields::of_body(body).expect_err("a refusal");
        serde_json::to_string(&error.body()).expect("JSON")
    }

    #[test]
    fn bodies_that_are_no_object_are_refused() {
        let many: Vec<String> = (0..65).map(|i| format!("\"f{i}\":1")).collect();
        let many = format!("{{{}}}", many.join(","));
        let deep = "[".repeat(100_000);
        let deep_field = format!("{{\"a\":{}", "[".repeat(100_000));
        let cases: [(&[u8], &str); 9] = [
            (b"", "not a JSON object"),
            (b"[1]", "expected an object"),
            (b"{\"a\":1", "EOF"),
            (b"{\"a\":1} x", "trailing"),
            (b"{\"a\":1,\"a\":2}", "two fields"),
            (b"{\"a\":\"\xff\"}", "not UTF-8, from byte 6"),
            (many.as_bytes(), "more than 64 fields"),
            (deep.as_bytes(), "not a JSON object"),
            (deep_field.as_bytes(), "not a JSON object"),
        ];
        for (body, words) in cases {
            let text = refusal(body);
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn values_are_what_they_must_be_or_named() {
        let mut fields = Fields::of_body(b"{\"a\":1e999,\"b\":null,\"c\":\"x\",\"d\":2}").unwrap();
        let error = fields.take::<f32>("a", "a number").unwrap_err();
        let text = serde_json::to_string(&error.body()).unwrap();
        assert!(text.contains("a is 1e999: it must be a number"), "{text}");
        assert_eq!(fields.take::<f32>("b", "a number").unwrap(), None);
        assert_eq!(fields.take::<String>("c", "a string").unwrap().as_deref(), Some("x"));
        assert_eq!(fields.take::<u8>("missing", "a number").unwrap(), None);
        assert_eq!(fields.left().map(|(name, _)| name).collect::<Vec<_>>(), ["d"]);
    }
}
