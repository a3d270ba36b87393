//! One file: header, metadata, tensor table.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::cursor::Cursor;
use super::types::GgmlType;
use super::value::Value;
use crate::ModelError;

const MAGIC: &[u8; 4] = b"GGUF";
/// Bytes that a key with a value, or a tensor's entry, takes in a file, at least.
const MIN_ENTRY_BYTES: usize = 8 + 4 + 1;
const MIN_TENSOR_BYTES: usize = 8 + 4 + 8 + 4 + 8;
/// Limits of the format (`gguf.md`).
const MAX_KEY_BYTES: usize = 65535;
const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

/// Where one tensor lies, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Extents, the contiguous one first: a matrix is `[cols, rows]`. From 1 to 4, none zero.
    pub dims: Vec<u64>,
    /// The type of its elements.
    pub ggml_type: &'static GgmlType,
    /// The file that it is in.
    pub(super) part: usize,
    /// Its bytes in that file.
    pub(super) bytes: Range<usize>,
}

impl TensorInfo {
    /// Length of its data.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Extents as ggml writes them: `[cols, rows]`.
    pub fn shape(&self) -> String {
        format!("{:?}", self.dims)
    }
}

/// Everything before the tensors' data.
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: HashMap<String, Value>,
    /// In file order.
    pub(super) tensors: Vec<TensorInfo>,
}

/// Reads and checks the header of one file. `part` is written into each [`TensorInfo`].
pub(super) fn parse(bytes: &[u8], part: usize) -> Result<Header, ModelError> {
    let mut cursor = Cursor::new(bytes);
    let version = version(&mut cursor)?;
    let tensor_count = cursor.count("the number of tensors", MIN_TENSOR_BYTES)?;
    let metadata = metadata(&mut cursor)?;
    let alignment = alignment(&metadata)?;

    let mut seen = HashSet::new();
    let mut tensors = Vec::new();
    for index in 0..tensor_count {
        let (tensor, offset) = tensor(&mut cursor, index, part)?;
        if !seen.insert(tensor.name.clone()) {
            return Err(ModelError::DuplicateTensor { name: tensor.name });
        }
        tensors.push((tensor, offset));
    }
    let data = (cursor.position() as u64).next_multiple_of(alignment);
    let tensors = place(tensors, data, alignment, bytes.len() as u64)?;
    Ok(Header { version, metadata, tensors })
}

fn version(cursor: &mut Cursor<'_>) -> Result<u32, ModelError> {
    let magic = cursor.magic()?;
    if &magic != MAGIC {
        return Err(ModelError::Magic { magic: magic.escape_ascii().to_string() });
    }
    match cursor.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        version if version & 0xffff == 0 && version != 0 => Err(ModelError::BigEndian),
        version => Err(ModelError::Version { version }),
    }
}

fn metadata(cursor: &mut Cursor<'_>) -> Result<HashMap<String, Value>, ModelError> {
    let count = cursor.count("the number of metadata keys", MIN_ENTRY_BYTES)?;
    let mut metadata = HashMap::new();
    for index in 0..count {
        let key = cursor.string(&format!("metadata key {index}"))?;
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(ModelError::Header {
                what: format!("metadata key {index}"),
                problem: format!("keys have 1 to {MAX_KEY_BYTES} bytes, this one {}", key.len()),
            });
        }
        let value = cursor.value(key)?;
        match metadata.entry(key.to_owned()) {
            Entry::Vacant(entry) => entry.insert(value),
            Entry::Occupied(_) => return Err(ModelError::DuplicateKey { key: key.to_owned() }),
        };
    }
    Ok(metadata)
}

fn alignment(metadata: &HashMap<String, Value>) -> Result<u64, ModelError> {
    const KEY: &str = "general.alignment";
    let Some(value) = metadata.get(KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    let alignment = value.as_u32().ok_or_else(|| ModelError::KeyType {
        key: KEY.to_owned(),
        expected: "a u32",
        found: value.kind(),
    })?;
    if !alignment.is_power_of_two() {
        return Err(ModelError::Header {
            what: KEY.to_owned(),
            problem: format!("{alignment} is not a power of two"),
        });
    }
    Ok(alignment.into())
}

/// One entry of the tensor table, and its offset in the data section. `bytes` is `0..length`.
fn tensor(
    cursor: &mut Cursor<'_>,
    index: usize,
    part: usize,
) -> Result<(TensorInfo, u64), ModelError> {
    let name = cursor.string(&format!("the name of tensor {index}"))?;
    let refuse =
        |problem: String| Err(ModelError::Header { what: format!("tensor {name:?}"), problem });
    if name.is_empty() {
        return refuse(format!("tensor {index} has no name"));
    }
    let what = format!("tensor {name:?}");
    let rank = cursor.u32(&what)?;
    if rank == 0 || rank > MAX_DIMS {
        return refuse(format!("tensors have 1 to {MAX_DIMS} dimensions, this one {rank}"));
    }
    let dims = (0..rank).map(|_| cursor.u64(&what)).collect::<Result<Vec<u64>, _>>()?;
    let type_id = cursor.u32(&what)?;
    let offset = cursor.u64(&what)?;

    let name = name.to_owned();
    let Some(ggml_type) = GgmlType::from_id(type_id) else {
        return Err(ModelError::UnknownType { name, id: type_id });
    };
    if ggml_type.bytes == 0 {
        return refuse(format!("its type {} was removed from ggml", ggml_type.name));
    }
    if dims.contains(&0) {
        return refuse(format!("its extents {dims:?} contain a zero"));
    }
    if !dims[0].is_multiple_of(ggml_type.block) {
        return refuse(format!(
            "its rows have {} elements, and {} stores whole blocks of {}",
            dims[0], ggml_type.name, ggml_type.block
        ));
    }
    let bytes = dims
        .iter()
        .try_fold(1u64, |product, &dim| product.checked_mul(dim))
        .and_then(|elements| (elements / ggml_type.block).checked_mul(ggml_type.bytes))
        .and_then(|bytes| usize::try_from(bytes).ok());
    match bytes {
        None => refuse(format!("its extents {dims:?} overflow")),
        Some(bytes) => Ok((TensorInfo { name, dims, ggml_type, part, bytes: 0..bytes }, offset)),
    }
}

/// Gives each tensor its range in the file, after checking that the ranges are aligned, inside
/// the file and apart.
fn place(
    tensors: Vec<(TensorInfo, u64)>,
    data: u64,
    alignment: u64,
    file_len: u64,
) -> Result<Vec<TensorInfo>, ModelError> {
    let available = file_len.saturating_sub(data);
    let mut placed = Vec::with_capacity(tensors.len());
    for (mut tensor, offset) in tensors {
        let end = offset.saturating_add(tensor.bytes.end as u64);
        if end > available {
            return Err(ModelError::OutOfFile { name: tensor.name, start: offset, end, available });
        }
        if !offset.is_multiple_of(alignment) {
            return Err(ModelError::Misaligned { name: tensor.name, offset, alignment });
        }
        // Both ends are at most the length of the file, which is in memory.
        tensor.bytes = (data + offset) as usize..(data + end) as usize;
        placed.push(tensor);
    }

    let mut by_start: Vec<&TensorInfo> = placed.iter().collect();
    by_start.sort_by_key(|tensor| tensor.bytes.start);
    for pair in by_start.windows(2) {
        if pair[0].bytes.end > pair[1].bytes.start {
            return Err(ModelError::Overlap {
                first: pair[0].name.clone(),
                second: pair[1].name.clone(),
                offset: pair[1].bytes.start as u64 - data,
                end: pair[0].bytes.end as u64 - data,
            });
        }
    }
    Ok(placed)
}
