//! Text to tokens and back.
//!
//! `Model::tokenizer` calls `Tokenizer::from_gguf(&Gguf) -> Result<Tokenizer, ModelError>`.
