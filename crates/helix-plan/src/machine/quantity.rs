//! A number of a profile and where it comes from.

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

use super::MachineError;

/// A number of a profile: bare, or `{ value, source }`, or `{ value, assumed, from, to }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantity {
    /// In the unit that the field's name ends with.
    pub value: f64,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a number comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// Nobody says.
    Unknown,
    /// A data sheet, a paper, a measurement.
    Source(String),
    /// Nobody published it: why this value, and within which bounds it may be varied.
    Assumed {
        /// The reason.
        why: String,
        /// From the smallest to the largest value that is as likely.
        range: Option<(f64, f64)>,
    },
}

/// As it is written.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Written {
    value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    assumed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<f64>,
}

impl Quantity {
    /// A number with its source.
    pub fn sourced(value: f64, source: impl Into<String>) -> Self {
        Self { value, origin: Origin::Source(source.into()) }
    }

    /// Whether the number was neither published nor measured.
    pub fn is_assumed(&self) -> bool {
        matches!(self.origin, Origin::Assumed { .. })
    }

    /// Refuses what is no number, or outside `range`, of the field called `field`.
    pub(super) fn check(&self, field: &str, range: Range) -> Result<(), MachineError> {
        range.check(field, self.value)?;
        let Origin::Assumed { range: Some((from, to)), .. } = self.origin else { return Ok(()) };
        range.check(&format!("{field}.from"), from)?;
        range.check(&format!("{field}.to"), to)?;
        if from > self.value || to < self.value {
            let value = self.value;
            return Err(MachineError::Bounds { field: field.to_owned(), value, from, to });
        }
        Ok(())
    }
}

impl From<f64> for Quantity {
    fn from(value: f64) -> Self {
        Self { value, origin: Origin::Unknown }
    }
}

/// What a field may be, ends included.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) least: f64,
    pub(super) most: f64,
    pub(super) unit: &'static str,
}

impl Range {
    pub(super) fn check(self, field: &str, value: f64) -> Result<(), MachineError> {
        let Self { least, most, unit } = self;
        // NaN is in no range.
        if (least..=most).contains(&value) {
            return Ok(());
        }
        Err(MachineError::Range { field: field.to_owned(), value, least, most, unit })
    }
}

impl Written {
    fn quantity(self) -> Result<Quantity, &'static str> {
        let Self { value, source, assumed, from, to } = self;
        let range = match (from, to) {
            (Some(from), Some(to)) => Some((from, to)),
            (None, None) => None,
            _ => return Err("`from` and `to` go together"),
        };
        let origin = match (source, assumed, range) {
            (Some(_), Some(_), _) => {
                return Err("a number has a `source` or is `assumed`, not both");
            }
            (_, None, Some(_)) => return Err("`from` and `to` bound what is `assumed`"),
            (Some(source), None, None) => Origin::Source(source),
            (None, Some(why), range) => Origin::Assumed { why, range },
            (None, None, None) => Origin::Unknown,
        };
        Ok(Quantity { value, origin })
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, { value, source } or { value, assumed, from, to }")
            }

            fn visit_f64<E>(self, value: f64) -> Result<Quantity, E> {
                Ok(value.into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Quantity, E> {
                Ok((value as f64).into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Quantity, E> {
                Ok((value as f64).into())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Quantity, A::Error> {
                let written = Written::deserialize(MapAccessDeserializer::new(map))?;
                written.quantity().map_err(serde::de::Error::custom)
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = self.value;
        let plain = Written { value, source: None, assumed: None, from: None, to: None };
        match &self.origin {
            Origin::Unknown => serializer.serialize_f64(value),
            Origin::Source(source) => {
                Written { source: Some(source.clone()), ..plain }.serialize(serializer)
            }
            Origin::Assumed { why, range } => {
                let (from, to) = range.unzip();
                Written { assumed: Some(why.clone()), from, to, ..plain }.serialize(serializer)
            }
        }
    }
}
