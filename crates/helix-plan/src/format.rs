//! How numbers are stored: bits per weight, per key and value, per value of a message.

use helix_layout::ModelShape;
use std::fmt;
use std::str::FromStr;

/// How the elements of a matrix or of the cache are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Format {
    /// What reports and machines call it.
    pub name: &'static str,
    /// Bits per element, scales included.
    pub bits: f64,
    /// Elements of a row that are never parted.
    pub block: usize,
}

/// Every format by the names that GGUF tools and hardware vendors use. `fp4` and `fp8` have no
/// scales, as in the paper's figures; `nvfp4` and `mxfp4` have theirs.
const FORMATS: [Format; 16] = [
    format("fp4", 4.0, 1),
    format("nvfp4", 4.5, 16),
    format("mxfp4", 4.25, 32),
    format("fp8", 8.0, 1),
    format("int8", 8.0, 1),
    format("bf16", 16.0, 1),
    format("f16", 16.0, 1),
    format("f32", 32.0, 1),
    format("q4_0", 4.5, 32),
    format("q4_1", 5.0, 32),
    format("q5_0", 5.5, 32),
    format("q5_1", 6.0, 32),
    format("q8_0", 8.5, 32),
    format("q4_k", 4.5, 256),
    format("q5_k", 5.5, 256),
    format("q6_k", 6.5625, 256),
];

const fn format(name: &'static str, bits: f64, block: usize) -> Format {
    Format { name, bits, block }
}

impl Format {
    /// All names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FORMATS.iter().map(|format| format.name)
    }

    /// Bytes of one element.
    pub fn bytes(&self) -> f64 {
        self.bits / 8.0
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

/// A name that no format has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the number format {name:?} is unknown; known are {known}")]
pub struct FormatError {
    name: String,
    known: String,
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(name: &str) -> Result<Format, FormatError> {
        let found = FORMATS.iter().find(|format| format.name.eq_ignore_ascii_case(name));
        found.copied().ok_or_else(|| FormatError {
            name: name.to_owned(),
            known: Format::names().collect::<Vec<_>>().join(", "),
        })
    }
}

/// The kinds of a model's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// W_q, W_k, W_v, or MLA's projections.
    Qkv,
    /// W_O.
    Out,
    /// Gate and up of dense layers.
    FfnUp,
    /// Down of dense layers.
    FfnDown,
    /// Gate and up of shared experts.
    SharedUp,
    /// Down of shared experts.
    SharedDown,
    /// Gate and up of routed experts.
    ExpertUp,
    /// Down of routed experts.
    ExpertDown,
    /// Routers.
    Router,
    /// The LM head.
    Head,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 10] = [
        Part::Qkv,
        Part::Out,
        Part::FfnUp,
        Part::FfnDown,
        Part::SharedUp,
        Part::SharedDown,
        Part::ExpertUp,
        Part::ExpertDown,
        Part::Router,
        Part::Head,
    ];
}

/// How a model's numbers are stored, by what they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Formats {
    /// What reports call the weights' format, and what cuts go between the blocks of.
    pub weights: Format,
    /// Of each [`Part`], in their order: the arithmetic is that of the format's name, the bits are
    /// means where layers differ.
    pub parts: [Format; Part::ALL.len()],
    /// Keys and values.
    pub kv: Format,
    /// Bytes of a key's or value's scales for each group of as many dimensions, where there are
    /// any: `(bytes, dimensions)`.
    pub kv_scales: Option<(f64, usize)>,
    /// Bytes per value of a message between ranks.
    pub message: f64,
}

/// Bytes of bf16, in which activations travel between GPUs.
const BF16: f64 = 2.0;

impl Formats {
    /// Every matrix in `weights`, keys and values in `kv`, messages in bf16.
    pub fn uniform(weights: Format, kv: Format) -> Formats {
        let parts = [weights; Part::ALL.len()];
        Formats { weights, parts, kv, kv_scales: None, message: BF16 }
    }

    /// The same with the matrices of some parts in `format`.
    pub fn with(mut self, parts: &[Part], format: Format) -> Formats {
        parts.iter().for_each(|&part| self.parts[part as usize] = format);
        self
    }

    /// How a part is stored.
    pub fn of(&self, part: Part) -> Format {
        self.parts[part as usize]
    }

    /// Bytes of a row of `dims` elements of the cache.
    pub fn kv_row(&self, dims: usize) -> f64 {
        let scales =
            self.kv_scales.map_or(0.0, |(bytes, group)| bytes * dims.div_ceil(group) as f64);
        // Formats with blocks of their own have their scales in `bits`.
        dims as f64 * self.kv.bytes() + scales
    }

    /// Cuts go between blocks: `shape` gets those of the weights' format.
    pub(crate) fn blocks(&self, shape: &mut ModelShape) {
        let block = self.weights.block;
        shape.out_block = block;
        shape.ffn_block = block;
        if let Some(moe) = &mut shape.moe {
            moe.block = block;
            moe.shared_block = if moe.shared_ffn > 0 { block } else { 1 };
        }
    }
}

/// FP4 for weights and KV: the paper's.
impl Default for Formats {
    fn default() -> Formats {
        let fp4 = FORMATS[0];
        Formats::uniform(fp4, fp4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in Format::names() {
            assert_eq!(name.parse::<Format>().unwrap().name, name);
        }
        let error = "fp3".parse::<Format>().unwrap_err().to_string();
        assert!(error.contains("\"fp3\"") && error.contains("q4_k"), "{error}");
    }

    #[test]
    fn scales_of_a_row_are_whole() {
        let f16 = "f16".parse().unwrap();
        let q8 = Formats {
            kv_scales: Some((2.0, 32)),
            ..Formats::uniform(f16, "int8".parse().unwrap())
        };
        assert_eq!(q8.kv_row(40), 40.0 + 4.0);
        assert_eq!(Formats::default().kv_row(128), 64.0);
    }
}
