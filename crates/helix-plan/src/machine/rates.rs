//! What one rank of a machine gets: seconds for bytes and operations.

use super::curve::Curve;
use super::formats;
use super::profile::{Attention, Cache, Matvec, Place, RowKind};
use super::{Machine, MachineError};

const GIGA: f64 = 1e9;
const TERA: f64 = 1e12;
const MICRO: f64 = 1e-6;

/// How many ranks work on one node, and with how many threads each. It matters only where ranks
/// share a memory and its cores; a rank that is a device of its own has what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// Ranks on the node.
    pub ranks: usize,
    /// Threads of each.
    pub threads: usize,
}

/// What one rank has.
#[derive(Clone, Copy, Debug)]
pub struct RankRates<'m> {
    machine: &'m Machine,
    sharing: Sharing,
    step_bytes: f64,
}

/// A rate, and what a report must say of it: that it was extrapolated, and from what.
#[derive(Clone, Debug, PartialEq)]
pub struct Noted<T> {
    /// The rate.
    pub rate: T,
    /// For the reader.
    pub note: Option<String>,
}

/// How long reading bytes and computing with them takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Rate(Kind);

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// Whichever takes longer.
    Roofline { bytes_per_s: f64, ops_per_s: f64 },
    /// Seconds per byte by the load: tokens, or query rows.
    Measured {
        memory: Curve,
        cache: Option<Curve>,
        /// The part of the bytes that comes from memory.
        missed: f64,
    },
}

impl Rate {
    /// Seconds that `bytes` and `ops` take under a load of `load` tokens that meet each weight, or
    /// query rows that meet each key.
    pub fn seconds(&self, bytes: f64, ops: f64, load: f64) -> f64 {
        match &self.0 {
            Kind::Roofline { bytes_per_s, ops_per_s } => (bytes / bytes_per_s).max(ops / ops_per_s),
            Kind::Measured { memory, cache: None, .. } => bytes * memory.growing(load),
            Kind::Measured { memory, cache: Some(cache), missed } => {
                let cached = cache.growing(load);
                // Where arithmetic is the limit it doesn't matter whence the bytes come.
                let read = memory.within(load).max(cached);
                bytes * (cached + (read - cached) * missed)
            }
        }
    }
}

impl Machine {
    /// What each rank has under `sharing`.
    ///
    /// # Panics
    /// When there are no ranks or no threads.
    pub fn rank(&self, sharing: Sharing) -> RankRates<'_> {
        assert!(sharing.ranks > 0 && sharing.threads > 0, "no rank or no thread: {sharing:?}");
        RankRates { machine: self, sharing, step_bytes: f64::INFINITY }
    }
}

impl<'m> RankRates<'m> {
    /// The same where all ranks of the node together read `step_bytes` in each step: those that a
    /// cache holds from one step to the next need not come from memory.
    pub fn reading(self, step_bytes: f64) -> RankRates<'m> {
        RankRates { step_bytes, ..self }
    }

    /// Bytes of memory of a rank.
    pub fn memory_bytes(&self) -> f64 {
        self.machine.profile.memory.capacity_gb.value * GIGA * self.part()
    }

    /// Bytes per second that a rank reads.
    pub fn read_bytes_per_s(&self) -> f64 {
        let memory = &self.machine.profile.memory;
        let peak = match &self.machine.profile.cores {
            None => memory.bandwidth_gb_s.value,
            Some(cores) => Curve::new(&cores.active, cores.read_gb_s.iter().copied())
                .within(self.active_cores()),
        };
        peak * GIGA * memory.reachable.value * self.part()
    }

    /// Seconds of a cache line that lies alone.
    pub fn line_s(&self) -> f64 {
        self.machine.profile.overhead.line_ns.as_ref().map_or(0.0, |line| line.value * 1e-9)
    }

    /// Seconds that an operation costs besides its bytes and its arithmetic.
    pub fn operation_s(&self) -> f64 {
        self.machine.profile.overhead.operation_us.value * MICRO
    }

    /// Seconds that it costs a team besides to begin and end one together.
    pub fn fork_s(&self) -> f64 {
        self.machine.profile.cores.as_ref().map_or(0.0, |cores| {
            let fork = Curve::new(&cores.threads, cores.fork_us.iter().copied());
            fork.within(self.sharing.threads as f64) * MICRO
        })
    }

    /// Seconds of an operation that devices fuse with its neighbours, and threads do not.
    pub fn pass_s(&self) -> f64 {
        if self.machine.profile.cores.is_some() { self.operation_s() } else { 0.0 }
    }

    /// Values per second that norms, rotations and activations take; without a figure, 4 bytes are
    /// read and 4 written for each.
    pub fn elements_per_s(&self) -> f64 {
        match &self.machine.profile.overhead.elements_g_s {
            Some(rate) if self.machine.profile.cores.is_some() => {
                rate.value * GIGA * self.active_cores() * self.part()
            }
            Some(rate) => rate.value * GIGA,
            None => self.read_bytes_per_s() / 8.0,
        }
    }

    /// The rate of products with weights of `format`.
    ///
    /// # Errors
    /// The format is unknown, or the profile has no rate for it nor one to extrapolate from.
    pub fn weights(&self, format: &str) -> Result<Noted<Rate>, MachineError> {
        let same = |row: &&Matvec| formats::same(&row.format, format);
        let rows = self.machine.profile.matvec.iter().filter(same);
        self.rate("products", format, rows.map(|m| (m.place, m.cores, &m.tokens[..], &m.gb_s[..])))
    }

    /// The rate of attention over keys and values of type `kv`.
    ///
    /// # Errors
    /// The type is unknown, or the profile has no rate for it nor one to extrapolate from.
    pub fn attention(&self, kv: &str, row: RowKind) -> Result<Noted<Rate>, MachineError> {
        let same = |rate: &&Attention| rate.row == row && formats::same(&rate.kv, kv);
        let rows = self.machine.profile.attention.iter().filter(same);
        self.rate("attention", kv, rows.map(|m| (m.place, m.cores, &m.queries[..], &m.gb_s[..])))
    }

    /// What must be said of `sharing` itself.
    pub fn note(&self) -> Option<String> {
        let cores = self.machine.profile.cores.as_ref()?;
        let Sharing { ranks, threads } = self.sharing;
        let wanted = ranks.saturating_mul(threads);
        (wanted > cores.count).then(|| {
            let (name, count) = (&self.machine.profile.name, cores.count);
            format!(
                "{name} has {count} cores for {ranks} ranks of {threads} threads: extrapolated as \
                 if they took turns without loss"
            )
        })
    }

    /// A rate from what was measured, or from the roofline.
    fn rate<'a>(
        &self,
        what: &'static str,
        format: &str,
        measured: impl Iterator<Item = Row<'a>> + Clone,
    ) -> Result<Noted<Rate>, MachineError> {
        let allowed = formats::arithmetic(format)?;
        let place = |place| self.shared(measured.clone().filter(move |row| row.0 == place));
        if let Some(memory) = place(Place::Memory) {
            let (cache, missed) = (place(Place::Cache), self.missed());
            let rate = Rate(Kind::Measured { memory, cache, missed });
            return Ok(Noted { rate, note: None });
        }
        let profile = &self.machine.profile;
        let found = allowed.iter().find_map(|name| Some((name, profile.arithmetic.get(*name)?)));
        let Some((name, peak)) = found else {
            let known: Vec<&str> = profile.arithmetic.keys().map(String::as_str).collect();
            return Err(MachineError::NoRate {
                machine: profile.name.clone(),
                what,
                format: format.to_owned(),
                known: known.join(", "),
            });
        };
        let reachable = profile.overhead.reachable_arithmetic.value;
        let ops_per_s = peak.value * TERA * reachable * self.part();
        let rate = Rate(Kind::Roofline { bytes_per_s: self.read_bytes_per_s(), ops_per_s });
        Ok(Noted { rate, note: self.extrapolation(what, format, name, allowed[0]) })
    }

    /// What is said where a rate isn't the format's own.
    fn extrapolation(&self, what: &str, format: &str, used: &str, own: &str) -> Option<String> {
        let name = &self.machine.profile.name;
        let of_cpu = self.machine.profile.cores.is_some();
        match used == own {
            true if of_cpu => Some(format!(
                "{what} of {format} were not measured on {name}: taken for the memory's bandwidth \
                 and {used} arithmetic"
            )),
            true => None,
            false => Some(format!(
                "{name} has no {own} arithmetic: {what} of {format} at the rate of {used}"
            )),
        }
    }

    /// The curve of seconds per byte that a rank sees, of those of several numbers of cores.
    fn shared<'a>(&self, rows: impl Iterator<Item = Row<'a>>) -> Option<Curve> {
        let mut by_cores: Vec<(f64, Curve)> = rows
            .map(|(_, cores, at, gb_s)| {
                (cores as f64, Curve::new(at, gb_s.iter().map(|rate| 1.0 / (rate * GIGA))))
            })
            .collect();
        by_cores.sort_by(|a, b| a.0.total_cmp(&b.0));
        let cores: Vec<f64> = by_cores.iter().map(|(cores, _)| *cores).collect();
        let loads = by_cores.first()?.1.loads();
        let per_byte = |&load: &f64| {
            // Rates are what adds up over cores.
            let rates = by_cores.iter().map(|(_, curve)| 1.0 / curve.growing(load));
            1.0 / (Curve::new(&cores, rates).within(self.active_cores()) * self.part())
        };
        Some(Curve::new(&loads, loads.iter().map(per_byte).collect::<Vec<_>>()))
    }

    /// The part of a step's bytes that comes from memory.
    fn missed(&self) -> f64 {
        let of = |cache: &Cache| {
            Curve::new(&cache.step_mb, cache.missed.iter().copied()).within(self.step_bytes / 1e6)
        };
        self.machine.profile.cache.as_ref().map_or(1.0, of)
    }

    /// Cores that work at once on the node.
    fn active_cores(&self) -> f64 {
        let wanted = self.sharing.ranks.saturating_mul(self.sharing.threads) as f64;
        let most = self.machine.profile.cores.as_ref().map_or(wanted, |cores| cores.count as f64);
        wanted.min(most)
    }

    /// A rank's part of what its node has.
    fn part(&self) -> f64 {
        match self.machine.profile.cores {
            Some(_) => 1.0 / self.sharing.ranks as f64,
            None => 1.0,
        }
    }
}

/// Where it was measured, on how many cores, at which loads, at what rates.
type Row<'a> = (Place, usize, &'a [f64], &'a [f64]);
