//! The one rule by which anything is cut into runs.

use std::ops::Range;

/// Run `index` of `parts` runs that tile `0..total`, as even as whole granules allow.
///
/// Runs differ by at most one granule, the longer ones first; only the last granule may be short.
/// With more parts than granules the last runs are empty.
///
/// # Panics
/// If `parts` or `granule` is zero, or `index >= parts`.
pub fn split(total: usize, parts: usize, granule: usize, index: usize) -> Range<usize> {
    assert!(granule > 0, "split: a granule of nothing");
    assert!(index < parts, "split: run {index} of {parts}");
    let granules = total.div_ceil(granule);
    let (each, longer) = (granules / parts, granules % parts);
    let cut = |i: usize| (i * each + i.min(longer)).saturating_mul(granule).min(total);
    cut(index)..cut(index + 1)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn runs_tile_the_total_and_differ_by_one_granule() {
        for total in 0..=200 {
            for parts in 1..=16 {
                for granule in [1, 3, 16, 32, 256] {
                    let mut end = 0;
                    let mut granules = Vec::new();
                    for index in 0..parts {
                        let run = split(total, parts, granule, index);
                        assert_eq!(run.start, end, "{total}/{parts} by {granule}, run {index}");
                        assert!(run.start.is_multiple_of(granule) || run.start == total);
                        granules.push(run.len().div_ceil(granule));
                        end = run.end;
                    }
                    assert_eq!(end, total, "{total}/{parts} by {granule}");
                    assert!(granules.is_sorted_by(|a, b| a >= b), "longer runs come first");
                    assert!(granules[0] - granules[parts - 1] <= 1, "{granules:?}");
                }
            }
        }
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let max = usize::MAX;
        assert_eq!(split(max, 1, 1, 0), 0..max);
        assert_eq!(split(max, 2, 32, 1).end, max);
        assert_eq!(split(max, 1, max, 0), 0..max);
        assert_eq!(split(3, max, 1, max - 1), 3..3);
    }
}
