//! Chores written in Python: each has a virtual environment under `target/`, made on first use.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::{model, shell};

const FIXTURES: &str = "crates/helix-engine/tests/fixtures";

/// Which Python runs a chore.
#[derive(Args)]
pub struct Interpreter {
    /// A Python that has the requirements already; without it a virtual environment is made
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
}

impl Interpreter {
    /// Makes the committed fixtures again.
    pub fn fixtures(&self) -> Result<()> {
        let folder = shell::root().join(FIXTURES);
        let python = self.with(&folder.join("requirements.txt"), "fixtures")?;
        let script = |name: &str| {
            let mut command = Command::new(&python);
            command.arg("-B").arg(folder.join(name));
            command
        };
        shell::run(&mut script("generate.py"))?;
        shell::run(&mut script("generate_hf.py"))?;
        shell::run(script("generate_smollm2.py").arg(model::fetch(&model::SMOLLM2)?))
    }

    /// Measures the release binary beside llama.cpp on the fetched model, in Q4_1 and Q4_0.
    pub fn bench(&self, arguments: &[String]) -> Result<()> {
        let model = model::fetch(&model::SMOLLM2)?;
        let helix = shell::build_helix()?;
        let folder = shell::root().join("bench");
        let python = self.with(&folder.join("requirements.txt"), "bench")?;
        let mut bench = Command::new(python);
        bench.arg("-B").arg(folder.join("vs_llama.py")).arg(model);
        bench.arg("--requantize").arg("--helix").arg(helix).args(arguments);
        shell::run(&mut bench)
    }

    /// A Python that has `requirements`: the one given, or that of an environment of this name.
    fn with(&self, requirements: &Path, name: &str) -> Result<PathBuf> {
        if let Some(python) = &self.python {
            return Ok(python.clone());
        }
        let folder = shell::root().join("target").join(format!("python-{name}"));
        let python = folder.join("bin").join("python");
        if !python.exists() {
            shell::run(Command::new("python3").args(["-m", "venv"]).arg(&folder)).context(
                "cannot make a virtual environment (Debian: apt-get install python3-venv)",
            )?;
        }
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(requirements);
        shell::run(&mut pip)?;
        Ok(python)
    }
}
