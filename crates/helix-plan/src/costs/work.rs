//! What a line does and says: work and messages.

use crate::Part;

/// What a line does on one rank, in one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Bytes of weights that products pass over.
    pub weight_bytes: f64,
    /// What most of them are of.
    pub part: Option<Part>,
    /// Bytes of keys and values that attention passes over.
    pub kv_bytes: f64,
    /// Multiplies and adds.
    pub ops: f64,
    /// Tokens that each weight meets, or query rows that each key does.
    pub meets: f64,
    /// Values that norms, rotations, merges and sums go over.
    pub elements: f64,
    /// Operations that start and end.
    pub launches: f64,
    /// Operations besides that teams of threads have, and devices fuse with their neighbours.
    pub passes: f64,
    /// Of both, those that are too small to fork.
    pub alone: f64,
    /// Cache lines that lie alone.
    pub lines: f64,
    /// Parts of the work that threads may share; 0 where one thread does it alone.
    pub parts: f64,
}

/// Which collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are MPI's")]
pub enum Collective {
    AllToAll,
    AllGather,
    AllReduce,
    Gather,
    /// From one rank to another.
    Send,
}

/// A collective of one line, in one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Message {
    /// Which one.
    pub collective: Collective,
    /// Members of the group.
    pub ranks: usize,
    /// From one member's rank to the next one's.
    pub stride: usize,
    /// Calls.
    pub calls: f64,
    /// Bytes that this member hands over in each: an all-to-all's without its own part, an
    /// all-gather's, all-reduce's or gather's own part once.
    pub bytes: f64,
    /// Bytes that come from others to the member that gets most.
    pub received: f64,
}

/// One after the other.
pub(super) fn both(a: Work, b: Work) -> Work {
    Work {
        weight_bytes: a.weight_bytes + b.weight_bytes,
        part: if a.weight_bytes >= b.weight_bytes { a.part } else { b.part },
        kv_bytes: a.kv_bytes + b.kv_bytes,
        ops: a.ops + b.ops,
        meets: a.meets.max(b.meets),
        elements: a.elements + b.elements,
        launches: a.launches + b.launches,
        passes: a.passes + b.passes,
        alone: a.alone + b.alone,
        lines: a.lines + b.lines,
        parts: a.parts.max(b.parts),
    }
}

/// The same products for each of `count` heads or experts: side by side in one launch on a device,
/// one after the other by a team of threads.
pub(super) fn times(work: Work, count: f64) -> Work {
    let launches = if count > 0.0 { work.launches } else { 0.0 };
    let more = (count - 1.0).max(0.0) * work.launches;
    Work { launches, passes: work.passes + more, ..scaled(work, count) }
}

fn scaled(work: Work, times: f64) -> Work {
    let Work { weight_bytes, kv_bytes, ops, elements, .. } = work;
    Work {
        weight_bytes: weight_bytes * times,
        kv_bytes: kv_bytes * times,
        ops: ops * times,
        elements: elements * times,
        ..work
    }
}

/// The same work on as many parts of its rows, one after the other: weights are passed over each
/// time.
pub(super) fn again(work: Work, parts: f64) -> Work {
    let Work { launches, passes, .. } = work;
    Work { launches: launches * parts, passes: passes * parts, ..scaled(work, parts) }
}
