//! Stop strings in text that comes in pieces.

/// Finds the first of some strings to be complete, and keeps back what may be the start of one.
///
/// It reads byte by byte (Knuth, Morris, Pratt), so that where text is cut makes no difference. As
/// strings are whole characters, so is what comes out.
#[derive(Debug)]
pub(crate) struct Stops {
    searches: Vec<Search>,
    /// Text that may turn out to be the start of a stop string.
    held: String,
}

/// One string, and how much of it the text so far ends in.
#[derive(Debug)]
struct Search {
    string: Vec<u8>,
    /// For each prefix, the length of the longest shorter one that it ends in.
    fall_back: Vec<usize>,
    matched: usize,
}

impl Stops {
    /// # Panics
    /// A string is empty.
    pub fn new(strings: &[String]) -> Stops {
        Stops { searches: strings.iter().map(Search::new).collect(), held: String::new() }
    }

    /// The text that is certain after `text`; and whether a stop string is complete, which ends it:
    /// the string and what follows it are left out.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        let before = self.held.len();
        self.held.push_str(text);
        for (index, byte) in text.bytes().enumerate() {
            let mut found = None;
            for search in &mut self.searches {
                if search.step(byte) {
                    found = found.max(Some(search.string.len()));
                }
            }
            if let Some(len) = found {
                self.held.truncate(before + index + 1 - len);
                return (std::mem::take(&mut self.held), true);
            }
        }
        let matched = self.searches.iter().map(|search| search.matched).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - matched);
        (std::mem::replace(&mut self.held, held), false)
    }

    /// What was kept back, when no more text follows.
    pub fn finish(self) -> String {
        self.held
    }
}

impl Search {
    fn new(string: &String) -> Search {
        let string = string.as_bytes().to_vec();
        assert!(!string.is_empty(), "an empty stop string");
        let mut fall_back = vec![0; string.len() + 1];
        let mut longest = 0;
        for end in 1..string.len() {
            while longest > 0 && string[end] != string[longest] {
                longest = fall_back[longest];
            }
            longest += usize::from(string[end] == string[longest]);
            fall_back[end + 1] = longest;
        }
        Search { string, fall_back, matched: 0 }
    }

    /// Whether the string ends at `byte`, the next of the text.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.string[self.matched] != byte {
            self.matched = self.fall_back[self.matched];
        }
        self.matched += usize::from(self.string[self.matched] == byte);
        self.matched == self.string.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What should come out of the whole text: all before the stop string that is complete first.
    fn expected(text: &str, strings: &[String]) -> (String, bool) {
        let ends = |string: &String| text.find(string.as_str()).map(|at| (at + string.len(), at));
        match strings.iter().filter_map(ends).min() {
            Some((_, start)) => (text[..start].to_owned(), true),
            None => (text.to_owned(), false),
        }
    }

    fn filtered(pieces: &[&str], strings: &[String]) -> (String, bool) {
        let mut stops = Stops::new(strings);
        let mut out = String::new();
        for piece in pieces {
            let (text, stopped) = stops.push(piece);
            out += &text;
            if stopped {
                return (out, true);
            }
        }
        (out + &stops.finish(), false)
    }

    #[test]
    fn every_cut_of_every_short_text_gives_the_same() {
        let lists: [&[&str]; 7] = [
            &["ab"],
            &["aab", "ba"],
            &["aaa"],
            &["abab", "b"],
            &["é"],
            &["aé", "éa", "bb"],
            &["abéabb"],
        ];
        let letters = ["a", "b", "é"];
        for list in lists {
            let strings: Vec<String> = list.iter().map(|&s| s.to_owned()).collect();
            for code in 0..3usize.pow(7) {
                let chars: Vec<&str> = (0..7).map(|i| letters[code / 3usize.pow(i) % 3]).collect();
                let text = chars.concat();
                let wanted = expected(&text, &strings);
                assert_eq!(filtered(&[&text], &strings), wanted, "{text} {list:?}");
                assert_eq!(filtered(&chars, &strings), wanted, "{text} {list:?} by letters");
                let (head, tail) = text.split_at(chars[..3].concat().len());
                assert_eq!(filtered(&[head, tail], &strings), wanted, "{head}|{tail} {list:?}");
            }
        }
    }

    #[test]
    fn no_more_is_held_than_may_be_a_start() {
        let mut stops = Stops::new(&["<end>".to_owned()]);
        assert_eq!(stops.push("text <e"), ("text ".to_owned(), false));
        assert_eq!(stops.push("n<"), ("<en".to_owned(), false));
        assert_eq!(stops.push("end> and more"), (String::new(), true));
    }
}
