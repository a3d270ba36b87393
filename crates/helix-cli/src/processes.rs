//! Ranks that are processes: who is the front end, and whether all run the same.

use crate::args::{EngineArgs, Transport, TransportArgs};
use crate::console::Console;
use crate::failure::{Failure, Outcome};
use crate::setup;
use helix_comm::World;
use helix_engine::{EngineError, dismiss, follow, round_trips};
use helix_model::Model;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What ranks are.
pub enum Ranks {
    /// Threads of this process.
    Threads,
    /// Processes.
    Processes(Processes),
}

/// This process among others that were started with it.
pub struct Processes {
    world: Arc<dyn World>,
    /// What the command line says that ranks must agree in.
    terms: String,
    deadline: Duration,
}

/// What a rank says of itself before anything is run.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Hello {
    /// Of the program: its version, and a digest of its file.
    program: String,
    /// What ranks must agree in.
    terms: String,
    /// The command line.
    flags: String,
    /// A digest of the model, or why it can't be opened.
    model: Result<u64, String>,
}

/// The digest of none.
const NO_MODEL: u64 = 0;

impl Ranks {
    /// Joins the processes that were started together, if `args` say that ranks are such, of which
    /// each runs `threads` threads if that is settled.
    pub fn join(args: &TransportArgs, threads: Option<usize>, terms: String) -> Outcome<Ranks> {
        match args.transport {
            Transport::Threads => Ok(Ranks::Threads),
            Transport::Mpi => {
                let deadline = args.deadline();
                let world = world(args, threads)?;
                Ok(Ranks::Processes(Processes { world, terms, deadline }))
            }
        }
    }

    /// How many ranks there are, where that is settled.
    pub fn count(&self) -> Option<usize> {
        self.processes().map(|processes| processes.world.size())
    }

    /// The world, if ranks are processes.
    pub fn world(&self) -> Option<&Arc<dyn World>> {
        self.processes().map(|processes| &processes.world)
    }

    /// What a message between ranks takes at least, where it is more than between threads: half of
    /// the longest of the shortest round trips with each rank.
    pub fn latency(&self) -> Outcome<Duration> {
        let Some(Processes { world, deadline, .. }) = self.processes() else {
            return Ok(Duration::ZERO);
        };
        let trips = round_trips(&**world, *deadline)?;
        Ok(trips.into_iter().max().unwrap_or_default() / 2)
    }

    fn processes(&self) -> Option<&Processes> {
        match self {
            Ranks::Threads => None,
            Ranks::Processes(processes) => Some(processes),
        }
    }

    /// Whether this process does what another one says.
    pub fn follows(&self) -> bool {
        self.processes().is_some_and(|processes| processes.world.rank() > 0)
    }

    /// How many of `ranks` ranks share how many processors, where this process is.
    pub fn on_host(&self, ranks: usize) -> (usize, usize) {
        match self.processes() {
            None => (ranks, setup::cores()),
            Some(Processes { world, .. }) => (1, world.processors().len().max(1)),
        }
    }

    /// How many ranks each host has, where there are several hosts: as many as this one.
    pub fn of_host(&self) -> Option<usize> {
        let world = &self.processes()?.world;
        let of_host = world.neighbours().len().max(1);
        (of_host < world.size()).then_some(of_host)
    }

    /// Compares what all ranks say of themselves, if they are processes: for rank 0, which has
    /// opened `model`.
    pub fn agree(&self, model: &Model) -> Outcome {
        self.agree_on(model.digest())
    }

    /// As [`Ranks::agree`], of commands that have no model.
    pub fn agree_without_a_model(&self) -> Outcome {
        self.agree_on(NO_MODEL)
    }

    fn agree_on(&self, model: u64) -> Outcome {
        let Some(Processes { world, terms, deadline }) = self.processes() else { return Ok(()) };
        let own = Hello::new(terms, Ok(model));
        let mut message = Vec::new();
        let mut refusal = None;
        for rank in 1..world.size() {
            let reply = world.reply_of(rank, &mut message, *deadline);
            reply.map_err(|source| EngineError::World { rank: 0, source })?;
            let hello: Hello = serde_json::from_slice(&message).map_err(|error| {
                Failure::running(format!("rank {rank} sent no greeting: {error}"))
            })?;
            if let Err(why) = own.check(&hello) {
                refusal.get_or_insert(Failure::request(format!("rank {rank} {why}")));
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Does what rank 0 says, until it says that there is nothing more to do, with a model and how
    /// it is run if the command has one.
    pub fn follow(&self, engine: Option<(&Path, &EngineArgs)>) -> Outcome {
        let Ranks::Processes(Processes { world, terms, deadline }) = self else { return Ok(()) };
        let open = |(model, args)| setup::open_one(model, args, &Console::new(true));
        let opened = engine.map(open).transpose();
        let digest = match &opened {
            Ok(model) => Ok(model.as_ref().map_or(NO_MODEL, |model| model.digest())),
            Err(failure) => Err(failure.to_string()),
        };
        let hello = serde_json::to_vec(&Hello::new(terms, digest))
            .map_err(|error| Failure::running(format!("a greeting: {error}")))?;
        let rank = world.rank();
        let said = world.reply(&hello, *deadline);
        said.map_err(|source| EngineError::World { rank, source })?;
        // Of a refusal rank 0 tells; this one waits for its end.
        let model = opened.ok().flatten();
        let threads = engine.and_then(|(_, args)| args.threads);
        let threads = threads.unwrap_or(world.processors().len().max(1));
        Ok(follow(world, model.as_ref(), threads, *deadline)?)
    }

    /// Tells the other processes that there is nothing more to do.
    pub fn dismiss(&self) {
        if let Some(Processes { world, deadline, .. }) = self.processes()
            && world.rank() == 0
            && !world.is_broken()
        {
            // Whoever does not hear it has ended already.
            let _ = dismiss(&**world, *deadline);
        }
    }
}

impl Hello {
    fn new(terms: &str, model: Result<u64, String>) -> Hello {
        let flags: Vec<_> = std::env::args().skip(1).collect();
        Hello { program: program(), terms: terms.to_owned(), flags: flags.join(" "), model }
    }

    /// What keeps another rank from running with this one.
    fn check(&self, other: &Hello) -> Result<(), String> {
        if other.program != self.program {
            let (own, other) = (&self.program, &other.program);
            return Err(format!(
                "runs another program, {other}, than rank 0, {own}: give all hosts the same helix"
            ));
        }
        if other.terms != self.terms {
            return Err(format!(
                "was started with other flags than rank 0:\n  {}\n  {}",
                other.flags, self.flags
            ));
        }
        match (&other.model, &self.model) {
            (Err(why), _) => Err(format!("can't open the model: {why}")),
            (Ok(other), Ok(own)) if other != own => Err(format!(
                "has another model than rank 0 (digests {other:016x} and {own:016x}): give all \
                 hosts the same files"
            )),
            _ => Ok(()),
        }
    }
}

/// The version of this program, and a digest of its file: builds differ.
fn program() -> String {
    let digest = std::env::current_exe().and_then(File::open).and_then(file_digest);
    let digest = digest.map_or_else(|why| why.to_string(), |digest| format!("{digest:016x}"));
    format!("helix {} ({digest})", env!("CARGO_PKG_VERSION"))
}

/// A digest of what `file` has, read piece by piece: a program may be larger than what is free.
fn file_digest(mut file: File) -> io::Result<u64> {
    const PIECE: u64 = 1 << 20;
    let (mut digest, mut piece) = (0u64, Vec::new());
    loop {
        piece.clear();
        piece.extend_from_slice(&digest.to_le_bytes());
        if file.by_ref().take(PIECE).read_to_end(&mut piece)? == 0 {
            return Ok(digest);
        }
        digest = helix_model::digest(&piece);
    }
}

#[cfg(feature = "mpi")]
fn world(args: &TransportArgs, threads: Option<usize>) -> Outcome<Arc<dyn World>> {
    use crate::args::CommThreadArg;
    use crate::supervisor;
    use helix_comm::mpi::{CommThread, MpiWorld};
    use std::sync::atomic::AtomicBool;
    let ended = Arc::new(AtomicBool::new(false));
    if launched().is_some() {
        // Launchers end ranks by this signal when one has died: time to say which was waited for. It
        // may come twice, from the launcher and from the parent.
        signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&ended))
            .map_err(|error| Failure::running(format!("cannot handle signals: {error}")))?;
    }
    let whereabouts = supervisor::whereabouts()?;
    let mut world = MpiWorld::join(ended)?;
    check_launcher(world.size())?;
    if let Some(whereabouts) = whereabouts {
        world.report_to(whereabouts);
    }
    let spare = threads.is_some_and(|threads| threads < world.processors().len());
    let mode = match args.comm_thread {
        CommThreadArg::Auto if spare => CommThread::Eager,
        CommThreadArg::Nap => CommThread::Napping,
        CommThreadArg::On => CommThread::Eager,
        CommThreadArg::Auto | CommThreadArg::Off => CommThread::Off,
    };
    world.drive(mode, args.deadline())?;
    Ok(Arc::new(world))
}

/// How launchers tell their processes how many they are: Open MPI's, MPICH's and Slurm's.
#[cfg(feature = "mpi")]
const COUNTS: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// How many processes a launcher has started, if they are several, and what says so.
#[cfg(feature = "mpi")]
pub fn launched() -> Option<(&'static str, usize)> {
    COUNTS.iter().find_map(|name| {
        let count = std::env::var(name).ok()?.parse::<usize>().ok()?;
        (count > 1).then_some((*name, count))
    })
}

/// Refuses a world of one where a launcher has started more: each would do all of the work.
#[cfg(feature = "mpi")]
fn check_launcher(ranks: usize) -> Outcome {
    match launched() {
        Some((name, count)) if ranks == 1 => Err(Failure::request(format!(
            "{count} processes ({name}) were started, and MPI brought none of them together: the \
             launcher is of another MPI than this helix was built with, or srun speaks another PMI \
             (srun --mpi=pmix for Open MPI, --mpi=pmi2 for MPICH)"
        ))),
        _ => Ok(()),
    }
}

#[cfg(not(feature = "mpi"))]
fn world(_: &TransportArgs, _: Option<usize>) -> Outcome<Arc<dyn World>> {
    Err(Failure::request(
        "--transport mpi: this helix was built without MPI (the cargo feature `mpi`)",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_differ_are_told_how() {
        let hello = |program: &str, terms: &str, model: Result<u64, &str>| Hello {
            program: program.into(),
            terms: terms.into(),
            flags: terms.into(),
            model: model.map_err(str::to_owned),
        };
        let own = hello("helix 1 (aa)", "--kvp 2", Ok(7));
        assert_eq!(own.check(&hello("helix 1 (aa)", "--kvp 2", Ok(7))), Ok(()));
        let cases = [
            (hello("helix 1 (bb)", "--kvp 2", Ok(7)), "another program"),
            (hello("helix 1 (aa)", "--kvp 1", Ok(7)), "--kvp 1"),
            (hello("helix 1 (aa)", "--kvp 2", Ok(8)), "another model"),
            (hello("helix 1 (aa)", "--kvp 2", Err("no such file")), "no such file"),
        ];
        for (other, words) in cases {
            let why = own.check(&other).expect_err(words);
            assert!(why.contains(words), "{why}");
        }
    }
}
