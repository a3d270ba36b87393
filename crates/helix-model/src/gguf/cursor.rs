//! Reads little-endian fields of a header, and refuses to leave it.

use super::value::{Array, Kind, Value};
use crate::ModelError;

/// Arrays inside arrays deeper than this are refused: real files have none at all.
const MAX_DEPTH: usize = 8;

/// A position in the bytes of a file.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn truncated(&self, what: &str, needed: u64) -> ModelError {
        ModelError::Truncated {
            what: what.to_owned(),
            offset: self.at as u64,
            needed,
            left: self.left() as u64,
        }
    }

    fn take(&mut self, what: &str, len: u64) -> Result<&'a [u8], ModelError> {
        if len > self.left() as u64 {
            return Err(self.truncated(what, len));
        }
        let start = self.at;
        self.at += len as usize;
        Ok(&self.bytes[start..self.at])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ModelError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(what, N as u64)?);
        Ok(out)
    }

    pub(super) fn magic(&mut self) -> Result<[u8; 4], ModelError> {
        self.array("the magic number")
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A number of items of at least `min_bytes` each: refused when the rest of the file cannot
    /// hold them, so that what is allocated for them is bounded by the file.
    pub(super) fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize, ModelError> {
        let count = self.u64(what)?;
        let needed = count.saturating_mul(min_bytes as u64);
        if needed > self.left() as u64 {
            return Err(self.truncated(&format!("{what} ({count} items)"), needed));
        }
        Ok(count as usize)
    }

    /// A length-prefixed string.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a str, ModelError> {
        let len = self.u64(what)?;
        let offset = self.at as u64;
        let bytes = self.take(what, len)?;
        std::str::from_utf8(bytes).map_err(|_| ModelError::Utf8 { what: what.to_owned(), offset })
    }

    fn bool(&mut self, what: &str) -> Result<bool, ModelError> {
        match self.array(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [byte] => Err(ModelError::Header {
                what: what.to_owned(),
                problem: format!("a bool is 0 or 1, and this one is {byte}"),
            }),
        }
    }

    fn kind(&mut self, what: &str) -> Result<Kind, ModelError> {
        let id = self.u32(what)?;
        Kind::from_id(id).ok_or_else(|| ModelError::Header {
            what: what.to_owned(),
            problem: format!("metadata types go from 0 to 12, and this one is {id}"),
        })
    }

    /// A value with its type in front.
    pub(super) fn value(&mut self, what: &str) -> Result<Value, ModelError> {
        Ok(match self.kind(what)? {
            Kind::U8 => Value::U8(u8::from_le_bytes(self.array(what)?)),
            Kind::I8 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            Kind::U16 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            Kind::I16 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            Kind::U32 => Value::U32(self.u32(what)?),
            Kind::I32 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            Kind::F32 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            Kind::Bool => Value::Bool(self.bool(what)?),
            Kind::String => Value::String(self.string(what)?.to_owned()),
            Kind::Array => Value::Array(self.elements(what, 0)?),
            Kind::U64 => Value::U64(self.u64(what)?),
            Kind::I64 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            Kind::F64 => Value::F64(f64::from_le_bytes(self.array(what)?)),
        })
    }

    /// An array: its element type, its length, its elements.
    fn elements(&mut self, what: &str, depth: usize) -> Result<Array, ModelError> {
        if depth == MAX_DEPTH {
            return Err(ModelError::Header {
                what: what.to_owned(),
                problem: format!("arrays are nested more than {MAX_DEPTH} deep"),
            });
        }
        let kind = self.kind(what)?;
        let n = self.count(what, kind.min_bytes())?;
        Ok(match kind {
            Kind::U8 => Array::U8(self.take(what, n as u64)?.to_vec()),
            Kind::I8 => Array::I8(self.numbers(what, n, i8::from_le_bytes)?),
            Kind::U16 => Array::U16(self.numbers(what, n, u16::from_le_bytes)?),
            Kind::I16 => Array::I16(self.numbers(what, n, i16::from_le_bytes)?),
            Kind::U32 => Array::U32(self.numbers(what, n, u32::from_le_bytes)?),
            Kind::I32 => Array::I32(self.numbers(what, n, i32::from_le_bytes)?),
            Kind::F32 => Array::F32(self.numbers(what, n, f32::from_le_bytes)?),
            Kind::U64 => Array::U64(self.numbers(what, n, u64::from_le_bytes)?),
            Kind::I64 => Array::I64(self.numbers(what, n, i64::from_le_bytes)?),
            Kind::F64 => Array::F64(self.numbers(what, n, f64::from_le_bytes)?),
            Kind::Bool => Array::Bool((0..n).map(|_| self.bool(what)).collect::<Result<_, _>>()?),
            Kind::String => Array::String(
                (0..n).map(|_| self.string(what).map(str::to_owned)).collect::<Result<_, _>>()?,
            ),
            Kind::Array => Array::Array(
                (0..n).map(|_| self.elements(what, depth + 1)).collect::<Result<_, _>>()?,
            ),
        })
    }

    fn numbers<const N: usize, T>(
        &mut self,
        what: &str,
        count: usize,
        decode: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, ModelError> {
        let (chunks, _) = self.take(what, count as u64 * N as u64)?.as_chunks::<N>();
        Ok(chunks.iter().map(|&chunk| decode(chunk)).collect())
    }
}
