//! Regular expressions of `tokenizer.json` files, for an engine that runs in linear time.
//!
//! They are written for Oniguruma. What they are made of means the same to `regex-automata`, but
//! for the constructs that are refused here, and for two that are rewritten: `\s+(?!\S)` at the
//! end, which [`super::pre`] has a rule for, and possessive quantifiers in places where nothing
//! could be given back anyway.

use super::TokenizerError;

/// Longest expression that is read; published ones have a tenth.
const MAX_BYTES: usize = 1 << 14;

/// An expression that can be run.
pub(super) struct Pattern {
    pub regex: String,
    /// Whether it ends in `|\s+(?!\S)|\s+`, which `regex` then lacks.
    pub words: bool,
}

/// The end of most expressions: white space, without the last of it if a word follows.
const TAIL: &str = r"|\s+(?!\S)|\s+";

/// Possessive quantifiers that greedy ones may stand for: what follows matches nothing of theirs.
const POSSESSIVE: [(&str, &str); 3] = [
    (r"[^\r\n\p{L}\p{N}]?+\p{L}", r"[^\r\n\p{L}\p{N}]?\p{L}"),
    (r"[^\s\p{L}\p{N}]++[\r\n]*", r"[^\s\p{L}\p{N}]+[\r\n]*"),
    (r"\p{L}++", r"\p{L}+"),
];

impl Pattern {
    pub fn new(pattern: &str) -> Result<Pattern, TokenizerError> {
        let refuse = |problem: &str| {
            let shown = pattern.chars().take(200).collect();
            Err(TokenizerError::Pattern { pattern: shown, problem: problem.to_owned() })
        };
        if pattern.len() > MAX_BYTES {
            return refuse("it is longer than any model's");
        }
        let (body, words) = match pattern.strip_suffix(TAIL) {
            Some(body) => (body, true),
            None => (pattern, false),
        };
        let mut regex = body.to_owned();
        for (possessive, greedy) in POSSESSIVE {
            regex = regex.replace(possessive, greedy);
        }
        match strange(&regex) {
            Some(problem) => refuse(problem),
            None => Ok(Pattern { regex, words }),
        }
    }

    /// A text that is looked for as it is.
    pub fn literal(text: &str) -> Pattern {
        let mut regex = String::with_capacity(2 * text.len());
        for c in text.chars() {
            if c.is_ascii_punctuation() {
                regex.push('\\');
            }
            regex.push(c);
        }
        Pattern { regex, words: false }
    }
}

/// The first construct that means something else to the two engines, or to one of them nothing.
fn strange(regex: &str) -> Option<&'static str> {
    let mut chars = regex.chars().peekable();
    let mut class = 0usize;
    let (mut quantified, mut name) = (false, false);
    while let Some(c) = chars.next() {
        let after_quantifier = std::mem::take(&mut quantified);
        let named = std::mem::take(&mut name);
        match c {
            '\\' => match chars.next() {
                Some('w' | 'W' | 'b' | 'B') => return Some("words are other than they seem"),
                Some('h' | 'H' | 'R' | 'X' | 'K' | 'G' | 'Z' | 'A' | 'z') => {
                    return Some("it has an escape of Oniguruma's own");
                }
                Some('1'..='9' | 'k' | 'g') => return Some("it refers back"),
                // Of a name in braces, not of a quantifier.
                Some('p' | 'P' | 'x' | 'u') if chars.peek() == Some(&'{') => {
                    while chars.next_if(|c| *c != '}').is_some() {}
                    name = true;
                }
                _ => {}
            },
            '[' => class += 1,
            ']' => class = class.saturating_sub(1),
            _ if class > 0 => {}
            '^' | '$' => return Some("it is anchored"),
            '(' if chars.peek() == Some(&'?') => {
                chars.next();
                let mut flags = String::new();
                while let Some(c) = chars.next_if(|c| !matches!(c, ':' | ')')) {
                    flags.push(c);
                }
                if !matches!(flags.as_str(), "" | "i") {
                    return Some("it looks around, or has flags other than i");
                }
            }
            '+' if after_quantifier => return Some("it has possessive quantifiers"),
            '}' if named => {}
            '*' | '+' | '?' | '}' => quantified = true,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_run_the_same_way_is_refused() {
        for (pattern, expected) in [
            (r"\s+(?!\S)", "looks around"),
            (r"(?<=a)b", "looks around"),
            (r"(?>a+)b", "looks around"),
            (r"a++b", "possessive"),
            (r"a{2}+b", "possessive"),
            (r"\p{N}{2}+b", "possessive"),
            (r"^a", "anchored"),
            (r"a$", "anchored"),
            (r"\w+", "words"),
            (r"(a)\1", "refers back"),
            (r"\R", "escape"),
            (&"a".repeat(1 << 15), "longer"),
        ] {
            let error = Pattern::new(pattern).err().unwrap().to_string();
            assert!(error.contains(expected), "{pattern}: {error}");
        }
        for pattern in
            [r"\p{L}+", r"[\p{L}]+", r"[+*?^$]+", r"\+\+", r"(?:a|b)?", r"(?i:'s|'t)", "[a-z]+?"]
        {
            assert!(Pattern::new(pattern).is_ok(), "{pattern}");
        }
    }

    #[test]
    fn literals_are_themselves() {
        let regex = Pattern::literal("a.b*[ ▁").regex;
        let regex = regex_automata::meta::Regex::new(&regex).unwrap();
        assert!(regex.is_match("xa.b*[ ▁") && !regex.is_match("aab*[ ▁"));
    }
}
