//! `tojson` as `transformers` defines it: Python's `json.dumps`, without escapes for HTML.

use std::io;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, State, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// The widest indentation: deep values would otherwise cost memory that nothing pays for.
const MAX_INDENT: usize = 16;

/// `value | tojson(indent=None, separators=None)`.
pub(super) fn tojson(state: &State, value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    // Values keep their order and their characters: the only settings that templates use.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let affordable = state.fuel_levels().map_or(u64::MAX, |(_, left)| left.saturating_mul(64));
    let mut text = Bounded { bytes: Vec::new(), limit: affordable };
    match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(MAX_INDENT));
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            write(value, &mut text, formatter)?;
        }
        None => {
            let [item, key] = separators
                .map_or_else(|| Ok([", ".to_owned(), ": ".to_owned()]), TryInto::try_into)
                .map_err(|_| problem("tojson: separators are two strings"))?;
            write(value, &mut text, Python { item, key })?;
        }
    }
    String::from_utf8(text.bytes).map(Value::from).map_err(|_| problem("tojson: not UTF-8"))
}

fn problem(text: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, text)
}

fn write(value: &Value, out: &mut Bounded, formatter: impl Formatter) -> Result<(), Error> {
    let written = value.serialize(&mut Serializer::with_formatter(out, formatter));
    written.map_err(|error| match error.is_io() {
        true => Error::from(ErrorKind::OutOfFuel),
        false => problem("tojson: the value has no JSON form").with_source(error),
    })
}

/// Text that the fuel pays for: a value may contain another one twice, which contains yet another
/// one twice, and so on.
struct Bounded {
    bytes: Vec<u8>,
    limit: u64,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + bytes.len()) as u64 > self.limit {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One line, with a space behind commas and colons.
struct Python {
    item: String,
    key: String,
}

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        w.write_all(if first { b"" } else { self.item.as_bytes() })
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        w.write_all(if first { b"" } else { self.item.as_bytes() })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(self.key.as_bytes())
    }
}
