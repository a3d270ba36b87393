use super::*;
use crate::columns::SharedColumns;
use crate::formats::tests::noise;
use crate::formats::{dequantize, quantize};

/// A random weight matrix with its packed form and its exact values.
fn random(format: Format, rows: usize, cols: usize, precision: Precision) -> (Matrix, Vec<f32>) {
    let mut data = vec![0; rows * format.row_bytes(cols).unwrap()];
    quantize(format, &noise(rows * cols, (rows * 1000 + cols) as u64), &mut data);
    let mut values = vec![0.0; rows * cols];
    dequantize(format, &data, &mut values);
    let matrix = Matrix::pack(format, &data, cols, 0..rows, 0..cols, precision).unwrap();
    (matrix, values)
}

fn product(w: &Matrix, x: &Activations) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.tokens() * w.rows()];
    let shared = SharedColumns::new(&mut out, w.rows(), 48);
    while let Some(mut columns) = shared.next() {
        matmul(&mut columns, 0, w, x);
    }
    out
}

#[test]
fn products_are_those_of_the_dequantised_weights() {
    for format in Format::ALL {
        for precision in [Precision::Fast, Precision::Precise] {
            for (rows, blocks, tokens) in [(1, 1, 1), (16, 2, 3), (33, 1, 9), (100, 3, 15)] {
                let cols = if format.is_quantized() { blocks * format.block_len() } else { 37 };
                let (w, values) = random(format, rows, cols, precision);
                let input = noise(tokens * cols, 3);
                let mut x = Activations::new(tokens, cols, precision);
                x.load(&input, tokens, cols);
                let out = product(&w, &x);
                for t in 0..tokens {
                    for r in 0..rows {
                        let dot = |f: fn(f64) -> f64| -> f64 {
                            let (w, x) = (&values[r * cols..][..cols], &input[t * cols..][..cols]);
                            w.iter().zip(x).map(|(w, x)| f(f64::from(*w) * f64::from(*x))).sum()
                        };
                        let got = f64::from(out[t * rows + r]);
                        let step = if format.is_quantized() && precision == Precision::Fast {
                            0.5 / 127.0 * cols as f64 / 4.0
                        } else {
                            1e-6 * dot(f64::abs)
                        };
                        let want = dot(|p| p);
                        assert!((got - want).abs() <= step, "{format} {t} {r}: {got}, {want}");
                    }
                }
            }
        }
    }
}
