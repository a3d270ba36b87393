//! Processors: which this process may use, and its share where others use them too.

use helix_layout::split;

/// The processors that this process may use, in ascending order.
pub fn allowed_processors() -> Vec<usize> {
    let mut ids: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    ids.sort_unstable();
    ids
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

    #[test]
    fn this_process_may_use_some() {
        assert!(!allowed_processors().is_empty());
    }
}
