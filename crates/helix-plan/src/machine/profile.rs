//! A machine as its file has it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Quantity;

/// A machine as its file has it; nothing is checked yet.
///
/// Sizes are decimal (1 GB is 10^9 bytes), rates are per rank and, of links, per direction. An
/// operation is a multiply or an add: a multiply-add is two.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What reports call it.
    pub name: String,
    /// What a reader should know of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Capacity and bandwidth.
    pub memory: Memory,
    /// Dense peak in Tera operations per second, by format: `fp4`, `fp8`, `int8`, `bf16`, `f16`,
    /// `f32`. Kernels get `reachable_arithmetic` of it.
    pub arithmetic: BTreeMap<String, Quantity>,
    /// What each operation costs besides.
    pub overhead: Overhead,
    /// Where several ranks share one memory and its cores: what a rank has depends on how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<Cores>,
    /// How much of what a step reads comes from memory; without it, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// Links, innermost first.
    pub level: Vec<Level>,
    /// Measured rates of products, instead of memory and arithmetic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matvec: Vec<Matvec>,
    /// Measured rates of attention, instead of memory and arithmetic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attention: Vec<Attention>,
    /// Measured times of collectives, instead of a level's parameters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collective: Vec<Collective>,
}

/// A rank's memory; where there are [`Cores`], that of the node.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Bytes.
    pub capacity_gb: Quantity,
    /// Of reads.
    pub bandwidth_gb_s: Quantity,
    /// The part of the bandwidth that kernels get.
    pub reachable: Quantity,
}

/// What keeps operations from the peaks.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Overhead {
    /// The part of the arithmetic peaks that kernels get.
    pub reachable_arithmetic: Quantity,
    /// Of each operation: a launch, or a team of threads that starts and ends it.
    pub operation_us: Quantity,
    /// Values that norms, rotations and activations take per second and core or rank; without it,
    /// what the memory gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elements_g_s: Option<Quantity>,
    /// Of a cache line that lies alone, in nanoseconds: each dimension of a key that is appended, or
    /// that a run of keys begins with; without it, nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line_ns: Option<Quantity>,
}

/// The cores of a node whose ranks are teams of threads.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Cores {
    /// Of the node.
    pub count: usize,
    /// Numbers of cores that read at once.
    pub active: Vec<f64>,
    /// What they read together.
    pub read_gb_s: Vec<f64>,
    /// Numbers of threads in a rank's team.
    pub threads: Vec<f64>,
    /// What it costs a team to begin and end an operation, besides `operation_us`.
    pub fork_us: Vec<f64>,
}

/// What a last-level cache does for steps that read the same bytes again and again.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// Megabytes that all ranks of a node read in a step, ascending.
    pub step_mb: Vec<f64>,
    /// The part of them that comes from memory, at each: from 0 to 1.
    pub missed: Vec<f64>,
}

/// Where what was read lay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In memory: it had not been read for long.
    Memory,
    /// In a cache.
    Cache,
}

/// A level of links: LogGP's parameters (Alexandrov et al., 1995).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Of the link.
    pub name: String,
    /// Consecutive ranks that it connects; none on the outermost means any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<usize>,
    /// L: from when the first byte leaves until it is there.
    pub latency_us: Quantity,
    /// o: what a message costs the processor at each end.
    pub overhead_us: Quantity,
    /// g: between two messages of one rank.
    pub gap_us: Quantity,
    /// 1/G, per rank and direction.
    pub bandwidth_gb_s: Quantity,
    /// The part of the bandwidth that large messages get.
    pub reachable: Quantity,
}

/// Products, as they were measured.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Matvec {
    /// Of the weights.
    pub format: String,
    /// Where the weights lay.
    pub place: Place,
    /// That took part.
    pub cores: usize,
    /// Numbers of tokens, ascending.
    pub tokens: Vec<f64>,
    /// Bytes of weights per second at each, of all these cores.
    pub gb_s: Vec<f64>,
}

/// Attention, as it was measured.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// Element type of keys and values.
    pub kv: String,
    /// Keys and values, or one latent that is both.
    pub row: RowKind,
    /// Where keys and values lay.
    pub place: Place,
    /// That took part.
    pub cores: usize,
    /// Numbers of query rows that share a KV head, ascending.
    pub queries: Vec<f64>,
    /// Bytes of keys and values per second at each, of all these cores.
    pub gb_s: Vec<f64>,
}

/// What a token leaves in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowKind {
    /// A key and a value per KV head.
    KeyValue,
    /// MLA's latent, which is both.
    Latent,
}

/// A collective as it was measured.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Collective {
    /// Which one.
    pub kind: CollectiveKind,
    /// Of the group.
    pub ranks: usize,
    /// What a rank contributes, ascending: the vector of an all-reduce, what goes to others of an
    /// all-to-all, the own part of a gather.
    pub bytes: Vec<f64>,
    /// Time at each.
    pub us: Vec<f64>,
}

/// The collectives that a step has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are MPI's")]
pub enum CollectiveKind {
    AllReduce,
    AllGather,
    AllToAll,
    Gather,
}

/// TOML as people write it: a table for each part, a line for each number.
pub(super) fn write(profile: &Profile) -> String {
    let table = toml::Table::try_from(profile).expect("a profile is a table of plain values");
    let lines = |table: &toml::Table| -> String {
        table.iter().map(|(key, value)| format!("{key} = {value}\n")).collect()
    };
    let (mut head, mut parts) = (String::new(), String::new());
    for (key, value) in &table {
        match value {
            toml::Value::Table(part) => parts += &format!("\n[{key}]\n{}", lines(part)),
            toml::Value::Array(rows) => {
                for row in rows.iter().filter_map(toml::Value::as_table) {
                    parts += &format!("\n[[{key}]]\n{}", lines(row));
                }
            }
            plain => head += &format!("{key} = {plain}\n"),
        }
    }
    head + &parts
}
