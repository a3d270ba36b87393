//! Values of a configuration, each read with its type and its range.

use serde_json::{Map, Value};

use crate::ModelError;
use crate::config::MAX_SIZE;

/// Characters of a value that an error quotes.
const MAX_QUOTED: usize = 200;

/// A JSON object, and where it is in its file. A key whose value is null counts as absent.
#[derive(Clone)]
pub(crate) struct Json<'a> {
    map: &'a Map<String, Value>,
    /// `text_config.` and the like.
    path: String,
}

impl<'a> Json<'a> {
    pub fn new(value: &'a Value) -> Result<Json<'a>, ModelError> {
        match value {
            Value::Object(map) => Ok(Json { map, path: String::new() }),
            other => Err(wrong_type("the file", "an object", other)),
        }
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether it says anything of a key, be it null.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The key with the objects that it is inside of.
    pub fn key(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    pub fn missing(&self, key: &str) -> ModelError {
        ModelError::MissingKey { key: self.key(key) }
    }

    pub fn refuse<T>(
        &self,
        key: &str,
        value: impl ToString,
        problem: impl Into<String>,
    ) -> Result<T, ModelError> {
        let mut value = value.to_string();
        if let Some((end, _)) = value.char_indices().nth(MAX_QUOTED) {
            value.replace_range(end.., "...");
        }
        Err(ModelError::Setting { key: self.key(key), value, problem: problem.into() })
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        get: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match get(value) {
            Some(found) => Ok(Some(found)),
            None => Err(wrong_type(&self.key(key), expected, value)),
        }
    }

    pub fn object(&self, key: &str) -> Result<Option<Json<'a>>, ModelError> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Json { map, path: format!("{}{key}.", self.path) }))
    }

    pub fn string(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub fn boolean(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "a bool", Value::as_bool)
    }

    pub fn flag(&self, key: &str) -> Result<bool, ModelError> {
        Ok(self.boolean(key)?.unwrap_or(false))
    }

    pub fn list(&self, key: &str) -> Result<Option<&'a [Value]>, ModelError> {
        self.typed(key, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    /// An integer from 0 on.
    pub fn integer(&self, key: &str) -> Result<Option<u64>, ModelError> {
        // transformers writes some integers as floats.
        let whole = |x: f64| (x.fract() == 0.0 && (0.0..1e15).contains(&x)).then_some(x as u64);
        self.typed(key, "an integer from 0 on", |value| {
            value.as_u64().or_else(|| whole(value.as_f64()?))
        })
    }

    /// A size from 1 to the largest that there is.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let value = self.integer(key)?;
        value.map(|value| self.in_range(key, value, MAX_SIZE)).transpose()
    }

    pub fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// The first of several names of one size.
    pub fn size_of(&self, keys: &[&str]) -> Result<usize, ModelError> {
        let key = keys.iter().find(|key| self.get(key).is_some()).unwrap_or(&keys[0]);
        self.size(key)
    }

    pub fn in_range(&self, key: &str, value: u64, max: usize) -> Result<usize, ModelError> {
        match usize::try_from(value) {
            Ok(size) if (1..=max).contains(&size) => Ok(size),
            _ => self.refuse(key, value, format!("it must be from 1 to {max}")),
        }
    }

    /// A finite number.
    pub fn float(&self, key: &str) -> Result<Option<f32>, ModelError> {
        match self.typed(key, "a number", Value::as_f64)?.map(|value| value as f32) {
            Some(value) if !value.is_finite() => self.refuse(key, value, "it is not finite"),
            value => Ok(value),
        }
    }

    pub fn positive(&self, key: &str) -> Result<Option<f32>, ModelError> {
        match self.float(key)? {
            Some(value) if value <= 0.0 => self.refuse(key, value, "it must be more than 0"),
            value => Ok(value),
        }
    }

    pub fn require_positive(&self, key: &str) -> Result<f32, ModelError> {
        self.positive(key)?.ok_or_else(|| self.missing(key))
    }

    /// Token ids: one, or a list of them.
    pub fn tokens(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.typed(key, "a token id or a list of them", |value| match value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            value => id(value).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }
}

fn wrong_type(key: &str, expected: &'static str, found: &Value) -> ModelError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a bool",
        Value::Number(number) if number.is_f64() => "a float",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    ModelError::JsonType { key: key.to_owned(), expected, found }
}
