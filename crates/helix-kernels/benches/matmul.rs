//! Matrix products, with their distance from the roof.
//!
//! `cargo bench -p helix-kernels --bench matmul [-- FILTER...]`: only lines that contain every
//! FILTER, such as `Q4_1` or `b1 `; `avx2` or another instruction set limits to it. One thread.
//! Weights come from memory: copies of a matrix that together exceed most caches are multiplied in
//! turn, as layers are. Roofs are measured in the same run, before and after, the read bandwidth
//! over as many bytes. Median of at least ten passes.

use std::hint::black_box;
use std::time::{Duration, Instant};

use helix_kernels::isa::{Isa, cpu, limit};
use helix_kernels::probe::{integer_peak, read_bandwidth};
use helix_kernels::{
    Activations, Format, Forms, Matrix, Precision, Scales, SharedColumns, Weights, matmul,
    quantize, quantize_e4m3,
};

/// SmolLM2-135M's layers and head, the FFN of a 1B model, and an expert of DeepSeek-V3: rows, cols.
const SHAPES: [(usize, usize); 6] =
    [(576, 576), (3072, 576), (576, 1536), (49152, 576), (2048, 8192), (2048, 7168)];
const BATCHES: [usize; 3] = [1, 8, 512];
/// Of one token, more than the last-level cache, which servers share among many cores.
const WEIGHTS: usize = 768 << 20;
/// Of several tokens, which are not bound by memory: more than a core's share of it.
const BATCH_WEIGHTS: usize = 96 << 20;

fn noise(len: usize, mut state: u64) -> Vec<f32> {
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let read = || read_bandwidth(1, WEIGHTS, 0.5);
    let (bytes, ops) = (read(), integer_peak(0.2));
    let strongest = cpu();
    println!("{strongest}: {:.1} GB/s, {:.0} Gop/s", bytes / 1e9, ops / 1e9);
    if let Some(isa) = Isa::ALL.into_iter().find(|i| filters.iter().any(|f| f == i.name())) {
        println!("on {}", limit(isa));
    }
    for (rows, cols) in SHAPES {
        for format in Format::ALL.into_iter().filter(|f| cols % f.block_len() == 0) {
            for precision in [Precision::Fast, Precision::Precise] {
                for batch in BATCHES {
                    let name = format!("{rows}x{cols} {format} {precision:?} b{batch} ");
                    if filters.iter().all(|f| is_isa(f) || name.contains(f.as_str())) {
                        bench(&name, (rows, cols), format, precision, batch, bytes, ops);
                    }
                }
            }
        }
    }
    for (tokens, cols) in [(1, 576), (512, 1536)] {
        quantise(tokens, cols);
    }
    println!("after: {:.1} GB/s", read() / 1e9);
}

fn is_isa(filter: &str) -> bool {
    Isa::ALL.iter().any(|isa| isa.name() == filter)
}

fn bench(
    name: &str,
    (rows, cols): (usize, usize),
    format: Format,
    precision: Precision,
    batch: usize,
    read_roof: f64,
    op_roof: f64,
) {
    let values = noise(rows * cols, 1);
    let mut data = vec![0; rows * format.row_bytes(cols).expect("whole blocks")];
    let mut values_of_scales = Vec::new();
    if format == Format::F8E4M3 {
        (data, values_of_scales) = quantize_e4m3(&values, cols);
    } else {
        quantize(format, &values, &mut data);
    }
    let scales = Scales { values: &values_of_scales, block: (128, 128) };
    let scales = (format == Format::F8E4M3).then_some(scales);
    let weights = Weights { format, data: &data, cols, scales };
    let pack = || Matrix::pack(weights, 0..rows, 0..cols, precision).expect("finite");
    let first = pack();
    let bytes = if batch == 1 { WEIGHTS } else { BATCH_WEIGHTS };
    let count = (bytes / first.bytes()).clamp(1, if batch > 8 { 4 } else { 1 << 20 });
    let copies: Vec<Matrix> = (1..count).map(|_| pack()).chain([first]).collect();
    let mut x = Activations::new(batch, cols, copies[0].wants());
    let input = noise(batch * cols, 2);
    x.load(&input, batch, cols);
    let mut out = vec![0.0; batch * rows];
    let mut pass = || {
        let begun = Instant::now();
        for w in &copies {
            let shared = SharedColumns::new(&mut out, rows, 128);
            while let Some(mut columns) = shared.next() {
                matmul(&mut columns, 0, w, &x);
            }
            black_box(&mut out);
        }
        begun.elapsed().as_secs_f64() / count as f64
    };
    let mut times = vec![pass()];
    let end = Instant::now() + Duration::from_millis(300);
    while times.len() < 10 || Instant::now() < end {
        times.push(pass());
    }
    check(name, weights, &input, &out);
    times.sort_by(f64::total_cmp);
    let (median, p90) = (times[times.len() / 2], times[times.len() * 9 / 10]);
    let gb = copies[0].bytes() as f64 / median;
    let gop = 2.0 * (rows * cols * batch) as f64 / median;
    println!(
        "{name:32} {:9.1} us (p90 {:9.1}) {:6.2} GB/s {:5.1} %   {:6.1} Gop/s {:5.1} %",
        median * 1e6,
        p90 * 1e6,
        gb / 1e9,
        100.0 * gb / read_roof,
        gop / 1e9,
        100.0 * gop / op_roof,
    );
}

/// Taking activations over: what precedes each product.
fn quantise(tokens: usize, cols: usize) {
    let input = noise(tokens * cols, 3);
    let mut x = Activations::new(tokens, cols, Forms { values: false, codes: true });
    let mut times: Vec<f64> = (0..1000)
        .map(|_| {
            let begun = Instant::now();
            x.load(black_box(&input), tokens, cols);
            begun.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("quantise {tokens}x{cols} {:9.2} us", times[times.len() / 2] * 1e6);
}

/// A few outputs against the sum in f64.
fn check(name: &str, weights: Weights<'_>, input: &[f32], out: &[f32]) {
    let cols = weights.cols;
    let rows = out.len() / (input.len() / cols);
    let mut w = vec![0.0; cols];
    for row in (0..rows).step_by(97) {
        weights.row(row, &mut w);
        for (token, x) in input.chunks(cols).enumerate().step_by(7) {
            let want: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            let got = f64::from(out[token * rows + row]);
            let tolerance = 0.01 * (cols as f64).sqrt();
            assert!((got - want).abs() < tolerance, "{name} [{token}, {row}]: {got}, not {want}");
        }
    }
}
