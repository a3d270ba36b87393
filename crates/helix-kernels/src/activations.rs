//! A batch of activations, as matrices want them.

use std::ops::{BitOr, Range};

use crate::arch::matmul::{Dots, Job, Visit, dispatch};
use crate::columns::SharedPairs;
use crate::formats::SUB_BLOCK;
use crate::isa;

/// 32 activations of one token, quantised: `x[i] ≈ codes[i]·scale`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct Sub {
    /// In −127..=127, as groups of 4 columns.
    pub codes: [[i8; 4]; 8],
    /// Largest magnitude / 127. NaN when an activation is NaN or infinite: so are then the outputs.
    pub scale: f32,
    /// `scale·Σ codes`: what a weight block's minimum is multiplied with.
    pub weighted_sum: f32,
    /// `−Σ codes`: what a weight code's offset is multiplied with.
    pub minus_sum: i32,
    /// `−Σ codes` of the first 16.
    pub minus_low: i32,
}

/// Magnitudes below this count as zero: the reciprocal of their scale would overflow.
const TINY: f32 = 1e-35;

/// Adding it to a small number rounds that to an integer, ties to even, and leaves the integer in
/// the low bits.
const ROUND: f32 = 12_582_912.0; // 1.5·2^23

impl Sub {
    /// Quantises to the nearest code, ties to even.
    #[inline(always)]
    pub(crate) fn of<L: Dots>(l: L, x: &[f32; SUB_BLOCK]) -> Sub {
        let halves = x.as_chunks::<16>().0;
        let (zero, round) = (l.splat(0.0), l.splat(ROUND));
        let (low, high) = (l.load(&halves[0]), l.load(&halves[1]));
        let (low_size, high_size) = (l.max(low, l.sub(zero, low)), l.max(high, l.sub(zero, high)));
        let most = l.largest(l.max(low_size, high_size));
        let (scale, inverse) = if most < TINY { (0.0, 0.0) } else { (most / 127.0, 127.0 / most) };
        let low = l.fma(low, l.splat(inverse), round);
        let high = l.fma(high, l.splat(inverse), round);
        let mut codes = [[0; 16]; 2];
        l.low_bytes(low, &mut codes[0]);
        l.low_bytes(high, &mut codes[1]);
        // NaN when an activation is NaN or infinite, and then so are the scale and its outputs.
        let finite = !l.any_nan(l.add(low, high));
        let low = l.byte_sum(&codes[0]);
        let all = low + l.byte_sum(&codes[1]);
        Sub {
            codes: bytemuck::cast(codes),
            scale: if finite { scale } else { f32::NAN },
            weighted_sum: if finite { scale * all as f32 } else { f32::NAN },
            minus_sum: -all,
            minus_low: -low,
        }
    }
}

/// What activations are kept as: what the matrices that they meet want, see
/// [`Matrix::wants`](crate::Matrix::wants).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forms {
    /// `f32`.
    pub values: bool,
    /// int8, with a scale per 32 columns.
    pub codes: bool,
}

impl Forms {
    /// For any matrix.
    pub const BOTH: Forms = Forms { values: true, codes: true };

    /// Whether all of `wanted` is there.
    pub(crate) fn have(self, wanted: Forms) -> bool {
        self | wanted == self
    }

    /// Quantised sub-blocks of a row; a row that is not whole sub-blocks meets float weights only.
    fn subs(self, cols: usize) -> usize {
        if self.codes && cols.is_multiple_of(SUB_BLOCK) { cols / SUB_BLOCK } else { 0 }
    }
}

impl BitOr for Forms {
    type Output = Forms;

    fn bitor(self, other: Forms) -> Forms {
        Forms { values: self.values || other.values, codes: self.codes || other.codes }
    }
}

/// Activations of `[tokens, cols]`, in buffers that are allocated once.
#[derive(Debug)]
pub struct Activations {
    forms: Forms,
    /// The most values.
    room: usize,
    tokens: usize,
    cols: usize,
    values: Vec<f32>,
    subs: Vec<Sub>,
}

impl Activations {
    /// Room for `max_tokens` rows of up to `max_cols` columns; holds no rows yet.
    pub fn new(max_tokens: usize, max_cols: usize, forms: Forms) -> Self {
        let room = max_tokens * max_cols;
        let subs = if forms.codes { max_tokens * (max_cols / SUB_BLOCK) } else { 0 };
        let values = vec![0.0; if forms.values { room } else { 0 }];
        Activations { forms, room, tokens: 0, cols: 0, values, subs: vec![Sub::default(); subs] }
    }

    /// Rows now held.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Columns of the rows now held.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What they are kept as.
    pub fn forms(&self) -> Forms {
        self.forms
    }

    /// Takes over `x` of shape `[tokens, cols]`, all of it on this thread.
    ///
    /// # Panics
    /// When `x` has another length, or there is no room.
    pub fn load(&mut self, x: &[f32], tokens: usize, cols: usize) {
        assert_eq!(Some(x.len()), tokens.checked_mul(cols), "activations: length, shape");
        let fill = self.fill(tokens, cols);
        while let Some(writer) = fill.next() {
            let start = writer.token() * cols;
            writer.write(&x[start..start + cols]);
        }
    }

    /// Begins to take over rows that any number of threads write, each row by whoever asks next.
    ///
    /// Every row must be written before the activations are used: others keep what they had.
    ///
    /// # Panics
    /// When there is no room.
    pub fn fill(&mut self, tokens: usize, cols: usize) -> SharedFill<'_> {
        let fits = tokens.checked_mul(cols).is_some_and(|values| values <= self.room);
        assert!(fits, "no room for {tokens} × {cols} activations");
        (self.tokens, self.cols) = (tokens, cols);
        let lens = (if self.forms.values { cols } else { 0 }, self.forms.subs(cols));
        let (values, subs) =
            (&mut self.values[..tokens * lens.0], &mut self.subs[..tokens * lens.1]);
        SharedFill { forms: self.forms, cols, rows: SharedPairs::new(values, subs, tokens, lens) }
    }

    /// Takes over rows `rows` of `from`, bit for bit, codes and scales too: `self[i]` becomes
    /// `from[rows[i]]`. A row may come any number of times.
    ///
    /// # Panics
    /// When a row is not there, they are not kept as the same, or there is no room.
    pub fn gather(&mut self, from: &Activations, rows: &[u32]) {
        let fill = self.fill(rows.len(), from.cols);
        while let Some(writer) = fill.next() {
            let row = rows[writer.token()] as usize;
            writer.copy(from.rows(row..row + 1));
        }
    }

    /// A run of the rows, for a product of its own.
    ///
    /// # Panics
    /// When there are fewer rows.
    pub fn rows(&self, rows: Range<usize>) -> ActivationRows<'_> {
        assert!(
            rows.start <= rows.end && rows.end <= self.tokens,
            "rows {rows:?} of {} activations",
            self.tokens
        );
        let values = if self.forms.values { self.cols } else { 0 };
        let subs = self.forms.subs(self.cols);
        ActivationRows {
            forms: self.forms,
            tokens: rows.len(),
            cols: self.cols,
            values: &self.values[rows.start * values..rows.end * values],
            subs: &self.subs[rows.start * subs..rows.end * subs],
        }
    }
}

/// Consecutive rows of [`Activations`].
#[derive(Clone, Copy, Debug)]
pub struct ActivationRows<'a> {
    forms: Forms,
    tokens: usize,
    cols: usize,
    values: &'a [f32],
    subs: &'a [Sub],
}

impl<'a> ActivationRows<'a> {
    /// Rows in the run.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Columns of each.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What they are kept as.
    pub fn forms(&self) -> Forms {
        self.forms
    }

    /// `[tokens, cols]`; empty where they are not kept.
    pub(crate) fn values(&self) -> &'a [f32] {
        self.values
    }

    /// `[tokens, cols / 32]`; empty where there are none.
    pub(crate) fn subs(&self) -> &'a [Sub] {
        self.subs
    }
}

impl<'a> From<&'a Activations> for ActivationRows<'a> {
    /// All of them.
    fn from(all: &'a Activations) -> Self {
        all.rows(0..all.tokens)
    }
}

/// Rows of [`Activations`] waiting to be written.
pub struct SharedFill<'a> {
    forms: Forms,
    cols: usize,
    rows: SharedPairs<'a, f32, Sub>,
}

impl<'a> SharedFill<'a> {
    /// A row that nobody has had, or `None` when all are given out.
    pub fn next(&self) -> Option<TokenWriter<'a>> {
        let (token, values, subs) = self.rows.next()?;
        Some(TokenWriter { forms: self.forms, token, cols: self.cols, values, subs })
    }
}

/// One row of [`Activations`], to be written by whoever holds this.
pub struct TokenWriter<'a> {
    forms: Forms,
    token: usize,
    cols: usize,
    values: &'a mut [f32],
    subs: &'a mut [Sub],
}

impl TokenWriter<'_> {
    /// Which row this is.
    pub fn token(&self) -> usize {
        self.token
    }

    /// Copies and quantises the row.
    ///
    /// # Panics
    /// When `x` is not as long as the row.
    pub fn write(self, x: &[f32]) {
        assert_eq!(x.len(), self.cols, "activations: columns");
        if self.forms.values {
            self.values.copy_from_slice(x);
        }
        dispatch(isa::cpu(), Quantise { to: self.subs, from: x.as_chunks().0 });
    }

    /// Copies a row that others have quantised.
    ///
    /// # Panics
    /// When `row` is not one row of as many columns, kept as the same.
    pub fn copy(self, row: ActivationRows<'_>) {
        assert_eq!((row.tokens, row.cols), (1, self.cols), "activations: rows, columns");
        assert_eq!(row.forms, self.forms, "activations: forms");
        self.values.copy_from_slice(row.values);
        self.subs.copy_from_slice(row.subs);
    }
}

/// [`Sub::of`] on every sub-block.
struct Quantise<'a> {
    to: &'a mut [Sub],
    from: &'a [[f32; SUB_BLOCK]],
}

impl Visit for Quantise<'_> {
    fn visit<L: Dots>(self, l: L) {
        l.enter(self);
    }
}

impl Job for Quantise<'_> {
    #[inline(always)]
    fn run<L: Dots>(self, l: L) {
        for (to, from) in self.to.iter_mut().zip(self.from) {
            *to = Sub::of(l, from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::tests::noise;
    use crate::isa::Isa;

    #[test]
    fn every_instruction_set_quantises_to_the_nearest_code() {
        let values = noise(64 * SUB_BLOCK, 12);
        let mut from = values.as_chunks().0.to_vec();
        for (i, x) in from.iter_mut().enumerate() {
            let scale = [1.0, 1e-20, 1e20, 0.0][i % 4];
            x.iter_mut().for_each(|x| *x *= scale);
        }
        from[0][..3].copy_from_slice(&[127.0, 0.5, 1.5]); // ties
        for isa in Isa::available() {
            let mut to = vec![Sub::default(); from.len()];
            dispatch(isa, Quantise { to: &mut to, from: &from });
            for (i, (sub, x)) in to.iter().zip(&from).enumerate() {
                let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
                assert_eq!(sub.scale, most / 127.0, "{isa} [{i}]");
                let codes = sub.codes.as_flattened();
                for (code, x) in codes.iter().zip(x) {
                    let want =
                        if most == 0.0 { 0.0 } else { (x * (127.0 / most)).round_ties_even() };
                    assert_eq!(f32::from(*code), want, "{isa} [{i}]: {x} of {most}");
                }
                let sum = |codes: &[i8]| -codes.iter().map(|&c| i32::from(c)).sum::<i32>();
                assert_eq!((sub.minus_sum, sub.minus_low), (sum(codes), sum(&codes[..16])));
                assert_eq!(sub.weighted_sum, sub.scale * -sub.minus_sum as f32);
            }
        }
    }
}
