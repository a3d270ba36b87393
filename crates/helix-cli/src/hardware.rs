//! The machine that layouts are chosen on: what the user names, what `helix probe` found here, or
//! what is assumed of a processor.

use crate::console::Console;
use crate::failure::{Failure, Outcome};
use crate::processes::Ranks;
use crate::{host, location, setup};
use helix_comm::Delay;
use helix_plan::Machine;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of memory where the system doesn't say.
pub const USUAL_MEMORY: usize = 16 << 30;

/// The machine that is asked for: a file where there is one, or else a preset.
pub fn named(hardware: &Path) -> Outcome<Machine> {
    if !hardware.exists() {
        return Machine::named(&hardware.to_string_lossy()).map_err(Failure::request);
    }
    read(hardware).map_err(Failure::request)
}

/// Where `helix probe` writes what it found, unless it is told otherwise.
pub fn measured_file() -> Option<PathBuf> {
    Some(location::cache_directory()?.join("machine.toml"))
}

/// The machine that this process runs on, or the one that the user named instead; of several
/// hosts, all of them. Links are as slow as they are measured to be now, or emulated.
pub fn at_hand(
    given: Option<&Path>,
    links: Option<Delay>,
    ranks: &Ranks,
    console: &Console,
) -> Outcome<Machine> {
    let machine = match given {
        Some(hardware) => named(hardware)?,
        None => found(console).unwrap_or_else(assumed),
    };
    if given.is_some() && links.is_none() {
        return Ok(machine);
    }
    let bytes_per_s = links.map(|links| links.bytes_per_s).filter(|rate| rate.is_finite());
    let latency = match links {
        Some(links) => links.latency,
        // A profile that knows several levels was measured between processes.
        None if machine.profile().level.len() > 1 => Duration::ZERO,
        None => ranks.latency()?,
    };
    let machine = match ranks.of_host() {
        Some(of_host) => machine.over_hosts(of_host),
        None => machine,
    };
    Ok(machine.over_links(latency.as_secs_f64(), bytes_per_s))
}

/// What `helix probe` has written; a file that does not read is no reason not to run.
fn found(console: &Console) -> Option<Machine> {
    let file = measured_file().filter(|file| file.exists())?;
    let machine = read(&file);
    machine.map_err(|problem| console.warn(&format!("{problem}: helix probe writes it anew"))).ok()
}

fn assumed() -> Machine {
    Machine::typical(setup::cores(), host::total_memory().unwrap_or(USUAL_MEMORY) as f64)
}

fn read(file: &Path) -> Result<Machine, String> {
    let wrong = |problem: String| format!("{}: {problem}", file.display());
    let text =
        std::fs::read_to_string(file).map_err(|error| wrong(format!("cannot read it: {error}")))?;
    Machine::from_toml(&text).map_err(|error| wrong(error.to_string()))
}
