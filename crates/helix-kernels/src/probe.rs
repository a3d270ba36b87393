//! This machine's read bandwidth: the roof of a decode step.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::arch::matmul::spin_dots;
use crate::arch::memory::{Line, read};

/// Bytes per second that `threads` threads together read, each streaming through its own part of
/// `bytes`; about `seconds` of measuring after the memory is first touched.
///
/// Take `bytes` several times the last-level cache. The median over passes, so that a moment's
/// interruption does not count.
///
/// # Panics
/// When `threads` is 0 or a part is less than a cache line.
pub fn read_bandwidth(threads: usize, bytes: usize, seconds: f64) -> f64 {
    let lines = bytes.checked_div(threads).expect("no threads") / size_of::<Line>();
    assert!(lines > 0, "{bytes} bytes over {threads} threads are less than a cache line each");
    let start = Barrier::new(threads);
    let pass = |buffer: &[Line]| {
        let begun = Instant::now();
        black_box(read(black_box(buffer)));
        begun.elapsed()
    };
    let measure = || {
        let mut buffer = Line::zeroed(lines);
        // Untouched pages would all be read from one page of zeros.
        buffer.fill(Line::ONES);
        start.wait();
        pass(&buffer);
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        let mut passes = Vec::new();
        while passes.is_empty() || Instant::now() < end {
            passes.push(pass(&buffer));
        }
        passes.sort();
        size_of_val(&*buffer) as f64 / passes[passes.len() / 2].as_secs_f64()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(measure)).collect();
        workers.into_iter().map(|w| w.join().expect("the probe does not panic")).sum()
    })
}

/// Operations per second (a multiply and an add are two) of int8 dot products on one thread, from
/// registers: the roof of a product with quantised weights and many tokens.
pub fn integer_peak(seconds: f64) -> f64 {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut best = 0f64;
    while best == 0.0 || Instant::now() < end {
        let begun = Instant::now();
        let ops = spin_dots(black_box(10_000));
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
