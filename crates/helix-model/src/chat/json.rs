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
    let mut bytes = Vec::new();
    match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(MAX_INDENT));
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            write(value, &mut bytes, formatter)?;
        }
        None => {
            let [item, key] = separators
                .map_or_else(|| Ok([", ".to_owned(), ": ".to_owned()]), TryInto::try_into)
                .map_err(|_| problem("tojson: separators are two strings"))?;
            write(value, &mut bytes, Python { item, key })?;
        }
    }
    state.consume_fuel(bytes.len() as u64 / 64)?;
    String::from_utf8(bytes).map(Value::from).map_err(|_| problem("tojson: not UTF-8"))
}

fn problem(text: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, text)
}

fn write(value: &Value, out: &mut Vec<u8>, formatter: impl Formatter) -> Result<(), Error> {
    value
        .serialize(&mut Serializer::with_formatter(out, formatter))
        .map_err(|error| problem("tojson: the value has no JSON form").with_source(error))
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
