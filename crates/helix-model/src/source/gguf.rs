//! Tensors of GGUF files, as converters write them today and as they did.

use std::borrow::Cow;

use helix_kernels::Format;

use super::{head_of, heads_shape, missing, split};
use crate::ModelError;
use crate::arch::names::{OLDER, Place};
use crate::arch::tensors::Slot;
use crate::config::Config;
use crate::gguf::{GgmlType, Gguf, TensorInfo};
use crate::tensor::{Order, Tensor};

/// A tensor by its name in current files; one expert's or head's with `part`.
pub(super) fn tensor<'a>(
    gguf: &'a Gguf,
    config: &Config,
    name: &str,
    part: Option<usize>,
) -> Result<Tensor<'a>, ModelError> {
    let name = renamed(config, name);
    let Some(older) = Older::of(gguf, &name) else { return of_gguf(gguf, &name, part) };
    let part = part.unwrap_or(0);
    match older.place {
        Place::KeysOf(_) | Place::ValuesOf(_) => {
            let mla = config.mla.as_ref().ok_or_else(|| missing(&name, String::new()))?;
            let whole = of_gguf(gguf, &older.name(part), None)?;
            Ok(head_of(whole, mla, part, matches!(older.place, Place::KeysOf(_))))
        }
        _ => of_gguf(gguf, &older.name(part), None),
    }
}

/// Checks that a tensor is there in its shape, and calls `known` with its names in the file.
pub(super) fn check(
    gguf: &Gguf,
    config: &Config,
    name: &str,
    slot: &Slot,
    known: &mut dyn FnMut(&str),
) -> Result<(), ModelError> {
    let name = renamed(config, name);
    let mut check = |name: &str, dims: &[usize]| {
        known(name);
        check_tensor(gguf, name, dims)
    };
    let Some(older) = Older::of(gguf, &name) else {
        let dims: Vec<usize> = slot.dims.iter().copied().chain(slot.parts).collect();
        return check(&name, &dims);
    };
    match (older.place, &config.mla) {
        (Place::KeysOf(_) | Place::ValuesOf(_), Some(mla)) => {
            let [rows, cols] = heads_shape(config.q_heads, mla);
            check(&older.name(0), &[cols, rows])
        }
        _ => (0..slot.parts.unwrap_or(1)).try_for_each(|part| check(&older.name(part), &slot.dims)),
    }
}

/// The name in a file whose architecture has its own.
fn renamed<'a>(config: &Config, name: &'a str) -> Cow<'a, str> {
    let renames = config.family().gguf.renames;
    let (layer, suffix) = split(name);
    match (layer, renames.iter().find(|(ours, _)| *ours == suffix)) {
        (Some(layer), Some((_, theirs))) => format!("blk.{layer}.{theirs}").into(),
        _ => name.into(),
    }
}

/// Where an older file has a tensor.
struct Older<'n> {
    layer: &'n str,
    place: Place,
}

impl<'n> Older<'n> {
    /// The place of a tensor that current files would have under `name`, and this one does not.
    fn of(gguf: &Gguf, name: &'n str) -> Option<Older<'n>> {
        let (Some(layer), suffix) = split(name) else { return None };
        let (_, place) = OLDER.iter().find(|(ours, _)| *ours == suffix)?;
        let older = Older { layer, place: *place };
        let is_older = gguf.tensor(name).is_none() && gguf.tensor(&older.name(0)).is_some();
        is_older.then_some(older)
    }

    /// The name of the tensor that has a part.
    fn name(&self, part: usize) -> String {
        let Older { layer, place } = self;
        match place {
            Place::Each(theirs) => {
                format!("blk.{layer}.{}", theirs.replacen("{}", &part.to_string(), 1))
            }
            Place::Whole(theirs)
            | Place::Fused(theirs, _)
            | Place::KeysOf(theirs)
            | Place::ValuesOf(theirs) => format!("blk.{layer}.{theirs}"),
        }
    }
}

fn check_tensor(gguf: &Gguf, name: &str, expected: &[usize]) -> Result<(), ModelError> {
    let tensor = gguf.tensor(name).ok_or_else(|| missing(name, format!("{expected:?}")))?;
    let equal = tensor.dims.iter().copied().eq(expected.iter().map(|&dim| dim as u64));
    if !equal {
        return Err(ModelError::TensorShape {
            name: name.to_owned(),
            found: tensor.shape(),
            expected: format!("{expected:?}"),
        });
    }
    format_of(tensor).map(drop)
}

/// A tensor of a file, or its last extent's `part`.
pub(crate) fn of_gguf<'a>(
    gguf: &'a Gguf,
    name: &str,
    part: Option<usize>,
) -> Result<Tensor<'a>, ModelError> {
    let info = gguf.tensor(name).ok_or_else(|| missing(name, String::new()))?;
    let format = format_of(info)?;
    let mut data = gguf.data(info);
    let mut outer = &info.dims[1..];
    if let (Some(part), Some((&parts, rest))) = (part, outer.split_last()) {
        let bytes = data.len() / parts as usize;
        data = &data[part * bytes..(part + 1) * bytes];
        outer = rest;
    }
    let cols = info.dims[0] as usize;
    let rows = outer.iter().product::<u64>() as usize;
    debug_assert_eq!(format.row_bytes(cols).map(|bytes| bytes * rows), Some(data.len()));
    let order = Order::Rows { first: 0 };
    Ok(Tensor { name: &info.name, format, rows, cols, data, order, scales: None })
}

/// The kernels' name for a tensor's type, if they have one.
fn format_of(info: &TensorInfo) -> Result<Format, ModelError> {
    let ggml_type: &'static GgmlType = info.ggml_type;
    let known = Format::GGML.into_iter().find(|format| format.name() == ggml_type.name);
    known.ok_or_else(|| ModelError::UnsupportedType {
        name: info.name.clone(),
        ggml_type: ggml_type.name,
        supported: Format::GGML.map(Format::name).join(", "),
    })
}
