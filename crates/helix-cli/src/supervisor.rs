//! A rank's two processes: the one that the launcher starts, and the rank itself.
//!
//! Open MPI ends a process on the spot when a connection to another rank breaks, and the system does
//! when memory is short: nothing is left of the rank to say what it was at. Whoever started it says so
//! then, and ends with the status of a run that failed. In all else the two are one: they share
//! standard input and output, a signal that ends programs goes to both, and neither outlives the other.

use crate::console;
use crate::failure::{Failure, Outcome};
use crate::processes::launched;
use helix_comm::mpi::Whereabouts;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGCHLD, SIGINT, SIGKILL, SIGTERM};
use signal_hook::iterator::Signals;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::process::{ExitStatusExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Names to a rank the file where it leaves where it is; the file ends with its parent's number.
const FILE: &str = "HELIX_WHEREABOUTS";

/// How long a rank has for its last words: launchers kill a second after they have told it to end.
const LAST_WORDS: Duration = Duration::from_millis(800);

/// Where this process is, if it is a rank that another one stays with.
static OWN_PLACE: OnceLock<Arc<Whereabouts>> = OnceLock::new();

/// Statuses by which a program of ours ends: done, failed, refused, a panic, Ctrl-C, SIGTERM.
const OWN: [i32; 6] = [0, 1, 2, 101, 130, 143];

/// Starts this program again as the rank, if a launcher has started it beside others, and stays with
/// it to its end: the status that it gives. None if this process is the rank.
///
/// # Errors
/// The system does not let it.
pub fn stand_by() -> Outcome<Option<ExitCode>> {
    if own_file().is_some() {
        die_with_the_parent()?;
        return Ok(None);
    }
    if launched().is_none() {
        return Ok(None);
    }
    // Hosts may share the folder.
    let any = RandomState::new().hash_one(std::process::id());
    let name = format!("helix-rank-{any:016x}.{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let whereabouts = match Whereabouts::create(&path) {
        Ok(whereabouts) => whereabouts,
        Err(error) => {
            let path = path.display();
            console::say(&format!(
                "warning: cannot create {path}: {error}: should this rank be ended from outside, \
                 nobody says where it was"
            ));
            return Ok(None);
        }
    };
    let ended = run(&path);
    // The rank has removed it, if it came so far.
    let _ = std::fs::remove_file(&path);
    Ok(Some(ended.map(|end| conclude(end, &whereabouts))?))
}

/// Where this process, if it is a rank that another process stays with, leaves where it is.
pub fn whereabouts() -> Outcome<Option<Arc<Whereabouts>>> {
    let Some(path) = own_file() else { return Ok(None) };
    let opened = Whereabouts::open(&path)
        .map_err(|error| Failure::running(format!("cannot open {}: {error}", path.display())))?;
    // Both have it mapped: it needs no name any more.
    let _ = std::fs::remove_file(&path);
    Ok(Some(Arc::clone(OWN_PLACE.get_or_init(|| Arc::new(opened)))))
}

/// This process, if it is a rank that another one stays with, has said how it ended.
pub fn has_concluded() {
    if let Some(place) = OWN_PLACE.get() {
        place.conclude();
    }
}

fn own_file() -> Option<PathBuf> {
    std::env::var_os(FILE).map(PathBuf::from)
}

/// A rank alone would hold its memory and its place among the others.
fn die_with_the_parent() -> Outcome {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| Failure::running(format!("cannot end with the parent: {error}")))?;
    let number = own_file().and_then(|path| path.extension()?.to_str()?.parse().ok());
    match number == Some(parent_id()) {
        true => Ok(()),
        false => Err(Failure::running(format!(
            "{FILE} is for helix itself to set, and its parent has ended: unset it"
        ))),
    }
}

/// How a rank ended.
struct End {
    status: ExitStatus,
    /// Whether the launcher had told it to.
    was_told: bool,
}

/// Runs the rank to its end.
fn run(path: &Path) -> Outcome<End> {
    let wrong = |what: &str, error| Failure::running(format!("cannot {what}: {error}"));
    // Ctrl-C goes to both already.
    let mut signals =
        Signals::new([SIGCHLD, SIGTERM, SIGINT]).map_err(|error| wrong("handle signals", error))?;
    let program = std::env::current_exe().map_err(|error| wrong("find this program", error))?;
    let mut rank = Command::new(program);
    rank.args(std::env::args_os().skip(1)).env(FILE, path);
    let mut rank = rank.spawn().map_err(|error| wrong("start the rank", error))?;
    let mut was_told = false;
    loop {
        if let Some(status) = rank.try_wait().map_err(|error| wrong("wait for the rank", error))? {
            return Ok(End { status, was_told });
        }
        if signals.wait().any(|signal| signal == SIGTERM) && !was_told {
            was_told = true;
            end(&rank);
        }
    }
}

/// Tells the rank to end, and sees to it.
fn end(rank: &Child) {
    let rank = Pid::from_raw(rank.id() as i32);
    // One that has ended already needs no signal.
    let _ = kill(rank, Signal::SIGTERM);
    std::thread::spawn(move || {
        std::thread::sleep(LAST_WORDS);
        let _ = kill(rank, Signal::SIGKILL);
    });
}

/// The exit status, and what the rank could not say itself.
fn conclude(end: End, whereabouts: &Whereabouts) -> ExitCode {
    let why = match (end.status.code(), end.status.signal()) {
        (None, Some(SIGKILL)) if end.was_told => {
            "the launcher ended this rank, which MPI kept from saying so: another one had ended"
                .to_owned()
        }
        (Some(code), _) if OWN.contains(&code) => return ExitCode::from(code as u8),
        (Some(code), _) => format!(
            "MPI ended this rank (status {code}): the connection to another rank broke, or MPI \
             failed, and said why"
        ),
        (None, signal) => {
            let signal = signal.unwrap_or_default();
            let name = Signal::try_from(signal).map_or("", Signal::as_str);
            format!(
                "signal {signal} {name} ended this rank: somebody's, or the system's for want of \
                 memory"
            )
        }
    };
    let place = whereabouts.place();
    // Before the first step it is for whoever failed to say why nobody starts.
    let is_for_others = end.was_told && place.step == 0;
    if !whereabouts.is_concluded() && !is_for_others {
        console::say(&format!("error: {place}: {why}"));
    }
    ExitCode::from(1)
}
