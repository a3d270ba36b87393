//! From which context and how many users on one strategy wins over the others, and where it stops.

use helix_layout::Strategy;
use serde::Serialize;

use crate::search::{Fronts, Query};
use crate::{Batches, Machine, Model, PlanError, Row, Space, search};

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

impl Crossover {
    /// The least and the largest number of users with which Helix wins, if it does.
    pub fn wins(&self) -> Option<(usize, usize)> {
        let mut won = self.duels.iter().filter(|duel| duel.verdict == Verdict::Helix);
        let first = won.next()?.batch;
        Some((first, won.next_back().map_or(first, |duel| duel.batch)))
    }
}

/// Compares at every doubling of the context up to the query's, on the largest number of ranks,
/// with users in powers of two up to what anything holds.
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
        match duels(model, machine, query, context) {
            Ok(duels) => all.push(Crossover { context, duels }),
            Err(PlanError::Memory(_)) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn duels(
    model: &Model,
    machine: &Machine,
    query: &Query,
    context: usize,
) -> Result<Vec<Duel>, PlanError> {
    let ranks = query.space.ranks.iter().copied().max().into_iter().collect();
    let space = Space { ranks, strategies: Strategy::ALL.to_vec(), ..query.space.clone() };
    let batches: Vec<usize> = (0..=16).map(|power| 1 << power).collect();
    let mut settings = query.settings;
    settings.context = context;
    let query = Query { space, batches: Batches::Only(batches.clone()), ttl_s: None, settings };
    let found = search(model, machine, &query)?;
    let others: Vec<Strategy> =
        Strategy::ALL.into_iter().filter(|&s| s != Strategy::Helix).collect();
    let (helix, others) = (found.of(Strategy::Helix), found.together(&others));
    let duels = batches.into_iter().map(|batch| {
        let fastest =
            |fronts: &Fronts| fronts.batch.best_x(batch as f64).map(|(.., point)| Row::from(point));
        Duel::new(batch, fastest(helix), fastest(&others))
    });
    Ok(duels.take_while(|duel| duel.helix.is_some() || duel.other.is_some()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Formats, Settings};

    fn found(model: &str, machine: &str, ranks: usize, context: usize) -> Vec<Crossover> {
        let formats = Formats::uniform("fp8".parse().unwrap(), "bf16".parse().unwrap());
        let model = Model::named(model, formats).unwrap();
        let query = Query {
            space: Space::new(vec![ranks]),
            batches: Batches::All,
            ttl_s: None,
            settings: Settings::new(context),
        };
        crossovers(&model, &Machine::named(machine).unwrap(), &query).unwrap()
    }

    /// With one KV head, TP copies the cache: Helix wins long contexts. With as many KV heads as
    /// ranks TP copies nothing, and Helix has only its all-to-all to add.
    #[test]
    fn helix_wins_where_tp_copies_the_cache() {
        let r1 = found("deepseek-r1", "hgx-b200", 8, 262_144);
        assert_eq!(r1.first().map(|c| c.context), Some(1024));
        assert_eq!(r1.last().map(|c| c.context), Some(262_144));
        assert!(r1.last().unwrap().wins().is_some());
        let llama = found("llama-3.1-8b", "hgx-b200", 8, 65536);
        assert!(llama.iter().all(|c| c.duels[0].verdict != Verdict::Helix), "{llama:?}");
    }
}
