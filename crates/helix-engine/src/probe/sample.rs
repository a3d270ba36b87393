//! Several measurements of one thing.

/// The median of several measurements, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Half of them are at most this.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Sample {
    /// # Panics
    /// There are no measurements.
    pub(super) fn of(mut values: Vec<f64>) -> Sample {
        values.sort_by(f64::total_cmp);
        let (min, max) = (values[0], values[values.len() - 1]);
        Sample { median: values[values.len() / 2], min, max }
    }
}
