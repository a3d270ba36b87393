//! The log-sum-exp of attention scores: what makes partial attention mergeable.

/// A natural logarithm of a sum of exponentials, over the tokens one shard holds.
///
/// The base is part of the type: nothing else can be passed where one is merged.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct Lse(f32);

impl Lse {
    /// Of no tokens at all: log 0 = −∞, of weight nothing in a merge.
    pub const EMPTY: Lse = Lse(f32::NEG_INFINITY);

    /// A natural log-sum-exp; `ln`, as computed or as received from another rank.
    #[must_use]
    pub const fn from_ln(ln: f32) -> Lse {
        Lse(ln)
    }

    /// The natural logarithm.
    #[must_use]
    pub const fn ln(self) -> f32 {
        self.0
    }

    /// Whether the shard saw no token.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Lse::EMPTY
    }
}
