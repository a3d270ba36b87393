//! Tensors as the kernels read them.

use std::borrow::Cow;
use std::ops::Range;

use helix_kernels::{Format, Scales, Weights, dequantize, quantize};

use crate::ModelError;

/// Rows and columns of a matrix in FP8 that share a scale.
pub(crate) const SCALE_BLOCK: usize = 128;
/// Elements of a block of MXFP4.
pub(crate) const FP4_BLOCK: usize = 32;

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
    pub(crate) order: Order<'a>,
    /// What blocks of FP8 are multiplied by.
    pub(crate) scales: Option<ScaleGrid<'a>>,
}

/// Where the elements of a [`Tensor`] lie in its data.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order<'a> {
    /// Row after row, from row `first` on.
    Rows { first: usize },
    /// Element `[r, c]` is number `start + r·row + c·col`, of a matrix of `of` columns.
    Strided { start: usize, row: usize, col: usize, of: usize },
    /// MXFP4 with its exponents in a tensor of their own, and neighbours in one byte. Row `r` is
    /// row `first + r·step`.
    Fp4 { exponents: &'a [u8], first: usize, step: usize },
}

/// A scale for each block of 128 x 128 elements of the tensor as it lies on disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScaleGrid<'a> {
    pub format: Format,
    pub data: &'a [u8],
    /// Blocks of a row.
    pub cols: usize,
}

impl ScaleGrid<'_> {
    fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.data.len() / self.format.block_bytes()];
        dequantize(self.format, self.data, &mut values);
        values
    }
}

/// Part of a tensor, row after row: borrowed where it lies so on disk.
pub(crate) struct Cut<'a> {
    format: Format,
    data: Cow<'a, [u8]>,
    total_cols: usize,
    scales: Option<Vec<f32>>,
    /// The part's place in `data`.
    pub rows: Range<usize>,
    pub cols: Range<usize>,
}

impl Cut<'_> {
    fn owned(format: Format, data: Vec<u8>, rows: usize, cols: usize) -> Cut<'static> {
        let (rows, data) = (0..rows, data.into());
        Cut { format, data, total_cols: cols, scales: None, rows, cols: 0..cols }
    }

    /// As the kernels take it, with the part's place in it beside.
    pub fn weights(&self) -> Weights<'_> {
        let block = (SCALE_BLOCK, SCALE_BLOCK);
        let scales = self.scales.as_deref().map(|values| Scales { values, block });
        let Cut { format, total_cols: cols, .. } = *self;
        Weights { format, data: &self.data, cols, scales }
    }
}

impl<'a> Tensor<'a> {
    /// One row in f32.
    pub fn row(&self, row: usize, out: &mut [f32]) -> Result<(), ModelError> {
        assert_eq!(out.len(), self.cols, "{}: output against columns", self.name);
        assert!(row < self.rows, "{}: row {row} of {}", self.name, self.rows);
        match (self.order, self.scales) {
            (Order::Rows { first }, None) => {
                // No allocation: the embedding is read in the middle of steps.
                let bytes = self.row_bytes();
                dequantize(self.format, &self.data[(first + row) * bytes..][..bytes], out);
            }
            _ => {
                let cut = self.cut(row..row + 1, 0..self.cols);
                let mut line = vec![0.0; cut.total_cols];
                cut.weights().row(cut.rows.start, &mut line);
                out.copy_from_slice(&line[cut.cols]);
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

    fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols).expect("checked when the model was opened")
    }

    /// Rows `rows` and columns `cols`. What lies on disk in another order is turned, and no more
    /// of it than this part.
    pub(crate) fn cut(&self, rows: Range<usize>, cols: Range<usize>) -> Cut<'a> {
        match self.order {
            Order::Rows { first } => Cut {
                format: self.format,
                data: Cow::Borrowed(self.data),
                total_cols: self.cols,
                scales: self.scales.map(|scales| scales.values()),
                rows: first + rows.start..first + rows.end,
                cols,
            },
            Order::Strided { start, row, col, of } => {
                if let Some(grid) = self.scales {
                    assert_eq!((row, col), (1, of), "{}: scales of what lies turned", self.name);
                    return self.turned_blocks(start / of, of, grid, rows, cols);
                }
                let (height, width) = (rows.len(), cols.len());
                if self.format.is_quantized() {
                    let values = self.turned(rows, cols);
                    let data = values.into_iter().flat_map(f32::to_le_bytes).collect();
                    return Cut::owned(Format::F32, data, height, width);
                }
                let size = self.format.block_bytes();
                let places =
                    rows.flat_map(|r| cols.clone().map(move |c| start + r * row + c * col));
                let data = places.flat_map(|at| &self.data[at * size..][..size]).copied();
                Cut::owned(self.format, data.collect(), height, width)
            }
            Order::Fp4 { exponents, first, step } => {
                let blocks = cols.start / FP4_BLOCK..cols.end / FP4_BLOCK;
                let row_blocks = self.cols / FP4_BLOCK;
                let mut data = Vec::with_capacity(rows.len() * blocks.len() * 17);
                for row in rows.clone() {
                    let start = (first + row * step) * row_blocks;
                    for block in blocks.clone() {
                        let codes = &self.data[(start + block) * 16..][..16];
                        data.push(exponents[start + block]);
                        data.extend(halves(codes));
                    }
                }
                Cut::owned(self.format, data, rows.len(), cols.len())
            }
        }
    }

    /// A part of FP8 that lies turned, with its scales: blocks that are as high as wide stay blocks.
    /// Our columns are rows of `of` elements on disk, from `first` on. The part starts where a block
    /// does, with zeros for what belongs to others.
    fn turned_blocks(
        &self,
        first: usize,
        of: usize,
        grid: ScaleGrid<'_>,
        across: Range<usize>,
        cols: Range<usize>,
    ) -> Cut<'a> {
        let down = first + cols.start..first + cols.end;
        let [left, top] = [&down, &across].map(|part| part.start / SCALE_BLOCK * SCALE_BLOCK);
        let (height, width) = (across.end - top, down.end - left);
        let mut data = vec![0; height * width];
        for row in across.clone() {
            for col in down.clone() {
                data[(row - top) * width + col - left] = self.data[col * of + row];
            }
        }
        let blocks = |part: &Range<usize>| part.start / SCALE_BLOCK..part.end.div_ceil(SCALE_BLOCK);
        let values = grid.values();
        let scale = |row: usize, col: usize| values[col * grid.cols + row];
        let scales = blocks(&across).flat_map(|row| blocks(&down).map(move |col| (row, col)));
        Cut {
            format: self.format,
            data: data.into(),
            total_cols: width,
            scales: Some(scales.map(|(row, col)| scale(row, col)).collect()),
            rows: across.start - top..height,
            cols: down.start - left..width,
        }
    }

    /// The values of a part that lies turned, row by row: its blocks would run down its columns, and
    /// need not be whole.
    fn turned(&self, rows: Range<usize>, cols: Range<usize>) -> Vec<f32> {
        let Order::Strided { start, row, col, .. } = self.order else {
            unreachable!("{} does not lie turned", self.name)
        };
        let (len, size) = (self.format.block_len(), self.format.block_bytes());
        let mut all = vec![0.0; rows.len() * cols.len()];
        let (Some(last), width) = (rows.clone().next_back(), cols.len()) else { return all };
        let mut line = Vec::new();
        for (index, c) in cols.enumerate() {
            let at = |r: usize| start + r * row + c * col;
            let blocks = at(rows.start) / len..at(last) / len + 1;
            line.resize(blocks.len() * len, 0.0);
            let data = &self.data[blocks.start * size..blocks.end * size];
            dequantize(self.format, data, &mut line);
            for (r, out) in rows.clone().zip(all[index..].iter_mut().step_by(width)) {
                *out = line[at(r) - blocks.start * len];
            }
        }
        all
    }

    /// The format that parts are held in, unless it is to be another. What lies turned cannot keep
    /// blocks of one row: W_UK of older GGUF files becomes F16, which takes twice Q8_0's bytes and
    /// changes values by 1/2048 of themselves at most.
    pub(crate) fn cut_format(&self) -> Format {
        match self.order {
            Order::Strided { .. } if self.format.is_quantized() => Format::F16,
            _ => self.format,
        }
    }

    /// As [`Tensor::cut`], in another format.
    pub(crate) fn cut_as(
        &self,
        format: Format,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> Result<Cut<'a>, ModelError> {
        let cut = self.cut(rows.clone(), cols);
        if format == cut.format {
            return Ok(cut);
        }
        let width = cut.cols.len();
        let bytes = format.row_bytes(width).expect("columns are cut at this format's blocks");
        let mut data = vec![0; rows.len() * bytes];
        let mut values = vec![0.0; cut.total_cols];
        for (row, out) in rows.clone().zip(data.chunks_exact_mut(bytes.max(1))) {
            cut.weights().row(cut.rows.start + row - rows.start, &mut values);
            let values = &values[cut.cols.clone()];
            if values.iter().any(|value| !value.is_finite()) {
                return Err(ModelError::NotFinite { name: self.name.to_owned(), row });
            }
            quantize(format, values, out);
        }
        Ok(Cut::owned(format, data, rows.len(), width))
    }

    /// Bytes on disk of the blocks that rows `rows` and columns `cols` lie in, scales apart.
    pub(crate) fn part_bytes(&self, rows: &Range<usize>, cols: &Range<usize>) -> u64 {
        let (lines, along, of) = match self.order {
            Order::Strided { of, .. } => (cols.len(), rows, of),
            Order::Rows { .. } | Order::Fp4 { .. } => (rows.len(), cols, self.cols),
        };
        // Where it is held in another format, the cut need not be one of the blocks on disk.
        let block = self.format.block_len();
        let (start, end) = (along.start / block * block, along.end.next_multiple_of(block).min(of));
        let bytes = self.format.row_bytes(end.max(start) - start);
        bytes.expect("whole blocks") as u64 * lines as u64
    }
}

/// 32 codes of 4 bits, two neighbours in each byte, as ggml has them: the first 16 in the low
/// halves, the others in the high ones.
fn halves(codes: &[u8]) -> impl Iterator<Item = u8> {
    let code = |index: usize| codes[index / 2] >> (4 * (index % 2)) & 0xf;
    (0..16).map(move |index| code(index) | code(index + 16) << 4)
}
