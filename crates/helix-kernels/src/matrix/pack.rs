//! From rows on disk to panels of 16 rows.

use std::ops::Range;

use super::{PackError, Scales, Weights};
use crate::arch::matmul::fp8;
use crate::arch::matmul::panel::{self, Block, GROUP, ROWS};
use crate::arch::memory::Buffer;
use crate::formats::{self, Codes, Format, SUB_BLOCK, e4m3};

pub(super) use fp8::COLUMNS as SCALED_COLUMNS;

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
    weights: &Weights<'_>,
    rows: Range<usize>,
    cols: Range<usize>,
) -> Result<Buffer, PackError> {
    let Weights { format, data, cols: total_cols, scales } = *weights;
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
    if let Some(scales) = scales {
        check_scales(weights, &scales, data.len() / row_bytes)?;
    }
    let shard = Shard { format, data, row_bytes, rows, cols };
    match format {
        Format::F32 => floats::<4>(&shard, |b| f32::from_le_bytes(b).is_finite()),
        Format::F16 => floats::<2>(&shard, |b| half::f16::from_le_bytes(b).is_finite()),
        Format::BF16 => floats::<2>(&shard, |b| half::bf16::from_le_bytes(b).is_finite()),
        Format::F8E4M3 => scaled(&shard, weights),
        Format::Q8_0 => blocks::<panel::Q8_0>(&shard),
        Format::Q4_0 => blocks::<panel::Q4_0>(&shard),
        Format::Q4_1 => blocks::<panel::Q4_1>(&shard),
        Format::Q5_0 => blocks::<panel::Q5_0>(&shard),
        Format::Q5_1 => blocks::<panel::Q5_1>(&shard),
        Format::Q4K => blocks::<panel::Q4K>(&shard),
        Format::Q5K => blocks::<panel::Q5K>(&shard),
        Format::Q6K => blocks::<panel::Q6K>(&shard),
        Format::Mxfp4 => blocks::<panel::Mxfp4>(&shard),
    }
}

fn check_scales(weights: &Weights<'_>, scales: &Scales<'_>, rows: usize) -> Result<(), PackError> {
    let (format, cols, block) = (weights.format, weights.cols, scales.block);
    let found = scales.values.len();
    let whole = block.1.is_multiple_of(SCALED_COLUMNS) || block.1 >= cols;
    let fits = format == Format::F8E4M3 && block.0 > 0 && block.1 > 0 && whole;
    if !fits || rows.div_ceil(block.0).checked_mul(cols.div_ceil(block.1)) != Some(found) {
        return Err(PackError::Scales { format, rows, cols, block, found });
    }
    Ok(())
}

/// Codes as they are, behind 16 rows' scales for every 128 columns: see [`fp8::Chunk`].
fn scaled(shard: &Shard<'_>, weights: &Weights<'_>) -> Result<Buffer, PackError> {
    let (lead, cols) = (shard.cols.start % SCALED_COLUMNS, shard.cols.len());
    let units = fp8::units(lead, cols);
    let mut panels = Buffer::zeroed(shard.rows.len().div_ceil(ROWS) * units * GROUP)?;
    let all = panels.as_chunks_mut::<GROUP>().0;
    for (panel, first) in all.chunks_mut(units).zip(shard.rows.clone().step_by(ROWS)) {
        for row in first..shard.rows.end.min(first + ROWS) {
            let from = shard.row(row);
            if let Some(col) = from.iter().position(|code| !e4m3::is_finite(*code)) {
                return Err(PackError::NotFinite { row, col: shard.cols.start + col });
            }
            for chunk in fp8::chunks(lead, cols) {
                let col = shard.cols.start + chunk.start;
                let scale = weights.scales.map_or(1.0, |s| s.of(weights.cols, row, col));
                // The kernels' numbers are 256th parts.
                let scale = scale * 256.0;
                if !scale.is_finite() {
                    return Err(PackError::NotFinite { row, col });
                }
                scaled_row(&mut panel[chunk.unit..], chunk, row - first, scale, from);
            }
        }
    }
    Ok(panels)
}

/// Places a row's part of a chunk.
fn scaled_row(units: &mut [[u8; GROUP]], chunk: fp8::Chunk, lane: usize, scale: f32, row: &[u8]) {
    units[0][4 * lane..][..4].copy_from_slice(&scale.to_le_bytes());
    let run = chunk.run();
    let codes = &row[chunk.start..chunk.start + chunk.len];
    for (r, codes) in codes.chunks(run).enumerate() {
        debug_assert!(r < fp8::RUNS);
        for (unit, code) in units[1..].iter_mut().zip(codes) {
            unit[fp8::Chunk::byte(r, lane)] = *code;
        }
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
                if !codes.is_finite() {
                    let col = shard.cols.start + i * SUB_BLOCK * B::SUBS;
                    return Err(PackError::NotFinite { row, col });
                }
                to.set(lane, sub, &codes);
            }
        }
    }
    Ok(panels)
}
