//! Chat templates.
//!
//! `Model::chat_template` calls
//! `ChatTemplate::from_gguf(&Gguf) -> Result<Option<ChatTemplate>, ModelError>`.
