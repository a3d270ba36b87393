//! Text to tokens and back.
//!
//! `Model::tokenizer` calls `Tokenizer::from_gguf(&Gguf) -> Result<Tokenizer, ModelError>`.

use crate::{Gguf, ModelError};

/// Text to tokens and back.
#[derive(Debug)]
pub struct Tokenizer;

impl Tokenizer {
    pub(crate) fn from_gguf(_: &Gguf) -> Result<Tokenizer, ModelError> {
        Err(ModelError::Tokenizer("not built yet".to_owned()))
    }
}
