//! Numbers to blocks, simply: for synthetic models and tests, not for the best perplexity.

use half::{bf16, f16};

use super::codes::{Codes, encode, offset};
use super::{Format, SUB_BLOCK};

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

fn fit(format: Format, (d, m): (f16, f16), values: &[f32; SUB_BLOCK]) -> Codes {
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
