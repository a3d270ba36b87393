//! `helix probe`: this machine, measured for the planner.

mod profile;
mod report;

use crate::args::ProbeArgs;
use crate::console::{Console, Unit};
use crate::failure::{Failure, Outcome};
use crate::processes::Ranks;
use crate::whole_file::WholeFile;
use crate::{hardware, host, output, setup};
use anyhow::anyhow;
use helix_engine::probe::{self, ProbeOptions};
use helix_plan::Machine;
use helix_plan::machine::Profile;
use serde::Serialize;
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
    let out = out(&args)?;
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
    out.write(|file| file.write_all(machine.to_toml().as_bytes()))?;
    let (rows, seconds) = (report::rows(&findings), begun.elapsed().as_secs_f64());
    if args.output.json {
        let profile = machine.profile();
        return output::json(&Document { seconds, profile, measured: &rows });
    }
    output::line(&format!("{}, measured in {seconds:.0} s\n", machine.name()))?;
    output::text(&report::table(&rows).to_string())?;
    output::line(&format!("\nwritten to {}", out.path().display()))?;
    match args.out {
        Some(_) => Ok(()),
        None => output::line("there --ranks of helix run and helix bench finds it"),
    }
}

/// The file to write; the user's own is made room for.
fn out(args: &ProbeArgs) -> Outcome<WholeFile> {
    if let Some(path) = &args.out {
        return WholeFile::new("--out", path);
    }
    let path = hardware::measured_file().ok_or_else(|| {
        Failure::request(
            "neither XDG_CACHE_HOME nor HOME says where to write: give --out FILE.toml",
        )
    })?;
    let folder = path.parent().expect("a file in a directory");
    std::fs::create_dir_all(folder).map_err(|error| {
        Failure::request(format!("cannot make {}: {error}; give --out FILE.toml", folder.display()))
    })?;
    WholeFile::new("the cache's", &path)
}
