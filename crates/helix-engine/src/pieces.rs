//! How work is cut for threads that stream memory.

/// The part of a thread's fair share that it takes in one piece. Threads that each stream one long
/// run of memory reach half as much bandwidth again as threads that take turns at short ones.
const FIRST_SHARE: (usize, usize) = (7, 8);

/// Where pieces of `total` units end, in ascending order: a long one for each of `threads`, then
/// `rest` short ones per thread for whoever is done first, the last at `total`. Pieces may be
/// empty where there is little to cut.
pub(crate) fn ends(
    total: usize,
    threads: usize,
    rest: usize,
) -> impl Iterator<Item = usize> + Clone {
    let first = total / threads * FIRST_SHARE.0 / FIRST_SHARE.1;
    let len = (total - first * threads).div_ceil(threads * rest);
    let long = (1..=threads).map(move |thread| thread * first);
    let short = (1..=threads * rest).map(move |piece| threads * first + piece * len);
    long.chain(short).map(move |end| end.min(total))
}

/// As [`ends`], with the work cut in as even a region for each thread first: it takes a long piece of
/// its own region and goes on with the short ones behind it, so that what it asks of memory ahead is
/// its own.
pub(crate) fn regions(
    total: usize,
    threads: usize,
    rest: usize,
) -> impl Iterator<Item = usize> + Clone {
    (0..threads).flat_map(move |thread| {
        let (from, to) = (total * thread / threads, total * (thread + 1) / threads);
        ends(to - from, 1, rest).map(move |end| from + end)
    })
}

/// How many pieces [`ends`] and [`regions`] make.
pub(crate) const fn count(threads: usize, rest: usize) -> usize {
    threads * (1 + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_ascend_to_the_total_and_the_first_are_fair() {
        for (threads, rest) in (1..=7).flat_map(|threads| [(threads, 1), (threads, 8)]) {
            for total in 0..300 {
                let ends: Vec<usize> = ends(total, threads, rest).collect();
                assert_eq!(ends.len(), count(threads, rest));
                assert!(ends.is_sorted() && ends.last() == Some(&total), "{total}: {ends:?}");
                assert!(ends[0] <= total.div_ceil(threads), "{total}: {ends:?}");
                let regions: Vec<usize> = regions(total, threads, rest).collect();
                assert_eq!(regions.len(), count(threads, rest));
                assert!(regions.is_sorted(), "{total}: {regions:?}");
                for (thread, region) in regions.chunks(1 + rest).enumerate() {
                    assert_eq!(region[rest], total * (thread + 1) / threads, "{total}");
                }
            }
        }
    }
}
