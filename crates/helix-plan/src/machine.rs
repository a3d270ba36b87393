//! Machines as data: what one rank reads, computes and sends in a second, and where each number
//! comes from.

mod catalogue;
mod check;
mod curve;
mod error;
mod formats;
mod hosts;
mod links;
pub mod profile;
mod quantity;
mod rates;

pub use catalogue::names;
pub use error::MachineError;
pub use links::Link;
pub use profile::Profile;
pub use quantity::{Origin, Quantity};
pub use rates::{Noted, RankRates, Rate, Sharing};

/// A machine whose profile was checked: every number is one that a machine can have.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    profile: Profile,
}

impl Machine {
    /// Checks a profile.
    ///
    /// # Errors
    /// A number is out of its range, or parts contradict each other; the field is named.
    pub fn new(profile: Profile) -> Result<Self, MachineError> {
        check::check(&profile)?;
        Ok(Self { profile })
    }

    /// A machine from the text of its file.
    ///
    /// # Errors
    /// As [`Machine::new`]; besides what is not TOML, and fields that are missing or unknown.
    pub fn from_toml(text: &str) -> Result<Self, MachineError> {
        let profile = toml::from_str(text);
        Self::new(profile.map_err(|error| MachineError::Toml(error.to_string()))?)
    }

    /// One of the machines that the planner comes with: [`names`].
    ///
    /// # Errors
    /// There is none of that name; the message lists them.
    pub fn named(name: &str) -> Result<Self, MachineError> {
        catalogue::find(name)
    }

    /// The text of a file that [`Machine::from_toml`] reads.
    pub fn to_toml(&self) -> String {
        profile::write(&self.profile)
    }

    /// What reports call it.
    pub fn name(&self) -> &str {
        &self.profile.name
    }

    /// Every number with its origin.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }
}

#[cfg(test)]
mod tests;
