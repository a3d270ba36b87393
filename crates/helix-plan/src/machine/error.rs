//! What is wrong with a machine, or outside what its profile says.

use crate::figure;

/// Why a profile was refused, or a question to it has no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MachineError {
    /// Not TOML, an unknown or missing field, a value of the wrong kind. The message has the line.
    #[error("{0}")]
    Toml(String),
    /// A number that no machine has.
    #[error("{field} is {}: it goes from {least} to {most} {unit}", figure(*value))]
    Range {
        /// Where in the file.
        field: String,
        /// As it was given.
        value: f64,
        /// The smallest legal value.
        least: f64,
        /// The largest.
        most: f64,
        /// Of all of them.
        unit: &'static str,
    },
    /// An assumed value outside its own bounds.
    #[error(
        "{field} is {}, outside its own bounds {} to {}",
        figure(*value), figure(*from), figure(*to)
    )]
    Bounds {
        /// Where in the file.
        field: String,
        /// As it was given.
        value: f64,
        /// Its bounds.
        from: f64,
        /// Its bounds.
        to: f64,
    },
    /// Something that a machine cannot do without, or that contradicts the rest.
    #[error("{field}: {problem}")]
    Field {
        /// Where in the file.
        field: String,
        /// What is wrong, and what would do.
        problem: String,
    },
    /// A name that the planner doesn't come with.
    #[error("no machine is called {name:?}; there are {known}, or give a TOML file")]
    Name {
        /// As it was given.
        name: String,
        /// Those there are.
        known: String,
    },
    /// More ranks than the machine connects.
    #[error("{machine} connects {most} ranks, not {ranks}; its profile has no level beyond")]
    Ranks {
        /// The profile's name.
        machine: String,
        /// Asked for.
        ranks: usize,
        /// Of the outermost level.
        most: usize,
    },
    /// A format of numbers that nobody knows.
    #[error("the number format {format:?} is unknown; known are {known}")]
    Format {
        /// As it was given.
        format: String,
        /// Those there are.
        known: String,
    },
    /// A format that the profile has no rate for, nor one to extrapolate from.
    #[error(
        "{machine} has no rate for {what} of {format}, nor one to extrapolate from; it has {}",
        if known.is_empty() { "none: its [arithmetic] is empty" } else { known }
    )]
    NoRate {
        /// The profile's name.
        machine: String,
        /// Products or attention.
        what: &'static str,
        /// Asked for.
        format: String,
        /// What the profile has.
        known: String,
    },
}
