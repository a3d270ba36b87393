//! The one error type of this crate.

use std::io;
use std::path::{Path, PathBuf};

use helix_kernels::OutOfMemory;

use crate::gguf::Kind;

/// Why a model could not be opened or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The operating system refused to open or map a file.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// Something is wrong in one named file.
    #[error("{path}: {source}")]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: Box<ModelError>,
    },

    // ---- the container
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it starts with {magic:?}, not with \"GGUF\"")]
    Magic {
        /// The first bytes, escaped.
        magic: String,
    },
    /// The file was written for a big-endian machine.
    #[error(
        "this GGUF file is big-endian, and Helix reads little-endian ones; \
         convert it with gguf_convert_endian.py"
    )]
    BigEndian,
    /// A container version that is not read.
    #[error("GGUF version {version}: Helix reads versions 2 and 3; convert the model again")]
    Version {
        /// The version field.
        version: u32,
    },
    /// The file ends inside something.
    #[error(
        "the file ends too early: {what} at byte {offset} needs {needed} bytes, and {left} are left"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Where it starts.
        offset: u64,
        /// Bytes it takes at least.
        needed: u64,
        /// Bytes from there to the end of the file.
        left: u64,
    },
    /// A string is not UTF-8.
    #[error("{what} at byte {offset} is not UTF-8")]
    Utf8 {
        /// What was being read.
        what: String,
        /// Where it starts.
        offset: u64,
    },
    /// A header field holds a value that the format does not allow.
    #[error("{what}: {problem}")]
    Header {
        /// The field, with the key or tensor it belongs to.
        what: String,
        /// What is wrong with it, with the numbers.
        problem: String,
    },
    /// A metadata key occurs twice.
    #[error("metadata key {key:?} occurs twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A tensor name occurs twice.
    #[error("tensor {name:?} occurs twice")]
    DuplicateTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor's type number is in no version of ggml that is known here.
    #[error("tensor {name:?} has the unknown ggml type {id}")]
    UnknownType {
        /// The tensor.
        name: String,
        /// The type's number.
        id: u32,
    },
    /// A tensor's type is known, and no kernel here reads it.
    #[error(
        "tensor {name:?} is {ggml_type}, which Helix does not run; it runs {supported}: \
         take another quantisation of the model"
    )]
    UnsupportedType {
        /// The tensor.
        name: String,
        /// Its ggml type's name.
        ggml_type: &'static str,
        /// The types that are run.
        supported: String,
    },
    /// A tensor's data does not lie inside the file.
    #[error(
        "tensor {name:?} takes bytes {start}..{end} of the file's data, which has {available} bytes"
    )]
    OutOfFile {
        /// The tensor.
        name: String,
        /// First byte, from the start of the data section.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// Length of the data section.
        available: u64,
    },
    /// A tensor's data starts off the file's alignment.
    #[error(
        "tensor {name:?} starts at byte {offset}, not at a multiple of the alignment {alignment}"
    )]
    Misaligned {
        /// The tensor.
        name: String,
        /// First byte, from the start of the data section.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// Two tensors claim the same bytes.
    #[error(
        "tensors {first:?} and {second:?} overlap: {second:?} starts at byte {offset}, before {end}"
    )]
    Overlap {
        /// The tensor that starts first.
        first: String,
        /// The one that starts inside it.
        second: String,
        /// Where the second starts.
        offset: u64,
        /// Where the first ends.
        end: u64,
    },

    // ---- split files
    /// A file that is not the first of a split model was given.
    #[error("this is part {part} of {count} of a split model; give its first part{hint}")]
    NotFirstPart {
        /// The part's number, from 1.
        part: u64,
        /// Parts in all.
        count: u64,
        /// `, <name>` where the name follows the convention.
        hint: String,
    },
    /// The first part does not follow the naming that finds the others.
    #[error(
        "part 1 of a split model of {count}: its name must end in -00001-of-{count:05}.gguf \
         so that the other parts can be found"
    )]
    PartName {
        /// Parts in all.
        count: u64,
    },
    /// A part is not where it should be.
    #[error("part {part} of {count} is missing: {path}: {source}")]
    MissingPart {
        /// The part's number, from 1.
        part: u64,
        /// Parts in all.
        count: u64,
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A part belongs to another split or place.
    #[error("this file says it is part {found} of {found_count}; part {part} of {count} is needed")]
    WrongPart {
        /// The part's number, from 1.
        part: u64,
        /// Parts in all.
        count: u64,
        /// The number it claims, from 1.
        found: u64,
        /// The parts it claims.
        found_count: u64,
    },
    /// The parts together hold another number of tensors than the first one says.
    #[error("the {parts} parts hold {found} tensors, and split.tensors.count says {expected}")]
    PartTensors {
        /// Parts read.
        parts: u64,
        /// Tensors found.
        found: u64,
        /// Tensors announced.
        expected: u64,
    },
    /// Bytes in memory of a model that is split over files.
    #[error(
        "these bytes are part of a model split over {count} files; open the first file instead"
    )]
    SplitBytes {
        /// Parts in all.
        count: u64,
    },

    // ---- Hugging Face directories
    /// A directory without a configuration.
    #[error("{path} has no config.json: it is not the directory of a Hugging Face model")]
    NoConfig {
        /// The directory.
        path: PathBuf,
    },
    /// A directory without weights that are read.
    #[error(
        "{path} has neither model.safetensors nor model.safetensors.index.json; weights in other \
         forms must be converted, for instance by `save_pretrained` of transformers"
    )]
    NoWeights {
        /// The directory.
        path: PathBuf,
    },
    /// A directory without a tokenizer that is read.
    #[error(
        "{path} has neither tokenizer.json nor tiktoken.model; `AutoTokenizer.from_pretrained(...).save_pretrained(...)` \
         of transformers writes one"
    )]
    NoTokenizer {
        /// The directory.
        path: PathBuf,
    },
    /// A file that is not JSON, or not of the form that is needed.
    #[error("not the JSON that is needed: {problem}")]
    Json {
        /// What and where.
        problem: String,
    },
    /// An index that names a file elsewhere.
    #[error("tensor {name:?} is said to be in {file:?}, which is not the name of a file beside it")]
    OutsideDirectory {
        /// The tensor.
        name: String,
        /// What the index says.
        file: String,
    },
    /// An index that names the wrong file.
    #[error("tensor {name:?} is said to be in {file:?}, which does not have it")]
    NotInFile {
        /// The tensor.
        name: String,
        /// What the index says.
        file: String,
    },
    /// A value of another type.
    #[error("{key:?} is {found}, and {expected} is needed")]
    JsonType {
        /// The key.
        key: String,
        /// What is needed.
        expected: &'static str,
        /// What the file has.
        found: &'static str,
    },
    /// A tensor's dtype is known, and no kernel here reads it.
    #[error("tensor {name:?} is {dtype}, and {supported} is needed")]
    UnsupportedDtype {
        /// The tensor.
        name: String,
        /// Its dtype.
        dtype: &'static str,
        /// Those that are run.
        supported: String,
    },

    // ---- metadata
    /// A required key is absent.
    #[error("metadata key {key:?} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A key has a value of another type.
    #[error("metadata key {key:?} is {found}, and {expected} is needed")]
    KeyType {
        /// The key.
        key: String,
        /// What is needed.
        expected: &'static str,
        /// What the file has.
        found: Kind,
    },
    /// A key's value is one that Helix cannot run with.
    #[error("{key} = {value}: {problem}")]
    Setting {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An architecture that is not known.
    #[error("unknown architecture {arch:?}; Helix runs {known}")]
    UnknownArch {
        /// `general.architecture`, or `model_type`.
        arch: String,
        /// Those that are known.
        known: String,
    },

    // ---- tensors
    /// A tensor that the architecture needs is absent.
    #[error("tensor {name:?} {expected} is missing")]
    MissingTensor {
        /// The tensor.
        name: String,
        /// Its extents, the contiguous one first.
        expected: String,
    },
    /// A tensor has other extents than the metadata ask for.
    #[error("tensor {name:?} is {found}, and the metadata ask for {expected}")]
    TensorShape {
        /// The tensor.
        name: String,
        /// Its extents, the contiguous one first.
        found: String,
        /// Those that are needed.
        expected: String,
    },
    /// A tensor that the architecture does not use: the model is a variant that would run wrongly.
    #[error("tensor {name:?} is not part of architecture {arch} as Helix runs it")]
    UnusedTensor {
        /// The tensor.
        name: String,
        /// The architecture.
        arch: &'static str,
    },
    /// A weight is NaN or infinite.
    #[error("tensor {name:?} holds a value that is not finite, in row {row}; the file is damaged")]
    NotFinite {
        /// The tensor.
        name: String,
        /// The row of the value, or of the block whose scale it is.
        row: usize,
    },
    /// The operating system refused memory for weights.
    #[error(
        "there is no memory for a rank's part of tensor {name:?}: {source}; take more ranks, or a \
         model in a smaller format"
    )]
    Memory {
        /// The tensor.
        name: String,
        /// What the system refused.
        source: OutOfMemory,
    },
    /// The operating system refused to start a thread that loads weights.
    #[error("cannot start a thread to load weights: {source}")]
    Thread {
        /// What the system said.
        source: io::Error,
    },
    /// A token outside the vocabulary.
    #[error("token {token} is not one of the model's {vocab}: ids go from 0 to {}", vocab - 1)]
    Token {
        /// The token.
        token: u32,
        /// The size of the vocabulary.
        vocab: usize,
    },

    // ---- text
    /// The tokenizer in the metadata cannot be built.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] crate::TokenizerError),
    /// The chat template does not parse or render.
    #[error("chat template: {0}")]
    ChatTemplate(#[from] crate::ChatError),
}

impl ModelError {
    /// The same error with the file's name in front, unless it has one.
    pub(crate) fn in_file(self, path: &Path) -> ModelError {
        match self {
            named @ (ModelError::Io { .. }
            | ModelError::InFile { .. }
            | ModelError::MissingPart { .. }) => named,
            source => ModelError::InFile { path: path.to_owned(), source: Box::new(source) },
        }
    }
}
