//! What a plan says: one document for the terminal, for JSON, for tables and plots.

use serde::Serialize;

use crate::capacity::Held;
use crate::predict::{Candidate, Routings, Term};
use crate::search::{Found, Fronts, Point, Query};
use crate::{Batches, Machine, Model, PlanError, Timer, counted, figure, search};

/// Everything that a plan found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The model's name, and where its sizes come from.
    pub model: String,
    /// Where its sizes come from.
    pub model_source: String,
    /// The machine's name.
    pub hardware: String,
    /// Positions of every sequence.
    pub context: usize,
    /// Format of the weights.
    pub weights: String,
    /// Format of keys and values.
    pub kv: String,
    /// Configurations that nothing else beats in both tokens per second of a user and per rank,
    /// the most interactive last.
    pub front: Vec<Row>,
    /// The same of each strategy alone.
    pub fronts: Vec<StrategyFront>,
    /// Answers to the usual questions.
    pub answers: Vec<Answer>,
    /// Where the latency of the first answer goes, and what its busiest rank holds.
    pub chosen: Option<Chosen>,
    /// Where Helix starts and stops winning, if that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub crossovers: Vec<crate::Crossover>,
    /// Configurations that were predicted.
    pub configs: usize,
    /// Placements that do not fit even with the smallest batch.
    pub too_large: usize,
    /// Seconds that the search took.
    pub seconds: f64,
    /// What a reader must know: rates that were extrapolated, batches without an answer.
    pub notes: Vec<String>,
}

/// A configuration and what it gives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Row {
    /// How the model is cut.
    #[serde(flatten)]
    pub placement: crate::Placement,
    /// Sequences.
    pub batch: usize,
    /// Pieces that HOP-B cuts the batch into, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hopb_pieces: Option<usize>,
    /// Milliseconds from one token of a sequence to its next.
    pub ttl_ms: f64,
    /// Interactivity.
    pub tokens_per_s_user: f64,
    /// Throughput.
    pub tokens_per_s_rank: f64,
}

/// One strategy's front.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StrategyFront {
    /// Its name.
    pub strategy: String,
    /// Its points, the most interactive last.
    pub front: Vec<Row>,
}

/// An answer to a usual question.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// What was asked.
    pub question: String,
    /// The configuration.
    #[serde(flatten)]
    pub row: Row,
}

/// A configuration looked at closely.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chosen {
    /// The configuration.
    #[serde(flatten)]
    pub row: Row,
    /// What its busiest rank holds.
    pub held: Held,
    /// Bytes that a rank has room for.
    pub memory_bytes: f64,
    /// Where the latency goes.
    pub breakdown: Vec<Term>,
}

impl Chosen {
    /// A closer look at one configuration.
    ///
    /// # Errors
    /// The machine has no answer for so many ranks.
    pub fn new(
        model: &Model,
        machine: &Machine,
        query: &Query,
        row: Row,
    ) -> Result<Chosen, PlanError> {
        let Row { placement, batch, .. } = row;
        let timer = Timer::new(machine, model, placement.ranks(), query.settings.threads)?;
        let candidate = Candidate::new(model, &timer, &query.settings, placement);
        let prediction = candidate.predict(batch, &mut Routings::new());
        Ok(Chosen {
            row: Row { hopb_pieces: Some(prediction.time.pieces), ..row },
            held: candidate.held(batch),
            memory_bytes: candidate.room(),
            breakdown: prediction.breakdown(&placement, model),
        })
    }
}

impl From<Point> for Row {
    fn from(point: Point) -> Row {
        Row {
            placement: point.placement,
            batch: point.batch,
            hopb_pieces: None,
            ttl_ms: point.ttl_s * 1e3,
            tokens_per_s_user: point.tokens_per_s_user(),
            tokens_per_s_rank: point.tokens_per_s_rank,
        }
    }
}

impl Report {
    /// Searches, and says what was found.
    ///
    /// # Errors
    /// As [`search()`]; or nothing is as fast as the query's latency budget asks.
    pub fn new(model: &Model, machine: &Machine, query: &Query) -> Result<Report, PlanError> {
        let found = search(model, machine, query)?;
        let all = found.together(&query.space.strategies);
        let fastest = all.throughput.largest_x();
        let Some((_, _, fastest)) = fastest else {
            return Err(too_slow(model, machine, query));
        };
        let mut notes = found.notes.clone();
        notes.extend(unanswered(model, machine, query, &found, &all)?);
        let look = |row: Row| Chosen::new(model, machine, query, row);
        let rows = |fronts: &Fronts| {
            let points = fronts.throughput.points();
            points.map(|(.., point)| Ok(look(point.into())?.row)).collect::<Result<_, PlanError>>()
        };
        let mut answers = answers(&all, query, fastest);
        for answer in &mut answers {
            answer.row = look(answer.row)?.row;
        }
        let chosen = answers.first().map(|answer| look(answer.row));
        let fronts = query.space.strategies.iter().map(|&strategy| {
            let front = rows(found.of(strategy))?;
            Ok(StrategyFront { strategy: strategy.to_string(), front })
        });
        Ok(Report {
            model: model.name.clone(),
            model_source: model.source.clone(),
            hardware: machine.name().to_owned(),
            context: query.settings.context,
            weights: model.formats.weights.name.to_owned(),
            kv: model.formats.kv.name.to_owned(),
            front: rows(&all)?,
            fronts: fronts.collect::<Result<_, PlanError>>()?,
            answers,
            chosen: chosen.transpose()?,
            crossovers: Vec::new(),
            configs: found.configs,
            too_large: found.too_large,
            seconds: found.seconds,
            notes,
        })
    }

    /// The fronts as comma-separated values, a header first: the front of all strategies, then
    /// each one's.
    pub fn csv(&self) -> String {
        let mut text = "front,strategy,ranks,kvp,tpa,tpf,ep,pp,dp,qkv,hopb,hopb_pieces,mla_up,\
                        ffn_reduce,tokens,batch,ttl_ms,tokens_per_s_user,tokens_per_s_rank\n"
            .to_owned();
        let own = self.fronts.iter().map(|of| (of.strategy.as_str(), &of.front));
        for (name, rows) in std::iter::once(("all", &self.front)).chain(own) {
            for row in rows {
                text += &csv_line(name, row);
            }
        }
        text
    }
}

fn csv_line(front: &str, row: &Row) -> String {
    let p = &row.placement;
    let d = &p.spec.degrees;
    format!(
        "{front},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}\n",
        p.spec.strategy,
        p.ranks(),
        d.kvp,
        d.tpa,
        d.tpf,
        d.ep,
        p.pp,
        d.dp,
        p.spec.qkv,
        if p.hopb { "on" } else { "off" },
        row.hopb_pieces.unwrap_or(1),
        p.choices.mla_up,
        p.choices.ffn_reduce,
        p.choices.tokens,
        row.batch,
        row.ttl_ms,
        row.tokens_per_s_user,
        row.tokens_per_s_rank
    )
}

/// The usual questions; the first one is the query's own.
fn answers(all: &Fronts, query: &Query, fastest: Point) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut add = |question: String, point: Option<(f64, f64, Point)>| {
        if let Some((.., point)) = point {
            answers.push(Answer { question, row: point.into() });
        }
    };
    if let Some(ttl_s) = query.ttl_s {
        let within = format!("within {} ms per token", figure(ttl_s * 1e3));
        let least = 1.0 / ttl_s;
        add(format!("most tokens/s/rank {within}"), all.throughput.best_y(least));
        add(format!("most users per rank {within}"), all.users.best_y(least));
        add(format!("most users {within}"), all.batch.best_y(least));
    }
    if let Batches::Only(batches) = &query.batches {
        for &batch in batches {
            let question = format!("fastest with {}", counted(batch, "user"));
            add(question, all.batch.best_x(batch as f64));
        }
    }
    add("fastest token".to_owned(), Some((0.0, 0.0, fastest)));
    add("most tokens/s/rank".to_owned(), all.throughput.best_y(0.0));
    answers
}

/// Of each batch that was asked for and has no answer: why.
fn unanswered(
    model: &Model,
    machine: &Machine,
    query: &Query,
    found: &Found,
    all: &Fronts,
) -> Result<Vec<String>, PlanError> {
    let unheld = found.unheld().map(|shortage| {
        format!("no layout holds {} users, not even the nearest: {shortage}", shortage.batch)
    });
    let mut notes: Vec<String> = unheld.collect();
    let (Batches::Only(batches), Some(ttl_s)) = (&query.batches, query.ttl_s) else {
        return Ok(notes);
    };
    let is_slow = |batch: &&usize| all.batch.best_x(**batch as f64).is_none();
    let slow: Vec<usize> = batches.iter().filter(is_slow).copied().collect();
    if slow.is_empty() {
        return Ok(notes);
    }
    let free = without_budget(model, machine, query)?;
    let fastest = |batch: usize| Some((batch, free.batch.best_x(batch as f64)?.2));
    notes.extend(slow.into_iter().filter_map(fastest).map(|(batch, fastest)| {
        format!(
            "no layout has a token within {} ms with {batch} users: the fastest takes {:.3} ms, {}",
            ttl_s * 1e3,
            fastest.ttl_s * 1e3,
            fastest.placement
        )
    }));
    Ok(notes)
}

/// What there is when a token may take any time.
fn without_budget(model: &Model, machine: &Machine, query: &Query) -> Result<Fronts, PlanError> {
    let free = Query { ttl_s: None, ..query.clone() };
    Ok(search(model, machine, &free)?.together(&query.space.strategies))
}

/// Nothing is within the budget: what is fastest without it.
fn too_slow(model: &Model, machine: &Machine, query: &Query) -> PlanError {
    let fastest = match without_budget(model, machine, query) {
        Ok(fronts) => fronts.throughput.largest_x(),
        Err(error) => return error,
    };
    let budget = figure(query.ttl_s.unwrap_or(0.0) * 1e3);
    PlanError::Nothing(match fastest {
        Some((.., best)) => format!(
            "a token within {budget} ms: the fastest takes {:.3} ms, {} with {}",
            best.ttl_s * 1e3,
            best.placement,
            counted(best.batch, "sequence")
        ),
        None => format!("a token within {budget} ms"),
    })
}
