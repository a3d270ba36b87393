//! Processors: which this process may use, and its share where others use them too.

use helix_layout::split;
use std::sync::OnceLock;

/// The processors that this process may use, in ascending order: what it was started with, wherever
/// it has bound its threads since.
pub fn allowed_processors() -> Vec<usize> {
    static AT_FIRST: OnceLock<Vec<usize>> = OnceLock::new();
    let ids = AT_FIRST.get_or_init(|| {
        let ids = core_affinity::get_core_ids().unwrap_or_default().into_iter();
        let mut ids: Vec<usize> = ids.map(|core| core.id).collect();
        ids.sort_unstable();
        ids
    });
    ids.clone()
}

/// The share of process `own`, where each of those on a host may use `allowed` processors.
///
/// Processes that may use the same ones part them; what a launcher has bound to one process is all
/// its own. With more processes than processors they take turns at one each.
pub fn share(allowed: &[Vec<usize>], own: usize) -> Vec<usize> {
    let processors = &allowed[own];
    let alike: Vec<usize> = (0..allowed.len()).filter(|&i| allowed[i] == *processors).collect();
    let index = alike.iter().position(|&i| i == own).expect("it is like itself");
    let mine = split(processors.len(), alike.len(), 1, index);
    match processors.is_empty() || !mine.is_empty() {
        true => processors[mine].to_vec(),
        false => vec![processors[index % processors.len()]],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_part_what_they_share_and_keep_what_is_theirs() {
        let all = vec![0, 1, 2, 3, 4];
        let free = vec![all.clone(), all.clone(), all];
        assert_eq!([0, 1, 2].map(|own| share(&free, own)), [vec![0, 1], vec![2, 3], vec![4]]);
        let bound = vec![vec![0, 1], vec![2, 3]];
        assert_eq!([0, 1].map(|own| share(&bound, own)), [vec![0, 1], vec![2, 3]]);
        let crowded = vec![vec![4, 7]; 3];
        assert_eq!([0, 1, 2].map(|own| share(&crowded, own)), [vec![4], vec![7], vec![4]]);
        assert_eq!(share(&[vec![]], 0), Vec::<usize>::new());
    }

    /// `helix verify --pin` makes one engine after the other, and all bind who makes them.
    #[test]
    fn this_process_may_use_some_and_those_even_when_it_is_bound() {
        let all = allowed_processors();
        assert!(!all.is_empty());
        let bound = std::thread::spawn(move || {
            assert!(core_affinity::set_for_current(core_affinity::CoreId { id: all[0] }));
            assert_eq!(allowed_processors(), all);
        });
        bound.join().expect("they are the same");
    }
}
