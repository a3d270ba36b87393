//! R1 on GB300 NVL72, as TensorRT-LLM has measured it (its blog on Helix, 2026), without refitting.

use helix_layout::Strategy;

use super::{CONSTANTS, Setup, Subject};
use crate::{Exchange, Formats, PlanError};

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Silicon {
    /// Largest tokens/s/user over the best baseline's.
    pub interactivity: f64,
    /// Sequences at once over the best baseline's.
    pub users: f64,
}

/// "Up to", of 10^6 positions.
pub const SILICON: Silicon = Silicon { interactivity: 1.8, users: 32.0 };

/// A way to read what was published.
#[derive(Clone, Debug)]
pub struct Reading {
    /// What it assumes.
    pub name: String,
    /// The machine and settings.
    pub setup: Setup,
    /// The model, and what it is compared with.
    pub subject: Subject,
}

/// The constants and assumptions of the paper's evaluation, on GB300's data sheet.
///
/// # Errors
/// Never: the machine is of the catalogue.
pub fn as_the_paper_runs() -> Result<Reading, PlanError> {
    let name = "as the paper's evaluation: FP4 latents, all-reduces hidden, HOP-B".to_owned();
    Ok(Reading { name, setup: Setup::new("gb300-nvl72")?, subject: Subject::R1 })
}

/// The same constants with what is known of the engine that was measured: it has no HOP-B, which its
/// blog lists as future work, and hides no all-reduce; and its latents are in FP8.
///
/// # Errors
/// Never: the machine is of the catalogue.
pub fn as_the_engine_runs() -> Result<Reading, PlanError> {
    let paper = as_the_paper_runs()?;
    let name = "as the engine: FP8 latents, nothing hidden, no HOP-B".to_owned();
    Ok(Reading { name, setup: exposed(latents(paper.setup, "fp8")), ..paper })
}

fn latents(setup: Setup, format: &str) -> Setup {
    let kv = format.parse().expect("a format that is known");
    Setup { formats: Formats { kv, ..setup.formats }, ..setup }
}

/// Nothing hidden, and no HOP-B.
fn exposed(mut setup: Setup) -> Setup {
    setup.settings.unhidden = Exchange::Whole;
    setup.settings.exposed_reduce = 1.0;
    Setup { hopb: false, ..setup }
}

/// Both, what lies between them, and the engine's with one more assumption changed.
///
/// # Errors
/// Never: the machine is of the catalogue, and constants are within their bounds.
pub fn readings() -> Result<Vec<Reading>, PlanError> {
    let (paper, engine) = (as_the_paper_runs()?, as_the_engine_runs()?);
    let read = |name: &str, from: &Reading, setup: Setup| Reading {
        name: name.to_owned(),
        setup,
        subject: from.subject,
    };
    let mut all = vec![
        paper.clone(),
        read("the paper's, FP8 latents", &paper, latents(paper.setup.clone(), "fp8")),
        read("the paper's, BF16 latents", &paper, latents(paper.setup.clone(), "bf16")),
        read("the paper's, nothing hidden, no HOP-B", &paper, exposed(paper.setup.clone())),
        read("the paper's, FP4 at GB200's rate", &paper, {
            let mut setup = paper.setup.clone();
            setup.edit(|profile| {
                let peak = profile.arithmetic.get_mut("fp4").expect("Blackwell has FP4");
                *peak = 10_000.0.into();
            })?;
            setup
        }),
        engine.clone(),
        read("the engine's, BF16 latents", &engine, latents(engine.setup.clone(), "bf16")),
    ];
    let context = |positions| {
        let mut setup = engine.setup.clone();
        setup.settings.context = positions;
        read(&format!("the engine's, {positions} positions"), &engine, setup)
    };
    all.extend([context(500_000), context(2_000_000)]);
    let tp = Subject { baselines: &[Strategy::Tp], ..engine.subject };
    let name = "the engine's, against TP and PP alone".to_owned();
    all.push(Reading { name, subject: tp, ..engine.clone() });
    for constant in CONSTANTS.iter().filter(|constant| constant.name != EXPOSED) {
        for end in [constant.from, constant.to] {
            let name = format!("the engine's, {} = {end}", constant.name);
            all.push(read(&name, &engine, engine.setup.with(constant, end)?));
        }
    }
    Ok(all)
}

/// The constant that the engine settles.
const EXPOSED: &str = "part of all-reduces that is exposed";
