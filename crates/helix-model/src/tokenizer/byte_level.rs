//! Byte-level BPE, as GPT-2 introduced it: merges over the bytes of pre-tokenized pieces.
//!
//! Vocabulary files write bytes as printable characters, because merges are lists of text. The
//! alphabet is turned back into bytes here, once, so that encoding works on bytes and ids only.
//! Source: `bytes_to_unicode` of the GPT-2 release.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::merge::Merger;
use super::merges::Merges;
use super::pre::PreTokenizer;
use super::vocabulary::{Kind, Names};

/// The character that stands for each byte: printable Latin-1 for itself, the others from U+0100.
fn alphabet() -> [char; 256] {
    let mut spare = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        b @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(b),
        _ => spare.next().expect("a range of characters without an end"),
    })
}

/// The bytes that a token's text stands for; `None` if it has characters outside the alphabet.
pub(super) fn token_bytes(text: &str) -> Option<Vec<u8>> {
    static BYTES: LazyLock<[Option<u8>; 0x144]> = LazyLock::new(|| {
        let mut bytes = [None; 0x144];
        for (byte, c) in (0..=255).zip(alphabet()) {
            bytes[c as usize] = Some(byte);
        }
        bytes
    });
    text.chars().map(|c| BYTES.get(c as usize).copied().flatten()).collect()
}

/// A byte-level BPE vocabulary.
pub(super) struct ByteLevel {
    pre: PreTokenizer,
    /// Tokens of single bytes. A byte without one has no tokens at all, as in other engines.
    bytes: [Option<u32>; 256],
    merges: Merges,
    /// Tokens by their bytes, where the model takes a piece that is a token whole.
    whole: Option<HashMap<Box<[u8]>, u32>>,
}

impl ByteLevel {
    /// Control tokens are left out everywhere: text cannot become one by merging.
    pub fn new(pre: PreTokenizer, names: &Names<'_>, merges: Merges) -> ByteLevel {
        let bytes = alphabet().map(|c| names.plain(c.encode_utf8(&mut [0; 4])));
        let whole = pre.takes_whole_tokens().then(|| {
            let plain = names.iter().filter(|&(_, _, kind)| kind == Kind::Normal);
            plain.filter_map(|(id, text, _)| Some((token_bytes(text)?.into(), id))).collect()
        });
        ByteLevel { pre, bytes, merges, whole }
    }

    /// Appends the tokens of `text`.
    pub fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let mut merger = Merger::new();
        self.pre.split(text, &mut |piece| {
            let whole = self.whole.as_ref().and_then(|whole| whole.get(piece.as_bytes()));
            if let Some(&token) = whole {
                return out.push(token);
            }
            let symbols = piece.bytes().map(|byte| (1, self.bytes[usize::from(byte)]));
            out.extend(merger.run(&self.merges, piece, symbols).filter_map(|symbol| symbol.token));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_and_its_inverse_agree() {
        for (byte, c) in alphabet().into_iter().enumerate() {
            assert_eq!(token_bytes(&c.to_string()), Some(vec![byte as u8]), "{c:?}");
        }
        assert_eq!(alphabet()[usize::from(b' ')], 'Ġ');
        assert_eq!(alphabet()[usize::from(b'\n')], 'Ċ');
        let letters: std::collections::HashSet<char> = alphabet().into_iter().collect();
        assert_eq!(letters.len(), 256);
        for c in (0..=0x2000).filter_map(char::from_u32).filter(|c| !letters.contains(c)) {
            assert_eq!(token_bytes(&c.to_string()), None, "{c:?}");
        }
    }
}
