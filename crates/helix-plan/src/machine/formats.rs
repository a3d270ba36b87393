//! Names of number formats, and which arithmetic takes them.

use super::MachineError;

/// Arithmetic that profiles have peaks for, narrow to wide.
pub(super) const ARITHMETIC: [&str; 6] = ["fp4", "fp8", "int8", "bf16", "f16", "f32"];

/// A format's names, its own arithmetic, and what it may be widened to, best first.
struct Format {
    names: &'static [&'static str],
    arithmetic: &'static [&'static str],
}

/// Weights in integer blocks meet activations in int8, as they do in the engine.
const BLOCKS: &[&str] = &["int8", "bf16", "f16", "f32"];

const FORMATS: [Format; 8] = [
    Format { names: &["fp4", "nvfp4", "mxfp4"], arithmetic: &["fp4", "fp8", "bf16", "f16", "f32"] },
    Format { names: &["fp8", "f8_e4m3"], arithmetic: &["fp8", "bf16", "f16", "f32"] },
    Format { names: &["int8", "q8_0"], arithmetic: BLOCKS },
    Format { names: &["q4_0", "q4_1", "q5_0", "q5_1"], arithmetic: BLOCKS },
    Format { names: &["q4_k", "q5_k", "q6_k"], arithmetic: BLOCKS },
    Format { names: &["bf16"], arithmetic: &["bf16", "f16", "f32"] },
    Format { names: &["f16"], arithmetic: &["f16", "bf16", "f32"] },
    Format { names: &["f32"], arithmetic: &["f32"] },
];

/// The arithmetic that may take `format`, best first; the first is its own.
pub(super) fn arithmetic(format: &str) -> Result<&'static [&'static str], MachineError> {
    let named = |known: &Format| known.names.iter().any(|name| name.eq_ignore_ascii_case(format));
    match FORMATS.iter().find(|known| named(known)) {
        Some(found) => Ok(found.arithmetic),
        None => {
            let all: Vec<&str> = FORMATS.iter().flat_map(|f| f.names).copied().collect();
            Err(MachineError::Format { format: format.to_owned(), known: all.join(", ") })
        }
    }
}

/// Whether both names are of one format: with scales of its own, or as vendors call it.
pub(super) fn same(one: &str, other: &str) -> bool {
    let plain = |name: &str| match &*name.to_ascii_lowercase() {
        "f8_e4m3" => "fp8".to_owned(),
        "q8_0" => "int8".to_owned(),
        name => name.to_owned(),
    };
    plain(one) == plain(other)
}
