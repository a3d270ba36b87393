//! The merge loop that both kinds of tokenizer share.
//!
//! A piece of text starts as a row of symbols (bytes or characters). The pair of neighbours that
//! ranks highest becomes one symbol, over and over, until no pair has a rank; of equal ranks the
//! leftmost goes first. With n symbols this takes O(n log n).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A run of a piece's bytes, and the token it spells if it spells one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    pub start: usize,
    /// 0 once the symbol has become part of its left neighbour.
    pub len: usize,
    pub token: Option<u32>,
    prev: Option<usize>,
    next: Option<usize>,
}

/// What two neighbours become.
pub(super) struct Merged<R> {
    /// The highest goes first.
    pub rank: R,
    pub token: u32,
}

/// Which neighbours merge.
pub(super) trait Rules {
    type Rank: Ord;

    /// What `left` and `right`, neighbours in `text`, become, if they merge at all.
    fn merge(&self, text: &str, left: &Symbol, right: &Symbol) -> Option<Merged<Self::Rank>>;
}

/// A possible merge. It is out of date when either symbol has changed, which shows in `len`.
struct Candidate<R> {
    rank: R,
    left: usize,
    right: usize,
    len: usize,
    token: u32,
}

impl<R: Ord> Candidate<R> {
    fn key(&self) -> (&R, Reverse<usize>) {
        (&self.rank, Reverse(self.left))
    }
}

impl<R: Ord> Ord for Candidate<R> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl<R: Ord> PartialOrd for Candidate<R> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<R: Ord> PartialEq for Candidate<R> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<R: Ord> Eq for Candidate<R> {}

/// The symbols of one piece; kept from piece to piece for its memory.
pub(super) struct Merger<R> {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Candidate<R>>,
}

impl<R: Ord> Merger<R> {
    pub fn new() -> Self {
        Merger { symbols: Vec::new(), queue: BinaryHeap::new() }
    }

    /// Merges the symbols of `text`, given as their lengths in bytes and their tokens from left to
    /// right, and iterates over those that are left.
    pub fn run(
        &mut self,
        rules: &impl Rules<Rank = R>,
        text: &str,
        symbols: impl Iterator<Item = (usize, Option<u32>)>,
    ) -> impl Iterator<Item = &Symbol> {
        self.symbols.clear();
        let mut start = 0;
        for (index, (len, token)) in symbols.enumerate() {
            let prev = index.checked_sub(1);
            self.symbols.push(Symbol { start, len, token, prev, next: Some(index + 1) });
            start += len;
        }
        if let Some(last) = self.symbols.last_mut() {
            last.next = None;
        }
        for right in 1..self.symbols.len() {
            self.consider(rules, text, Some(right - 1), Some(right));
        }
        while let Some(best) = self.queue.pop() {
            self.apply(rules, text, &best);
        }
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }

    fn apply(&mut self, rules: &impl Rules<Rank = R>, text: &str, merge: &Candidate<R>) {
        let (left, right) = (self.symbols[merge.left], self.symbols[merge.right]);
        if left.len == 0 || right.len == 0 || left.len + right.len != merge.len {
            return;
        }
        let merged = Symbol { len: merge.len, token: Some(merge.token), next: right.next, ..left };
        self.symbols[merge.left] = merged;
        self.symbols[merge.right].len = 0;
        if let Some(next) = right.next {
            self.symbols[next].prev = Some(merge.left);
        }
        self.consider(rules, text, merged.prev, Some(merge.left));
        self.consider(rules, text, Some(merge.left), merged.next);
    }

    fn consider(
        &mut self,
        rules: &impl Rules<Rank = R>,
        text: &str,
        left: Option<usize>,
        right: Option<usize>,
    ) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let (a, b) = (&self.symbols[left], &self.symbols[right]);
        if let Some(Merged { rank, token }) = rules.merge(text, a, b) {
            self.queue.push(Candidate { rank, left, right, len: a.len + b.len, token });
        }
    }
}
