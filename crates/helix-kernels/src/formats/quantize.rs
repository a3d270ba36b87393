//! Numbers to blocks, simply: for synthetic models and tests, not for the best perplexity.

use half::{bf16, f16};

use super::codes::{Codes, FP4, encode, half_e8m0, offset};
use super::{Format, SUB_BLOCK, e4m3};

/// Numbers to blocks; rounds to the nearest code under a scale fitted to each (sub-)block's range.
///
/// # Panics
/// When `values` is not a whole number of blocks, or `out` is not exactly its bytes.
pub fn quantize(format: Format, values: &[f32], out: &mut [u8]) {
    assert_eq!(Some(out.len()), format.row_bytes(values.len()), "{format}: bytes, elements");
    match format {
        Format::F32 => {
            for (o, v) in out.as_chunks_mut().0.iter_mut().zip(values) {
                *o = v.to_le_bytes();
            }
        }
        Format::F16 => {
            for (o, v) in out.as_chunks_mut().0.iter_mut().zip(values) {
                *o = f16::from_f32(*v).to_le_bytes();
            }
        }
        Format::BF16 => {
            for (o, v) in out.as_chunks_mut().0.iter_mut().zip(values) {
                *o = bf16::from_f32(*v).to_le_bytes();
            }
        }
        Format::F8E4M3 => {
            for (o, v) in out.iter_mut().zip(values) {
                *o = e4m3::from_f32(*v);
            }
        }
        _ => {
            out.fill(0);
            let blocks = out.chunks_exact_mut(format.block_bytes());
            for (block, values) in blocks.zip(values.chunks_exact(format.block_len())) {
                let subs = values.as_chunks::<SUB_BLOCK>().0;
                let shared = fit_block(format, values);
                for (i, sub) in subs.iter().enumerate() {
                    encode(format, &fit(format, shared, sub), block, i);
                }
            }
        }
    }
}

/// Numbers `[rows, cols]` to [`Format::F8E4M3`] with a scale for each block of 128 × 128, which
/// makes its largest magnitude the format's. Returns the codes and the row-major scales.
///
/// # Panics
/// When `values` is no whole number of rows.
pub fn quantize_e4m3(values: &[f32], cols: usize) -> (Vec<u8>, Vec<f32>) {
    const BLOCK: usize = 128;
    assert!(cols > 0 && values.len().is_multiple_of(cols), "values are not rows of {cols}");
    let across = cols.div_ceil(BLOCK);
    let block = |i: usize| i / cols / BLOCK * across + i % cols / BLOCK;
    let mut scales = vec![0f32; (values.len() / cols).div_ceil(BLOCK) * across];
    for (i, v) in values.iter().enumerate() {
        let scale = &mut scales[block(i)];
        *scale = scale.max(v.abs() / e4m3::MAX);
    }
    let code = |(i, v): (usize, &f32)| {
        let scale = scales[block(i)];
        e4m3::from_f32(if scale == 0.0 { 0.0 } else { v / scale })
    };
    (values.iter().enumerate().map(code).collect(), scales)
}

/// Steps between the smallest and the largest code.
fn steps(format: Format) -> f32 {
    match format {
        Format::Q8_0 => 254.0,
        Format::Q4_0 | Format::Q4_1 | Format::Q4K => 15.0,
        Format::Q5_0 | Format::Q5_1 | Format::Q5K => 31.0,
        _ => 63.0,
    }
}

/// Smallest and largest value, zero included.
fn range(values: &[f32]) -> (f32, f32) {
    values.iter().fold((0.0, 0.0), |(lo, hi), &v| (v.min(lo), v.max(hi)))
}

/// Largest magnitude over the largest symmetric code.
fn symmetric(format: Format, values: &[f32]) -> f32 {
    let (lo, hi) = range(values);
    hi.max(-lo) / (steps(format) / 2.0).floor()
}

/// A block's shared `d` and `m`; only the K-formats have any.
fn fit_block(format: Format, values: &[f32]) -> (f16, f16) {
    let (mut d, mut m) = (0f32, 0f32);
    match format {
        Format::Q4K | Format::Q5K => {
            for sub in values.chunks_exact(SUB_BLOCK) {
                let (lo, hi) = range(sub);
                d = d.max((hi - lo) / steps(format) / 63.0);
                m = m.max(-lo / 63.0);
            }
        }
        Format::Q6K => {
            for half in values.chunks_exact(SUB_BLOCK / 2) {
                d = d.max(symmetric(format, half) / 127.0);
            }
        }
        _ => {}
    }
    (f16::from_f32(d), f16::from_f32(m))
}

/// `value / unit`, rounded, within `0..=max`; 0 for a zero unit.
fn ratio(value: f32, unit: f16, max: f32) -> f32 {
    if unit.to_f32() == 0.0 { 0.0 } else { (value / unit.to_f32()).round().clamp(0.0, max) }
}

/// The exponent under which the largest magnitude is at most 6, but not by half: as OCP's
/// specification has it, saturating what lies between 6 and 8.
fn fit_mxfp4(values: &[f32; SUB_BLOCK]) -> Codes {
    let (lo, hi) = range(values);
    let most = hi.max(-lo);
    let exponent = (i64::from(most.to_bits() >> 23) - 2).clamp(0, 254) as u8;
    let unit = half_e8m0(exponent);
    let distance = |v: f32, code: usize| (v / unit - (f32::from(FP4[code]) - 16.0)).abs();
    let nearest = |v: f32| (0..16).min_by(|&a, &b| distance(v, a).total_cmp(&distance(v, b)));
    let codes = values.map(|v| nearest(v).map_or(0, |code| code as u8));
    Codes { codes, scale: [1; 2], exponent, ..Codes::default() }
}

fn fit(format: Format, (d, m): (f16, f16), values: &[f32; SUB_BLOCK]) -> Codes {
    if format == Format::Mxfp4 {
        return fit_mxfp4(values);
    }
    let (lo, hi) = range(values);
    let mut fitted = Codes { d, m, scale: [1; 2], ..Codes::default() };
    match format {
        Format::Q4_1 | Format::Q5_1 => {
            let lo = values.iter().fold(f32::INFINITY, |a, &v| a.min(v));
            let hi = values.iter().fold(f32::NEG_INFINITY, |a, &v| a.max(v));
            (fitted.d, fitted.m) = (f16::from_f32((hi - lo) / steps(format)), f16::from_f32(lo));
        }
        Format::Q4K | Format::Q5K => {
            fitted.scale = [ratio((hi - lo) / steps(format), d, 63.0) as i8; 2];
            fitted.sub_min = ratio(-lo, m, 63.0) as u8;
        }
        Format::Q6K => {
            for (half, scale) in fitted.scale.iter_mut().enumerate() {
                let values = &values[16 * half..][..16];
                *scale = ratio(symmetric(format, values), d, 127.0) as i8;
            }
        }
        _ => fitted.d = f16::from_f32(symmetric(format, values)),
    }
    let (min, zero) = (fitted.min(format), f32::from(offset(format)));
    let top = if format == Format::Q8_0 { 255.0 } else { steps(format) };
    for (i, (code, v)) in fitted.codes.iter_mut().zip(values).enumerate() {
        let scale = fitted.d.to_f32() * f32::from(fitted.scale[i / 16]);
        let steps = if scale == 0.0 { 0.0 } else { (v - min) / scale };
        *code = (steps.round() + zero).clamp(0.0, top) as u8;
    }
    fitted
}
