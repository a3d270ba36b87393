use super::*;
use crate::activations::{Activations, Sub};
use crate::columns::SharedColumns;
use crate::formats::tests::noise;
use crate::formats::{dequantize, quantize};

mod oracle;

/// A random weight matrix with its packed form and its exact values.
fn random(format: Format, rows: usize, cols: usize, precision: Precision) -> (Matrix, Vec<f32>) {
    let mut data = vec![0; rows * format.row_bytes(cols).unwrap()];
    quantize(format, &noise(rows * cols, (rows * 1000 + cols) as u64), &mut data);
    let mut values = vec![0.0; rows * cols];
    dequantize(format, &data, &mut values);
    let matrix =
        Matrix::pack(Weights::new(format, &data, cols), 0..rows, 0..cols, precision).unwrap();
    (matrix, values)
}

fn load(input: &[f32], cols: usize, forms: Forms) -> Activations {
    let tokens = input.len() / cols;
    let mut x = Activations::new(tokens, cols, forms);
    x.load(input, tokens, cols);
    x
}

fn product(isa: Isa, w: &Matrix, x: &Activations, tile: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.tokens() * w.rows()];
    let shared = SharedColumns::new(&mut out, w.rows(), tile);
    while let Some(mut columns) = shared.next() {
        let row = columns.range().start;
        matmul_on(isa, &mut columns, row, w, x.into());
    }
    out
}

/// All values and codes.
fn contents(x: &Activations) -> (&[f32], &[Sub]) {
    let rows = ActivationRows::from(x);
    (rows.values(), rows.subs())
}

/// Shapes that leave part of every tile empty: rows, blocks, tokens.
const SHAPES: [(usize, usize, usize); 5] =
    [(1, 1, 1), (16, 2, 3), (33, 1, 9), (100, 3, 15), (160, 5, 8)];

fn cols(format: Format, blocks: usize) -> usize {
    if format.is_quantized() { blocks * format.block_len() } else { 33 * blocks + 4 }
}

#[test]
fn products_are_those_of_the_dequantised_weights() {
    for format in Format::ALL {
        for precision in [Precision::Fast, Precision::Precise] {
            for (rows, blocks, tokens) in SHAPES {
                let cols = cols(format, blocks);
                let (w, values) = random(format, rows, cols, precision);
                let input = noise(tokens * cols, 3);
                let x = load(&input, cols, w.wants());
                let seen: Vec<f64> = if format.is_quantized() && precision == Precision::Fast {
                    let subs = x.rows(0..tokens).subs().iter();
                    let value = |s: f32, c: i8| f64::from(s) * f64::from(c);
                    subs.flat_map(|s| s.codes.as_flattened().iter().map(|c| value(s.scale, *c)))
                        .collect()
                } else {
                    input.iter().map(|x| f64::from(*x)).collect()
                };
                let out = product(isa::cpu(), &w, &x, 48);
                for (t, x) in seen.chunks_exact(cols).enumerate() {
                    for (r, w) in values.chunks_exact(cols).enumerate() {
                        let products = w.iter().zip(x).map(|(w, x)| f64::from(*w) * x);
                        let (want, size) = products
                            .fold((0.0, 0.0), |(sum, size), p| (sum + p, size + f64::abs(p)));
                        let got = f64::from(out[t * rows + r]);
                        assert!(
                            (got - want).abs() <= 1e-6 * size + 1e-12,
                            "{format} {precision:?} [{t}, {r}] of {rows} × {cols}: {got}, {want}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_tile_and_batch_gives_the_same_bits() {
    for format in Format::ALL {
        for precision in [Precision::Fast, Precision::Precise] {
            for (rows, blocks, tokens) in SHAPES {
                let cols = cols(format, blocks);
                let (w, _) = random(format, rows, cols, precision);
                let input = noise(tokens * cols, 5);
                let x = load(&input, cols, w.wants());
                let oracle = product(Isa::Scalar, &w, &x, rows.next_multiple_of(16));
                let bits = |out: &[f32]| out.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                for isa in Isa::available() {
                    for tile in [16, 48] {
                        let out = product(isa, &w, &x, tile);
                        assert_eq!(bits(&out), bits(&oracle), "{format} {precision:?} {isa}");
                    }
                    for (x, oracle) in input.chunks(cols).zip(oracle.chunks(rows)) {
                        let out = product(isa, &w, &load(x, cols, w.wants()), 32);
                        assert_eq!(bits(&out), bits(oracle), "{format} {precision:?} {isa} alone");
                    }
                }
            }
        }
    }
}

#[test]
fn shards_are_parts_of_the_whole() {
    for format in Format::ALL {
        for precision in [Precision::Fast, Precision::Precise] {
            let unit = if format.is_quantized() { format.block_len() } else { 16 };
            let (rows, cols) = (70, 4 * unit);
            let mut data = vec![0; rows * format.row_bytes(cols).unwrap()];
            quantize(format, &noise(rows * cols, 9), &mut data);
            let pack =
                |r, c| Matrix::pack(Weights::new(format, &data, cols), r, c, precision).unwrap();
            let input = noise(2 * cols, 10);
            let wants = pack(0..rows, 0..cols).wants();
            let whole =
                product(isa::cpu(), &pack(0..rows, 0..cols), &load(&input, cols, wants), 64);

            // Rows 16.. of a shard that starts at row 3, as columns 5.. of an output.
            let shard = pack(3..70, 0..cols);
            let mut out = vec![f32::NAN; 2 * 100];
            let shared = SharedColumns::with_cuts(&mut out, 100, 32, &[21, 72]);
            while let Some(mut columns) = shared.next() {
                if (21..72).contains(&columns.range().start) {
                    matmul(&mut columns, 5, &shard, &load(&input, cols, wants));
                }
            }
            for (out, whole) in out.chunks(100).zip(whole.chunks(rows)) {
                assert_eq!(out[21..72], whole[19..70], "{format} {precision:?}");
                assert!(out[..21].iter().chain(&out[72..]).all(|v| v.is_nan()), "{format}");
            }

            // Columns in two parts add up.
            let part = |c: Range<usize>| {
                let x: Vec<f32> = input.chunks(cols).flat_map(|x| &x[c.clone()]).copied().collect();
                product(isa::cpu(), &pack(0..rows, c.clone()), &load(&x, c.len(), wants), 16)
            };
            let (left, right) = (part(0..unit), part(unit..cols));
            for (i, whole) in whole.iter().enumerate() {
                let sum = left[i] + right[i];
                assert!((sum - whole).abs() < 1e-4, "{format} {precision:?} [{i}]: {sum}, {whole}");
            }
        }
    }
}

#[test]
fn a_shard_of_nothing_is_legal() {
    for format in Format::ALL {
        let unit = format.block_len();
        let data = vec![0; 2 * format.row_bytes(unit).unwrap()];
        let pack =
            |r, c| Matrix::pack(Weights::new(format, &data, unit), r, c, Precision::Fast).unwrap();
        assert_eq!(pack(1..1, 0..unit).bytes(), 0);
        let no_columns = pack(0..2, unit..unit);
        let mut x = Activations::new(3, 0, Forms::BOTH);
        x.load(&[], 3, 0);
        assert_eq!(product(isa::cpu(), &no_columns, &x, 16), [0.0; 6]);
    }
}

#[test]
fn any_row_may_be_asked_for_ahead() {
    let (w, _) = random(Format::Q4_0, 33, 64, Precision::Fast);
    for row in [0, 1, 32, 33, 1000] {
        for bytes in [0, 1, 4096, usize::MAX] {
            w.prefetch(row, bytes);
        }
    }
}

#[test]
fn bad_shards_are_refused() {
    let data = vec![0; 2 * 18 * 2];
    let pack = |total, rows, cols| {
        Matrix::pack(Weights::new(Format::Q4_0, &data, total), rows, cols, Precision::Fast)
            .unwrap_err()
    };
    assert_eq!(pack(63, 0..2, 0..32), PackError::Row { format: Format::Q4_0, cols: 63 });
    assert_eq!(
        pack(64, 0..2, 16..64).to_string(),
        "columns 16..64 of 64 cannot be cut from Q4_0 weights: cut at multiples of 32"
    );
    assert!(matches!(pack(64, 0..2, 0..96), PackError::Columns { .. }));
    assert_eq!(pack(64, 0..3, 0..64).to_string(), "rows 0..3 need 108 bytes of weights, not 72");
    assert!(matches!(pack(64, 0..usize::MAX, 0..64), PackError::Rows { .. }));
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    for format in Format::ALL {
        let cols = 2 * format.block_len();
        let mut data = vec![0; 3 * format.row_bytes(cols).unwrap()];
        quantize(format, &noise(3 * cols, 1), &mut data);
        // The first number of the second block of the last row.
        let factor = if format == Format::Q6K { 208 } else { 0 };
        let at = 5 * format.block_bytes() + factor;
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            match format {
                Format::F32 => data[at..at + 4].copy_from_slice(&bad.to_le_bytes()),
                Format::BF16 => {
                    data[at..at + 2].copy_from_slice(&half::bf16::from_f32(bad).to_le_bytes());
                }
                Format::F8E4M3 => data[at] = 0x7f,
                Format::Mxfp4 => data[at] = 0xff,
                _ => data[at..at + 2].copy_from_slice(&half::f16::from_f32(bad).to_le_bytes()),
            }
            let error =
                Matrix::pack(Weights::new(format, &data, cols), 0..3, 0..cols, Precision::Fast);
            let want = PackError::NotFinite { row: 2, col: format.block_len() };
            assert_eq!(error.unwrap_err(), want, "{format}");
        }
    }
}

#[test]
fn activations_that_are_not_finite_show_in_their_outputs() {
    for format in Format::ALL {
        for precision in [Precision::Fast, Precision::Precise] {
            let cols = cols(format, 1).next_multiple_of(32);
            let (w, _) = random(format, 20, cols, precision);
            for bad in [f32::NAN, f32::INFINITY] {
                let mut input = noise(2 * cols, 4);
                input[cols + 7] = bad;
                let out = product(isa::cpu(), &w, &load(&input, cols, w.wants()), 32);
                assert!(out[..20].iter().all(|v| v.is_finite()), "{format} {precision:?}");
                assert!(out[20..].iter().all(|v| !v.is_finite()), "{format} {precision:?}");
            }
        }
    }
}

#[test]
fn tiny_and_huge_activations_are_not_lost_to_overflow() {
    let (w, values) = random(Format::Q8_0, 16, 64, Precision::Fast);
    for scale in [0.0, 1e-44, 1e-38, 1e-30, 1.0, 1e30, 1e36] {
        let input: Vec<f32> = noise(64, 8).iter().map(|x| x * scale).collect();
        let out = product(isa::cpu(), &w, &load(&input, 64, w.wants()), 16);
        for (r, w) in values.chunks(64).enumerate() {
            let want: f64 = w.iter().zip(&input).map(|(w, x)| f64::from(w * x)).sum();
            let tolerance = 0.1 * f64::from(scale) + 1e-33;
            assert!((f64::from(out[r]) - want).abs() <= tolerance, "{scale}: {}, {want}", out[r]);
        }
    }
}

#[test]
fn many_writers_fill_as_one_does() {
    let (tokens, cols) = (37, 96);
    let input = noise(tokens * cols, 6);
    let one = load(&input, cols, Forms::BOTH);
    let mut many = Activations::new(64, 128, Forms::BOTH);
    let fill = many.fill(tokens, cols);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                while let Some(writer) = fill.next() {
                    let start = writer.token() * cols;
                    writer.write(&input[start..start + cols]);
                }
            });
        }
    });
    assert_eq!((many.tokens(), many.cols()), (tokens, cols));
    assert_eq!(contents(&many), contents(&one));
}

#[test]
fn gathered_rows_are_copies_and_a_run_of_them_multiplies_alone() {
    for format in [Format::BF16, Format::Q4_0] {
        for precision in [Precision::Fast, Precision::Precise] {
            let (tokens, cols) = (7, 96);
            let (w, _) = random(format, 40, cols, precision);
            let all = load(&noise(tokens * cols, 13), cols, w.wants());
            let rows = [6, 0, 3, 3, 1];
            let mut some = Activations::new(9, 128, w.wants());
            some.load(&noise(9 * 128, 14), 9, 128); // what was there before must not show
            some.gather(&all, &rows);
            assert_eq!((some.tokens(), some.cols()), (5, cols));
            for (i, row) in rows.into_iter().enumerate() {
                let (got, want) = (some.rows(i..i + 1), all.rows(row as usize..row as usize + 1));
                assert_eq!((got.values(), got.subs()), (want.values(), want.subs()), "{i}");
            }
            let whole = product(isa::cpu(), &w, &all, 16);
            for run in [0..5, 0..1, 1..4, 4..5, 2..2] {
                let mut out = vec![f32::NAN; run.len() * 40];
                let shared = SharedColumns::new(&mut out, 40, 16);
                while let Some(mut columns) = shared.next() {
                    matmul(&mut columns, 0, &w, some.rows(run.clone()));
                }
                for (out, row) in out.chunks(40).zip(&rows[run]) {
                    assert_eq!(out, &whole[*row as usize * 40..][..40], "{format} {precision:?}");
                }
            }
        }
    }
}

#[test]
fn what_is_not_there_is_refused() {
    let codes = Forms { values: false, codes: true };
    let x = load(&noise(64, 1), 32, codes);
    let panics = |f: &dyn Fn()| {
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err());
    };
    panics(&|| _ = x.rows(1..3));
    panics(&|| Activations::new(4, 32, codes).gather(&x, &[0, 2]));
    panics(&|| Activations::new(1, 32, codes).gather(&x, &[0, 1]));
    panics(&|| Activations::new(2, 32, Forms::BOTH).gather(&x, &[0, 1]));
    for precision in [Precision::Fast, Precision::Precise] {
        let (w, _) = random(Format::Q4_0, 16, 32, precision);
        let Forms { values, codes } = w.wants();
        let other = load(&noise(64, 1), 32, Forms { values: !values, codes: !codes });
        panics(&|| _ = product(isa::cpu(), &w, &other, 16));
        assert_eq!(product(isa::cpu(), &w, &load(&noise(64, 1), 32, Forms::BOTH), 16).len(), 32);
    }
}
