//! A real model over two ranks, in one command: what each holds and reads, and that one rank
//! gives the same tokens.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{model, shell};

const PROMPT: &str = "Why is the sky blue? Answer in three sentences.";
const TOKENS: &str = "96";
/// Two ranks that share the KV cache by sequence and split the FFN, a thread each.
const TWO_RANKS: [&str; 4] = ["--kvp", "2", "-t", "1"];
const ONE_RANK: [&str; 4] = ["--ranks", "1", "-t", "2"];

/// Fetches the model, builds, decodes over two ranks and over one, and compares.
pub fn run() -> Result<()> {
    let model = model::fetch(&model::SMOLLM2)?;
    eprintln!("building helix");
    let helix = shell::build_helix()?;
    let generate = |layout: &[&str]| {
        let flags = ["--chat", "-p", PROMPT, "-n", TOKENS, "--temp", "0"];
        helix_json(&helix, "run", &model, &[&flags, layout].concat())
    };
    let held = helix_json(&helix, "inspect", &model, &TWO_RANKS)?;
    let two = generate(&TWO_RANKS)?;
    println!("\n> {PROMPT}\n\n{}\n", text(&two, "text")?.trim());
    println!("layout: {}", text(&held, "layout")?);
    show_ranks(&held, &two)?;
    println!("2 ranks, 1 thread each: {:.1} tokens/s", tokens_per_s(&two)?);
    let one = generate(&ONE_RANK)?;
    println!("1 rank, 2 threads:      {:.1} tokens/s", tokens_per_s(&one)?);
    if two["tokens"] != one["tokens"] || two["text"] != one["text"] {
        bail!("one rank gave other tokens: {}", text(&one, "text")?);
    }
    println!("one rank gave the same tokens");
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

fn tokens_per_s(ran: &Value) -> Result<f64> {
    number(ran, "tokens_per_s")
}

fn text<'a>(from: &'a Value, field: &str) -> Result<&'a str> {
    from[field].as_str().with_context(|| format!("helix reports no text `{field}`"))
}

fn number(from: &Value, field: &str) -> Result<f64> {
    from[field].as_f64().with_context(|| format!("helix reports no number `{field}`"))
}
