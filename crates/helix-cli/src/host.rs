//! What the system says of the machine: Linux's files; elsewhere nothing.

use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::path::Path;

/// Bytes of last-level cache where the system doesn't say.
pub const USUAL_CACHE: usize = 64 << 20;

/// The processor's name, and how many cores.
pub fn name(cores: usize) -> String {
    let model = read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let cores = if cores == 1 { "1 core".to_owned() } else { format!("{cores} cores") };
    format!("{}, {cores}", model.unwrap_or_else(|| std::env::consts::ARCH.to_owned()))
}

/// Bytes of the last-level caches of the first `cores` processors, each once.
pub fn last_level_cache(cores: usize) -> Option<usize> {
    let mut caches = BTreeMap::new();
    for cpu in 0..cores {
        let folder = format!("/sys/devices/system/cpu/cpu{cpu}/cache");
        let last = (0..8).rev().map(|index| format!("{folder}/index{index}"));
        let last = last.into_iter().find(|folder| Path::new(folder).exists())?;
        let read = |file: &str| read_to_string(format!("{last}/{file}")).ok();
        let size: usize = read("size")?.trim().strip_suffix('K')?.parse().ok()?;
        caches.insert(read("shared_cpu_list")?, size << 10);
    }
    Some(caches.values().sum())
}

/// Bytes of memory.
pub fn total_memory() -> Option<usize> {
    memory("MemTotal:")
}

/// Bytes that can be had without swapping.
pub fn available_memory() -> Option<usize> {
    memory("MemAvailable:")
}

fn memory(field: &str) -> Option<usize> {
    let text = read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
