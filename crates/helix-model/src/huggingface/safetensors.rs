//! One safetensors file: a JSON header, and tensors behind it.
//!
//! Read here and not by the `safetensors` crate so that each refusal names the tensor and the
//! numbers. Nothing is believed: the header must fit the file, each tensor's bytes must be those
//! of its shape, and together they must tile the data. Source: the format's README, "Format".

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::ModelError;

/// Longest header that is read, as in the reference implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// How elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dtype {
    pub name: &'static str,
    bits: u64,
}

impl Dtype {
    fn named(name: &str) -> Option<Dtype> {
        const BITS: [(&str, u64); 22] = [
            ("F4", 4),
            ("F6_E2M3", 6),
            ("F6_E3M2", 6),
            ("BOOL", 8),
            ("U8", 8),
            ("I8", 8),
            ("F8_E4M3", 8),
            ("F8_E4M3FNUZ", 8),
            ("F8_E5M2", 8),
            ("F8_E5M2FNUZ", 8),
            ("F8_E8M0", 8),
            ("I16", 16),
            ("U16", 16),
            ("F16", 16),
            ("BF16", 16),
            ("I32", 32),
            ("U32", 32),
            ("F32", 32),
            ("C64", 64),
            ("F64", 64),
            ("I64", 64),
            ("U64", 64),
        ];
        let found = BITS.into_iter().find(|(known, _)| *known == name);
        found.map(|(name, bits)| Dtype { name, bits })
    }
}

/// A tensor's place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub dtype: Dtype,
    /// Extents, the contiguous one last.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

/// The tensors of a file, by name.
pub(crate) fn parse(file: &[u8]) -> Result<HashMap<String, Entry>, ModelError> {
    let truncated = |needed, left| ModelError::Truncated {
        what: "the safetensors header".to_owned(),
        offset: 0,
        needed,
        left,
    };
    let len = file.len() as u64;
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(truncated(8, len));
    };
    let header = u64::from_le_bytes(*length);
    if header > MAX_HEADER_BYTES {
        return Err(ModelError::Header {
            what: "the safetensors header".to_owned(),
            problem: format!(
                "it says it has {header} bytes; headers have up to {MAX_HEADER_BYTES}"
            ),
        });
    }
    let Some((header, data)) = rest.split_at_checked(header as usize) else {
        return Err(truncated(header, len - 8));
    };
    let raw: RawHeader = serde_json::from_slice(header).map_err(|error| ModelError::Header {
        what: "the safetensors header".to_owned(),
        problem: error.to_string(),
    })?;
    place(raw.0, file.len() - data.len(), data.len())
}

/// Gives each tensor its range in the file, once the ranges tile the data.
fn place(
    raw: Vec<(String, RawEntry)>,
    start: usize,
    available: usize,
) -> Result<HashMap<String, Entry>, ModelError> {
    let mut entries = HashMap::with_capacity(raw.len());
    for (name, raw) in raw {
        let bytes = data_bytes(&name, &raw)?;
        let [from, to] = raw.data_offsets;
        if to < from || to > available as u64 {
            let available = available as u64;
            return Err(ModelError::OutOfFile { name, start: from, end: to, available });
        }
        if to - from != bytes {
            let problem = format!(
                "{} {:?} takes {bytes} bytes, and it has {}",
                raw.dtype,
                raw.shape,
                to - from
            );
            return Err(ModelError::Header { what: format!("tensor {name:?}"), problem });
        }
        let dtype = dtype(&name, &raw.dtype)?;
        // Both ends are at most the length of the file, which is in memory.
        let bytes = start + from as usize..start + to as usize;
        let shape = raw.shape.iter().map(|&extent| extent as usize).collect();
        if entries.contains_key(&name) {
            return Err(ModelError::DuplicateTensor { name });
        }
        entries.insert(name, Entry { dtype, shape, bytes });
    }
    check_tiling(&entries, start, start + available)?;
    Ok(entries)
}

fn dtype(name: &str, dtype: &str) -> Result<Dtype, ModelError> {
    Dtype::named(dtype).ok_or_else(|| ModelError::Header {
        what: format!("tensor {name:?}"),
        problem: format!("its dtype {dtype:?} is not one of the format's"),
    })
}

/// The bytes that a shape takes.
fn data_bytes(name: &str, raw: &RawEntry) -> Result<u64, ModelError> {
    let dtype = dtype(name, &raw.dtype)?;
    let elements = raw.shape.iter().try_fold(1u64, |product, &extent| {
        // A later 0 must not hide an overflow.
        usize::try_from(extent).ok().and_then(|_| product.max(1).checked_mul(extent.max(1)))
    });
    let elements = elements.map(|elements| if raw.shape.contains(&0) { 0 } else { elements });
    let bits = elements.and_then(|elements| elements.checked_mul(dtype.bits));
    match bits {
        Some(bits) if bits.is_multiple_of(8) => Ok(bits / 8),
        _ => Err(ModelError::Header {
            what: format!("tensor {name:?}"),
            problem: format!("{} {:?} is no whole number of bytes", raw.dtype, raw.shape),
        }),
    }
}

/// Neighbours must neither overlap nor leave a gap, which a damaged header would.
fn check_tiling(
    entries: &HashMap<String, Entry>,
    start: usize,
    end: usize,
) -> Result<(), ModelError> {
    let mut by_start: Vec<(&String, &Range<usize>)> =
        entries.iter().map(|(name, entry)| (name, &entry.bytes)).collect();
    by_start.sort_by_key(|(name, bytes)| (bytes.start, bytes.end, *name));
    let gap = |from: usize, to: usize| ModelError::Header {
        what: "the safetensors header".to_owned(),
        problem: format!("bytes {}..{} of the data are no tensor's", from - start, to - start),
    };
    let mut covered = start;
    let mut before = "";
    for (name, bytes) in by_start {
        if bytes.start < covered {
            return Err(ModelError::Overlap {
                first: before.to_owned(),
                second: name.clone(),
                offset: (bytes.start - start) as u64,
                end: (covered - start) as u64,
            });
        }
        if bytes.start > covered {
            return Err(gap(covered, bytes.start));
        }
        (covered, before) = (bytes.end, name);
    }
    if covered < end { Err(gap(covered, end)) } else { Ok(()) }
}

/// The header as written, with names that occur twice.
struct RawHeader(Vec<(String, RawEntry)>);

#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> serde::Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(RawHeader(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
