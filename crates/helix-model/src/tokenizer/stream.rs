//! Tokens to text, one by one.

use super::Tokenizer;

/// Decodes tokens as they are generated: what it has given out is always whole characters.
///
/// A token may end inside a character, whose bytes then wait for the tokens that follow. Control
/// tokens are left out.
#[derive(Debug)]
pub struct StreamDecoder<'t> {
    tokenizer: &'t Tokenizer,
    /// Bytes of a character that is not complete: at most three.
    pending: Vec<u8>,
    /// The next text starts with a space that the encoder would put there by itself.
    drop_space: bool,
    show_control: bool,
}

impl<'t> StreamDecoder<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, drop_space: bool) -> Self {
        StreamDecoder { tokenizer, pending: Vec::new(), drop_space, show_control: false }
    }

    /// Writes control tokens out by their names.
    pub fn showing_control(self) -> Self {
        StreamDecoder { show_control: true, ..self }
    }

    /// The text that `token` completes; often empty. Bytes that cannot become a character are
    /// U+FFFD.
    pub fn push(&mut self, token: u32) -> String {
        let mut text = String::new();
        self.append(token, &mut text);
        text
    }

    /// What is left when no more tokens follow: U+FFFD if they end inside a character.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }

    pub(super) fn decode_all(mut self, tokens: &[u32]) -> String {
        let mut text = String::with_capacity(4 * tokens.len());
        for &token in tokens {
            self.append(token, &mut text);
        }
        text + &self.finish()
    }

    fn append(&mut self, token: u32, text: &mut String) {
        if self.tokenizer.is_control(token) && !self.show_control {
            return;
        }
        let mut piece = self.tokenizer.piece(token).unwrap_or_default();
        if piece.is_empty() {
            return;
        }
        if std::mem::take(&mut self.drop_space) {
            piece = piece.strip_prefix(b" ").unwrap_or(piece);
        }
        self.pending.extend_from_slice(piece);
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            let unfinished = done + chunk.valid().len() + chunk.invalid().len()
                == self.pending.len()
                && is_prefix(chunk.invalid());
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            if !unfinished {
                done += chunk.invalid().len();
                text.push_str(if chunk.invalid().is_empty() { "" } else { "\u{fffd}" });
            }
        }
        self.pending.drain(..done);
    }
}

/// Whether more bytes may follow that make `bytes` a character.
fn is_prefix(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
