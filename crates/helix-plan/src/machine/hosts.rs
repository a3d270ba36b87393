//! Machines that nobody measured, and hosts whose links nobody did: what is assumed of them.

use std::collections::BTreeMap;

use super::profile::{Cores, Level, Memory, Overhead, Profile};
use super::quantity::Origin;
use super::{Machine, Quantity};

/// A core's and a memory's reads, in GB/s.
const CORE_GB_S: f64 = 10.0;
const MOST_GB_S: f64 = 80.0;
/// Tera operations per second of a core.
const CORE_INT8: f64 = 0.3;
const CORE_F32: f64 = 0.05;

fn assumed(value: f64, why: &str, from: f64, to: f64) -> Quantity {
    Quantity { value, origin: Origin::Assumed { why: why.into(), range: Some((from, to)) } }
}

impl Machine {
    /// A machine of `cores` cores and `memory_bytes` of memory of which nothing else is known: a
    /// processor of the 2020s with vectors of 32 bytes.
    ///
    /// # Panics
    /// There are no cores.
    pub fn typical(cores: usize, memory_bytes: f64) -> Machine {
        assert!(cores > 0, "a machine without cores");
        let all = cores as f64;
        let read = (CORE_GB_S * all).min(MOST_GB_S);
        let of_cores = |each: f64| {
            assumed(
                each * all,
                "32 bytes per instruction, two of them per cycle",
                0.25 * each,
                4.0 * each * all,
            )
        };
        let profile = Profile {
            name: format!("a typical processor of {cores} cores, none of it measured"),
            note: None,
            memory: Memory {
                capacity_gb: (memory_bytes / 1e9).clamp(1e-3, 1e6).into(),
                bandwidth_gb_s: assumed(
                    read,
                    "10 GB/s for each core, up to 80",
                    0.25 * read,
                    10.0 * read,
                ),
                reachable: assumed(1.0, "the bandwidth is what reads get", 0.7, 1.0),
            },
            arithmetic: BTreeMap::from([
                ("int8".to_owned(), of_cores(CORE_INT8)),
                ("f32".to_owned(), of_cores(CORE_F32)),
            ]),
            overhead: Overhead {
                reachable_arithmetic: assumed(0.5, "products with a few tokens", 0.2, 0.8),
                operation_us: assumed(1.0, "an operation of one thread", 0.2, 5.0),
                elements_g_s: Some(assumed(1.0, "norms, quantised", 0.3, 4.0)),
                line_ns: Some(assumed(10.0, "a line from a shared cache", 2.0, 50.0)),
            },
            cores: Some(Cores {
                count: cores,
                active: vec![all],
                read_gb_s: vec![read],
                threads: if cores > 1 { vec![1.0, all] } else { vec![1.0] },
                fork_us: if cores > 1 { vec![0.0, 2.0] } else { vec![0.0] },
            }),
            cache: None,
            level: vec![Level {
                name: "threads of one process".to_owned(),
                ranks: None,
                latency_us: assumed(2.0, "a cache line from another core, a few times", 0.5, 10.0),
                overhead_us: assumed(1.0, "a copy and a flag", 0.2, 5.0),
                gap_us: assumed(0.0, "members read messages where they lie", 0.0, 1.0),
                bandwidth_gb_s: assumed(5.0, "a core that copies", 1.0, 20.0),
                reachable: assumed(1.0, "the bandwidth is what copies get", 0.7, 1.0),
            }],
            matvec: Vec::new(),
            attention: Vec::new(),
            collective: Vec::new(),
        };
        Machine::new(profile).expect("what is assumed is in the ranges of machines")
    }

    /// The same over links that take `latency_s` seconds more, each way, and carry no more than
    /// `bytes_per_s`, where they have a bandwidth of their own.
    pub fn over_links(self, latency_s: f64, bytes_per_s: Option<f64>) -> Machine {
        let mut profile = self.profile;
        let us = (latency_s * 1e6).clamp(0.0, 1e5);
        for level in &mut profile.level {
            level.latency_us.value = (level.latency_us.value + us).min(1e6);
            level.latency_us.origin = Origin::Unknown;
        }
        if let Some(bytes_per_s) = bytes_per_s {
            for level in &mut profile.level {
                let most = (bytes_per_s / 1e9).clamp(1e-6, 1e6);
                level.bandwidth_gb_s.value = level.bandwidth_gb_s.value.min(most);
                level.bandwidth_gb_s.origin = Origin::Unknown;
            }
            // Those that were measured are of faster links.
            profile.collective.clear();
        }
        for time in profile.collective.iter_mut().flat_map(|collective| &mut collective.us) {
            *time = (*time + us).min(1e6);
        }
        Machine { profile }
    }

    /// As many of it as it takes, with `ranks_per_host` ranks on each, over links of which nothing
    /// is known. A machine whose links between hosts are known stays as it is.
    ///
    /// # Panics
    /// There are no ranks on a host, or more than a machine may have.
    pub fn over_hosts(self, ranks_per_host: usize) -> Machine {
        let mut profile = self.profile;
        if profile.level.len() > 1 {
            return Machine { profile };
        }
        profile.level[0].ranks = Some(ranks_per_host);
        profile.level.push(Level {
            name: "a network that was not measured".to_owned(),
            ranks: None,
            latency_us: assumed(0.0, "what is measured comes on top", 0.0, 50.0),
            overhead_us: assumed(3.0, "a message through MPI", 0.5, 10.0),
            gap_us: assumed(1.0, "the adapter's message rate", 0.1, 5.0),
            bandwidth_gb_s: assumed(1.25, "10 Gb/s", 0.125, 12.5),
            reachable: assumed(0.9, "large messages over the line rate", 0.7, 0.97),
        });
        // Those that were measured are of ranks on one host.
        profile.collective.clear();
        Machine::new(profile).expect("what is assumed is in the ranges of machines")
    }
}
