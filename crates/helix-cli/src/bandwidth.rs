//! The roof that speeds are compared with.

use helix_kernels::probe::read_bandwidth;

/// Memory that one thread streams through: several times its share of any last-level cache.
const BYTES_PER_THREAD: usize = 64 << 20;
/// Bounds of what all threads stream through together.
const LEAST_BYTES: usize = 256 << 20;
const MOST_BYTES: usize = 2 << 30;
/// Time of one measurement.
const SECONDS: f64 = 0.1;

/// Gigabytes per second that `threads` threads read from memory right now.
pub fn read_gb_s(threads: usize) -> f64 {
    let bytes = threads.saturating_mul(BYTES_PER_THREAD).clamp(LEAST_BYTES, MOST_BYTES);
    read_bandwidth(threads, bytes, SECONDS) / 1e9
}
