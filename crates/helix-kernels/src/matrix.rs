//! Weights repacked for SIMD, and their product with a batch of activations.

use std::ops::Range;

use thiserror::Error;

use crate::activations::{ActivationRows, Forms};
use crate::arch::matmul::panel::ROWS;
use crate::arch::matmul::{Operand, multiply};
use crate::arch::memory::{self, Buffer, OutOfMemory};
use crate::columns::Columns;
use crate::formats::{Format, dequantize};
use crate::isa::{self, Isa};

mod pack;

/// What activations become when they meet quantised weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// int8 with a scale per 32 columns.
    Fast,
    /// They stay `f32`, and weights are dequantised on the way: for comparison with references.
    Precise,
}

/// A weight matrix as it lies on disk.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// How its elements are stored.
    pub format: Format,
    /// Row-major blocks, from row 0.
    pub data: &'a [u8],
    /// Columns of each row.
    pub cols: usize,
    /// What weights of [`Format::F8E4M3`] are multiplied by; without, by 1. Other formats have none.
    pub scales: Option<Scales<'a>>,
}

/// Scales of blocks of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a> {
    /// Row-major, `[⌈rows / block.0⌉, ⌈cols / block.1⌉]`.
    pub values: &'a [f32],
    /// Rows and columns that share a scale: 128 × 128 in DeepSeek's models, whose
    /// `weight_scale_inv` these are. Columns must be a multiple of 128, or at least all of them.
    pub block: (usize, usize),
}

impl<'a> Weights<'a> {
    /// Weights without scales beside them.
    pub fn new(format: Format, data: &'a [u8], cols: usize) -> Weights<'a> {
        Weights { format, data, cols, scales: None }
    }

    /// Row `row` in `f32`, scales included.
    ///
    /// # Panics
    /// When there is no such row, `out` is not as long as a row, or there are too few scales.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a row of weights: columns");
        let bytes = self.format.row_bytes(self.cols).expect("rows are whole blocks");
        dequantize(self.format, &self.data[row * bytes..(row + 1) * bytes], out);
        if let Some(scales) = self.scales {
            for (col, out) in out.iter_mut().enumerate() {
                *out *= scales.of(self.cols, row, col);
            }
        }
    }
}

impl Scales<'_> {
    /// The scale of an element of a matrix of `cols` columns.
    fn of(&self, cols: usize, row: usize, col: usize) -> f32 {
        self.values[row / self.block.0 * cols.div_ceil(self.block.1) + col / self.block.1]
    }
}

/// Why weights cannot be packed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PackError {
    /// Rows are not whole blocks.
    #[error("rows of {cols} {format} weights are not whole blocks of {}", format.block_len())]
    Row {
        /// Of the tensor.
        format: Format,
        /// Columns of the tensor.
        cols: usize,
    },
    /// A shard that starts or ends inside a block, or outside the tensor.
    #[error(
        "columns {}..{} of {total} cannot be cut from {format} weights: cut at multiples of {}",
        cols.start, cols.end, format.block_len()
    )]
    Columns {
        /// Of the tensor.
        format: Format,
        /// Asked for.
        cols: Range<usize>,
        /// Columns of the tensor.
        total: usize,
    },
    /// Fewer bytes than the rows need.
    #[error("rows {}..{} need {needed} bytes of weights, not {bytes}", rows.start, rows.end)]
    Rows {
        /// Asked for.
        rows: Range<usize>,
        /// Up to the end of the last row.
        needed: u128,
        /// There are.
        bytes: usize,
    },
    /// Scales that do not fit the weights.
    #[error(
        "{found} scales for blocks of {} x {} do not fit {rows} rows of {cols} {format} weights: \
         F8_E4M3 alone has scales of its own, one for each block of a multiple of 128 columns",
        block.0, block.1
    )]
    Scales {
        /// Of the tensor.
        format: Format,
        /// Of the tensor.
        rows: usize,
        /// Of the tensor.
        cols: usize,
        /// Rows and columns of a block.
        block: (usize, usize),
        /// Scales given.
        found: usize,
    },
    /// A weight or scale that is not a finite number.
    #[error("row {row} has a NaN or infinite weight or scale near column {col}")]
    NotFinite {
        /// Of the tensor.
        row: usize,
        /// Of the tensor; the start of the block.
        col: usize,
    },
    /// No room for the packed weights.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

/// A shard `[rows, cols]` of a weight matrix, repacked into panels of 16 rows.
pub struct Matrix {
    format: Format,
    precision: Precision,
    rows: usize,
    cols: usize,
    /// Columns between a boundary of scales and the first column.
    lead: usize,
    /// Of 16 rows each, one after the other.
    panels: Buffer,
}

impl Matrix {
    /// Repacks rows `rows` and columns `cols` of a tensor.
    ///
    /// # Errors
    /// When columns are not cut at block boundaries, the data ends before the last row, scales do
    /// not fit, or a scale or value is not finite.
    pub fn pack(
        weights: Weights<'_>,
        rows: Range<usize>,
        cols: Range<usize>,
        precision: Precision,
    ) -> Result<Matrix, PackError> {
        let panels = pack::pack(&weights, rows.clone(), cols.clone())?;
        let (format, lead) = (weights.format, cols.start % pack::SCALED_COLUMNS);
        Ok(Matrix { format, precision, rows: rows.len(), cols: cols.len(), lead, panels })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What its product needs of activations.
    pub fn wants(&self) -> Forms {
        let codes = self.format.is_quantized() && self.precision == Precision::Fast;
        Forms { values: !codes, codes }
    }

    /// As on disk.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Asks for the first `bytes` of what row `row` and those after it are packed in, in the
    /// second-level cache: a thread that waits for its activations may have its weights come.
    pub fn prefetch(&self, row: usize, bytes: usize) {
        let panel = self.panels.len() / self.rows.div_ceil(ROWS).max(1);
        let start = (row / ROWS * panel).min(self.panels.len());
        let end = start.saturating_add(bytes).min(self.panels.len());
        memory::prefetch(&self.panels[start..end]);
    }

    /// Bytes that one pass over the whole matrix reads.
    pub fn bytes(&self) -> usize {
        self.panels.len()
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix {{ {} [{}, {}] }}", self.format, self.rows, self.cols)
    }
}

/// Some outputs of a linear layer: `out[t][c] = Σ_k w[c − w_row0][k]·x[t][k]`.
///
/// Shapes: `out` columns `c0..c1` of `[tokens, _]`, `w [rows, cols]`, `x [tokens, cols]`, which are
/// all rows of [`Activations`](crate::Activations) or a [run](crate::Activations::rows) of them;
/// `w_row0 ≤ c0`, `c0 − w_row0` is a multiple of 16 and `c1 ≤ w_row0 + rows`. Sums over no columns
/// are 0. An output's bits depend on its row of `w` and of `x` alone: not on the tile, on other
/// tokens, or on the instruction set. It adds sub-blocks of 32 columns from left to right in
/// `f32`; inside one, quantised weights under [`Precision::Fast`] add integers exactly, others
/// are a chain of fused multiply-adds. Sub-blocks of [`Format::F8E4M3`] are quarters of what shares
/// a scale: 32 columns, or less at the shard's ends; the scale meets their sums.
///
/// # Panics
/// When shapes differ from the above, or `x` is not kept as [what `w` wants](Matrix::wants).
pub fn matmul<'a>(
    out: &mut Columns<'_>,
    w_row0: usize,
    w: &Matrix,
    x: impl Into<ActivationRows<'a>>,
) {
    let range = out.range();
    assert!(w_row0 <= range.start, "columns {range:?} of a matrix that starts at {w_row0}");
    matmul_on(isa::cpu(), out, range.start - w_row0, w, x.into());
}

/// As [`matmul`], of the rows of `w` from `first` on: column `c` of `out` is row `first + c`.
///
/// # Panics
/// As [`matmul`].
pub fn matmul_from<'a>(
    out: &mut Columns<'_>,
    first: usize,
    w: &Matrix,
    x: impl Into<ActivationRows<'a>>,
) {
    matmul_on(isa::cpu(), out, first + out.range().start, w, x.into());
}

/// [`matmul`] on a given instruction set, of the rows of `w` from `row` on.
fn matmul_on(isa: Isa, out: &mut Columns<'_>, row: usize, w: &Matrix, x: ActivationRows<'_>) {
    let range = out.range();
    assert!(
        row.checked_add(range.len()).is_some_and(|end| end <= w.rows),
        "columns {range:?} are not rows from {row} on of a matrix of {}",
        w.rows
    );
    assert_eq!(row % ROWS, 0, "tile starts inside a panel");
    assert_eq!((x.tokens(), x.cols()), (out.tokens(), w.cols), "activations: tokens, columns");
    assert!(x.forms().have(w.wants()), "activations are kept as {:?}", x.forms());
    if w.cols == 0 {
        (0..out.tokens()).for_each(|t| out.row(t).fill(0.0));
    } else if out.tokens() > 0 && !range.is_empty() {
        let Matrix { format, cols, lead, ref panels, .. } = *w;
        let integer = w.wants().codes;
        let operand = Operand { format, integer, bytes: panels, cols, lead };
        multiply(isa, out, row, operand, x);
    }
}

#[cfg(test)]
mod tests;
