//! Chat templates.
//!
//! `Model::chat_template` calls
//! `ChatTemplate::from_gguf(&Gguf) -> Result<Option<ChatTemplate>, ModelError>`.

use crate::{Gguf, ModelError};

/// A chat template.
#[derive(Debug)]
pub struct ChatTemplate;

impl ChatTemplate {
    pub(crate) fn from_gguf(_: &Gguf) -> Result<Option<ChatTemplate>, ModelError> {
        Err(ModelError::ChatTemplate("not built yet".to_owned()))
    }
}
