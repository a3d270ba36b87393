//! Writes GGUF: what the reader reads, for synthetic models and tests.

use super::{Array, GgmlType, Value};

/// A GGUF file in the making.
#[derive(Debug)]
pub struct Writer {
    version: u32,
    metadata: Vec<(String, Value)>,
    tensors: Vec<WriterTensor>,
}

#[derive(Debug)]
struct WriterTensor {
    name: String,
    dims: Vec<u64>,
    ggml_type: u32,
    data: Vec<u8>,
}

const ALIGNMENT: usize = 32;

impl Default for Writer {
    fn default() -> Writer {
        Writer { version: 3, metadata: Vec::new(), tensors: Vec::new() }
    }
}

impl Writer {
    /// An empty file of another version than 3.
    pub fn with_version(version: u32) -> Writer {
        Writer { version, ..Writer::default() }
    }

    /// Adds a key; a second value for a key replaces the first.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) -> &mut Writer {
        let (key, value) = (key.into(), value.into());
        match self.metadata.iter_mut().find(|(known, _)| *known == key) {
            Some(entry) => entry.1 = value,
            None => self.metadata.push((key, value)),
        }
        self
    }

    /// Removes a key.
    pub fn unset(&mut self, key: &str) -> &mut Writer {
        self.metadata.retain(|(known, _)| known != key);
        self
    }

    /// Adds a tensor: `dims` with the contiguous extent first, `data` as long as they need.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        dims: &[usize],
        ggml_type: &GgmlType,
        data: Vec<u8>,
    ) -> &mut Writer {
        let (name, dims) = (name.into(), dims.iter().map(|&dim| dim as u64).collect());
        self.tensors.push(WriterTensor { name, dims, ggml_type: ggml_type.id, data });
        self
    }

    /// Removes a tensor.
    pub fn remove_tensor(&mut self, name: &str) -> &mut Writer {
        self.tensors.retain(|tensor| tensor.name != name);
        self
    }

    /// The keys so far, in order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// The file.
    pub fn finish(self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_string(&mut out, key);
            put_value(&mut out, value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            put_string(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.ggml_type.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += tensor.data.len().next_multiple_of(ALIGNMENT);
        }
        out.reserve_exact(offset + ALIGNMENT);
        for tensor in self.tensors {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            out.extend(tensor.data);
        }
        out
    }
}

fn put_string(out: &mut Vec<u8>, string: &str) {
    out.extend((string.len() as u64).to_le_bytes());
    out.extend(string.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    out.extend((value.kind() as u32).to_le_bytes());
    match value {
        Value::U8(x) => out.extend(x.to_le_bytes()),
        Value::I8(x) => out.extend(x.to_le_bytes()),
        Value::U16(x) => out.extend(x.to_le_bytes()),
        Value::I16(x) => out.extend(x.to_le_bytes()),
        Value::U32(x) => out.extend(x.to_le_bytes()),
        Value::I32(x) => out.extend(x.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::Bool(x) => out.push((*x).into()),
        Value::String(x) => put_string(out, x),
        Value::Array(x) => put_array(out, x),
        Value::U64(x) => out.extend(x.to_le_bytes()),
        Value::I64(x) => out.extend(x.to_le_bytes()),
        Value::F64(x) => out.extend(x.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend((array.kind() as u32).to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(all) => out.extend(all),
        Array::I8(all) => all.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::U16(all) => all.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I16(all) => all.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::U32(all) => all.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I32(all) => all.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::F32(all) => all.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::Bool(all) => all.iter().for_each(|x| out.push((*x).into())),
        Array::String(all) => all.iter().for_each(|x| put_string(out, x)),
        Array::Array(all) => all.iter().for_each(|x| put_array(out, x)),
        Array::U64(all) => all.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I64(all) => all.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::F64(all) => all.iter().for_each(|x| out.extend(x.to_le_bytes())),
    }
}

/// `From` for the values that writers use.
macro_rules! value_from {
    ($($from:ty => $into:expr),* $(,)?) => {
        $(impl From<$from> for Value {
            fn from(value: $from) -> Value {
                $into(value)
            }
        })*
    };
}

value_from! {
    u32 => Value::U32,
    i32 => Value::I32,
    u16 => Value::U16,
    f32 => Value::F32,
    bool => Value::Bool,
    String => Value::String,
    &str => |value: &str| Value::String(value.to_owned()),
    Vec<String> => |value| Value::Array(Array::String(value)),
    Vec<i32> => |value| Value::Array(Array::I32(value)),
    Vec<u32> => |value| Value::Array(Array::U32(value)),
    Vec<f32> => |value| Value::Array(Array::F32(value)),
}
