//! What one rank of a machine gets: seconds for bytes and operations.

use super::curve::Curve;
use super::formats;
use super::profile::{Attention, Matvec, RowKind};
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
    Measured(Curve),
}

impl Rate {
    /// Seconds that `bytes` and `ops` take under a load of `load` tokens that meet each weight, or
    /// query rows that meet each key.
    pub fn seconds(&self, bytes: f64, ops: f64, load: f64) -> f64 {
        match &self.0 {
            Kind::Roofline { bytes_per_s, ops_per_s } => (bytes / bytes_per_s).max(ops / ops_per_s),
            Kind::Measured(per_byte) => bytes * per_byte.growing(load),
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
        RankRates { machine: self, sharing }
    }
}

impl RankRates<'_> {
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

    /// Seconds that an operation costs besides its bytes and its arithmetic.
    pub fn operation_s(&self) -> f64 {
        let fork = self.machine.profile.cores.as_ref().map_or(0.0, |cores| {
            Curve::new(&cores.threads, cores.fork_us.iter().copied())
                .within(self.sharing.threads as f64)
        });
        (self.machine.profile.overhead.operation_us.value + fork) * MICRO
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
        let measured: Vec<&Matvec> = self.machine.profile.matvec.iter().collect();
        let same = |row: &&Matvec| row.format.eq_ignore_ascii_case(format);
        let rows: Vec<(usize, Curve)> = measured
            .into_iter()
            .filter(same)
            .map(|m| (m.cores, rates(&m.tokens, &m.gb_s)))
            .collect();
        self.rate("products", format, rows)
    }

    /// The rate of attention over keys and values of type `kv`.
    ///
    /// # Errors
    /// The type is unknown, or the profile has no rate for it nor one to extrapolate from.
    pub fn attention(&self, kv: &str, row: RowKind) -> Result<Noted<Rate>, MachineError> {
        let same = |rate: &&Attention| rate.row == row && rate.kv.eq_ignore_ascii_case(kv);
        let rows = self.machine.profile.attention.iter().filter(same);
        let rows = rows.map(|m| (m.cores, rates(&m.queries, &m.gb_s))).collect();
        self.rate("attention", kv, rows)
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
    fn rate(
        &self,
        what: &'static str,
        format: &str,
        measured: Vec<(usize, Curve)>,
    ) -> Result<Noted<Rate>, MachineError> {
        let allowed = formats::arithmetic(format)?;
        if !measured.is_empty() {
            return Ok(Noted { rate: Rate(Kind::Measured(self.shared(&measured))), note: None });
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
        let ops_per_s =
            peak.value * TERA * profile.overhead.reachable_arithmetic.value * self.part();
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
    fn shared(&self, measured: &[(usize, Curve)]) -> Curve {
        let active = self.active_cores();
        let loads = measured[0].1.loads();
        let per_byte = |&load: &f64| {
            let mut by_cores: Vec<(f64, f64)> = measured
                .iter()
                .map(|(cores, curve)| (*cores as f64, curve.growing(load)))
                .collect();
            by_cores.sort_by(|a, b| a.0.total_cmp(&b.0));
            let at: Vec<f64> = by_cores.iter().map(|(cores, _)| *cores).collect();
            // Rates are what adds up over cores.
            let rate = Curve::new(&at, by_cores.iter().map(|(_, s)| 1.0 / s)).within(active);
            1.0 / (rate * self.part())
        };
        Curve::new(&loads, loads.iter().map(per_byte).collect::<Vec<_>>())
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

/// Seconds per byte.
fn rates(at: &[f64], gb_s: &[f64]) -> Curve {
    Curve::new(at, gb_s.iter().map(|rate| 1.0 / (rate * GIGA)))
}
