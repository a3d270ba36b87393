//! `helix logits`: a file with the logits of every position.

use crate::args::LogitsArgs;
use crate::console::{Console, Unit};
use crate::failure::{Failure, Outcome};
use crate::processes::Ranks;
use crate::{figures, output, setup};
use helix_engine::{Engine, EngineOptions};
use helix_model::Model;
use helix_scheduler::{Step, Wanted};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Tokens of a step: their rows of logits must fit in memory at once.
const STEP_TOKENS: usize = 128;

/// Runs the command.
pub fn run(args: LogitsArgs, ranks: &Ranks) -> Outcome {
    let console = Console::new(args.output.quiet);
    let target = Target::new(&args.out)?;
    let model = setup::open(ranks, &args.model, &args.engine, &console)?;
    let tokens = &args.tokens;
    check_tokens(tokens, &model)?;
    let kv_type = args.engine.kv_type();
    let layout = args.layout.resolve(ranks, &model, kv_type, tokens.len(), &console)?;
    let step = tokens.len().min(STEP_TOKENS);
    let options = EngineOptions {
        max_context: tokens.len(),
        max_step_tokens: step,
        max_logits: step,
        ..setup::options(ranks, &args.engine, &layout, &console)?
    };
    let mut engine = setup::start(ranks, &model, layout, options, &console)?;
    let bytes = logits(&mut engine, tokens, &console)?;
    let metadata = HashMap::from([
        ("layout".to_owned(), layout.name()),
        ("model".to_owned(), model.config.name.clone()),
        ("precision".to_owned(), format!("{:?}", options.precision).to_lowercase()),
        ("kv_type".to_owned(), kv_type.to_string()),
        ("weights".to_owned(), args.engine.weights.name().to_owned()),
    ]);
    let shape = [tokens.len(), engine.vocab()];
    target.write(&bytes, &shape, metadata)?;
    let out = target.path.display();
    if args.output.json {
        let document = json!({ "out": out.to_string(), "layout": layout.name(), "shape": shape });
        return output::json(&document);
    }
    let size = figures::bytes(bytes.len() as u64);
    console.note(&format!("{out}: logits {shape:?}, {size}, {layout}"));
    Ok(())
}

fn check_tokens(tokens: &[u32], model: &Model) -> Outcome {
    let vocab = model.config.vocab;
    match tokens.iter().find(|&&token| token as usize >= vocab) {
        Some(token) => Err(Failure::request(format!(
            "token {token} is not one of the model's {vocab}: ids go from 0 to {}",
            vocab - 1
        ))),
        None => Ok(()),
    }
}

/// The logits of every position as little-endian bytes, `[tokens, vocab]`.
fn logits(engine: &mut Engine, tokens: &[u32], console: &Console) -> Outcome<Vec<u8>> {
    let size = tokens.len().saturating_mul(engine.vocab()).saturating_mul(size_of::<f32>());
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(size).map_err(|_| {
        let size = figures::bytes(size as u64);
        Failure::request(format!("no memory for {size} of logits: give fewer tokens"))
    })?;
    let bar = console.bar("logits", tokens.len() as u64, Unit::Count("tokens"));
    let mut step = Step::default();
    let mut start = 0;
    for piece in tokens.chunks(engine.options().max_step_tokens) {
        step.clear();
        step.push(0, start, piece, Wanted::All);
        let logits = engine.step(&step)?;
        bytes.extend(logits.iter().flat_map(|logit| logit.to_le_bytes()));
        start += piece.len();
        bar.add(piece.len() as u64);
    }
    Ok(bytes)
}

/// A file that appears when it is complete.
struct Target {
    path: PathBuf,
    /// Where it is written: beside its place, so that the last step is a rename.
    partial: PathBuf,
}

impl Target {
    /// Refuses what can be known to fail before a model is loaded.
    fn new(path: &Path) -> Outcome<Target> {
        let wrong = |what: &str| Err(Failure::request(format!("--out {}: {what}", path.display())));
        let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
            return wrong("it is a directory; name a file");
        };
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        if !directory.is_dir() {
            return wrong(&format!("there is no directory {}", directory.display()));
        }
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}", std::process::id()));
        Ok(Target { path: path.to_owned(), partial: directory.join(partial) })
    }

    fn write(&self, bytes: &[u8], shape: &[usize], metadata: HashMap<String, String>) -> Outcome {
        let failed = |what: &dyn std::fmt::Display| {
            let _ = fs::remove_file(&self.partial);
            Failure::running(format!("cannot write {}: {what}", self.path.display()))
        };
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).map_err(|e| failed(&e))?;
        serialize_to_file([("logits", view)], Some(metadata), &self.partial)
            .map_err(|error| failed(&error))?;
        let synced = fs::File::open(&self.partial).and_then(|file| file.sync_all());
        synced.and_then(|()| fs::rename(&self.partial, &self.path)).map_err(|error| failed(&error))
    }
}
