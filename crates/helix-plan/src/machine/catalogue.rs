//! The machines that the planner comes with.

use super::{Machine, MachineError};

macro_rules! machines {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../machines/", $name, ".toml")))),*]
    };
}

/// Names, and their files.
const MACHINES: [(&str, &str); 14] = machines![
    "gb200-nvl72",
    "gb300-nvl72",
    "hgx-b200",
    "hgx-h100",
    "hgx-h200",
    "mi300x",
    "epyc-9654-100g",
    "epyc-9654-400g",
    "epyc-9755-100g",
    "epyc-9755-400g",
    "xeon-8480-100g",
    "xeon-8480-400g",
    "xeon-6980p-100g",
    "xeon-6980p-400g",
];

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
