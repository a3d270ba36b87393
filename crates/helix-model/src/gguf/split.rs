//! Models split over several files, as `llama-gguf-split` writes them: the first part has all
//! metadata, each part has `split.no` (from 0), `split.count` and its own tensors.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::header::{Header, parse};
use super::{Gguf, Value};
use crate::ModelError;
use crate::mmap::Bytes;

/// The `split.*` keys of one part.
pub(super) struct Split {
    /// Which part this is, from 0.
    no: u64,
    /// Parts in all; more than one.
    pub(super) count: u64,
    /// Tensors of all parts.
    tensors: Option<u64>,
}

impl Split {
    /// The keys of one file; `None` for a model in one file.
    pub(super) fn of(metadata: &HashMap<String, Value>) -> Result<Option<Split>, ModelError> {
        let get = |key: &str| match metadata.get(key) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| ModelError::KeyType {
                key: key.to_owned(),
                expected: "an integer from 0 on",
                found: value.kind(),
            }),
        };
        let count = get("split.count")?.unwrap_or(1);
        if count <= 1 {
            return Ok(None);
        }
        let no = get("split.no")?
            .ok_or_else(|| ModelError::MissingKey { key: "split.no".to_owned() })?;
        if no >= count || count > u16::MAX.into() {
            return Err(ModelError::Header {
                what: "split.no and split.count".to_owned(),
                problem: format!("{no} of {count} is no part of a model"),
            });
        }
        Ok(Some(Split { no, count, tensors: get("split.tensors.count")? }))
    }
}

/// Opens a model in one file, or all parts of a split one given its first.
pub(super) fn open(path: &Path) -> Result<Gguf, ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let bytes = Bytes::map(path).map_err(io)?;
    let mut header = parse(&bytes, 0).map_err(in_file(path))?;
    let Some(split) = Split::of(&header.metadata).map_err(in_file(path))? else {
        return Ok(Gguf::new(header, vec![bytes]));
    };

    if split.no != 0 {
        let hint = part_path(path, split.no, 0, split.count)
            .map_or(String::new(), |first| format!(", {}", first.display()));
        let error = ModelError::NotFirstPart { part: split.no + 1, count: split.count, hint };
        return Err(in_file(path)(error));
    }
    let mut parts = vec![bytes];
    for no in 1..split.count {
        let path = part_path(path, 0, no, split.count)
            .ok_or_else(|| in_file(path)(ModelError::PartName { count: split.count }))?;
        let (more, bytes) = open_part(&path, no, &split)?;
        append(&mut header, more).map_err(in_file(&path))?;
        parts.push(bytes);
    }
    let found = header.tensors.len() as u64;
    match split.tensors {
        Some(expected) if expected != found => {
            Err(ModelError::PartTensors { parts: split.count, found, expected })
        }
        _ => Ok(Gguf::new(header, parts)),
    }
}

fn open_part(path: &Path, no: u64, split: &Split) -> Result<(Header, Bytes), ModelError> {
    let (part, count) = (no + 1, split.count);
    let bytes = Bytes::map(path).map_err(|source| ModelError::MissingPart {
        part,
        count,
        path: path.to_owned(),
        source,
    })?;
    let header = parse(&bytes, no as usize).map_err(in_file(path))?;
    let (found, found_count) = match Split::of(&header.metadata).map_err(in_file(path))? {
        Some(found) => (found.no + 1, found.count),
        None => (1, 1),
    };
    if (found, found_count) != (part, count) {
        return Err(in_file(path)(ModelError::WrongPart { part, count, found, found_count }));
    }
    Ok((header, bytes))
}

/// Adds a part's tensors to those before it; its metadata repeat the first part's, if anything.
fn append(header: &mut Header, part: Header) -> Result<(), ModelError> {
    let known: HashSet<&str> = header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    if let Some(twice) = part.tensors.iter().find(|tensor| known.contains(tensor.name.as_str())) {
        return Err(ModelError::DuplicateTensor { name: twice.name.clone() });
    }
    header.tensors.extend(part.tensors);
    Ok(())
}

/// The path of part `to`, from that of part `from` (both from 0), if it is named as parts are.
fn part_path(path: &Path, from: u64, to: u64, count: u64) -> Option<PathBuf> {
    let suffix = |no: u64| format!("-{:05}-of-{count:05}.gguf", no + 1);
    let stem = path.file_name()?.to_str()?.strip_suffix(&suffix(from))?;
    Some(path.with_file_name(format!("{stem}{}", suffix(to))))
}

fn in_file(path: &Path) -> impl Fn(ModelError) -> ModelError {
    move |error| error.in_file(path)
}
