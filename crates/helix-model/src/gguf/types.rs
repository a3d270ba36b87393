//! The types of tensors, as numbered by ggml.

/// A ggml tensor type: blocks of `block` elements, stored in `bytes` bytes.
///
/// All types of ggml's `enum ggml_type` are known by name and size, also those that no kernel
/// here reads: a file may hold them, and the refusal can say what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlType {
    /// The number in the file.
    pub id: u32,
    /// ggml's name, such as `Q4_K`.
    pub name: &'static str,
    /// Elements per block.
    pub block: u64,
    /// Bytes per block; 0 for types that ggml has removed.
    pub bytes: u64,
}

impl GgmlType {
    /// The type with this number, if ggml has or had one.
    pub fn from_id(id: u32) -> Option<&'static GgmlType> {
        TYPES.iter().find(|known| known.id == id)
    }

    /// The type with this name.
    pub fn from_name(name: &str) -> Option<&'static GgmlType> {
        TYPES.iter().find(|known| known.name == name)
    }
}

const fn known(id: u32, name: &'static str, block: u64, bytes: u64) -> GgmlType {
    GgmlType { id, name, block, bytes }
}

/// A type that ggml once had; its layout is no longer defined.
const fn removed(id: u32, name: &'static str) -> GgmlType {
    known(id, name, 1, 0)
}

/// From `ggml.h` (numbers) and `ggml-common.h` (blocks).
const TYPES: [GgmlType; 42] = [
    known(0, "F32", 1, 4),
    known(1, "F16", 1, 2),
    known(2, "Q4_0", 32, 18),
    known(3, "Q4_1", 32, 20),
    removed(4, "Q4_2"),
    removed(5, "Q4_3"),
    known(6, "Q5_0", 32, 22),
    known(7, "Q5_1", 32, 24),
    known(8, "Q8_0", 32, 34),
    known(9, "Q8_1", 32, 36),
    known(10, "Q2_K", 256, 84),
    known(11, "Q3_K", 256, 110),
    known(12, "Q4_K", 256, 144),
    known(13, "Q5_K", 256, 176),
    known(14, "Q6_K", 256, 210),
    known(15, "Q8_K", 256, 292),
    known(16, "IQ2_XXS", 256, 66),
    known(17, "IQ2_XS", 256, 74),
    known(18, "IQ3_XXS", 256, 98),
    known(19, "IQ1_S", 256, 50),
    known(20, "IQ4_NL", 32, 18),
    known(21, "IQ3_S", 256, 110),
    known(22, "IQ2_S", 256, 82),
    known(23, "IQ4_XS", 256, 136),
    known(24, "I8", 1, 1),
    known(25, "I16", 1, 2),
    known(26, "I32", 1, 4),
    known(27, "I64", 1, 8),
    known(28, "F64", 1, 8),
    known(29, "IQ1_M", 256, 56),
    known(30, "BF16", 1, 2),
    removed(31, "Q4_0_4_4"),
    removed(32, "Q4_0_4_8"),
    removed(33, "Q4_0_8_8"),
    known(34, "TQ1_0", 256, 54),
    known(35, "TQ2_0", 256, 66),
    removed(36, "IQ4_NL_4_4"),
    removed(37, "IQ4_NL_4_8"),
    removed(38, "IQ4_NL_8_8"),
    known(39, "MXFP4", 32, 17),
    known(40, "NVFP4", 64, 36),
    known(41, "Q1_0", 128, 18),
];
