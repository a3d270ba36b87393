//! Which of the engine's layouts to run, when the user names only the number of ranks.

use helix_layout::Layout;

use crate::capacity::Capacity;
use crate::machine::Sharing;
use crate::{Costs, Decode, Line, Machine, MachineError, Model, Share, StepTime};

/// A layout, and how long a step on it is predicted to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timed {
    /// The layout.
    pub layout: Layout,
    /// Seconds of each line.
    pub time: StepTime,
}

impl Timed {
    /// Seconds from one token of a sequence to its next.
    pub fn ttl_s(&self) -> f64 {
        self.time.lines.iter().sum()
    }
}

/// A layout that was chosen, and against what.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The layout.
    pub best: Timed,
    /// The next best, if there was another.
    pub next: Option<Timed>,
    /// Layouts that were compared.
    pub compared: usize,
    /// Layouts that were not, because a rank's memory does not hold the step.
    pub too_large: usize,
    /// What it was chosen for.
    pub decode: Decode,
    /// Name of the machine.
    pub machine: String,
}

/// The part of a rank's memory that is somebody else's.
const RESERVED: f64 = 0.1;

/// Chooses the one of `layouts` on which `decode` takes least on `machine`; of equals the first.
/// Layouts that don't fit in the machine's memory are left out, if any does.
///
/// # Errors
/// The machine connects fewer ranks, or has no rate for the model's formats.
///
/// # Panics
/// There are no layouts.
pub fn choose(
    model: &Model,
    machine: &Machine,
    layouts: &[Layout],
    decode: &Decode,
) -> Result<Choice, MachineError> {
    let fitting: Vec<&Layout> =
        layouts.iter().filter(|layout| fits(model, machine, layout, decode)).collect();
    let tried = if fitting.is_empty() { layouts.iter().collect() } else { fitting };
    let times = tried.iter().map(|&&layout| {
        let time = decode.time(model, machine, &layout)?;
        Ok(Timed { layout, time })
    });
    let mut times = times.collect::<Result<Vec<_>, MachineError>>()?;
    times.sort_by(|a, b| a.ttl_s().total_cmp(&b.ttl_s()));
    Ok(Choice {
        best: times[0],
        next: times.get(1).copied(),
        compared: times.len(),
        too_large: layouts.len() - times.len(),
        decode: *decode,
        machine: machine.name().to_owned(),
    })
}

/// Whether the busiest rank has memory enough.
fn fits(model: &Model, machine: &Machine, layout: &Layout, decode: &Decode) -> bool {
    let ranks = layout.ranks();
    let of_node = machine.ranks_per_node().map_or(ranks, |node| node.min(ranks));
    let rank = machine.rank(Sharing { ranks: of_node, threads: decode.threads });
    let share = Share::busiest(&model.shape, &layout.spec());
    let costs = Costs { model, share, choices: decode.choices };
    let held = Capacity::new(&costs, decode.context, 1)
        .held(decode.batch, share.own_sequences(decode.batch));
    held.total() <= rank.memory_bytes() * (1.0 - RESERVED)
}

impl Choice {
    /// The choice, its predicted time, where that goes, and the runner-up, for the user.
    pub fn reason(&self) -> String {
        let Choice { best, next, compared, too_large, decode, machine } = self;
        let ms = |seconds: f64| format!("{:.3} ms", seconds * 1e3);
        let sequences = match decode.batch {
            1 => "1 sequence".to_owned(),
            batch => format!("{batch} sequences"),
        };
        let most: Vec<String> = by_size(0.0, |line| best.time.of(line))
            .map(|(line, seconds)| format!("{} {}", line.name(), ms(seconds)))
            .collect();
        let mut text = format!(
            "{}: {} per token, predicted for {sequences} at {} positions on {machine} (most of it \
             {}); ",
            best.layout,
            ms(best.ttl_s()),
            decode.context,
            most.join(", ")
        );
        text += &match next {
            None => "no other layout of as many ranks has what was asked for".to_owned(),
            Some(next) => {
                // What is less than a thousandth decides nothing.
                let least = best.ttl_s() / 1e3;
                let more = by_size(least, |line| next.time.of(line) - best.time.of(line));
                let more: Vec<String> =
                    more.map(|(line, s)| format!("{} more of {}", ms(s), line.name())).collect();
                let why = match more.is_empty() {
                    true => "within 0.1 % in every line".to_owned(),
                    false => more.join(" and "),
                };
                format!("next of {compared} is {}: {}, {why}", next.layout, ms(next.ttl_s()))
            }
        };
        if *too_large > 0 {
            text += &format!("; {too_large} do not fit in its memory");
        }
        text
    }
}

/// The two lines that have most seconds, where they have more than `least`.
fn by_size(least: f64, seconds: impl Fn(Line) -> f64) -> impl Iterator<Item = (Line, f64)> {
    let mut lines = Line::ALL.map(|line| (line, seconds(line)));
    lines.sort_by(|a, b| b.1.total_cmp(&a.1));
    lines.into_iter().take(2).filter(move |(_, seconds)| *seconds > least)
}

#[cfg(test)]
mod tests;
