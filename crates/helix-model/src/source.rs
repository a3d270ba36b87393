//! Where a model's tensors are: a GGUF file, or a Hugging Face directory.
//!
//! Both are asked by GGUF's names. A name is looked up, its type and shape are checked, and what
//! comes out is a [`Tensor`] whose bytes have not been touched.

mod gguf;

use helix_kernels::Format;

pub(crate) use gguf::of_gguf;

use crate::ModelError;
use crate::arch::names::{OUTER, Part, Place, USUAL};
use crate::arch::tensors::Slot;
use crate::config::{Config, Mla};
use crate::gguf::Gguf;
use crate::huggingface::{Directory, Located};
use crate::tensor::{FP4_BLOCK, Order, SCALE_BLOCK, ScaleGrid, Tensor};

/// Where a model's tensors are.
#[derive(Debug)]
pub(crate) enum Source {
    Gguf(Gguf),
    HuggingFace(Directory),
}

impl Source {
    /// A tensor by GGUF's name for it; one expert's or head's with `part`.
    pub fn tensor(
        &self,
        config: &Config,
        name: &str,
        part: Option<usize>,
    ) -> Result<Tensor<'_>, ModelError> {
        match self {
            Source::Gguf(gguf) => gguf::tensor(gguf, config, name, part),
            Source::HuggingFace(directory) => of_directory(directory, config, name, part),
        }
    }

    /// Checks that a tensor is there in its shape, and calls `known` with its name in the file.
    pub fn check(
        &self,
        config: &Config,
        name: &str,
        slot: &Slot,
        known: &mut dyn FnMut(&str),
    ) -> Result<(), ModelError> {
        match self {
            Source::Gguf(gguf) => gguf::check(gguf, config, name, slot, known)?,
            Source::HuggingFace(directory) => {
                for part in 0..slot.parts.unwrap_or(1) {
                    let part = slot.parts.map(|_| part);
                    let tensor = of_directory(directory, config, name, part);
                    let tensor = tensor.map_err(|error| match error {
                        ModelError::MissingTensor { name, .. } => missing(&name, slot.shape()),
                        other => other,
                    })?;
                    let found = [tensor.cols, tensor.rows];
                    let fits = match slot.dims[..] {
                        [cols] => found == [cols, 1],
                        _ => found == slot.dims[..],
                    };
                    if !fits {
                        return Err(ModelError::TensorShape {
                            name: tensor.name.to_owned(),
                            found: format!("[{}, {}]", tensor.rows, tensor.cols),
                            expected: slot.shape(),
                        });
                    }
                    known(tensor.name);
                }
            }
        }
        Ok(())
    }
}

/// A layer's number and what follows it; names outside layers have no number.
fn split(name: &str) -> (Option<&str>, &str) {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    layer.map_or((None, name), |(layer, suffix)| (Some(layer), suffix))
}

fn missing(name: &str, expected: String) -> ModelError {
    ModelError::MissingTensor { name: name.to_owned(), expected }
}

/// The matrix of one head in one from latents to the keys and values of all, `whole`, whose rows
/// are `[heads, nope + value]`. The one that makes keys is turned: it is queries that are multiplied
/// by it.
fn head_of<'a>(whole: Tensor<'a>, mla: &Mla, head: usize, keys: bool) -> Tensor<'a> {
    let &Mla { kv_lora, nope, value, .. } = mla;
    let first = head * (nope + value);
    if keys {
        let order = Order::Strided { start: first * kv_lora, row: 1, col: kv_lora, of: kv_lora };
        Tensor { rows: kv_lora, cols: nope, order, ..whole }
    } else {
        Tensor { rows: value, order: Order::Rows { first: first + nope }, ..whole }
    }
}

/// Rows and columns of the matrix whose heads [`head_of`] takes.
fn heads_shape(heads: usize, mla: &Mla) -> [usize; 2] {
    [heads * (mla.nope + mla.value), mla.kv_lora]
}

// ---- Hugging Face

fn of_directory<'a>(
    directory: &'a Directory,
    config: &Config,
    name: &str,
    part: Option<usize>,
) -> Result<Tensor<'a>, ModelError> {
    let (layer, suffix) = split(name);
    let Some(layer) = layer else {
        let found = OUTER.iter().position(|(ours, _)| *ours == suffix);
        let place = found.ok_or_else(|| missing(name, String::new()))?;
        return whole(directory, directory.outer_name(place));
    };
    let places = config.family().huggingface.places.iter().chain(&USUAL);
    let place = places.into_iter().find(|(ours, _)| *ours == suffix);
    let (_, place) = place.ok_or_else(|| missing(name, String::new()))?;
    let full = |theirs: &str| directory.layer_name(layer, theirs);
    let part = part.unwrap_or(0);
    match *place {
        Place::Whole(theirs) => whole(directory, &full(theirs)),
        Place::Each(theirs) => {
            whole(directory, &full(&theirs.replacen("{}", &part.to_string(), 1)))
        }
        Place::Fused(theirs, outputs) => fused(directory, &full(theirs), outputs, part),
        Place::KeysOf(theirs) | Place::ValuesOf(theirs) => {
            let mla = config.mla.as_ref().ok_or_else(|| missing(name, String::new()))?;
            let whole = whole(directory, &full(theirs))?;
            let (found, expected) = ([whole.rows, whole.cols], heads_shape(config.q_heads, mla));
            if found != expected {
                let (_, located) = find(directory, whole.name)?;
                return Err(shape_error(whole.name, located, format!("{expected:?}")));
            }
            Ok(head_of(whole, mla, part, matches!(place, Place::KeysOf(_))))
        }
    }
}

/// A matrix or vector, as it lies.
fn whole<'a>(directory: &'a Directory, name: &str) -> Result<Tensor<'a>, ModelError> {
    let (name, located) = find(directory, name)?;
    let format = dtype_format(name, located)?;
    let (rows, cols) = match located.entry.shape[..] {
        [cols] if cols > 0 => (1, cols),
        [rows, cols] if rows > 0 && cols > 0 => (rows, cols),
        _ => return Err(shape_error(name, located, "one or two extents, none of them 0".into())),
    };
    let scales = scales(directory, name, format, rows, cols)?;
    let (data, order) = (directory.data(located), Order::Rows { first: 0 });
    Ok(Tensor { name, format, rows, cols, data, order, scales })
}

/// The scales of a matrix in FP8, which lie beside it.
fn scales<'a>(
    directory: &'a Directory,
    name: &str,
    format: Format,
    rows: usize,
    cols: usize,
) -> Result<Option<ScaleGrid<'a>>, ModelError> {
    if format != Format::F8E4M3 {
        return Ok(None);
    }
    let expected = [rows.div_ceil(SCALE_BLOCK), cols.div_ceil(SCALE_BLOCK)];
    let (name, located) = find(directory, &format!("{name}_scale_inv"))?;
    if located.entry.shape != expected {
        return Err(shape_error(name, located, format!("{expected:?}")));
    }
    let format = floats(name, located)?;
    Ok(Some(ScaleGrid { format, data: directory.data(located), cols: expected[1] }))
}

/// The matrix or bias of expert `part` in a tensor of all.
fn fused<'a>(
    directory: &'a Directory,
    name: &str,
    outputs: Part,
    part: usize,
) -> Result<Tensor<'a>, ModelError> {
    let (step, first) = match outputs {
        Part::All => (1, 0),
        Part::Even => (2, 0),
        Part::Odd => (2, 1),
    };
    let blocks = format!("{name}_blocks");
    if directory.tensor(&blocks).is_some() {
        return fused_fp4(directory, &blocks, &format!("{name}_scales"), [first, step], part);
    }
    let (name, located) = find(directory, name)?;
    let format = floats(name, located)?;
    let (experts, inputs, all) = match located.entry.shape[..] {
        [experts, all] if experts > part => (experts, None, all),
        [experts, inputs, all] if experts > part => (experts, Some(inputs), all),
        _ => return Err(shape_error(name, located, format!("at least {} experts", part + 1))),
    };
    if all == 0 || inputs == Some(0) || !all.is_multiple_of(step) {
        return Err(shape_error(name, located, "an even number of outputs".into()));
    }
    let data = directory.data(located);
    let bytes = data.len() / experts;
    let data = &data[part * bytes..(part + 1) * bytes];
    let rows = all / step;
    Ok(match inputs {
        None => {
            let order = Order::Strided { start: first, row: 0, col: step, of: all };
            Tensor { name, format, rows: 1, cols: rows, data, order, scales: None }
        }
        Some(cols) => {
            let order = Order::Strided { start: first, row: step, col: all, of: all };
            Tensor { name, format, rows, cols, data, order, scales: None }
        }
    })
}

/// The matrix of expert `part` in blocks of MXFP4, `[experts, outputs, inputs / 32, 16]`, whose
/// exponents are a tensor of their own.
fn fused_fp4<'a>(
    directory: &'a Directory,
    blocks: &str,
    exponents: &str,
    [first, step]: [usize; 2],
    part: usize,
) -> Result<Tensor<'a>, ModelError> {
    let (name, located) = find(directory, blocks)?;
    let (other, scales) = find(directory, exponents)?;
    for (name, located) in [(name, located), (other, scales)] {
        if located.entry.dtype.name != "U8" {
            return Err(unsupported(name, located, "U8".to_owned()));
        }
    }
    let [experts, all, row_blocks, 16] = located.entry.shape[..] else {
        let expected = "[experts, outputs, blocks, 16]".to_owned();
        return Err(shape_error(name, located, expected));
    };
    if experts <= part || all == 0 || row_blocks == 0 || !all.is_multiple_of(step) {
        let expected = format!("at least {} experts, and whole pairs of outputs", part + 1);
        return Err(shape_error(name, located, expected));
    }
    if scales.entry.shape != [experts, all, row_blocks] {
        return Err(shape_error(other, scales, format!("[{experts}, {all}, {row_blocks}]")));
    }
    let of_part = |located: &Located, bytes: usize| -> &'a [u8] {
        &directory.data(located)[part * bytes..(part + 1) * bytes]
    };
    let exponents = of_part(scales, all * row_blocks);
    Ok(Tensor {
        name,
        format: Format::Mxfp4,
        rows: all / step,
        cols: row_blocks * FP4_BLOCK,
        data: of_part(located, all * row_blocks * 16),
        order: Order::Fp4 { exponents, first, step },
        scales: None,
    })
}

fn find<'a>(directory: &'a Directory, name: &str) -> Result<(&'a str, &'a Located), ModelError> {
    directory.tensor(name).ok_or_else(|| missing(name, String::new()))
}

/// The format of a matrix or vector.
fn dtype_format(name: &str, located: &Located) -> Result<Format, ModelError> {
    const SUPPORTED: [Format; 4] = [Format::F32, Format::F16, Format::BF16, Format::F8E4M3];
    one_of(&SUPPORTED, name, located)
}

/// The format of what is too small for any but floats.
fn floats(name: &str, located: &Located) -> Result<Format, ModelError> {
    one_of(&[Format::F32, Format::F16, Format::BF16], name, located)
}

fn one_of(formats: &[Format], name: &str, located: &Located) -> Result<Format, ModelError> {
    let found = formats.iter().find(|format| format.name() == located.entry.dtype.name);
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = formats.iter().map(|format| format.name()).collect();
        unsupported(name, located, names.join(", "))
    })
}

fn unsupported(name: &str, located: &Located, supported: String) -> ModelError {
    let dtype = located.entry.dtype.name;
    ModelError::UnsupportedDtype { name: name.to_owned(), dtype, supported }
}

fn shape_error(name: &str, located: &Located, expected: String) -> ModelError {
    ModelError::TensorShape {
        name: name.to_owned(),
        found: format!("{:?}", located.entry.shape),
        expected,
    }
}
