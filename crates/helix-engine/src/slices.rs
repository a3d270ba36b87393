//! All-reduces in slices: the rows of an output matrix are cut, and a slice's sum over the ranks is
//! in flight while the next slices are computed.
//!
//! An output's bits depend on its row of the matrix alone and sums add in member order, so slices
//! change no bits; they are more messages of the same bytes.

use crate::comms::{Comms, Phase};
use crate::counters::Meters;
use crate::hopb::{self, Turn};
use crate::lanes::Lanes;
use crate::projection::PANEL;
use crate::residual::{self, Finish};
use helix_comm::{CommError, Pending};
use helix_layout::split;
use std::collections::VecDeque;
use std::ops::Range;

/// The most slices that a sum is cut into.
pub const MAX_SLICES: usize = 16;

/// The residual stream, and what it takes.
pub(crate) struct Stream<'a> {
    /// `[rows, hidden]`
    pub(crate) x: &'a mut [f32],
    pub(crate) hidden: usize,
    pub(crate) finish: Finish<'a>,
}

/// What slices are kept in on their way; sized once.
pub(crate) struct SliceBuffers {
    /// `[tokens, hidden]`; nothing where sums are not cut.
    sums: Vec<f32>,
    started: VecDeque<Pending>,
}

impl SliceBuffers {
    pub(crate) fn new(slices: usize, tokens: usize, hidden: usize) -> SliceBuffers {
        let sums = if slices > 1 { tokens * hidden } else { 0 };
        SliceBuffers { sums: vec![0.0; sums], started: VecDeque::with_capacity(MAX_SLICES) }
    }
}

/// The stream takes the sum over all ranks of what `product` writes: for a message and a range of
/// columns its part `[rows, columns]` of the phase's result.
pub(crate) fn reduce(
    lanes: &mut Lanes,
    comms: &mut Comms,
    (c, clock): Meters<'_>,
    phase: Phase,
    slices: usize,
    stream: Stream<'_>,
    buffers: &mut SliceBuffers,
    mut product: impl FnMut(&mut Lanes, &mut [f32], Range<usize>, Meters<'_>),
) -> Result<(), CommError> {
    let Stream { x, hidden, finish } = stream;
    let SliceBuffers { sums, started } = buffers;
    let rows = x.len() / hidden;
    let slices = slices.min(hidden.div_ceil(PANEL));
    let columns = |slice| split(hidden, slices, PANEL, slice);
    for turn in hopb::turns(&comms.world, slices) {
        match turn {
            Turn::Start(slice) => {
                let columns = columns(slice);
                let write = |y: &mut [f32]| product(lanes, y, columns.clone(), (c, clock));
                started.push_back(comms.start_sum(phase, rows * columns.len(), write)?);
            }
            Turn::Finish(slice) => {
                let pending = started.pop_front().expect("a slice was started");
                comms.finish_sum(phase, pending, |parts| match slices {
                    1 => residual::add_sum(lanes, x, hidden, parts, finish),
                    _ => {
                        let sums = &mut sums[..rows * hidden];
                        residual::sum_columns(lanes, sums, hidden, columns(slice), parts);
                    }
                })?;
            }
        }
        clock.lap(c, phase.line());
    }
    if slices > 1 {
        residual::add_rows(lanes, x, &sums[..rows * hidden], hidden, finish);
        clock.lap(c, phase.line());
    }
    Ok(())
}
