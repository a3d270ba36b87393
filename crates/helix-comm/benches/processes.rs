//! What collectives between processes cost, and how much of an all-to-all hides behind work.
//!
//! `cargo bench -p helix-comm --features mpi --bench processes -- [PROCESSES]` starts itself under
//! mpirun; with `HELIX_MPIRUN_FLAGS` it takes further flags, such as `--mca btl tcp,self`.

#[cfg(not(feature = "mpi"))]
fn main() {
    println!("skipped: built without MPI (the cargo feature `mpi`)");
}

#[cfg(feature = "mpi")]
fn main() {
    match std::env::var_os(with_mpi::MEMBER) {
        Some(_) => with_mpi::measure(),
        None => with_mpi::launch(),
    }
}

#[cfg(feature = "mpi")]
mod with_mpi {
    use helix_comm::mpi::{CommThread, MpiWorld};
    use helix_comm::{Comm, Counts, Link, World};
    use std::process::Command;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    /// Says to this program that it is a rank: which communication thread it has.
    pub const MEMBER: &str = "HELIX_BENCH_RANK";
    const PATIENCE: Duration = Duration::from_secs(60);
    const LARGEST: usize = 1 << 20;

    pub fn launch() {
        let processes = std::env::args().nth(1).filter(|word| word.parse::<usize>().is_ok());
        let processes = processes.unwrap_or_else(|| "2".to_owned());
        let flags = std::env::var("HELIX_MPIRUN_FLAGS").unwrap_or_default();
        for mode in ["off", "nap", "on"] {
            let mut mpirun = Command::new("mpirun");
            mpirun.args(["-n", &processes]).args(flags.split_whitespace());
            mpirun.arg(std::env::current_exe().expect("this program")).env(MEMBER, mode);
            let status = mpirun.status().expect("mpirun");
            assert!(status.success(), "mpirun: {status}");
        }
    }

    pub fn measure() {
        let mode = std::env::var(MEMBER).expect("a mode");
        let mut world = MpiWorld::join(Arc::default()).expect("MPI starts");
        let thread = match &*mode {
            "off" => CommThread::Off,
            "nap" => CommThread::Napping,
            _ => CommThread::Eager,
        };
        world.drive(thread, PATIENCE).expect("a thread");
        let all: Vec<usize> = (0..world.size()).collect();
        let mut comm = world.group(0, all, LARGEST, PATIENCE);
        if mode == "off" {
            stages(&mut comm);
        }
        overlap(&mut comm, &mode);
    }

    /// Seconds of `run`, the median of many.
    fn median(comm: &mut Link, times: usize, mut run: impl FnMut(&mut Link)) -> f64 {
        let mut took: Vec<f64> = (0..times)
            .map(|_| {
                comm.all_reduce(&mut [1.0]).expect("all are there");
                let since = Instant::now();
                run(comm);
                since.elapsed().as_secs_f64()
            })
            .collect();
        took.sort_by(f64::total_cmp);
        took[times / 2]
    }

    /// An all-reduce in one stage, and in two.
    fn stages(comm: &mut Link) {
        let (rank, size) = (comm.rank(), comm.size());
        if rank == 0 {
            println!("all-reduce over {size} processes: values, us in one stage, us in two");
        }
        for values in (8..=18).map(|log| 1usize << log) {
            let mut sum = vec![0.0; values];
            let counts = vec![values; size];
            let one = median(comm, 51, |comm| {
                let pending = comm.start_all_gather(&counts, |to| to.fill(1.0)).expect("started");
                comm.finish(pending, |parts| parts.sum(0..values, &mut sum)).expect("finished");
            });
            let parts = vec![values / size; size];
            let counts = Counts { send: &parts, recv: &parts };
            let two = median(comm, 51, |comm| {
                let pending = comm.start_all_to_all(counts, |to| to.fill(1.0)).expect("started");
                let own = &mut sum[..parts[0]];
                comm.finish(pending, |all| all.sum(0..own.len(), own)).expect("finished");
                let write = |to: &mut [f32]| to.copy_from_slice(own);
                let pending = comm.start_all_gather(&parts, write).expect("started");
                comm.finish(pending, |_| ()).expect("finished");
            });
            if rank == 0 {
                println!("{values:>9}  {:>9.1}  {:>9.1}", one * 1e6, two * 1e6);
            }
        }
    }

    /// Additions that keep a core busy.
    fn work(rounds: u64) -> f64 {
        (0..rounds).fold(0.0, |sum, i| std::hint::black_box(sum + i as f64))
    }

    /// How much of an all-to-all is seen beside work that takes as long, or twice as long.
    fn overlap(comm: &mut Link, mode: &str) {
        let (rank, size) = (comm.rank(), comm.size());
        let since = Instant::now();
        std::hint::black_box(work(10_000_000));
        let per_second = 10_000_000.0 / since.elapsed().as_secs_f64();
        if rank == 0 {
            println!(
                "communication thread {mode}: values, us alone, us of work, us seen beside it"
            );
        }
        for values in (10..=18).step_by(2).map(|log| 1usize << log) {
            let counts = vec![values / size; size];
            let counts = Counts { send: &counts, recv: &counts };
            let alone = median(comm, 51, |comm| {
                let pending = comm.start_all_to_all(counts, |to| to.fill(1.0)).expect("started");
                comm.finish(pending, |_| ()).expect("finished");
            });
            let rounds = (2.0 * alone * per_second) as u64;
            let busy = median(comm, 51, |_| {
                std::hint::black_box(work(rounds));
            });
            let both = median(comm, 51, |comm| {
                let pending = comm.start_all_to_all(counts, |to| to.fill(1.0)).expect("started");
                std::hint::black_box(work(rounds));
                comm.finish(pending, |_| ()).expect("finished");
            });
            if rank == 0 {
                let (alone, busy, seen) = (alone * 1e6, busy * 1e6, (both - busy) * 1e6);
                println!("{values:>9}  {alone:>9.1}  {busy:>9.1}  {seen:>9.1}");
            }
        }
    }
}
