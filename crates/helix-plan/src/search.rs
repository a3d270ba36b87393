//! Every placement at every batch, and the fronts of what they give.

use helix_layout::Strategy;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use crate::predict::{Candidate, MAX_BATCH, PlanError, Prediction, Routings, Settings, Shortage};
use crate::{Front, Machine, Model, Placement, Space, Timer};

/// What is searched through.
#[derive(Clone, Debug)]
pub struct Query {
    /// Placements.
    pub space: Space,
    /// Batches that are tried.
    pub batches: Batches,
    /// Latency that a configuration may have at most.
    pub ttl_s: Option<f64>,
    /// What a plan is made for.
    pub settings: Settings,
}

/// Which batches are tried.
#[derive(Clone, Debug, PartialEq)]
pub enum Batches {
    /// From 1 up to what fits: every one to 20, then steps of a tenth, and the largest; with a
    /// budget also the largest within it; and the largest up to that which fills all stages and
    /// attention groups. The most users and the most tokens per second are then those of every
    /// batch; fronts between them are sampled.
    All,
    /// These.
    Only(Vec<usize>),
}

/// A configuration and what it gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// How the model is cut.
    pub placement: Placement,
    /// Sequences.
    pub batch: usize,
    /// Seconds from one token of a sequence to its next.
    pub ttl_s: f64,
    /// Tokens per second and rank.
    pub tokens_per_s_rank: f64,
}

impl Point {
    /// Tokens per second of a sequence.
    pub fn tokens_per_s_user(&self) -> f64 {
        1.0 / self.ttl_s
    }

    /// Sequences per rank.
    pub fn users_per_rank(&self) -> f64 {
        self.batch as f64 / self.placement.ranks() as f64
    }
}

/// The simpler way to run comes first: of points that give the same, fronts keep that one, whoever
/// found it first.
impl PartialOrd for Point {
    fn partial_cmp(&self, other: &Point) -> Option<Ordering> {
        let key = |point: &Point| (point.placement.simplicity(), point.batch);
        key(self).partial_cmp(&key(other))
    }
}

/// Fronts against tokens per second of a user.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fronts {
    /// Of tokens per second and rank.
    pub throughput: Front<Point>,
    /// Of sequences per rank.
    pub users: Front<Point>,
    /// Of sequences, whatever the ranks.
    pub batch: Front<Point>,
}

impl Fronts {
    fn add(&mut self, point: Point) {
        let x = point.tokens_per_s_user();
        self.throughput.add(x, point.tokens_per_s_rank, point);
        self.users.add(x, point.users_per_rank(), point);
        self.batch.add(x, point.batch as f64, point);
    }

    /// Adds all points of another.
    pub fn merge(&mut self, other: &Fronts) {
        self.throughput.merge(&other.throughput);
        self.users.merge(&other.users);
        self.batch.merge(&other.batch);
    }
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Fronts of each strategy, in the order of [`Strategy::ALL`].
    pub by_strategy: [Fronts; Strategy::ALL.len()],
    /// Configurations that were predicted: placements times batches that fit.
    pub configs: usize,
    /// Placements that do not hold even the smallest batch.
    pub too_large: usize,
    /// The largest batch of those asked for that any placement holds; 0 where none does.
    largest: usize,
    /// Of each batch that some placement does not hold, the one that lacks least.
    lacking: BTreeMap<usize, Shortage>,
    /// Seconds that the search took.
    pub seconds: f64,
    /// What a reader must be told of the machine's rates.
    pub notes: Vec<String>,
}

impl Found {
    /// One strategy's fronts.
    pub fn of(&self, strategy: Strategy) -> &Fronts {
        &self.by_strategy[strategy as usize]
    }

    /// The fronts of several strategies together. Where they do the same, without shards of the
    /// sequence, it goes by the plainest one's name.
    pub fn together(&self, strategies: &[Strategy]) -> Fronts {
        let mut all = Fronts::default();
        strategies.iter().for_each(|&strategy| all.merge(self.of(strategy)));
        all
    }

    /// Batches that were asked for and that no placement holds: by how much the nearest is short.
    pub fn unheld(&self) -> impl Iterator<Item = &Shortage> {
        self.lacking.range(self.largest + 1..).map(|(_, shortage)| shortage)
    }

    fn new() -> Found {
        Found {
            by_strategy: Default::default(),
            configs: 0,
            too_large: 0,
            largest: 0,
            lacking: BTreeMap::new(),
            seconds: 0.0,
            notes: Vec::new(),
        }
    }

    fn merge(&mut self, other: Found) {
        for (fronts, more) in self.by_strategy.iter_mut().zip(&other.by_strategy) {
            fronts.merge(more);
        }
        self.configs += other.configs;
        self.too_large += other.too_large;
        self.largest = self.largest.max(other.largest);
        other.lacking.into_values().for_each(|shortage| self.lacks(shortage));
    }

    fn lacks(&mut self, shortage: Shortage) {
        let nearest = self.lacking.entry(shortage.batch).or_insert_with(|| shortage.clone());
        if shortage.before(nearest) {
            *nearest = shortage;
        }
    }
}

/// Predicts every placement of the space at the query's batches that fit, on all processors. What
/// is found does not depend on how many those are, nor on which is first.
///
/// # Errors
/// A setting is out of its range, the machine has no answer, no placement is legal, or none fits:
/// then the one that lacks least is named.
pub fn search(model: &Model, machine: &Machine, query: &Query) -> Result<Found, PlanError> {
    let start = Instant::now();
    query.settings.check()?;
    check_batches(&query.batches)?;
    let placements = query.space.placements(&model.shape);
    if placements.is_empty() {
        return Err(PlanError::Nothing(query.space.refusal(&model.shape)));
    }
    let notes = notes(model, machine, query, &placements)?;
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let mut found = of_placements(model, machine, query, &placements, threads)?;
    found.seconds = start.elapsed().as_secs_f64();
    found.notes = notes;
    let nearest = found.unheld().next().filter(|_| found.configs == 0).cloned();
    match nearest {
        Some(shortage) => Err(PlanError::Memory(Box::new(shortage))),
        None => Ok(found),
    }
}

/// What must be said of the machine's rates, by number of ranks; or the first that it refuses.
fn notes(
    model: &Model,
    machine: &Machine,
    query: &Query,
    placements: &[Placement],
) -> Result<Vec<String>, PlanError> {
    let ranks: BTreeSet<usize> = placements.iter().map(Placement::ranks).collect();
    let mut notes = Vec::new();
    for ranks in ranks {
        for note in Timer::new(machine, model, ranks, query.settings.threads)?.notes {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    Ok(notes)
}

/// Placements that a thread takes at a time.
const RUN: usize = 64;

fn of_placements(
    model: &Model,
    machine: &Machine,
    query: &Query,
    placements: &[Placement],
    threads: usize,
) -> Result<Found, PlanError> {
    let runs = Mutex::new(placements.chunks(RUN));
    // Not in the loop's head, which would hold the lock through its body.
    let next = || runs.lock().expect("nobody panics with the lock").next();
    let worker = || -> Result<Found, PlanError> {
        let mut found = Found::new();
        let mut routings = Routings::new();
        let mut timer: Option<(usize, Timer<'_>)> = None;
        while let Some(run) = next() {
            for &placement in run {
                let ranks = placement.ranks();
                let timer = match timer {
                    Some((of, ref timer)) if of == ranks => timer,
                    _ => {
                        let made = Timer::new(machine, model, ranks, query.settings.threads)?;
                        &timer.insert((ranks, made)).1
                    }
                };
                of_placement(model, timer, query, placement, &mut routings, &mut found);
            }
        }
        Ok(found)
    };
    let parts = thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let joined = started.into_iter().map(|thread| thread.join().expect("a search ends"));
        joined.collect::<Result<Vec<_>, _>>()
    })?;
    let mut found = Found::new();
    parts.into_iter().for_each(|part| found.merge(part));
    Ok(found)
}

fn check_batches(batches: &Batches) -> Result<(), PlanError> {
    let Batches::Only(batches) = batches else { return Ok(()) };
    let wrong = batches.iter().find(|batch| !(1..=MAX_BATCH).contains(*batch));
    match wrong {
        Some(&batch) => Err(PlanError::Setting {
            what: "the batch",
            value: batch.to_string(),
            least: 1.0,
            most: MAX_BATCH as f64,
        }),
        None => Ok(()),
    }
}

fn of_placement(
    model: &Model,
    timer: &Timer<'_>,
    query: &Query,
    placement: Placement,
    routings: &mut Routings,
    found: &mut Found,
) {
    let candidate = Candidate::new(model, timer, &query.settings, placement);
    let asked = match &query.batches {
        Batches::Only(batches) => batches.as_slice(),
        Batches::All => &[1],
    };
    let (fitting, lacking): (Vec<usize>, Vec<usize>) =
        asked.iter().partition(|&&batch| candidate.fits(batch));
    lacking.into_iter().for_each(|batch| found.lacks(candidate.shortage(batch)));
    let Some(&largest) = fitting.iter().max() else {
        found.too_large += 1;
        return;
    };
    found.largest = found.largest.max(largest);
    let mut trial = Trial { candidate, placement, ttl_s: query.ttl_s, routings, found };
    match &query.batches {
        Batches::All => trial.all(),
        Batches::Only(_) => {
            for batch in fitting {
                trial.within(batch);
            }
        }
    }
}

/// The last from `yes` on and before `no` for which `is` holds, where it holds up to there.
fn between(mut yes: usize, mut no: usize, mut is: impl FnMut(usize) -> bool) -> usize {
    while yes + 1 < no {
        let middle = yes + (no - yes) / 2;
        if is(middle) { yes = middle } else { no = middle }
    }
    yes
}

/// 1, 2, 3, … and then steps of a tenth; the last is `largest`.
fn ladder(largest: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1usize), |&batch| Some(batch + (batch / 10).max(1)))
        .take_while(move |&batch| batch < largest)
        .chain([largest])
}

/// One placement, batch by batch.
struct Trial<'a, 'm> {
    candidate: Candidate<'a, 'm>,
    placement: Placement,
    ttl_s: Option<f64>,
    routings: &'a mut Routings,
    found: &'a mut Found,
}

impl Trial<'_, '_> {
    /// Predicts a batch that fits; whether it is within the budget.
    fn within(&mut self, batch: usize) -> bool {
        self.found.configs += 1;
        let Prediction { ttl_s, tokens_per_s_rank, .. } =
            self.candidate.predict(batch, self.routings);
        let within = self.ttl_s.is_none_or(|most| ttl_s <= most);
        if within {
            let placement = self.placement;
            let fronts = &mut self.found.by_strategy[placement.spec.strategy as usize];
            fronts.add(Point { placement, batch, ttl_s, tokens_per_s_rank });
        }
        within
    }

    /// All batches, from one that fits: every rung of the ladder; the largest within the budget; and
    /// the largest up to it that leaves no stage and no attention group a sequence short, which may
    /// have more tokens per second than the largest itself.
    ///
    /// A token takes no less time with more sequences, so that halving finds the largest: exactly
    /// where rates are a roofline's. Rates and collectives that were measured may dip; so every
    /// rung is tried, also past one that is over the budget, and it is after the last within it
    /// that is looked. What is found is within the budget in any case.
    fn all(&mut self) {
        // What a rank holds grows with the batch.
        let largest = between(1, MAX_BATCH + 1, |batch| self.candidate.fits(batch));
        let (mut last, mut over) = (0, None);
        for batch in ladder(largest) {
            if self.within(batch) {
                (last, over) = (batch, None);
            } else {
                over = over.or(Some(batch));
            }
        }
        if let (1.., Some(over)) = (last, over) {
            last = between(last, over, |batch| self.within(batch));
        }
        let (stages, groups) = (self.placement.pp, self.placement.spec.degrees.dp);
        let full = BTreeSet::from([stages, stages * groups].map(|round| last / round * round));
        for batch in full {
            if (1..last).contains(&batch) && !ladder(largest).any(|rung| rung == batch) {
                self.within(batch);
            }
        }
    }
}

#[cfg(test)]
mod tests;
