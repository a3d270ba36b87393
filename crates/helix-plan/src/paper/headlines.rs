//! Sections 3.2 and 3.3: how much more interactive, how many more users, and what HOP-B is worth.

use helix_layout::Strategy;

use super::Setup;
use crate::{
    Batches, Exchange, Fixed, Front, Fronts, Model, PlanError, Point, Query, Settings, Space,
    search,
};

/// A model of the evaluation, and what was published of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Subject {
    /// The preset.
    pub model: &'static str,
    /// What Helix is compared with.
    pub baselines: &'static [Strategy],
    /// Largest tokens/s/user over the best baseline's.
    pub interactivity: f64,
    /// Tokens/s/rank over the best baseline's at the baseline's best latency.
    pub throughput: f64,
    /// Loss in tokens/s/user at the same tokens/s/rank without HOP-B.
    pub hopb_loss: f64,
}

impl Subject {
    /// Figure 5.
    pub const R1: Subject = Subject {
        model: "deepseek-r1",
        baselines: &[Strategy::Tp, Strategy::DpEp],
        interactivity: 1.5,
        throughput: 32.0,
        hopb_loss: 0.01,
    };
    /// Figure 6.
    pub const LLAMA: Subject = Subject {
        model: "llama-3.1-405b",
        baselines: &[Strategy::Tp, Strategy::Medha],
        interactivity: 1.13,
        throughput: 4.0,
        hopb_loss: 0.12,
    };
}

/// What the planner finds.
#[derive(Clone, Debug)]
pub struct Headlines {
    /// Largest tokens/s/user over the best baseline's.
    pub interactivity: f64,
    /// Tokens/s/rank over the best baseline's at the baseline's best latency.
    pub throughput: f64,
    /// Users of as many ranks as there are, over the best baseline's at its best latency.
    pub users: f64,
    /// Most that is lost without HOP-B where each request's all-to-all takes its turn.
    pub lockstep_loss: f64,
    /// Most that is lost without HOP-B where the batch's goes in one message.
    pub whole_loss: f64,
    /// The fronts of the baselines, of Helix, and of Helix without HOP-B in lockstep.
    pub fronts: [Fronts; 3],
    /// Configurations that were predicted.
    pub configs: usize,
}

/// Powers of two up to 64 ranks.
fn ranks() -> Vec<usize> {
    (0..7).map(|power| 1 << power).collect()
}

/// Compares Helix with the subject's baselines. Attention groups, which the paper's Helix does not
/// have, are the baselines' alone.
///
/// # Errors
/// As [`search()`].
pub fn headlines(setup: &Setup, subject: Subject) -> Result<Headlines, PlanError> {
    let model = Model::named(subject.model, setup.formats);
    let model = model.map_err(|error| PlanError::Nothing(error.to_string()))?;
    let mut configs = 0;
    let mut run = |strategies: &[Strategy], hopb: Option<bool>, unhidden: Exchange| {
        let helix = strategies == [Strategy::Helix];
        let fixed = Fixed { dp: helix.then_some(1), ..Fixed::default() };
        let strategies = strategies.to_vec();
        let space = Space { strategies, fixed, hopb, ..Space::new(ranks()) };
        let settings = Settings { unhidden, ..setup.settings };
        let query = Query { space, batches: Batches::All, ttl_s: None, settings };
        let found = search(&model, &setup.machine, &query)?;
        configs += found.configs;
        Ok::<_, PlanError>(found.together(&query.space.strategies))
    };
    let lockstep = setup.settings.unhidden;
    let baselines = run(subject.baselines, None, lockstep)?;
    let helix = run(&[Strategy::Helix], Some(setup.hopb), lockstep)?;
    let off = run(&[Strategy::Helix], Some(false), lockstep)?;
    let whole = run(&[Strategy::Helix], Some(false), Exchange::Whole)?;
    let fastest = baselines.throughput.largest_x();
    let (best, throughput, _) = fastest.expect("a search that succeeds found something");
    let at = |front: &Front<Point>| front.best_y(best).map_or(0.0, |(_, y, _)| y);
    Ok(Headlines {
        interactivity: helix.throughput.largest_x().map_or(0.0, |(x, ..)| x) / best,
        throughput: at(&helix.throughput) / throughput,
        users: at(&helix.batch) / at(&baselines.batch),
        lockstep_loss: loss(&helix.throughput, &off.throughput),
        whole_loss: loss(&helix.throughput, &whole.throughput),
        fronts: [baselines, helix, off],
        configs,
    })
}

/// The most that `other` loses against `front` in `x` at the same `y`, between points in
/// proportion.
pub fn loss(front: &Front<Point>, other: &Front<Point>) -> f64 {
    let at = |y: f64| {
        let mut before: Option<(f64, f64)> = None;
        for (x, other_y, _) in other.points() {
            if other_y < y {
                let (from, high) = before?;
                return Some(from + (x - from) * (high - y) / (high - other_y));
            }
            before = Some((x, other_y));
        }
        before.map(|(x, _)| x)
    };
    let losses = front.points().filter_map(|(x, y, _)| Some(1.0 - at(y)? / x));
    losses.fold(0.0, f64::max)
}
