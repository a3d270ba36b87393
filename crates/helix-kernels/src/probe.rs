//! This machine's read bandwidth: the roof of a decode step.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::arch::lanes::spin_multiply_adds;
use crate::arch::matmul::spin_dots;
use crate::arch::memory::{Buffer, read};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Bytes per second that `threads` threads together read, each streaming through its own part of
/// `bytes`; about `seconds` of measuring after the memory is first touched.
///
/// Take `bytes` several times the last-level cache. Each thread's median over its passes, so that
/// a moment's interruption does not count.
///
/// # Panics
/// When `threads` is 0, a part is less than a cache line, or there is no memory for it.
pub fn read_bandwidth(threads: usize, bytes: usize, seconds: f64) -> f64 {
    let part = bytes.checked_div(threads).expect("no threads") / LINE * LINE;
    assert!(part > 0, "{bytes} bytes over {threads} threads are less than a cache line each");
    let buffers: Result<Vec<Buffer>, _> = (0..threads).map(|_| Buffer::zeroed(part)).collect();
    let buffers = buffers.unwrap_or_else(|e| panic!("{e}"));
    let start = Barrier::new(threads);
    let measure = |mut buffer: Buffer| {
        // Untouched pages would all be read from one page of zeros.
        buffer.fill(1);
        start.wait();
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        let mut passes = Vec::new();
        while passes.len() < 2 || Instant::now() < end {
            let begun = Instant::now();
            black_box(read(black_box(&buffer)));
            passes.push(begun.elapsed());
        }
        passes.sort();
        part as f64 / passes[passes.len() / 2].as_secs_f64()
    };
    std::thread::scope(|scope| {
        let start = |buffer| scope.spawn(|| measure(buffer));
        let workers: Vec<_> = buffers.into_iter().map(start).collect();
        workers.into_iter().map(|w| w.join().expect("the probe does not panic")).sum()
    })
}

/// Operations per second (a multiply and an add are two) of int8 dot products on one thread, from
/// registers: the roof of a product with quantised weights and many tokens.
pub fn integer_peak(seconds: f64) -> f64 {
    peak(seconds, spin_dots)
}

/// Operations per second (a multiply and an add are two) of `f32` multiply-adds on one thread,
/// from registers: the roof of attention with many query rows.
pub fn float_peak(seconds: f64) -> f64 {
    peak(seconds, spin_multiply_adds)
}

/// The best of short runs, so that an interruption does not count.
fn peak(seconds: f64, spin: fn(usize) -> usize) -> f64 {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut best = 0f64;
    while best == 0.0 || Instant::now() < end {
        let begun = Instant::now();
        let ops = spin(black_box(10_000));
        best = best.max(ops as f64 / begun.elapsed().as_secs_f64());
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_a_positive_number() {
        for threads in [1, 2] {
            let speed = read_bandwidth(threads, 1 << 20, 0.01);
            assert!(speed.is_finite() && speed > 1e6, "{speed}");
        }
    }
}
