//! How far a layout's logits and choices are from one rank's.

use super::script::Rows;
use helix_engine::sampler::greedy;
use serde::Serialize;

/// A layout against the reference.
#[derive(Debug)]
pub struct Comparison {
    /// The largest difference of any logit; infinite if one is not a number.
    pub max_abs: f32,
    /// Where another token was chosen.
    pub differences: Vec<Choice>,
}

/// A position at which the layout chose another token than one rank did.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Choice {
    prompt: usize,
    /// Which token after the prompt, from 0.
    index: usize,
    /// One rank's token.
    expected: u32,
    found: u32,
    /// By how much one rank's logit of its own token is above that of the other.
    pub gap: f32,
}

/// What becomes of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All choices equal, all logits within the tolerance.
    Ok,
    /// Logits within the tolerance; choices differ only where one rank's own two candidates are
    /// no further apart than the tolerance.
    Tie,
    /// Anything else.
    Fail,
}

impl Comparison {
    /// Compares two runs of one script.
    pub fn new(reference: &Rows, found: &Rows) -> Comparison {
        assert_eq!(reference.logits.len(), found.logits.len(), "runs of one script");
        let pairs = reference.logits.iter().zip(&found.logits);
        let max_abs = pairs.fold(0.0f32, |max, (a, b)| {
            let difference = (a - b).abs();
            if difference.is_nan() { f32::INFINITY } else { max.max(difference) }
        });
        let differences = reference.chosen.iter().filter_map(|chosen| {
            let row = reference.row(chosen.row);
            let (expected, other) = (greedy(row), greedy(found.row(chosen.row)));
            (expected != other).then(|| Choice {
                prompt: chosen.prompt,
                index: chosen.index,
                expected,
                found: other,
                gap: row[expected as usize] - row[other as usize],
            })
        });
        Comparison { max_abs, differences: differences.collect() }
    }

    /// Judges by the largest difference that passes.
    pub fn verdict(&self, tolerance: f32) -> Verdict {
        let far = |choice: &Choice| choice.gap > tolerance;
        match &self.differences[..] {
            _ if self.max_abs > tolerance => Verdict::Fail,
            [] => Verdict::Ok,
            choices if choices.iter().any(far) => Verdict::Fail,
            _ => Verdict::Tie,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::script::ChosenRow;
    use super::*;

    fn rows(logits: &[f32]) -> Rows {
        let chosen = vec![
            ChosenRow { row: 0, prompt: 0, index: 0 },
            ChosenRow { row: 1, prompt: 0, index: 1 },
        ];
        Rows { logits: logits.to_vec(), vocab: 3, chosen }
    }

    #[test]
    fn verdicts() {
        let reference = rows(&[0.0, 1.0, 0.9, 5.0, 0.0, 0.0]);
        let judge = |logits: &[f32], tolerance| {
            let comparison = Comparison::new(&reference, &rows(logits));
            (comparison.verdict(tolerance), comparison.differences.len())
        };
        assert_eq!(judge(&[0.0, 1.0, 0.9, 5.0, 0.0, 0.0], 0.0), (Verdict::Ok, 0));
        assert_eq!(judge(&[0.0, 1.0, 0.95, 5.0, 0.0, 0.0], 0.1), (Verdict::Ok, 0));
        assert_eq!(judge(&[0.0, 0.9, 1.0, 5.0, 0.0, 0.0], 0.2), (Verdict::Tie, 1));
        assert_eq!(judge(&[0.0, 1.0, 0.9, 5.0, 0.0, 0.3], 0.2), (Verdict::Fail, 0));
        assert_eq!(judge(&[0.0, 1.0, 0.9, 5.0, 0.0, f32::NAN], 9.0), (Verdict::Fail, 0));
        assert_eq!(judge(&[0.0, 1.0, 0.9, 0.0, 5.0, 0.0], 4.0), (Verdict::Fail, 1));
    }

    #[test]
    fn nan_is_not_forgotten() {
        let reference = rows(&[0.0; 6]);
        let damaged = rows(&[f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.5]);
        assert_eq!(Comparison::new(&reference, &damaged).max_abs, f32::INFINITY);
    }
}
