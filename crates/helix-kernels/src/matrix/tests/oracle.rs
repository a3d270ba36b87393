//! FP8 and MXFP4 against products in f64, with decoders written from OCP's specifications.

use super::*;

/// Sign, 4 bits of exponent with bias 7, 3 of mantissa.
fn e4m3(code: u8) -> f64 {
    assert_ne!(code & 0x7f, 0x7f, "not a number");
    let (exponent, mantissa) = ((code >> 3 & 15) as i32, f64::from(code & 7));
    let size =
        if exponent == 0 { mantissa / 512.0 } else { (8.0 + mantissa) * 2f64.powi(exponent - 10) };
    size * if code & 0x80 == 0 { 1.0 } else { -1.0 }
}

/// Element `i` of a block of 32.
fn mxfp4(block: &[u8], i: usize) -> f64 {
    let byte = block[1 + i % 16];
    let code = if i < 16 { byte & 15 } else { byte >> 4 };
    let (exponent, mantissa) = ((code >> 1 & 3) as i32, f64::from(code & 1));
    let size =
        if exponent == 0 { mantissa / 2.0 } else { (2.0 + mantissa) * 2f64.powi(exponent - 2) };
    let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
    sign * size * 2f64.powi(i32::from(block[0]) - 127)
}

/// Every code but the two that are no numbers, in an order that no size repeats.
fn e4m3_codes(len: usize, seed: usize) -> Vec<u8> {
    let code = |i: usize| ((i * 89 + i / 254 * 7 + seed) % 254) as u8;
    (0..len).map(code).map(|c| if c < 127 { c } else { c + 1 }).collect()
}

fn scales(rows: usize, cols: usize) -> Vec<f32> {
    let count = rows.div_ceil(128) * cols.div_ceil(128);
    noise(count, 77).iter().map(|s| 0.01 + s.abs()).collect()
}

fn scaled<'a>(data: &'a [u8], cols: usize, scales: &'a [f32]) -> Weights<'a> {
    let scales = Some(Scales { values: scales, block: (128, 128) });
    Weights { format: Format::F8E4M3, data, cols, scales }
}

/// Outputs against `Σ w·x`, within what the order of sums in f32 allows.
fn compare(what: &str, out: &[f32], cols: usize, x: &[f64], w: impl Fn(usize, usize) -> f64) {
    let rows = out.len() / (x.len() / cols);
    for (t, x) in x.chunks_exact(cols).enumerate() {
        for r in 0..rows {
            let (mut want, mut size) = (0.0, 0.0);
            for (c, x) in x.iter().enumerate() {
                want += w(r, c) * x;
                size += (w(r, c) * x).abs();
            }
            let got = f64::from(out[t * rows + r]);
            assert!((got - want).abs() <= 1e-6 * size + 1e-30, "{what} [{t}, {r}]: {got}, {want}");
        }
    }
}

fn f64s(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// The same bits on every instruction set, of all tokens at once and of each alone.
fn same_everywhere(what: &str, w: &Matrix, input: &[f32]) -> Vec<f32> {
    let bits = |out: &[f32]| out.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let out = product(Isa::Scalar, w, &load(input, w.cols(), w.wants()), 48);
    for isa in Isa::available().filter(|isa| *isa != Isa::Scalar) {
        let all = product(isa, w, &load(input, w.cols(), w.wants()), 48);
        assert_eq!(bits(&all), bits(&out), "{what} on {isa}");
        for (x, out) in input.chunks(w.cols()).zip(out.chunks(w.rows())) {
            let one = product(isa, w, &load(x, w.cols(), w.wants()), 16);
            assert_eq!(bits(&one), bits(out), "{what} on {isa}, a token alone");
        }
    }
    out
}

#[test]
fn fp8_of_every_size_and_code() {
    let mut seen = [false; 256];
    for n in 1..=300 {
        // Every number of columns and of rows, up to two blocks and a half.
        for (rows, cols) in [(n % 37 + 1, n), (n, n % 41 + 120)] {
            let (data, tokens) = (e4m3_codes(rows * cols, n), [1, 2, 4, 9][n % 4]);
            data.iter().for_each(|code| seen[usize::from(*code)] = true);
            let scales = scales(rows, cols);
            let across = cols.div_ceil(128);
            let w = scaled(&data, cols, &scales);
            let w = Matrix::pack(w, 0..rows, 0..cols, Precision::Fast).unwrap();
            let input = noise(tokens * cols, n as u64);
            let what = format!("{rows} × {cols}, {tokens} tokens");
            let out = same_everywhere(&what, &w, &input);
            compare(&what, &out, cols, &f64s(&input), |r, c| {
                e4m3(data[r * cols + c]) * f64::from(scales[r / 128 * across + c / 128])
            });
        }
    }
    assert_eq!(seen.iter().filter(|seen| **seen).count(), 254);
}

#[test]
fn fp8_may_be_cut_anywhere() {
    let (rows, cols) = (150, 300);
    let (data, scales) = (e4m3_codes(rows * cols, 5), scales(rows, cols));
    let value =
        |r: usize, c: usize| e4m3(data[r * cols + c]) * f64::from(scales[r / 128 * 3 + c / 128]);
    for start in (0..140).chain([255, 256, 257, 299]) {
        for len in [1, 3, 31, 128, 131, 300] {
            let (own_rows, own) = (start..rows.min(start + 40), start..cols.min(start + len));
            if own_rows.is_empty() {
                continue;
            }
            let w = scaled(&data, cols, &scales);
            let w = Matrix::pack(w, own_rows.clone(), own.clone(), Precision::Precise).unwrap();
            let input = noise(2 * own.len(), 3);
            let out = product(isa::cpu(), &w, &load(&input, own.len(), w.wants()), 48);
            let what = format!("{own_rows:?} × {own:?}");
            compare(&what, &out, own.len(), &f64s(&input), |r, c| {
                value(own_rows.start + r, own.start + c)
            });
        }
    }
}

#[test]
fn a_single_column_comes_out_as_its_row_is_dequantised() {
    let (rows, cols) = (20, 300);
    let (data, scales) = (e4m3_codes(rows * cols, 9), scales(rows, cols));
    let weights = scaled(&data, cols, &scales);
    let w = Matrix::pack(weights, 0..rows, 0..cols, Precision::Fast).unwrap();
    let mut row = vec![0.0; cols];
    for c in 0..cols {
        let mut input = vec![0.0; cols];
        input[c] = 1.0;
        let out = product(isa::cpu(), &w, &load(&input, cols, w.wants()), 32);
        for (r, out) in out.iter().enumerate() {
            weights.row(r, &mut row);
            assert_eq!(*out, row[c], "[{r}, {c}]");
            let want = e4m3(data[r * cols + c]) * f64::from(scales[c / 128]);
            assert_eq!(row[c], want as f32, "[{r}, {c}]");
        }
    }
}

#[test]
fn scales_of_whole_rows_and_of_all_fit_too() {
    let (rows, cols) = (40, 70);
    let data = e4m3_codes(rows * cols, 1);
    let input = noise(cols, 2);
    for block in [(1, cols), (usize::MAX, usize::MAX), (16, 128)] {
        let values: Vec<f32> =
            noise(rows.div_ceil(block.0), 8).iter().map(|s| s.abs() + 0.1).collect();
        let scales = Some(Scales { values: &values, block });
        let w = Weights { format: Format::F8E4M3, data: &data, cols, scales };
        let w = Matrix::pack(w, 0..rows, 0..cols, Precision::Fast).unwrap();
        let out = product(isa::cpu(), &w, &load(&input, cols, w.wants()), 16);
        compare("blocks", &out, cols, &f64s(&input), |r, c| {
            e4m3(data[r * cols + c]) * f64::from(values[r / block.0])
        });
    }
}

#[test]
fn fp8_that_is_not_a_number_is_refused_with_its_place() {
    let (rows, cols) = (140, 260);
    let (mut data, mut scales) = (e4m3_codes(rows * cols, 1), scales(rows, cols));
    for (row, col, code) in [(0, 0, 0x7f), (139, 259, 0xff), (17, 128, 0x7f)] {
        let good = std::mem::replace(&mut data[row * cols + col], code);
        let w = scaled(&data, cols, &scales);
        let error = Matrix::pack(w, 0..rows, 0..cols, Precision::Fast).unwrap_err();
        assert_eq!(error, PackError::NotFinite { row, col });
        // Another rank's, and so not read.
        assert!(Matrix::pack(w, row + 1..rows, 0..cols, Precision::Fast).is_ok());
        data[row * cols + col] = good;
    }
    for bad in [f32::NAN, f32::INFINITY, 1e37] {
        let good = std::mem::replace(&mut scales[4], bad);
        let w = scaled(&data, cols, &scales);
        let error = Matrix::pack(w, 0..rows, 0..cols, Precision::Fast).unwrap_err();
        assert_eq!(error, PackError::NotFinite { row: 128, col: 128 }, "{bad}");
        scales[4] = good;
    }
}

#[test]
fn scales_that_do_not_fit_are_refused() {
    let (data, values) = (vec![0; 256 * 300], [1.0; 6]);
    let pack = |format, cols, count: usize, block| {
        let scales = Some(Scales { values: &values[..count], block });
        let w = Weights { format, data: &data, cols, scales };
        Matrix::pack(w, 0..1, 0..cols, Precision::Fast).map(|_| ())
    };
    assert_eq!(pack(Format::F8E4M3, 300, 6, (128, 128)), Ok(()));
    for (format, count, block) in [
        (Format::F8E4M3, 5, (128, 128)),
        (Format::F8E4M3, 6, (0, 128)),
        (Format::F8E4M3, 6, (128, 0)),
        (Format::F8E4M3, 5, (256, 64)),
        (Format::F8E4M3, 1, (1, usize::MAX)),
        (Format::BF16, 3, (128, 128)),
    ] {
        let error = pack(format, 300, count, block).unwrap_err();
        assert!(matches!(error, PackError::Scales { .. }), "{error}");
    }
    assert_eq!(
        pack(Format::F8E4M3, 300, 5, (128, 128)).unwrap_err().to_string(),
        "5 scales for blocks of 128 x 128 do not fit 256 rows of 300 F8_E4M3 weights: F8_E4M3 \
         alone has scales of its own, one for each block of a multiple of 128 columns"
    );
}

/// Blocks with every code and exponents around 1.
fn mxfp4_blocks(count: usize, seed: usize) -> Vec<u8> {
    let byte = |i: usize| match i % 17 {
        0 => (119 + (i / 17 * 5 + seed) % 16) as u8,
        _ => ((i * 37 + i / 256 * 11 + seed) % 256) as u8,
    };
    (0..17 * count).map(byte).collect()
}

#[test]
fn mxfp4_of_every_size_and_code() {
    for n in 1..=300usize {
        let (rows, blocks) = if n % 2 == 0 { (n, 1) } else { (n % 35 + 1, n.div_ceil(30)) };
        let (cols, tokens) = (32 * blocks, [1, 2, 4, 9][n / 2 % 4]);
        let data = mxfp4_blocks(rows * blocks, n);
        let input = noise(tokens * cols, n as u64);
        for precision in [Precision::Fast, Precision::Precise] {
            let w = Weights::new(Format::Mxfp4, &data, cols);
            let w = Matrix::pack(w, 0..rows, 0..cols, precision).unwrap();
            let what = format!("{rows} × {cols}, {tokens} tokens, {precision:?}");
            let out = same_everywhere(&what, &w, &input);
            let x = load(&input, cols, w.wants());
            let seen = match precision {
                Precision::Precise => f64s(&input),
                Precision::Fast => {
                    let value = |s: &Sub, c: i8| f64::from(s.scale) * f64::from(c);
                    let subs = contents(&x).1.iter();
                    subs.flat_map(|s| s.codes.as_flattened().iter().map(|c| value(s, *c))).collect()
                }
            };
            compare(&what, &out, cols, &seen, |r, c| {
                mxfp4(&data[17 * (r * blocks + c / 32)..][..17], c % 32)
            });
        }
    }
}

#[test]
fn mxfp4_keeps_every_scale_and_refuses_what_is_no_f32() {
    let mut data = mxfp4_blocks(1, 3);
    for exponent in 0..=255u8 {
        data[0] = exponent;
        for precision in [Precision::Fast, Precision::Precise] {
            let w = Weights::new(Format::Mxfp4, &data, 32);
            let w = match Matrix::pack(w, 0..1, 0..32, precision) {
                Err(error) => {
                    assert!(exponent > 252, "{exponent}");
                    assert_eq!(error, PackError::NotFinite { row: 0, col: 0 });
                    continue;
                }
                Ok(w) => w,
            };
            assert!(exponent <= 252, "{exponent}");
            for c in 0..32 {
                let mut input = vec![0.0; 32];
                input[c] = 127.0 / 1024.0; // one step of the code is a power of two
                let want = (mxfp4(&data, c) * f64::from(input[c])) as f32;
                for isa in Isa::available() {
                    let out = product(isa, &w, &load(&input, 32, w.wants()), 16);
                    assert_eq!(out[0], want, "2^({exponent} - 127) [{c}] {precision:?} {isa}");
                }
            }
        }
    }
}
