//! `helix probe`: this machine, measured for the planner.

mod host;
mod profile;
mod report;

use crate::args::ProbeArgs;
use crate::console::{Console, Unit};
use crate::failure::{Failure, Outcome};
use crate::processes::Ranks;
use crate::{output, setup};
use anyhow::anyhow;
use helix_engine::probe::{self, ProbeOptions};
use helix_plan::Machine;
use helix_plan::machine::Profile;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    seconds: f64,
    profile: &'a Profile,
    measured: &'a [report::Row],
}

/// Runs the command.
pub fn run(args: ProbeArgs, ranks: &Ranks) -> Outcome {
    let console = Console::new(args.output.quiet);
    let cores = args.cores.unwrap_or_else(setup::cores);
    if cores > setup::cores() {
        return Err(Failure::request(format!(
            "--cores {cores}: this process may use {} cores",
            setup::cores()
        )));
    }
    // Before the minute that it takes, not after.
    if let Some(folder) = args.out.as_deref().and_then(Path::parent)
        && !folder.as_os_str().is_empty()
        && !folder.is_dir()
    {
        return Err(Failure::request(format!("--out: there is no folder {}", folder.display())));
    }
    ranks.agree_without_a_model()?;
    let begun = Instant::now();
    let options = ProbeOptions {
        cores,
        cache_bytes: host::last_level_cache(cores).unwrap_or(host::USUAL_CACHE),
        // What is measured must not drive anything else out of memory.
        memory_bytes: host::available_memory().map_or(1 << 30, |bytes| bytes / 4),
    };
    let bar = console.bar("probe", probe::PARTS, Unit::Count("parts"));
    let world = ranks.world().filter(|world| world.size() > 1);
    let world = world.map(|world| (&**world, args.transport.deadline()));
    let findings = probe::run(&options, world, &|what, done| {
        bar.add(done);
        bar.message(what.to_owned());
    });
    drop(bar);
    let findings = findings?;
    let name = args.name.unwrap_or_else(|| host::name(cores));
    let machine = Machine::new(profile::of(&findings, name, cores, host::total_memory()))
        .map_err(|error| Failure::Running(anyhow!(error).context("what was measured is absurd")))?;
    if let Some(path) = &args.out {
        std::fs::write(path, machine.to_toml()).map_err(|error| {
            Failure::request(format!("cannot write {}: {error}", path.display()))
        })?;
    }
    let (rows, seconds) = (report::rows(&findings), begun.elapsed().as_secs_f64());
    if args.output.json {
        let profile = machine.profile();
        return output::json(&Document { seconds, profile, measured: &rows });
    }
    output::line(&format!("{}, measured in {seconds:.0} s\n", machine.name()))?;
    output::text(&report::table(&rows).to_string())?;
    match &args.out {
        Some(path) => output::line(&format!("\nwritten to {}", path.display())),
        None => output::line("\n--out FILE.toml writes it for helix plan --hardware"),
    }
}
