//! `--compare-plan`: what the planner predicts, beside what was measured.

use crate::commands::plan::inputs;
use crate::failure::{Failure, Outcome};
use crate::figures::rounded;
use crate::output::Table;
use helix_engine::{Engine, FfnReduce, HopB, MlaUp};
use helix_layout::Rank;
use helix_plan::costs::{self, Choices, Message, Work};
use helix_plan::{
    Costs, Exchange, Line, Load, Machine, Model, Overlap, Popularity, Routing, Share, StepTime,
    Timer,
};
use helix_scheduler::{Step, Wanted};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::Path;

/// A machine, and a model as the planner sees it.
pub struct Planner {
    machine: Machine,
    model: Model,
}

/// What is predicted of a step, beside what was measured of it.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Of a step, all lines together.
    predicted_us: f64,
    measured_us: f64,
    /// Predicted over measured, less 1.
    error: f64,
    /// By line, of the rank that takes longest in it.
    lines_us: Map<String, Value>,
}

impl Planner {
    /// Reads the machine's file, or finds it by its name.
    pub fn new(hardware: &Path, model: &helix_model::Model, kv_type: &str) -> Outcome<Planner> {
        Ok(Planner {
            machine: inputs::machine(hardware)?,
            // Ranks of the engine send f32.
            model: inputs::of_file(model, kv_type, size_of::<f32>() as f64)?,
        })
    }

    /// A step that decodes one token of each of `batch` sequences of `context` positions, on the
    /// engine's layout, against `measured_us`.
    pub fn compare(
        &self,
        engine: &Engine,
        (batch, context): (usize, usize),
        measured_us: f64,
    ) -> Outcome<Comparison> {
        let times = self.predict(engine, batch, context)?;
        // Ranks meet in every layer: each line takes as long as it does on the slowest.
        let us = |line: Line| times.iter().map(|time| time.of(line)).fold(0.0, f64::max) * 1e6;
        let predicted_us = Line::ALL.into_iter().map(us).sum::<f64>();
        let line = |line: Line| (line.name().to_owned(), json!(rounded(us(line), 2)));
        Ok(Comparison {
            predicted_us: rounded(predicted_us, 1),
            measured_us: rounded(measured_us, 1),
            error: rounded(predicted_us / measured_us - 1.0, 4),
            lines_us: Line::ALL.into_iter().map(line).collect(),
        })
    }

    /// Every rank's times.
    fn predict(&self, engine: &Engine, batch: usize, context: usize) -> Outcome<Vec<StepTime>> {
        let (layout, model) = (engine.layout(), &self.model);
        let mut step = Step::default();
        (0..batch).for_each(|slot| step.push(slot, context - 1, &[0], Wanted::Last));
        let routing = model.shape.moe.map_or(Routing::NONE, |moe| {
            let ep = layout.degrees().ep;
            Routing::expected(&moe, ep, batch as f64, Popularity::Mean)
        });
        let choices = choices(engine);
        let ranks: Vec<(Costs<'_>, Load)> = layout
            .all_ranks()
            .map(|rank: Rank| {
                let share = Share::of(layout, rank);
                let load = Load::of(model, layout, rank, &step, routing);
                (Costs { model, share, choices }, load)
            })
            .collect();
        let mut step_bytes = 0.0;
        let mut add = |_: Line, layers: f64, work: Work, _: Option<Message>| {
            step_bytes += layers * (work.weight_bytes + work.kv_bytes);
        };
        ranks.iter().for_each(|(costs, load)| costs.visit(load, &mut add));
        let threads = engine.options().threads_per_rank;
        let timer = Timer::of_steps(&self.machine, model, layout.ranks(), threads, step_bytes)
            .map_err(Failure::request)?;
        let exchange = match engine.options().hopb {
            HopB::Off => Exchange::Whole,
            HopB::Pieces(_) | HopB::Auto => Exchange::Hopb,
        };
        let overlap = Overlap { exchange, exposed_reduce: 1.0 };
        Ok(ranks.iter().map(|(costs, load)| timer.step(costs, load, overlap)).collect())
    }
}

fn choices(engine: &Engine) -> Choices {
    let options = engine.options();
    Choices {
        mla_up: match options.mla_up {
            MlaUp::Before => costs::MlaUp::Before,
            MlaUp::After | MlaUp::Auto => costs::MlaUp::After,
        },
        ffn_reduce: match options.ffn_reduce {
            FfnReduce::World => costs::FfnReduce::World,
            FfnReduce::Grid => costs::FfnReduce::Grid,
        },
        ..Choices::default()
    }
}

/// The comparisons of tests, line by line, and the mean error of all.
pub fn report(tests: &[(String, &Comparison, &Map<String, Value>)]) -> String {
    let mut text = String::new();
    for (name, comparison, measured) in tests {
        let us = |of: &Map<String, Value>, line: &str| of.get(line).and_then(Value::as_f64);
        let mut table = Table::new(1, [&**name, "predicted us", "measured us", "difference"]);
        let mut row = |name: &str, predicted: f64, found: f64| {
            let cells = [
                name.to_owned(),
                format!("{predicted:.1}"),
                format!("{found:.1}"),
                format!("{:+.1}", predicted - found),
            ];
            table.row(cells.to_vec());
        };
        for line in Line::ALL.map(Line::name) {
            let found = us(measured, line).unwrap_or(0.0);
            row(line, us(&comparison.lines_us, line).unwrap_or(0.0), found);
        }
        row("step", comparison.predicted_us, comparison.measured_us);
        text += &format!("\n{table}  error {:+.1} %\n", 100.0 * comparison.error);
    }
    let mean = tests.iter().map(|(_, comparison, _)| comparison.error.abs()).sum::<f64>()
        / tests.len().max(1) as f64;
    text + &format!("\nmean absolute error of {} steps: {:.1} %\n", tests.len(), 100.0 * mean)
}
