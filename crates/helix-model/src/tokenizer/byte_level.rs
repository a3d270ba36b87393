//! Byte-level BPE, as GPT-2 introduced it: merges over the bytes of pre-tokenized pieces.
//!
//! Vocabulary files write bytes as printable characters, because merges are lists of text. The
//! alphabet is turned back into bytes here, once, so that encoding works on bytes and ids only.
//! Source: `bytes_to_unicode` of the GPT-2 release.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::LazyLock;

use super::merge::{Merged, Merger, Rules, Symbol};
use super::merges::Merges;
use super::pre::PreTokenizer;
use super::ranks::Ranks;
use super::vocabulary::{Kind, Names};

/// The character that stands for each byte: printable Latin-1 for itself, the others from U+0100.
fn alphabet() -> [char; 256] {
    let mut spare = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        b @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(b),
        _ => spare.next().expect("a range of characters without an end"),
    })
}

/// The text that stands for bytes.
pub(super) fn token_text(bytes: &[u8]) -> String {
    static ALPHABET: LazyLock<[char; 256]> = LazyLock::new(alphabet);
    bytes.iter().map(|&byte| ALPHABET[usize::from(byte)]).collect()
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
    joins: Joins,
    /// Tokens by their bytes, where the model takes a piece that is a token whole.
    whole: Option<HashMap<Box<[u8]>, u32>>,
}

/// Which neighbours become one token.
pub(super) enum Joins {
    /// Pairs of a list.
    Listed(Merges),
    /// Those that are a token together. A piece that is a token is that token.
    Ranked(Ranks),
}

impl Rules for Joins {
    type Rank = Reverse<usize>;

    fn merge(&self, text: &str, left: &Symbol, right: &Symbol) -> Option<Merged<Self::Rank>> {
        match self {
            Joins::Listed(merges) => merges.merge(text, left, right),
            Joins::Ranked(ranks) => ranks.merge(text, left, right),
        }
    }
}

impl ByteLevel {
    /// Control tokens are left out everywhere: text cannot become one by merging.
    pub fn new(pre: PreTokenizer, names: &Names<'_>, joins: Joins) -> ByteLevel {
        let bytes = alphabet().map(|c| names.plain(c.encode_utf8(&mut [0; 4])));
        let whole = pre.takes_whole_tokens().then(|| {
            let plain = names.iter().filter(|&(_, _, kind)| kind == Kind::Normal);
            plain.filter_map(|(id, text, _)| Some((token_bytes(text)?.into(), id))).collect()
        });
        ByteLevel { pre, bytes, joins, whole }
    }

    fn whole(&self, piece: &[u8]) -> Option<u32> {
        match (&self.joins, &self.whole) {
            (Joins::Ranked(ranks), _) => ranks.find(piece),
            (Joins::Listed(_), whole) => whole.as_ref()?.get(piece).copied(),
        }
    }

    /// Appends the tokens of `text`.
    pub fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let mut merger = Merger::new();
        self.pre.split(text, &mut |piece| {
            if let Some(token) = self.whole(piece.as_bytes()) {
                return out.push(token);
            }
            let symbols = piece.bytes().map(|byte| (1, self.bytes[usize::from(byte)]));
            out.extend(merger.run(&self.joins, piece, symbols).filter_map(|symbol| symbol.token));
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
            assert_eq!(token_text(&[byte as u8]), c.to_string());
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
