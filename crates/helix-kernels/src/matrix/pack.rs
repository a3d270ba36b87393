//! From rows on disk to panels of 16 rows.

use std::ops::Range;

use super::PackError;
use crate::arch::matmul::panel::{self, Block, ROWS};
use crate::arch::memory::Buffer;
use crate::formats::{self, Codes, Format, SUB_BLOCK};

/// A shard's place in the tensor.
struct Shard<'a> {
    format: Format,
    data: &'a [u8],
    row_bytes: usize,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl<'a> Shard<'a> {
    /// The shard's part of row `row` of the tensor.
    fn row(&self, row: usize) -> &'a [u8] {
        let offset = |col: usize| col / self.format.block_len() * self.format.block_bytes();
        let start = row * self.row_bytes;
        &self.data[start + offset(self.cols.start)..start + offset(self.cols.end)]
    }

    /// Rows with their panel and lane.
    fn lanes(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        self.rows.clone().enumerate().map(|(i, row)| (row, i / ROWS, i % ROWS))
    }
}

pub(super) fn pack(
    format: Format,
    data: &[u8],
    total_cols: usize,
    rows: Range<usize>,
    cols: Range<usize>,
) -> Result<Buffer, PackError> {
    let Some(row_bytes) = format.row_bytes(total_cols) else {
        return Err(PackError::Row { format, cols: total_cols });
    };
    let cut = |col: usize| col <= total_cols && col.is_multiple_of(format.block_len());
    if cols.start > cols.end || !cut(cols.start) || !cut(cols.end) {
        return Err(PackError::Columns { format, cols, total: total_cols });
    }
    let needed = rows.end as u128 * row_bytes as u128;
    if rows.start > rows.end || needed > data.len() as u128 {
        return Err(PackError::Rows { rows, needed, bytes: data.len() });
    }
    if rows.is_empty() || cols.is_empty() {
        // A rank that holds none of this matrix: nothing to pack.
        return Ok(Buffer::zeroed(0)?);
    }
    let shard = Shard { format, data, row_bytes, rows, cols };
    match format {
        Format::F32 => floats::<4>(&shard, |b| f32::from_le_bytes(b).is_finite()),
        Format::F16 => floats::<2>(&shard, |b| half::f16::from_le_bytes(b).is_finite()),
        Format::BF16 => floats::<2>(&shard, |b| half::bf16::from_le_bytes(b).is_finite()),
        Format::Q8_0 => blocks::<panel::Q8_0>(&shard),
        Format::Q4_0 => blocks::<panel::Q4_0>(&shard),
        Format::Q4_1 => blocks::<panel::Q4_1>(&shard),
        Format::Q5_0 => blocks::<panel::Q5_0>(&shard),
        Format::Q5_1 => blocks::<panel::Q5_1>(&shard),
        Format::Q4K => blocks::<panel::Q4K>(&shard),
        Format::Q5K => blocks::<panel::Q5K>(&shard),
        Format::Q6K => blocks::<panel::Q6K>(&shard),
    }
}

/// Elements of `N` bytes: element `[row, col]` is lane `row % 16` of column `col` of its panel.
fn floats<const N: usize>(
    shard: &Shard<'_>,
    is_finite: fn([u8; N]) -> bool,
) -> Result<Buffer, PackError> {
    let cols = shard.cols.len();
    let mut panels = Buffer::zeroed(shard.rows.len().div_ceil(ROWS) * ROWS * cols * N)?;
    let elements = panels.as_chunks_mut::<N>().0;
    for (row, panel, lane) in shard.lanes() {
        let to = elements[panel * ROWS * cols + lane..].iter_mut().step_by(ROWS);
        for (col, (to, from)) in to.zip(shard.row(row).as_chunks().0).enumerate() {
            if !is_finite(*from) {
                return Err(PackError::NotFinite { row, col: shard.cols.start + col });
            }
            *to = *from;
        }
    }
    Ok(panels)
}

fn blocks<B: Block>(shard: &Shard<'_>) -> Result<Buffer, PackError> {
    debug_assert_eq!(shard.format, B::FORMAT);
    let count = shard.cols.len() / (SUB_BLOCK * B::SUBS);
    let mut panels = Buffer::zeroed(shard.rows.len().div_ceil(ROWS) * count * size_of::<B>())?;
    let all: &mut [B] = bytemuck::cast_slice_mut(&mut panels);
    for (row, panel, lane) in shard.lanes() {
        let from = shard.row(row).chunks_exact(B::FORMAT.block_bytes());
        for (i, (to, from)) in all[panel * count..].iter_mut().zip(from).enumerate() {
            for sub in 0..B::SUBS {
                let codes: Codes = formats::decode(B::FORMAT, from, sub);
                if !(codes.d.is_finite() && codes.m.is_finite()) {
                    let col = shard.cols.start + i * SUB_BLOCK * B::SUBS;
                    return Err(PackError::NotFinite { row, col });
                }
                to.set(lane, sub, &codes);
            }
        }
    }
    Ok(panels)
}
