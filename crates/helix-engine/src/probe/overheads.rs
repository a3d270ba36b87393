//! What operations cost besides their bytes and their arithmetic.

use super::{ProbeOptions, Sample, team};
use crate::EngineError;
use helix_kernels::elementwise::rms_norm;
use helix_kernels::probe::{float_peak, integer_peak};
use helix_kernels::{Activations, Precision};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// What operations cost besides their bytes and their arithmetic.
#[derive(Clone, Debug)]
pub struct Overheads {
    /// Seconds in which a team of so many threads begins and ends an operation.
    pub forks: Vec<(usize, Sample)>,
    /// Values per second that one thread normalises and quantises.
    pub elements: Sample,
    /// Operations per second and core: int8 products, f32 multiply-adds.
    pub peaks: [f64; 2],
}

const ROUNDS: usize = 9;
/// Operations, or rows, of one round.
const EACH: usize = 500;
/// Values of a row.
const ROW: usize = 2048;

pub(super) fn measure(options: &ProbeOptions) -> Result<Overheads, EngineError> {
    let forks = options.threads().into_iter().map(|threads| Ok((threads, fork(threads)?)));
    Ok(Overheads {
        forks: forks.collect::<Result<_, EngineError>>()?,
        elements: elements(),
        peaks: [integer_peak(0.1), float_peak(0.1)],
    })
}

/// An operation with a piece of no work for every thread.
fn fork(threads: usize) -> Result<Sample, EngineError> {
    let mut team = team(threads)?;
    let mut round = || {
        let begun = Instant::now();
        for _ in 0..EACH {
            let next = AtomicUsize::new(0);
            team.run(&|_| while next.fetch_add(1, Ordering::Relaxed) < 3 * threads {});
        }
        begun.elapsed().as_secs_f64() / EACH as f64
    };
    round();
    Ok(Sample::of((0..ROUNDS).map(|_| round()).collect()))
}

/// A row of the stream becomes the input of a product.
fn elements() -> Sample {
    let x: Vec<f32> = (0..ROW).map(|at| (at % 17) as f32 - 8.0).collect();
    let (weight, mut normed) = (vec![1.0; ROW], vec![0.0; ROW]);
    let mut input = Activations::new(1, ROW, Precision::Fast);
    let mut round = || {
        let begun = Instant::now();
        for _ in 0..EACH {
            rms_norm(&mut normed, black_box(&x), &weight, 1e-5);
            input.load(&normed, 1, ROW);
            black_box(&input);
        }
        (EACH * ROW) as f64 / begun.elapsed().as_secs_f64()
    };
    round();
    Sample::of((0..ROUNDS).map(|_| round()).collect())
}
