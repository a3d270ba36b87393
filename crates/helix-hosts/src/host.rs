//! One host: a network namespace and a name, kept alive by files of the run's folder.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare};
use nix::unistd::{Pid, sethostname};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// Names the folder of the run to every process in it.
pub const FOLDER: &str = "HELIX_HOSTS";

/// The network interface of every host.
pub const INTERFACE: &str = "eth0";

/// The name of the host of an index.
pub fn name(index: usize) -> String {
    format!("host{index}")
}

/// Its address.
pub fn address(index: usize) -> std::net::Ipv4Addr {
    [10, 77, 0, index as u8 + 1].into()
}

/// Its hardware address; the last byte is the index.
pub fn hardware_address(index: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, index as u8]
}

fn kept(folder: &Path, index: usize, what: &str) -> PathBuf {
    folder.join(name(index)).join(what)
}

/// Makes host `index` of `hosts` on a thread of its own, since namespaces belong to threads.
///
/// Returns the switch's end of its cable. The namespaces live until the mounts of this process go.
pub fn make(folder: &Path, index: usize, hosts: usize, cores: &[usize]) -> Result<SyncDevice> {
    fs::create_dir(folder.join(name(index)))?;
    let list = cores.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
    fs::write(kept(folder, index, "cores"), list)?;
    let made = std::thread::scope(|scope| {
        scope.spawn(|| make_here(folder, index, hosts)).join().map_err(|_| anyhow!("panicked"))
    });
    made.and_then(|made| made).with_context(|| format!("cannot make {}", name(index)))
}

fn make_here(folder: &Path, index: usize, hosts: usize) -> Result<SyncDevice> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS).context("new namespaces")?;
    sethostname(name(index)).context("host name")?;
    for what in ["net", "uts"] {
        let file = kept(folder, index, what);
        File::create(&file)?;
        let from = Path::new("/proc/thread-self/ns").join(what);
        let none = None::<&str>;
        mount(Some(&from), &file, none, MsFlags::MS_BIND, none).context("keep a namespace")?;
    }
    // Whole segments of TCP cross the switch, as with a network card that cuts them up.
    let tap = DeviceBuilder::new().layer(Layer::L2).name(INTERFACE).offload(true).build_sync();
    let tap = tap.context("a TAP device (/dev/net/tun)")?;
    tap.set_nonblocking(true)?;
    configure(index, hosts)?;
    Ok(tap)
}

/// Addresses, and the others' hardware addresses for good: a cut host is silent, not unreachable.
fn configure(index: usize, hosts: usize) -> Result<()> {
    let hardware = |index| hardware_address(index).map(|byte| format!("{byte:02x}")).join(":");
    let mut lines = format!(
        "link set lo up\nlink set {INTERFACE} address {} arp off mtu 9000\naddress add {}/24 dev {INTERFACE}\n\
         link set {INTERFACE} up\n",
        hardware(index),
        address(index)
    );
    for other in (0..hosts).filter(|other| *other != index) {
        let (address, hardware) = (address(other), hardware(other));
        lines += &format!("neigh add {address} lladdr {hardware} dev {INTERFACE} nud permanent\n");
    }
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context(
        "cannot start `ip`, which sets the hosts' addresses (Debian: apt-get install iproute2)",
    )?;
    ip.stdin.take().context("no pipe to `ip`")?.write_all(lines.as_bytes())?;
    let status = ip.wait()?;
    if !status.success() {
        bail!("`ip` could not set the addresses: {status}");
    }
    Ok(())
}

/// Moves this thread to host `index`, and to its cores.
pub fn move_to(folder: &Path, index: usize) -> Result<()> {
    for (what, kind) in [("net", CloneFlags::CLONE_NEWNET), ("uts", CloneFlags::CLONE_NEWUTS)] {
        let file = kept(folder, index, what);
        let namespace = File::open(&file).with_context(|| file.display().to_string())?;
        setns(namespace, kind).with_context(|| format!("cannot enter {}", name(index)))?;
    }
    pin(folder, index)
}

/// Moves this thread to the cores of host `index`, if it has its own.
pub fn pin(folder: &Path, index: usize) -> Result<()> {
    let cores = fs::read_to_string(kept(folder, index, "cores"))?;
    let mut set = CpuSet::new();
    for core in cores.split_whitespace() {
        set.set(core.parse()?)?;
    }
    if !cores.is_empty() {
        sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cores {cores}"))?;
    }
    Ok(())
}

/// The folder of the run that this process belongs to.
pub fn folder() -> Result<PathBuf> {
    let folder = std::env::var_os(FOLDER);
    folder.map(PathBuf::from).context("not on emulated hosts: start with `cargo x hosts N -- …`")
}

/// The index of a host that is called by its name or its address.
fn index_of(host: &str) -> Option<usize> {
    (0..256).find(|index| host == name(*index) || host == address(*index).to_string())
}

/// Becomes `command` on `host`; returns only if that fails.
pub fn enter(host: &str, command: &[OsString]) -> Result<u8> {
    let index = index_of(host).with_context(|| format!("{host} is no emulated host"))?;
    move_to(&folder()?, index)?;
    let (program, arguments) = command.split_first().context("no command")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start `{}`", program.to_string_lossy()))
}

/// Becomes the shell that ssh would start: `[OPTIONS] HOST COMMAND...`.
pub fn agent(words: &[String]) -> Result<u8> {
    let at = words.iter().position(|word| index_of(word).is_some());
    let at = at.with_context(|| format!("no emulated host in `{}`", words.join(" ")))?;
    let line = words[at + 1..].join(" ");
    enter(&words[at], &["/bin/sh".into(), "-c".into(), line.into()])
}
