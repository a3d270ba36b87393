//! From the first process to the last: namespaces, mounts, the command, and taking it all down.
//!
//! What the hosts are made of belongs to the processes of one process namespace. Its first process is
//! killed with its parent, and the kernel kills the rest with it: nothing outlives `run`, even when
//! that is killed. Only a folder of small files may stay, which the next run removes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, sched_getaffinity, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::launch::{self, Network};
use crate::options::{Inside, Run};
use crate::switch::Switch;
use crate::{control, host, measure};

/// How long a command may take to end after it was told to.
const GRACE: Duration = Duration::from_secs(3);

/// The machine's own delay is at most this; what is beyond it is other work, which may end.
const OWN_MOST_US: f64 = 40.0;

/// Makes the hosts, runs the command, and returns its exit status.
pub fn run(run: &Run) -> Result<u8> {
    let folder = Folder::make()?;
    let refused = match run.loopback {
        true => Some("--loopback".to_owned()),
        false => new_process_namespace().err().map(|errno| errno.to_string()),
    };
    let mut inside = Command::new(this_program()?);
    inside.arg("inside").arg("--folder").arg(&folder.path);
    if let Some(reason) = refused {
        inside.arg(format!("--refused={reason}"));
    }
    inside.args(arguments(run));
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGCHLD])?;
    let mut child = inside.spawn().context("cannot start the hosts")?;
    let pid = Pid::from_raw(child.id() as i32);
    // A process that has made a process namespace cannot make threads: it waits for both here.
    loop {
        if let Some(status) = child.try_wait()? {
            drop(folder);
            return Ok(exit_status(status));
        }
        if signals.wait().any(|signal| signal != SIGCHLD) {
            kill(pid, Signal::SIGTERM)?;
        }
    }
}

/// `run` as arguments again.
fn arguments(run: &Run) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec![
        run.hosts.to_string().into(),
        format!("--delay-us={}", run.links.delay_us).into(),
        format!("--gbit={}", run.links.gbit).into(),
        format!("--slots={}", run.slots).into(),
        format!("--cores={}", run.cores).into(),
    ];
    if run.self_test {
        words.push("--self-test".into());
    } else {
        words.push("--".into());
        words.extend(run.command.iter().cloned());
    }
    words
}

fn exit_status(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let signal = || 128 + status.signal().unwrap_or(0);
    status.code().unwrap_or_else(signal) as u8
}

fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("where this program is")
}

/// The next child is the first process of a namespace, with its own users where we are not root.
fn new_process_namespace() -> Result<(), Errno> {
    match unshare(CloneFlags::CLONE_NEWPID) {
        Err(Errno::EPERM) => {}
        done => return done,
    }
    let (user, group) = (Uid::current(), Gid::current());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID)?;
    let map = |file, text: String| {
        fs::write(file, text).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    };
    map("/proc/self/setgroups", "deny".to_owned())?;
    map("/proc/self/uid_map", format!("0 {user} 1"))?;
    map("/proc/self/gid_map", format!("0 {group} 1"))
}

/// When this process is told to end, so is the command; soon after, everything ends.
fn end_on_signals(command: Pid) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // A command that has ended already needs no signal.
            let _ = kill(command, Signal::SIGTERM);
            std::thread::sleep(GRACE);
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// The files of this run, gone with it. A lock tells the next run whether this one is alive.
struct Folder {
    path: PathBuf,
    _alive: Flock<File>,
}

const LOCK: &str = "lock";

impl Folder {
    /// Removes what killed runs left, and makes a folder of this process.
    fn make() -> Result<Folder> {
        let all = std::env::temp_dir().join(format!("helix-hosts-{}", Uid::current()));
        fs::create_dir_all(&all).with_context(|| all.display().to_string())?;
        // Nobody sweeps between the making of a folder and of its lock.
        let turn = File::create(all.join(LOCK))?;
        let _turn = Flock::lock(turn, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        for entry in fs::read_dir(&all)? {
            let path = entry?.path();
            if path.is_dir() && lock(&path).is_some() {
                fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
            }
        }
        let path = all.join(std::process::id().to_string());
        fs::create_dir(&path)?;
        File::create(path.join(LOCK))?;
        let alive = lock(&path).context("cannot lock a new file")?;
        Ok(Folder { path, _alive: alive })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The next run removes what stays.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The lock of a run's folder, if nobody holds it.
fn lock(folder: &Path) -> Option<Flock<File>> {
    let file = File::options().create(true).append(true).open(folder.join(LOCK)).ok()?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}

/// The first process of the namespace: makes the hosts, starts the command, waits for everybody.
pub fn inside(inside: &Inside) -> Result<u8> {
    set_pdeathsig(Signal::SIGKILL)?;
    if lock(&inside.folder).is_some() {
        bail!("the process that made the namespace is gone");
    }
    let run = &inside.run;
    let built = match &inside.refused {
        Some(reason) => Err(anyhow::anyhow!("{reason}")),
        None => build(&inside.folder, run),
    };
    let network = match built {
        Ok(()) => Network::Hosts,
        Err(error) if inside.refused.is_some() || is_refusal(&error) => {
            eprintln!(
                "hosts: no namespaces here ({error:#}): {} hosts are one, over loopback, without \
                 delay",
                run.hosts
            );
            Network::Loopback
        }
        Err(error) => return Err(error),
    };
    let program = this_program()?;
    let mut command = Command::new(&program);
    match network {
        Network::Hosts => command.args(["enter", &host::name(0), "--"]),
        Network::Loopback => command.args(["attached", "--"]),
    };
    if run.self_test {
        command.arg(&program).arg("measure");
    } else {
        command.args(&run.command);
    }
    command.envs(launch::environment(&inside.folder, run.hosts.into(), run.slots, network)?);
    let child = Pid::from_raw(command.spawn().context("cannot start the command")?.id() as i32);
    end_on_signals(child)?;
    wait_for(child)
}

/// Becomes `command`, killed with its parent.
pub fn attached(command: &[OsString]) -> Result<u8> {
    use std::os::unix::process::CommandExt;
    set_pdeathsig(Signal::SIGKILL)?;
    let (program, arguments) = command.split_first().context("no command")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start `{}`", program.to_string_lossy()))
}

/// Whether the kernel would not let us; anything else is worth an error.
fn is_refusal(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let errno = cause.downcast_ref::<Errno>();
        let io = cause.downcast_ref::<std::io::Error>();
        matches!(errno, Some(Errno::EPERM | Errno::EACCES))
            || io.is_some_and(|io| io.kind() == ErrorKind::PermissionDenied)
    })
}

/// Waits for every process that has no other parent, until `child` ends: its exit status.
fn wait_for(child: Pid) -> Result<u8> {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => return Ok(status as u8),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return Ok(128 + signal as u8);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the command"),
        }
    }
}

/// Makes the hosts and starts the switch.
fn build(folder: &Path, run: &Run) -> Result<()> {
    let hosts = usize::from(run.hosts);
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
    mount_private(folder, hosts)?;
    let cores = cores_of_hosts(hosts, run.cores)?;
    let taps: Result<Vec<_>> =
        (0..hosts).map(|index| host::make(folder, index, hosts, &cores[index])).collect();
    let switch = Arc::new(Switch::new(taps?, run.links.gbit));
    switch.start(folder, control::listen(folder)?);
    let mut own_us = 0.0;
    if hosts > 1 {
        own_us = measure::own_delay_us(folder)?;
        switch.set_own_delay((own_us.min(OWN_MOST_US) * 1e3) as u64);
    }
    control::ask_at(folder, &format!("delay-us {}", run.links.delay_us))?;
    control::ask_at(folder, "stats")?;
    tell(run, own_us, &cores);
    Ok(())
}

fn tell(run: &Run, own_us: f64, cores: &[Vec<usize>]) {
    let pinned = match cores.first().map_or(0, Vec::len) {
        0 => "not pinned".to_owned(),
        count => format!("{count} core(s) each"),
    };
    let (delay, gbit) = (run.links.delay_us, run.links.gbit);
    eprintln!("hosts: {} hosts, {pinned}; {delay} us one way, {gbit} Gbit/s", run.hosts);
    if own_us > delay {
        eprintln!("hosts: this machine alone takes {own_us:.0} us one way: {delay} us are missed");
    }
}

/// Mounts that only the processes of this run see.
fn mount_private(folder: &Path, hosts: usize) -> Result<()> {
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).context("private mounts")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("/proc")?;
    let names = folder.join("names");
    let line = |index| format!("{} {}\n", host::address(index), host::name(index));
    let lines: String = (0..hosts).map(line).collect();
    fs::write(&names, format!("127.0.0.1 localhost\n{lines}"))?;
    mount(Some(&names), "/etc/hosts", none, MsFlags::MS_BIND, none).context("/etc/hosts")?;
    let shared = folder.join("shm");
    fs::create_dir(&shared)?;
    mount(Some("tmpfs"), &shared, Some("tmpfs"), MsFlags::empty(), none).context("shared memory")
}

/// The cores of each host: `each` of its own, or none where there are too few for all.
fn cores_of_hosts(hosts: usize, each: usize) -> Result<Vec<Vec<usize>>> {
    let ours = sched_getaffinity(Pid::from_raw(0))?;
    let all: Vec<usize> =
        (0..nix::sched::CpuSet::count()).filter(|core| ours.is_set(*core) == Ok(true)).collect();
    let enough = each * hosts <= all.len();
    let of = |index| if enough { all[index * each..(index + 1) * each].to_vec() } else { vec![] };
    Ok((0..hosts).map(of).collect())
}
