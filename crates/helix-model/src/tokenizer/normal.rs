//! Unicode's normal forms.

use std::borrow::Cow;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// What text is brought into before it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
}

impl Form {
    /// By the name that `tokenizer.json` has for it.
    pub fn named(name: &str) -> Option<Form> {
        match name {
            "NFC" => Some(Form::Nfc),
            "NFD" => Some(Form::Nfd),
            "NFKC" => Some(Form::Nfkc),
            "NFKD" => Some(Form::Nfkd),
            _ => None,
        }
    }

    /// `text` in this form.
    pub fn of(self, text: &str) -> Cow<'_, str> {
        match self {
            Form::Nfc if is_nfc_quick(text.chars()) == IsNormalized::Yes => text.into(),
            Form::Nfc => text.nfc().collect::<String>().into(),
            Form::Nfd => text.nfd().collect::<String>().into(),
            Form::Nfkc => text.nfkc().collect::<String>().into(),
            Form::Nfkd => text.nfkd().collect::<String>().into(),
        }
    }
}
