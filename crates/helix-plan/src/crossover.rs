//! From which context and how many users on one strategy wins over the others, and where it stops.

use helix_layout::Strategy;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

use crate::search::{Fronts, Query};
use crate::{Batches, Fixed, Machine, Model, PlanError, Row, Settings, Space, search};

/// How much faster counts as winning: less is a draw.
const MARGIN: f64 = 1.01;

/// The least context that is tried.
const SHORTEST: usize = 1024;

/// One context: who is fastest with how many users.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Crossover {
    /// Positions of every sequence.
    pub context: usize,
    /// By number of users, ascending.
    pub duels: Vec<Duel>,
    /// The numbers of users with which Helix wins.
    pub wins: Vec<Wins>,
}

/// Consecutive duels that Helix wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Wins {
    /// Users or positions with which it starts.
    pub from: usize,
    /// With which it wins last.
    pub to: usize,
    /// Whether it wins from the first duel on.
    pub first: bool,
    /// Whether it wins up to the last.
    pub last: bool,
}

/// Helix against the best of the other strategies, on all ranks, with at least so many users.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Duel {
    /// Users.
    pub batch: usize,
    /// Who wins.
    pub verdict: Verdict,
    /// Helix's fastest, if it holds so many.
    pub helix: Option<Row>,
    /// The others' fastest, if any of them holds so many.
    pub other: Option<Row>,
}

/// How a duel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Helix is faster, or alone in holding so many.
    Helix,
    /// Within a hundredth.
    Draw,
    /// Another strategy is faster, or alone in holding so many.
    Other,
}

impl Duel {
    fn new(batch: usize, helix: Option<Row>, other: Option<Row>) -> Duel {
        let verdict = match (&helix, &other) {
            (Some(helix), Some(other)) if helix.ttl_ms * MARGIN < other.ttl_ms => Verdict::Helix,
            (Some(helix), Some(other)) if other.ttl_ms * MARGIN < helix.ttl_ms => Verdict::Other,
            (Some(_), None) => Verdict::Helix,
            (None, Some(_)) => Verdict::Other,
            _ => Verdict::Draw,
        };
        Duel { batch, verdict, helix, other }
    }
}

impl Wins {
    /// Of duels in order, each with its number of users or positions.
    fn of(duels: impl Iterator<Item = (usize, Verdict)>) -> Vec<Wins> {
        let duels: Vec<(usize, Verdict)> = duels.collect();
        let mut wins: Vec<Wins> = Vec::new();
        for (index, &(at, verdict)) in duels.iter().enumerate() {
            if verdict != Verdict::Helix {
                continue;
            }
            let last = index + 1 == duels.len();
            match wins.last_mut() {
                Some(run) if index > 0 && duels[index - 1].1 == Verdict::Helix => {
                    (run.to, run.last) = (at, last);
                }
                _ => wins.push(Wins { from: at, to: at, first: index == 0, last }),
            }
        }
        wins
    }

    /// By number of users, the contexts in which Helix wins.
    pub fn by_users(crossovers: &[Crossover]) -> BTreeMap<usize, Vec<Wins>> {
        let mut by_users = BTreeMap::<usize, Vec<(usize, Verdict)>>::new();
        for Crossover { context, duels, .. } in crossovers {
            for duel in duels {
                by_users.entry(duel.batch).or_default().push((*context, duel.verdict));
            }
        }
        by_users.into_iter().map(|(users, duels)| (users, Wins::of(duels.into_iter()))).collect()
    }
}

impl Crossover {
    fn new(context: usize, duels: Vec<Duel>) -> Crossover {
        let wins = Wins::of(duels.iter().map(|duel| (duel.batch, duel.verdict)));
        Crossover { context, duels, wins }
    }
}

/// Compares at every doubling of the context up to the query's, on the largest number of ranks,
/// with the query's batches, or else with powers of two up to what anything holds.
///
/// What the query fixes holds for Helix alone: the others, those of its strategies or all, are at
/// their best.
///
/// # Errors
/// As [`search()`], but that nothing fits ends the list.
pub fn crossovers(
    model: &Model,
    machine: &Machine,
    query: &Query,
) -> Result<Vec<Crossover>, PlanError> {
    let longest = query.settings.context;
    let doublings = std::iter::successors(Some(SHORTEST.min(longest)), |context| {
        (*context < longest).then(|| (context * 2).min(longest))
    });
    let mut all = Vec::new();
    for context in doublings {
        let duels = duels(model, machine, query, context)?;
        if duels.is_empty() {
            break;
        }
        all.push(Crossover::new(context, duels));
    }
    Ok(all)
}

fn duels(
    model: &Model,
    machine: &Machine,
    query: &Query,
    context: usize,
) -> Result<Vec<Duel>, PlanError> {
    let batches: BTreeSet<usize> = match &query.batches {
        Batches::Only(batches) => batches.iter().copied().collect(),
        Batches::All => (0..=16).map(|power| 1 << power).collect(),
    };
    let settings = Settings { context, ..query.settings };
    let ranks: Vec<usize> = query.space.ranks.iter().copied().max().into_iter().collect();
    let of = |space: Space| {
        let space = Space { ranks: ranks.clone(), ..space };
        let batches = Batches::Only(batches.iter().copied().collect());
        match search(model, machine, &Query { space, batches, ttl_s: None, settings }) {
            Ok(found) => Ok(found.together(&Strategy::ALL)),
            Err(PlanError::Memory(_)) => Ok(Fronts::default()),
            Err(error) => Err(error),
        }
    };
    let helix = of(Space { strategies: vec![Strategy::Helix], ..query.space.clone() })?;
    let others = of(others(&query.space))?;
    let duels = batches.iter().map(|&batch| {
        let fastest =
            |fronts: &Fronts| fronts.batch.best_x(batch as f64).map(|(.., point)| Row::from(point));
        Duel::new(batch, fastest(&helix), fastest(&others))
    });
    Ok(duels.take_while(|duel| duel.helix.is_some() || duel.other.is_some()).collect())
}

/// What Helix is compared with.
fn others(space: &Space) -> Space {
    let is_other = |strategy: &Strategy| *strategy != Strategy::Helix;
    let mut strategies: Vec<Strategy> = space.strategies.iter().copied().filter(is_other).collect();
    if strategies.is_empty() {
        strategies = Strategy::ALL.into_iter().filter(is_other).collect();
    }
    Space { strategies, fixed: Fixed::default(), qkv: None, hopb: None, ..space.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Formats;

    fn query(ranks: usize, context: usize) -> Query {
        Query {
            space: Space::new(vec![ranks]),
            batches: Batches::All,
            ttl_s: None,
            settings: Settings::new(context),
        }
    }

    fn found(model: &str, machine: &str, query: &Query) -> Vec<Crossover> {
        let formats = Formats::uniform("fp8".parse().unwrap(), "bf16".parse().unwrap());
        let model = Model::named(model, formats).unwrap();
        crossovers(&model, &Machine::named(machine).unwrap(), query).unwrap()
    }

    /// With one KV head, TP copies the cache: Helix wins long contexts. With as many KV heads as
    /// ranks TP copies nothing, and Helix has only its all-to-all to add.
    #[test]
    fn helix_wins_where_tp_copies_the_cache() {
        let r1 = found("deepseek-r1", "hgx-b200", &query(8, 262_144));
        assert_eq!(r1.first().map(|c| c.context), Some(1024));
        assert_eq!(r1.last().map(|c| c.context), Some(262_144));
        assert!(r1.last().unwrap().wins[0].first, "{r1:?}");
        let one = &Wins::by_users(&r1)[&1];
        assert!(!one[0].first && one[0].last, "{one:?}");
        let llama = found("llama-3.1-8b", "hgx-b200", &query(8, 65536));
        assert!(llama.iter().all(|c| c.duels[0].verdict != Verdict::Helix), "{llama:?}");
    }

    /// Degrees that only Helix has don't leave it without an opponent.
    #[test]
    fn what_is_fixed_is_helixs() {
        let free = found("deepseek-r1", "hgx-b200", &query(8, 4096));
        let mut fixed = query(8, 4096);
        fixed.space.fixed = Fixed { kvp: Some(8), tpa: Some(1), ..Fixed::default() };
        fixed.space.hopb = Some(false);
        fixed.batches = Batches::Only(vec![16, 1, 3, 1]);
        let fixed = found("deepseek-r1", "hgx-b200", &fixed);
        for (fixed, free) in fixed.iter().zip(&free) {
            let users: Vec<usize> = fixed.duels.iter().map(|duel| duel.batch).collect();
            assert_eq!(users, [1, 3, 16]);
            for duel in &fixed.duels {
                assert_eq!(duel.helix.unwrap().placement.spec.degrees.kvp, 8);
                let same = free.duels.iter().find(|other| other.batch == duel.batch);
                assert!(same.is_none_or(|same| same.other == duel.other), "{duel:?}");
            }
        }
        assert_eq!(fixed[0].wins, [], "{fixed:?}");
    }

    #[test]
    fn wins_start_and_stop() {
        let of = |verdicts: &str| {
            let verdict = |c| match c {
                '*' => Verdict::Helix,
                '-' => Verdict::Other,
                _ => Verdict::Draw,
            };
            Wins::of(verdicts.chars().enumerate().map(|(at, c)| (at, verdict(c))))
        };
        let wins = |from, to, first, last| Wins { from, to, first, last };
        assert_eq!(of("- -"), []);
        assert_eq!(of("***"), [wins(0, 2, true, true)]);
        assert_eq!(of("-** *"), [wins(1, 2, false, false), wins(4, 4, false, true)]);
        assert_eq!(of("*-"), [wins(0, 0, true, false)]);
    }
}
