//! `helix logits`: a file with the logits of every position.

use crate::args::{Expected, LogitsArgs};
use crate::console::{Console, Unit};
use crate::failure::{Failure, Outcome};
use crate::processes::Ranks;
use crate::whole_file::WholeFile;
use crate::{figures, output, setup};
use helix_engine::{Engine, EngineOptions};
use helix_scheduler::{Step, Wanted};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::json;
use std::collections::HashMap;
use std::io::Write;

/// Tokens of a step: their rows of logits must fit in memory at once.
const STEP_TOKENS: usize = 128;

/// Runs the command.
pub fn run(mut args: LogitsArgs, ranks: &Ranks) -> Outcome {
    let console = Console::new(args.output.quiet);
    let target = WholeFile::new("--out", &args.out)?;
    let model = setup::open(ranks, &args.model, &args.engine, &console)?;
    let tokens = &args.tokens;
    model.check_tokens(tokens)?;
    let expected = Expected::one(tokens.len());
    let layout = args.layout.resolve(ranks, &model, &mut args.engine, expected, &console)?;
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
        ("kv_type".to_owned(), args.engine.kv_type().to_string()),
        ("weights".to_owned(), args.engine.weights.name().to_owned()),
    ]);
    let shape = [tokens.len(), engine.vocab()];
    target.write(|out| write(out, metadata, &shape, &bytes))?;
    let out = target.path().display();
    if args.output.json {
        let document = json!({ "out": out.to_string(), "layout": layout.name(), "shape": shape });
        return output::json(&document);
    }
    let size = figures::bytes(bytes.len() as u64);
    console.note(&format!("{out}: logits {shape:?}, {size}, {layout}"));
    Ok(())
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

/// A safetensors file of one tensor. The crate writes to places of its own choice, or to memory,
/// which then holds all logits twice.
fn write(
    out: &mut dyn Write,
    metadata: HashMap<String, String>,
    shape: &[usize],
    bytes: &[u8],
) -> Result<(), SafeTensorError> {
    let data_offsets = (0, bytes.len());
    let tensor = TensorInfo { dtype: Dtype::F32, shape: shape.to_vec(), data_offsets };
    let header = Metadata::new(Some(metadata), vec![("logits".to_owned(), tensor)])?;
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(size_of::<u64>()), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    Ok(out.write_all(bytes)?)
}
