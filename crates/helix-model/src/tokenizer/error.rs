//! Why metadata do not make a tokenizer.

/// Why a tokenizer could not be built from a file's metadata.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A kind of tokenizer that is not read here.
    #[error(
        "tokenizer.ggml.model is {name:?}; Helix reads \"gpt2\" (byte-level BPE) \
         and \"llama\" (SentencePiece BPE)"
    )]
    Model {
        /// What the file names.
        name: String,
    },
    /// The file names a pre-tokenizer whose splitting rules are not known here.
    #[error(
        "tokenizer.ggml.pre is {name:?}, which Helix does not know, and a guess would give other \
         tokens than the model was trained on; known are {known}"
    )]
    PreTokenizer {
        /// What the file names.
        name: String,
        /// The names that are known.
        known: String,
    },
    /// A key that this kind of tokenizer cannot do without.
    #[error("metadata key {key:?} is missing; convert the model again with a current converter")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// More tokens than any model has.
    #[error("the vocabulary has {tokens} tokens; Helix reads up to {limit}")]
    TooManyTokens {
        /// Tokens in the file.
        tokens: usize,
        /// The most that is read.
        limit: usize,
    },
    /// An array that must have one entry per token has another length.
    #[error("{key} has {found} entries for {tokens} tokens")]
    Length {
        /// The array's key.
        key: &'static str,
        /// Its length.
        found: usize,
        /// Tokens in the vocabulary.
        tokens: usize,
    },
    /// A token type that the format does not define.
    #[error("token {token} has the type {kind}; types are 0 to 6")]
    Kind {
        /// The token.
        token: usize,
        /// Its type number.
        kind: u64,
    },
    /// Two tokens with one text: which of them a text becomes would be chance.
    #[error("tokens {first} and {second} are both {text:?}")]
    Duplicate {
        /// The text.
        text: String,
        /// The first token.
        first: u32,
        /// The second one.
        second: u32,
    },
    /// A score that cannot be compared.
    #[error("token {token} has the score NaN")]
    Score {
        /// The token.
        token: u32,
    },
    /// A byte token that names no byte.
    #[error("token {token} is of type byte and is called {text:?}, not <0x00> to <0xFF>")]
    ByteToken {
        /// The token.
        token: u32,
        /// Its text.
        text: String,
    },
    /// Text with a character outside the vocabulary would have no tokens.
    #[error("the vocabulary has no token for the byte {byte:#04x} and no unknown token either")]
    NoFallback {
        /// The first byte without a token.
        byte: u8,
    },
    /// A merge that does not consist of two texts.
    #[error("merge {index} is {merge:?}, not two tokens with a space between them")]
    Merge {
        /// Its place in tokenizer.ggml.merges.
        index: usize,
        /// The merge.
        merge: String,
    },
    /// A merge whose part or result is no token.
    #[error("merge {index} is {merge:?}, and {text:?} is not in the vocabulary")]
    MergeToken {
        /// Its place in tokenizer.ggml.merges.
        index: usize,
        /// The merge.
        merge: String,
        /// The part or result that is missing.
        text: String,
    },
    /// A special token's number lies outside the vocabulary.
    #[error("{key} is {id}, and the vocabulary has {tokens} tokens")]
    Id {
        /// The metadata key.
        key: &'static str,
        /// The number.
        id: u32,
        /// Tokens in the vocabulary.
        tokens: usize,
    },
    /// A flag asks for a token that the file does not name.
    #[error("{flag} is true, and {key} is missing")]
    NoSuchSpecial {
        /// The flag's key.
        flag: &'static str,
        /// The key that would name the token.
        key: &'static str,
    },
    /// A part of `tokenizer.json` that is not run here.
    #[error("its {part} is {found}, and Helix runs {known}")]
    Part {
        /// What part.
        part: &'static str,
        /// What the file has.
        found: String,
        /// What could be there instead.
        known: &'static str,
    },
    /// A pattern that cannot be run in linear time with the same matches.
    #[error("the pattern {pattern:?} of its pre_tokenizer is not run here: {problem}")]
    Pattern {
        /// The regular expression.
        pattern: String,
        /// Why not.
        problem: String,
    },
    /// `tokenizer.json` is not of its own form.
    #[error("it is not a tokenizer: {problem}")]
    File {
        /// What and where.
        problem: String,
    },
    /// A line of `tiktoken.model` that is no token and its rank.
    #[error("line {line}: {problem}")]
    Rank {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Ranks that are not 0, 1, 2, …
    #[error("ranks go from 0 on, each once, and {found} stands in the place of {expected}")]
    RankGap {
        /// The first rank that is missing.
        expected: u32,
        /// What is there, in order.
        found: u32,
    },
    /// A byte that text may have, and no token is.
    #[error("no token is the byte {byte:#04x} alone")]
    NoByte {
        /// The byte.
        byte: u8,
    },
    /// Two tokens with one number, or numbers with large gaps.
    #[error("token {text:?} has the number {id}, {problem}")]
    Number {
        /// The token.
        text: String,
        /// Its number.
        id: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The special tokens together are longer than any model's.
    #[error("the special tokens have {bytes} bytes together; Helix reads up to {limit}")]
    SpecialsTooLong {
        /// Bytes in the file.
        bytes: usize,
        /// The most that is read.
        limit: usize,
    },
}
