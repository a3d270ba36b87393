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

fn load(input: &[f32], cols: usize, precision: Precision) -> Activations {
    let tokens = input.len() / cols;
    let mut x = Activations::new(tokens, cols, precision);
    x.load(input, tokens, cols);
    x
}

fn product(isa: Isa, w: &Matrix, x: &Activations, tile: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.tokens() * w.rows()];
    let shared = SharedColumns::new(&mut out, w.rows(), tile);
    while let Some(mut columns) = shared.next() {
        matmul_on(isa, &mut columns, 0, w, x);
    }
    out
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
                let x = load(&input, cols, precision);
                let seen: Vec<f64> = if format.is_quantized() && precision == Precision::Fast {
                    let subs = x.subs().iter();
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
                let x = load(&input, cols, precision);
                let oracle = product(Isa::Scalar, &w, &x, rows.next_multiple_of(16));
                let bits = |out: &[f32]| out.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                for isa in Isa::available() {
                    for tile in [16, 48] {
                        let out = product(isa, &w, &x, tile);
                        assert_eq!(bits(&out), bits(&oracle), "{format} {precision:?} {isa}");
                    }
                    for (x, oracle) in input.chunks(cols).zip(oracle.chunks(rows)) {
                        let out = product(isa, &w, &load(x, cols, precision), 32);
                        assert_eq!(bits(&out), bits(oracle), "{format} {precision:?} {isa} alone");
                    }
                }
            }
        }
    }
}
