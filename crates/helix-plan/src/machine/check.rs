//! What a profile must be to be a machine.

use std::collections::BTreeSet;

use super::formats;
use super::profile::{Cores, Level, Profile};
use super::quantity::Range;
use super::{MachineError, Quantity};

const BANDWIDTH: Range = Range { least: 1e-3, most: 1e6, unit: "GB/s" };
const CAPACITY: Range = Range { least: 1e-3, most: 1e6, unit: "GB" };
const PART: Range = Range { least: 0.01, most: 1.0, unit: "(a part of the peak)" };
const PEAK: Range = Range { least: 1e-4, most: 1e6, unit: "Tera operations per second" };
const TIME: Range = Range { least: 0.0, most: 1e6, unit: "microseconds" };
const NANOSECONDS: Range = Range { least: 0.0, most: 1e6, unit: "nanoseconds" };
const ELEMENTS: Range = Range { least: 1e-3, most: 1e6, unit: "10^9 values per second" };
const LOAD: Range = Range { least: 1.0, most: 1e6, unit: "(a count)" };
const BYTES: Range = Range { least: 1.0, most: 1e12, unit: "bytes" };
const MEGABYTES: Range = Range { least: 1e-3, most: 1e9, unit: "MB" };
const MISSED: Range = Range { least: 0.0, most: 1.0, unit: "(a part of the bytes)" };
const RANKS: Range = Range { least: 1.0, most: 65536.0, unit: "ranks" };
const CORES: Range = Range { least: 1.0, most: 65536.0, unit: "cores" };

/// Refuses a number that no machine has, by name, and what contradicts itself.
pub(super) fn check(profile: &Profile) -> Result<(), MachineError> {
    if profile.name.trim().is_empty() {
        return Err(wrong("name", "a machine needs one"));
    }
    let memory = &profile.memory;
    memory.capacity_gb.check("memory.capacity_gb", CAPACITY)?;
    memory.bandwidth_gb_s.check("memory.bandwidth_gb_s", BANDWIDTH)?;
    memory.reachable.check("memory.reachable", PART)?;
    for (format, peak) in &profile.arithmetic {
        let field = format!("arithmetic.{format}");
        if !formats::ARITHMETIC.contains(&&**format) {
            let known = formats::ARITHMETIC.join(", ");
            return Err(wrong(&field, &format!("no such arithmetic; there are {known}")));
        }
        peak.check(&field, PEAK)?;
    }
    let overhead = &profile.overhead;
    overhead.reachable_arithmetic.check("overhead.reachable_arithmetic", PART)?;
    overhead.operation_us.check("overhead.operation_us", TIME)?;
    if let Some(rate) = &overhead.elements_g_s {
        rate.check("overhead.elements_g_s", ELEMENTS)?;
    }
    if let Some(time) = &overhead.line_ns {
        time.check("overhead.line_ns", NANOSECONDS)?;
    }
    if let Some(cores) = &profile.cores {
        check_cores(cores)?;
    }
    if let Some(cache) = &profile.cache {
        let (size, missed) = (&cache.step_mb, &cache.missed);
        check_curve("cache", ("step_mb", size, MEGABYTES), ("missed", missed, MISSED))?;
    }
    check_levels(&profile.level)?;
    check_measured(profile)
}

fn check_cores(cores: &Cores) -> Result<(), MachineError> {
    CORES.check("cores.count", cores.count as f64)?;
    check_curve(
        "cores",
        ("active", &cores.active, CORES),
        ("read_gb_s", &cores.read_gb_s, BANDWIDTH),
    )?;
    check_curve("cores", ("threads", &cores.threads, CORES), ("fork_us", &cores.fork_us, TIME))
}

fn check_levels(levels: &[Level]) -> Result<(), MachineError> {
    if levels.is_empty() {
        return Err(wrong(
            "level",
            "a machine needs at least one, that of the links inside a node",
        ));
    }
    let mut inner = 1;
    for (index, level) in levels.iter().enumerate() {
        let field = |name: &str| format!("level[{index}].{name}");
        let outermost = index + 1 == levels.len();
        match level.ranks {
            None if !outermost => {
                return Err(wrong(
                    &field("ranks"),
                    "only the outermost level may connect any number",
                ));
            }
            None => {}
            Some(ranks) => {
                RANKS.check(&field("ranks"), ranks as f64)?;
                if index > 0 && (ranks <= inner || ranks % inner != 0) {
                    let problem = format!(
                        "{ranks} ranks are not a multiple of the {inner} that the level inside connects"
                    );
                    return Err(wrong(&field("ranks"), &problem));
                }
                inner = ranks;
            }
        }
        let times: [(&str, &Quantity); 3] = [
            ("latency_us", &level.latency_us),
            ("overhead_us", &level.overhead_us),
            ("gap_us", &level.gap_us),
        ];
        for (name, time) in times {
            time.check(&field(name), TIME)?;
        }
        level.bandwidth_gb_s.check(&field("bandwidth_gb_s"), BANDWIDTH)?;
        level.reachable.check(&field("reachable"), PART)?;
    }
    Ok(())
}

fn check_measured(profile: &Profile) -> Result<(), MachineError> {
    let mut seen = BTreeSet::new();
    let mut once = |place: &str, what: String| match seen.insert(what.clone()) {
        true => Ok(()),
        false => Err(wrong(place, &format!("{what} is there twice"))),
    };
    for (index, m) in profile.matvec.iter().enumerate() {
        let place = format!("matvec[{index}]");
        formats::arithmetic(&m.format).map_err(|e| wrong(&place, &e.to_string()))?;
        once(&place, format!("{} in {:?} on {} cores", m.format.to_lowercase(), m.place, m.cores))?;
        CORES.check(&format!("{place}.cores"), m.cores as f64)?;
        check_curve(&place, ("tokens", &m.tokens, LOAD), ("gb_s", &m.gb_s, BANDWIDTH))?;
    }
    for (index, m) in profile.attention.iter().enumerate() {
        let place = format!("attention[{index}]");
        formats::arithmetic(&m.kv).map_err(|e| wrong(&place, &e.to_string()))?;
        once(
            &place,
            format!("{:?} of {} in {:?} on {} cores", m.row, m.kv.to_lowercase(), m.place, m.cores),
        )?;
        CORES.check(&format!("{place}.cores"), m.cores as f64)?;
        check_curve(&place, ("queries", &m.queries, LOAD), ("gb_s", &m.gb_s, BANDWIDTH))?;
    }
    for (index, m) in profile.collective.iter().enumerate() {
        let place = format!("collective[{index}]");
        once(&place, format!("{:?} over {} ranks", m.kind, m.ranks))?;
        RANKS.check(&format!("{place}.ranks"), m.ranks as f64)?;
        check_curve(&place, ("bytes", &m.bytes, BYTES), ("us", &m.us, TIME))?;
    }
    Ok(())
}

/// Points in ascending order, and a value for each.
fn check_curve(
    place: &str,
    (at_name, at, at_range): (&str, &[f64], Range),
    (value_name, values, value_range): (&str, &[f64], Range),
) -> Result<(), MachineError> {
    let field = |name: &str| format!("{place}.{name}");
    if at.is_empty() || at.len() != values.len() {
        let (points, values) = (at.len(), values.len());
        let problem = format!(
            "{values} values for the {points} of {at_name}; one for each, and at least one"
        );
        return Err(wrong(&field(value_name), &problem));
    }
    for (index, (at, value)) in at.iter().zip(values).enumerate() {
        at_range.check(&format!("{}[{index}]", field(at_name)), *at)?;
        value_range.check(&format!("{}[{index}]", field(value_name)), *value)?;
    }
    match at.is_sorted_by(|a, b| a < b) {
        true => Ok(()),
        false => Err(wrong(&field(at_name), "its numbers must ascend")),
    }
}

fn wrong(field: &str, problem: &str) -> MachineError {
    MachineError::Field { field: field.to_owned(), problem: problem.to_owned() }
}
