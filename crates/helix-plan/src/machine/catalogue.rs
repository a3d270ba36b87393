//! The machines that the planner comes with.

use super::{Machine, MachineError};

/// Names, and their files.
const MACHINES: [(&str, &str); 1] =
    [("gb200-nvl72", include_str!("../../machines/gb200-nvl72.toml"))];

/// The names of the machines that [`Machine::named`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    MACHINES.iter().map(|(name, _)| *name)
}

pub(super) fn find(name: &str) -> Result<Machine, MachineError> {
    match MACHINES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
        Some((_, text)) => Machine::from_toml(text),
        None => {
            let known: Vec<&str> = names().collect();
            Err(MachineError::Name { name: name.to_owned(), known: known.join(", ") })
        }
    }
}
