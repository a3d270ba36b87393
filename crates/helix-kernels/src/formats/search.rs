//! Numbers to blocks with a search for scales: for weights that are quantised as a model is loaded.

use half::f16;

use super::codes::{Codes, encode};
use super::{Format, SUB_BLOCK, quantize};
use crate::arch::lanes::{Kernel, LANES, Lanes, dispatch};

/// As [`quantize`], but with less error where a search pays: Q4_K looks for scales and minimums
/// that keep the weighted squares of its errors small, of which large weights count most.
///
/// A block that holds a NaN or an infinity gets a NaN for its scale, so that packing refuses it.
///
/// # Panics
/// When `values` is not a whole number of blocks, or `out` is not exactly its bytes.
pub fn quantize_searched(format: Format, values: &[f32], out: &mut [u8]) {
    assert_eq!(Some(out.len()), format.row_bytes(values.len()), "{format}: bytes, elements");
    match format {
        Format::Q4K => dispatch(SearchQ4K { values, out: &mut *out }),
        _ => quantize(format, values, out),
    }
    if matches!(format, Format::Q4K | Format::Q8_0) {
        let blocks = out.chunks_exact_mut(format.block_bytes());
        for (block, values) in blocks.zip(values.chunks_exact(format.block_len())) {
            if values.iter().any(|v| !v.is_finite()) {
                block[..2].copy_from_slice(&f16::NAN.to_le_bytes());
            }
        }
    }
}

/// Sub-blocks of a block of Q4_K.
const SUBS: usize = 8;
/// The largest code, and the largest scale or minimum.
const TOP: f32 = 15.0;
const TOP_SCALE: f32 = 63.0;
/// Scales tried for a sub-block: its range over 14 to 16 steps, as in ggml.
const TRIES: usize = 20;

/// Adding it rounds a small number to an integer, ties to even.
const ROUND: f32 = 12_582_912.0; // 1.5·2^23

struct SearchQ4K<'a> {
    values: &'a [f32],
    out: &'a mut [u8],
}

impl Kernel for SearchQ4K<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let blocks = self.out.chunks_exact_mut(Format::Q4K.block_bytes());
        for (block, values) in blocks.zip(self.values.as_chunks::<{ SUBS * SUB_BLOCK }>().0) {
            block.fill(0);
            search_block(s, values, block);
        }
    }
}

#[inline(always)]
fn search_block<S: Lanes>(s: S, values: &[f32; SUBS * SUB_BLOCK], block: &mut [u8]) {
    let subs = values.as_chunks::<SUB_BLOCK>().0;
    let mut fits = [(0f32, 0f32); SUBS];
    for (fit, values) in fits.iter_mut().zip(subs) {
        *fit = Sub::of(s, values).search(s);
    }
    let largest =
        fits.iter().fold((0f32, 0f32), |most, fit| (most.0.max(fit.0), most.1.max(fit.1)));
    let d = f16::from_f32(largest.0 / TOP_SCALE);
    let m = f16::from_f32(largest.1 / TOP_SCALE);
    for (i, (fit, values)) in fits.iter().zip(subs).enumerate() {
        let sub = Sub::of(s, values);
        let (scale, min) = sub.refine(s, *fit, (d.to_f32(), m.to_f32()));
        let codes = sub.codes(s, scale * d.to_f32(), min * m.to_f32());
        let codes = codes.map(|code| code as u8);
        let scale = [scale as i8; 2];
        encode(
            Format::Q4K,
            &Codes { codes, d, m, scale, sub_min: min as u8, exponent: 0 },
            block,
            i,
        );
    }
}

/// 32 numbers and what their errors are weighted with.
struct Sub<S: Lanes> {
    x: [S::F; 2],
    weight: [S::F; 2],
}

impl<S: Lanes> Sub<S> {
    /// A weight is the number's size plus the root of the mean square.
    #[inline(always)]
    fn of(s: S, values: &[f32; SUB_BLOCK]) -> Self {
        let halves = values.as_chunks::<LANES>().0;
        let x = [s.load(&halves[0]), s.load(&halves[1])];
        let squares = s.fma(x[0], x[0], s.mul(x[1], x[1]));
        let typical = s.splat((s.sum(squares) / SUB_BLOCK as f32).sqrt());
        let zero = s.splat(0.0);
        let weight = |x| s.add(typical, s.max(x, s.sub(zero, x)));
        Sub { x, weight: [weight(x[0]), weight(x[1])] }
    }

    /// Nearest codes under a scale that is not 0; `x ≈ scale·code − min`.
    #[inline(always)]
    fn nearest(&self, s: S, inverse: f32, min: f32) -> [S::F; 2] {
        let (round, top) = (s.splat(ROUND), s.splat(TOP));
        let mut codes = self.x;
        for code in &mut codes {
            let steps = s.mul(s.add(*code, s.splat(min)), s.splat(inverse));
            let steps = s.max(steps, s.splat(0.0));
            let steps = s.if_less(steps, top, steps, top);
            *code = s.sub(s.add(steps, round), round);
        }
        codes
    }

    /// Weighted squares of errors.
    #[inline(always)]
    fn error(&self, s: S, codes: [S::F; 2], scale: f32, min: f32) -> f32 {
        let mut total = s.splat(0.0);
        for ((code, x), weight) in codes.into_iter().zip(self.x).zip(self.weight) {
            let error = s.sub(s.fma(code, s.splat(scale), s.splat(-min)), x);
            total = s.fma(s.mul(error, error), weight, total);
        }
        s.sum(total)
    }

    /// `Σ weight·a·b`
    #[inline(always)]
    fn moment(&self, s: S, a: [S::F; 2], b: [S::F; 2]) -> f32 {
        let first = s.mul(s.mul(self.weight[0], a[0]), b[0]);
        s.sum(s.fma(s.mul(self.weight[1], a[1]), b[1], first))
    }

    /// The best scale and minimum, neither below 0: codes for a scale, then the least squares of
    /// those codes, for each of [`TRIES`] scales.
    #[inline(always)]
    fn search(&self, s: S) -> (f32, f32) {
        let zero = s.splat(0.0);
        let negative = [s.sub(zero, self.x[0]), s.sub(zero, self.x[1])];
        let high = s.largest(s.max(s.max(self.x[0], self.x[1]), zero));
        let low = -s.largest(s.max(s.max(negative[0], negative[1]), zero));
        let range = high - low;
        if !(range > 0.0 && range.is_finite()) {
            return (0.0, 0.0);
        }
        let ones = [s.splat(1.0); 2];
        let (weights, numbers) = (self.moment(s, ones, ones), self.moment(s, self.x, ones));
        let mut best = (f32::INFINITY, (range / TOP, -low));
        for i in 0..=TRIES {
            let inverse = (TOP - 1.0 + 2.0 * i as f32 / TRIES as f32) / range;
            let codes = self.nearest(s, inverse, -low);
            let (sum, squares) = (self.moment(s, codes, ones), self.moment(s, codes, codes));
            let products = self.moment(s, codes, self.x);
            let determinant = weights * squares - sum * sum;
            let mut scale = (weights * products - numbers * sum) / determinant;
            let mut min = (products * sum - squares * numbers) / determinant;
            if min < 0.0 || determinant <= 0.0 {
                (scale, min) = (products / squares, 0.0);
            }
            let error = self.error(s, codes, scale, min);
            if scale > 0.0 && error < best.0 {
                best = (error, (scale, min));
            }
        }
        best.1
    }

    /// The fit in whole units, or one beside it that has less error.
    #[inline(always)]
    fn refine(&self, s: S, (scale, min): (f32, f32), units: (f32, f32)) -> (f32, f32) {
        let whole = |value: f32, unit: f32| if unit > 0.0 { (value / unit).round() } else { 0.0 };
        let near = (whole(scale, units.0), whole(min, units.1));
        let mut best = (f32::INFINITY, (0.0, 0.0));
        for ds in [0.0, -1.0, 1.0] {
            for dm in [0.0, -1.0, 1.0] {
                let scale = (near.0 + ds).clamp(0.0, TOP_SCALE);
                let min = (near.1 + dm).clamp(0.0, TOP_SCALE);
                let (step, low) = (scale * units.0, min * units.1);
                let codes = self.nearest(s, if step > 0.0 { 1.0 / step } else { 0.0 }, low);
                let error = self.error(s, codes, step, low);
                if error < best.0 {
                    best = (error, (scale, min));
                }
            }
        }
        best.1
    }

    /// Nearest codes as numbers.
    #[inline(always)]
    fn codes(&self, s: S, scale: f32, min: f32) -> [f32; SUB_BLOCK] {
        let codes = self.nearest(s, if scale > 0.0 { 1.0 / scale } else { 0.0 }, min);
        let mut out = [0.0; SUB_BLOCK];
        for (out, codes) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(codes) {
            s.store(codes, out);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::dequantize;
    use super::super::tests::noise;
    use super::*;
    use crate::arch::lanes::dispatch_on;
    use crate::isa::Isa;

    /// Sums of twelve uniform numbers: nearly normal, as weights are.
    fn normal(len: usize, seed: u64) -> Vec<f32> {
        noise(12 * len, seed).chunks(12).map(|x| x.iter().sum::<f32>() / 2.0).collect()
    }

    type Quantise = fn(Format, &[f32], &mut [u8]);

    /// Root of the mean squared error over that of the values.
    fn error(format: Format, values: &[f32], quantise: Quantise) -> f64 {
        let mut data = vec![0; format.row_bytes(values.len()).unwrap()];
        quantise(format, values, &mut data);
        let mut back = vec![0.0; values.len()];
        dequantize(format, &data, &mut back);
        let square = |x: f32| f64::from(x) * f64::from(x);
        let errors: f64 = values.iter().zip(&back).map(|(v, b)| square(v - b)).sum();
        (errors / values.iter().map(|v| square(*v)).sum::<f64>()).sqrt()
    }

    #[test]
    fn the_search_leaves_less_error() {
        let scaled = |scale: f32| normal(64 * 256, 3).iter().map(|v| v * scale).collect();
        let mut outliers = normal(64 * 256, 4);
        outliers.iter_mut().step_by(97).for_each(|v| *v *= 8.0);
        let shifted = normal(64 * 256, 5).iter().map(|v| v + 2.0).collect();
        for (what, values, most) in [
            ("normal", scaled(1.0), 0.072),
            ("small", scaled(0.02), 0.072),
            ("uniform", noise(64 * 256, 6), 0.063),
            ("outliers", outliers, 0.095),
            ("shifted", shifted, 0.034),
        ] {
            let (plain, searched) = (
                error(Format::Q4K, &values, quantize),
                error(Format::Q4K, &values, quantize_searched),
            );
            eprintln!("{what}: {searched:.4} searched, {plain:.4} plain");
            assert!(searched < 0.97 * plain, "{what}: {searched} against {plain}");
            assert!(searched < most, "{what}: {searched}");
            let eight = error(Format::Q8_0, &values, quantize_searched);
            assert!(eight < 0.012, "{what}: {eight} in Q8_0");
        }
    }

    #[test]
    fn every_instruction_set_finds_the_same() {
        let values = normal(4 * 256, 8);
        let run = |isa| {
            let mut out = vec![1; 4 * 144];
            dispatch_on(isa, SearchQ4K { values: &values, out: &mut out });
            out
        };
        for isa in Isa::available() {
            assert_eq!(run(isa), run(Isa::Scalar), "{isa}");
        }
    }

    #[test]
    fn constant_and_tiny_blocks_come_back() {
        for value in [0.0, 1.0, -1.0, 1e-3, -3.25, 1e-9, 1e-30, 60000.0] {
            let values = [value; 256];
            let mut data = [1; 144];
            quantize_searched(Format::Q4K, &values, &mut data);
            let mut back = [f32::NAN; 256];
            dequantize(Format::Q4K, &data, &mut back);
            for b in back {
                // f16 has no smaller factors.
                assert!((b - value).abs() <= 0.01 * value.abs() + 1e-6, "{value} became {b}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        for format in [Format::Q4K, Format::Q8_0] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = normal(512, 1);
                values[300] = bad;
                let mut data = vec![0; format.row_bytes(512).unwrap()];
                quantize_searched(format, &values, &mut data);
                let mut back = vec![0.0; 512];
                dequantize(format, &data, &mut back);
                assert!(back[300].is_nan() && back[..256].iter().all(|b| b.is_finite()));
            }
        }
    }
}
