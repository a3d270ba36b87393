//! GGUF, versions 2 and 3, in one file or split over several.
//!
//! The reader trusts nothing: every count, length and offset is checked against the bytes that
//! are there before anything is allocated for it, so that a hostile file costs an error and not
//! memory. Source of the format: ggml's `docs/gguf.md`.

mod cursor;
mod header;
mod split;
mod types;
mod value;
mod writer;

use std::collections::HashMap;
use std::path::Path;

pub use header::TensorInfo;
pub use types::GgmlType;
pub use value::{Array, Kind, Value};
pub use writer::Writer;

use crate::ModelError;
use crate::mmap::Bytes;

/// An open model file: its metadata, and tensors whose data stay where they are.
#[derive(Debug)]
pub struct Gguf {
    version: u32,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
    parts: Vec<Bytes>,
}

impl Gguf {
    /// Maps a file, and all parts of a split model when it is the first of them.
    pub fn open(path: &Path) -> Result<Gguf, ModelError> {
        split::open(path)
    }

    /// Reads a model that is in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Gguf, ModelError> {
        let header = header::parse(&bytes, 0)?;
        match split::Split::of(&header.metadata)? {
            Some(split) => Err(ModelError::SplitBytes { count: split.count }),
            None => Ok(Gguf::new(header, vec![Bytes::Owned(bytes)])),
        }
    }

    fn new(header: header::Header, parts: Vec<Bytes>) -> Gguf {
        let named = |tensor: TensorInfo| (tensor.name.clone(), tensor);
        Gguf {
            version: header.version,
            metadata: header.metadata,
            tensors: header.tensors.into_iter().map(named).collect(),
            parts,
        }
    }

    /// The container's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The files that the model is split over.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Length of all files together.
    pub fn file_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// The value of a metadata key.
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// All metadata keys, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// A tensor's table entry.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// All tensors, in no particular order.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// A tensor's bytes, row after row. `tensor` must come from this file.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        &self.parts[tensor.part][tensor.bytes.clone()]
    }
}

/// Getters that fail when a key is present with a value of another type.
impl Gguf {
    /// A string.
    pub fn string(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// An integer that fits in a u32, of any width and sign in the file.
    pub fn unsigned(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.typed(key, "an integer from 0 to 4294967295", Value::as_u32)
    }

    /// A float.
    pub fn float(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.typed(key, "a float", Value::as_f32)
    }

    /// A bool.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "a bool", Value::as_bool)
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, ModelError> {
        self.typed(key, "an array of strings", |value| value.as_array()?.as_strings())
    }

    /// An array of f32.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, ModelError> {
        self.typed(key, "an array of f32", |value| value.as_array()?.as_f32s())
    }

    /// An array of integers of any width, none negative.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<u64>>, ModelError> {
        self.typed(key, "an array of integers from 0 on", |value| value.as_array()?.to_u64s())
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        get: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        match get(value) {
            Some(found) => Ok(Some(found)),
            None => Err(ModelError::KeyType { key: key.to_owned(), expected, found: value.kind() }),
        }
    }
}

#[cfg(test)]
mod tests;
