//! Keeps control tokens out of what people write.

use std::borrow::Cow;
use std::collections::HashSet;

use super::{ChatError, Message};
use crate::tokenizer::Specials;

/// Hides the names of control tokens from the search for them.
///
/// A template turns messages into one text, in which `<|im_end|>` from a message and from the
/// template are the same. So before rendering, the first character of each control token's name in
/// a message is replaced by a stand-in that occurs nowhere else; after the search for control
/// tokens, the real character comes back, and the name is encoded as text. Templates see messages
/// that are otherwise unchanged: trimming, comparing and splitting work as before, except on the
/// names of control tokens.
pub(super) struct Guard<'t> {
    control: &'t Specials,
    /// (real, stand-in)
    stand_ins: Vec<(char, char)>,
}

impl<'t> Guard<'t> {
    /// Stand-ins for what `messages` contain, none of which is in them or in `template`.
    pub fn new(
        control: &'t Specials,
        messages: &[Message],
        template: &str,
    ) -> Result<Guard<'t>, ChatError> {
        let mut guard = Guard { control, stand_ins: Vec::new() };
        let texts = || messages.iter().flat_map(|message| [&message.role, &message.content]);
        let mut found: Vec<char> =
            texts().flat_map(|text| guard.starts(text).map(|(_, c)| c)).collect();
        found.sort_unstable();
        found.dedup();
        if found.is_empty() {
            return Ok(guard);
        }
        let used: HashSet<char> =
            texts().flat_map(|text| text.chars()).chain(template.chars()).collect();
        // From the private planes down: nothing there has case, width or white space.
        let mut spare = ('\0'..='\u{10fffd}').rev().filter(|c| !used.contains(c));
        for real in found {
            guard.stand_ins.push((real, spare.next().ok_or(ChatError::NoStandIn)?));
        }
        Ok(guard)
    }

    /// Where names of control tokens start in `text`, overlapping ones too, and their first
    /// characters.
    fn starts<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, char)> + 'a {
        let mut next = 0;
        std::iter::from_fn(move || {
            let (range, _) = self.control.find(text, next)?;
            let first = text[range.start..].chars().next()?;
            next = range.start + first.len_utf8();
            Some((range.start, first))
        })
    }

    /// `text` without names of control tokens.
    pub fn hide(&self, text: &str) -> String {
        let mut hidden = String::with_capacity(text.len());
        let mut done = 0;
        for (start, first) in self.starts(text) {
            hidden.push_str(&text[done..start]);
            hidden
                .extend(self.stand_ins.iter().find(|(real, _)| *real == first).map(|pair| pair.1));
            done = start + first.len_utf8();
        }
        hidden + &text[done..]
    }

    /// The text that was hidden.
    pub fn restore<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.stand_ins.is_empty() {
            return Cow::Borrowed(text);
        }
        let real = |c| self.stand_ins.iter().find(|(_, stand_in)| *stand_in == c);
        text.chars().map(|c| real(c).map_or(c, |pair| pair.0)).collect()
    }
}
