//! `--compare-plan`: what the planner predicts, beside what was measured.

use crate::failure::{Failure, Outcome};
use crate::figures::rounded;
use crate::output::Table;
use crate::{hardware, planning};
use helix_engine::Engine;
use helix_kernels::kv::KvType;
use helix_plan::{Line, Machine, Model};
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
    pub fn new(hardware: &Path, model: &helix_model::Model, kv_type: KvType) -> Outcome<Planner> {
        let machine = hardware::named(hardware)?;
        Ok(Planner { machine, model: planning::model(model, kv_type)? })
    }

    /// A step that decodes one token of each of `batch` sequences of `context` positions, on the
    /// engine's layout, against `measured_us`.
    pub fn compare(
        &self,
        engine: &Engine,
        (batch, context): (usize, usize),
        measured_us: f64,
    ) -> Outcome<Comparison> {
        let decode = planning::decode(engine.options(), (batch, context));
        let time = decode.time(&self.model, &self.machine, engine.layout());
        let time = time.map_err(Failure::request)?;
        let predicted_us = time.lines.iter().sum::<f64>() * 1e6;
        let line = |line: Line| (line.name().to_owned(), json!(rounded(time.of(line) * 1e6, 2)));
        Ok(Comparison {
            predicted_us: rounded(predicted_us, 1),
            measured_us: rounded(measured_us, 1),
            error: rounded(predicted_us / measured_us - 1.0, 4),
            lines_us: Line::ALL.into_iter().map(line).collect(),
        })
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
