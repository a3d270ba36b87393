//! Tensors as the kernels read them.

use std::borrow::Cow;
use std::ops::Range;

use helix_kernels::{Format, dequantize};

use crate::ModelError;

/// A matrix as it lies on disk; a vector is a matrix of one row.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// How its elements are stored.
    pub format: Format,
    /// Outputs of the matrix.
    pub rows: usize,
    /// Inputs of the matrix: the contiguous extent, unless the file has it transposed.
    pub cols: usize,
    /// Its bytes: in most files `rows` times `format.row_bytes(cols)`, row after row.
    pub data: &'a [u8],
    pub(crate) order: Order,
}

/// Where the elements of a [`Tensor`] lie in its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Row after row.
    Rows,
    /// Element `[r, c]` is number `start + r·row + c·col`.
    Strided { start: usize, row: usize, col: usize },
}

/// Part of a tensor, row after row: borrowed where it lies so on disk.
pub(crate) struct Cut<'a> {
    pub format: Format,
    pub data: Cow<'a, [u8]>,
    /// Columns of a row of `data`.
    pub total_cols: usize,
    /// The part's place in `data`.
    pub rows: Range<usize>,
    pub cols: Range<usize>,
}

impl<'a> Tensor<'a> {
    /// One row in f32.
    pub fn row(&self, row: usize, out: &mut [f32]) -> Result<(), ModelError> {
        assert_eq!(out.len(), self.cols, "{}: output against columns", self.name);
        assert!(row < self.rows, "{}: row {row} of {}", self.name, self.rows);
        match self.order {
            Order::Rows => {
                let bytes = self.data.len() / self.rows;
                dequantize(self.format, &self.data[row * bytes..(row + 1) * bytes], out);
            }
            Order::Strided { .. } => {
                let cut = self.cut(row..row + 1, 0..self.cols);
                dequantize(cut.format, &cut.data, out);
            }
        }
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

    /// Rows `rows` and columns `cols`. What lies on disk in another order is turned, and no more
    /// of it than this part.
    pub(crate) fn cut(&self, rows: Range<usize>, cols: Range<usize>) -> Cut<'a> {
        match self.order {
            Order::Rows => Cut {
                format: self.format,
                data: Cow::Borrowed(self.data),
                total_cols: self.cols,
                rows,
                cols,
            },
            Order::Strided { start, row, col } => {
                let size = self.format.block_bytes();
                let mut data = Vec::with_capacity(rows.len() * cols.len() * size);
                for r in rows.clone() {
                    for c in cols.clone() {
                        let at = (start + r * row + c * col) * size;
                        data.extend_from_slice(&self.data[at..at + size]);
                    }
                }
                Cut {
                    format: self.format,
                    data: data.into(),
                    total_cols: cols.len(),
                    rows: 0..rows.len(),
                    cols: 0..cols.len(),
                }
            }
        }
    }
}
