//! Tensors as the kernels read them.

use helix_kernels::{Format, dequantize};

use crate::gguf::GgmlType;
use crate::{Gguf, ModelError};

/// A matrix as it lies on disk; a vector is a matrix of one row.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// How its elements are stored.
    pub format: Format,
    /// Outputs of the matrix.
    pub rows: usize,
    /// Inputs of the matrix: the contiguous extent.
    pub cols: usize,
    /// `rows` times `format.row_bytes(cols)` bytes, row after row.
    pub data: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// The tensor called `name`, if it is there and of a type that is run.
    pub(crate) fn of(gguf: &'a Gguf, name: &str) -> Result<Tensor<'a>, ModelError> {
        let info = gguf.tensor(name).ok_or_else(|| ModelError::MissingTensor {
            name: name.to_owned(),
            expected: String::new(),
        })?;
        let format = format_of(info.ggml_type).ok_or_else(|| ModelError::UnsupportedType {
            name: name.to_owned(),
            ggml_type: info.ggml_type.name,
            supported: Format::GGML.map(Format::name).join(", "),
        })?;
        let data = gguf.data(info);
        let cols = info.dims[0] as usize;
        let rows = info.dims[1..].iter().product::<u64>() as usize;
        debug_assert_eq!(format.row_bytes(cols).map(|bytes| bytes * rows), Some(data.len()));
        Ok(Tensor { name: &info.name, format, rows, cols, data })
    }

    /// One row in f32.
    pub fn row(&self, row: usize, out: &mut [f32]) -> Result<(), ModelError> {
        assert_eq!(out.len(), self.cols, "{}: output against columns", self.name);
        assert!(row < self.rows, "{}: row {row} of {}", self.name, self.rows);
        let bytes = self.data.len() / self.rows;
        dequantize(self.format, &self.data[row * bytes..(row + 1) * bytes], out);
        if out.iter().all(|value| value.is_finite()) {
            Ok(())
        } else {
            Err(ModelError::NotFinite { name: self.name.to_owned(), row })
        }
    }

    /// All of a vector that must have `len` elements, in f32.
    pub(crate) fn vector(&self, len: usize) -> Result<Vec<f32>, ModelError> {
        if (self.rows, self.cols) != (1, len) {
            return Err(ModelError::TensorShape {
                name: self.name.to_owned(),
                found: match self.rows {
                    1 => format!("[{}]", self.cols),
                    rows => format!("[{}, {rows}]", self.cols),
                },
                expected: format!("[{len}]"),
            });
        }
        let mut out = vec![0.0; len];
        self.row(0, &mut out)?;
        Ok(out)
    }
}

/// The kernels' name for a type, if they have one.
fn format_of(ggml_type: &GgmlType) -> Option<Format> {
    Format::GGML.into_iter().find(|format| format.name() == ggml_type.name)
}
