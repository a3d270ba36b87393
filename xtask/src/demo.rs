//! A real model over two ranks, in one command: what each holds and reads, and that one rank
//! gives the same tokens.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{model, shell};

const PROMPT: &str = "Why is the sky blue? Answer in three sentences.";
const TOKENS: &str = "128";
/// Two ranks that share the KV cache by sequence and split the FFN, a thread each.
const TWO_RANKS: [&str; 4] = ["--kvp", "2", "-t", "1"];
const ONE_RANK: [&str; 4] = ["--ranks", "1", "-t", "2"];

/// Fetches the model, builds, decodes over two ranks and over one, and compares.
pub fn run() -> Result<()> {
    let model = model::fetch(&model::SMOLLM2)?;
    eprintln!("building helix");
    let helix = shell::build_helix()?;
    let generate = |layout: &[&str], more: &[&str]| {
        let flags = ["--chat", "-p", PROMPT, "-n", TOKENS, "--temp", "0"];
        helix_json(&helix, "run", &model, &[&flags, layout, more].concat())
    };
    // Tokens are compared with f32 activations and KV: 8-bit ones round, and a sum in another
    // order may round to another side.
    let (two, one) = (generate(&TWO_RANKS, &["--precise"])?, generate(&ONE_RANK, &["--precise"])?);
    println!("\n> {PROMPT}\n\n{}\n", text(&two, "text")?.trim());
    if two["tokens"] != one["tokens"] {
        bail!("one rank gave other tokens: {}", text(&one, "text")?);
    }
    let count = two["tokens"].as_array().map_or(0, Vec::len);
    println!("One rank gives the same {count} tokens (both with --precise: f32 throughout).\n");
    let held = helix_json(&helix, "inspect", &model, &TWO_RANKS)?;
    let two = generate(&TWO_RANKS, &["--ignore-eos"])?;
    let one = generate(&ONE_RANK, &["--ignore-eos"])?;
    println!("{}", text(&held, "layout")?);
    show_ranks(&held, &two)?;
    println!("\n2 ranks of 1 thread: {:>6.1} tokens/s", number(&two, "tokens_per_s")?);
    println!("1 rank of 2 threads: {:>6.1} tokens/s", number(&one, "tokens_per_s")?);
    Ok(())
}

/// What a `helix` subcommand reports with `--json`; its progress bars go to standard error.
fn helix_json(helix: &Path, what: &str, model: &Path, flags: &[&str]) -> Result<Value> {
    let mut command = Command::new(helix);
    command.arg(what).arg(model).args(flags).arg("--json").stdin(Stdio::null());
    let report = shell::read(&mut command)?;
    serde_json::from_str(&report).with_context(|| format!("helix {what} printed no JSON"))
}

fn show_ranks(held: &Value, ran: &Value) -> Result<()> {
    println!("rank  query heads  KV heads  weights held  KV held  read per token");
    let read = ran["ranks"].as_array().context("helix run reports no ranks")?;
    let ranks = held["ranks"].as_array().context("helix inspect reports no ranks")?;
    for (rank, read) in ranks.iter().zip(read) {
        println!(
            "{:>4}  {:>11}  {:>8}  {:>9.1} MB  {:>4.0} kB  {:>11.1} MB",
            number(rank, "rank")?,
            number(rank, "q_heads")?,
            number(rank, "kv_heads")?,
            number(rank, "weight_bytes")? / 1e6,
            number(read, "kv_bytes_held")? / 1e3,
            number(read, "read_bytes_per_token")? / 1e6,
        );
    }
    Ok(())
}

fn text<'a>(from: &'a Value, field: &str) -> Result<&'a str> {
    from[field].as_str().with_context(|| format!("helix reports no text `{field}`"))
}

fn number(from: &Value, field: &str) -> Result<f64> {
    from[field].as_f64().with_context(|| format!("helix reports no number `{field}`"))
}
