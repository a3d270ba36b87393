//! Memory that weights are read from.

use bytemuck::{Pod, Zeroable};

/// One cache line of weights: a vector of these starts where vector loads are fastest.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

impl Line {
    /// `count` lines of zeros.
    pub fn zeroed(count: usize) -> Vec<Line> {
        bytemuck::zeroed_vec(count)
    }
}
