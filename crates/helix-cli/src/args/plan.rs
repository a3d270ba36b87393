//! `helix plan`.

use super::{MlaUpArg, OutputArgs, at_least};
use clap::{Args, ValueEnum};
use helix_layout::{DEFAULT_KV_BLOCK, QkvMode, Strategy};
use helix_plan::Format;
use std::path::PathBuf;

/// `helix plan`.
#[derive(Args, Debug)]
#[command(after_help = help())]
pub struct PlanArgs {
    /// A preset, a config.json, a Hugging Face directory, or a .gguf file
    #[arg(long, value_name = "NAME|CONFIG")]
    pub model: PathBuf,
    /// A preset, or a TOML file such as `helix probe` writes
    #[arg(long, value_name = "NAME|FILE")]
    pub hardware: PathBuf,
    /// Positions of every sequence
    #[arg(short, long, value_name = "N", value_parser = at_least(1))]
    pub context: usize,
    /// Numbers of ranks: 64, 8,16,32 or 1..64
    #[arg(long, value_name = "N,..|A..B", default_value = "1..64")]
    pub ranks: Ranks,
    /// Strategies: helix, tp, medha, dp-ep [default: all]
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    pub strategy: Vec<Strategy>,
    /// Sequences, these alone [default: from 1 to as many as fit]
    #[arg(short, long, value_name = "N,..", value_delimiter = ',', value_parser = at_least(1))]
    pub batch: Vec<usize>,
    /// Milliseconds that a token may take at most
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    pub ttl: Option<f64>,
    /// Format of the weights: fp4, nvfp4, mxfp4, fp8, bf16, q8_0, q4_k, … [default: what a file
    /// with weights holds, or else fp4]
    #[arg(long, value_name = "FORMAT")]
    pub weights: Option<Format>,
    /// Format of keys and values [default: fp4, the paper's, on machines that compute in it, or
    /// else f16, the engine's]
    #[arg(long, value_name = "FORMAT")]
    pub kv: Option<Format>,
    /// Threads of a rank, on machines whose profile names cores [default: the node's cores, divided
    /// by its ranks]
    #[arg(short, long, value_name = "N", value_parser = at_least(1))]
    pub threads: Option<usize>,
    /// How much likelier than the mean the experts of the busiest group are
    #[arg(long, value_name = "X", default_value = "1", allow_negative_numbers = true)]
    pub skew: f64,
    /// How much of the output projection a rank reads: a 1/N, as the paper's text has it, or a
    /// 1/TPA, as its appendix counts
    #[arg(long, value_name = "MODE", default_value = "corrected")]
    pub formulas: FormulasArg,
    #[command(flatten)]
    pub degrees: DegreeArgs,
    /// Say for each doubling of the context with how many users Helix starts and stops winning
    /// over the other strategies, and for each number of users (doublings, or those of --batch) at
    /// which context, on the most ranks. Fixed degrees are Helix's: the others are at their best
    #[arg(long)]
    pub crossovers: bool,
    /// Write the fronts as comma-separated values
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Write one page for a browser, which needs no network: the fronts of the strategies, and
    /// what is behind each point
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Draw the fronts of the strategies, as the ending of the name says
    #[arg(long, value_name = "FILE.svg|FILE.png")]
    pub plot: Option<PathBuf>,
    /// Print how an engine is told to run the first answer's layout, and nothing else; what it
    /// can't express is refused with the reason
    #[arg(long, value_name = "ENGINE", conflicts_with = "json")]
    pub emit: Option<EngineArg>,
    /// Points of the front to print at most
    #[arg(long, value_name = "N", default_value = "16", value_parser = at_least(2))]
    pub points: usize,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What the search leaves as it is.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Fix instead of search")]
pub struct DegreeArgs {
    /// Shards of the KV sequence
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub kvp: Option<usize>,
    /// Slices of the attention heads
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub tpa: Option<usize>,
    /// Attention groups with sequences of their own
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub dp: Option<usize>,
    /// Slices of the FFN's or of each expert's columns
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub tpf: Option<usize>,
    /// Groups of experts
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub ep: Option<usize>,
    /// Pipeline stages
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub pp: Option<usize>,
    /// Consecutive positions that one KVP rank stores before the next one's turn
    #[arg(long, value_name = "N", default_value_t = DEFAULT_KV_BLOCK)]
    pub kv_block: usize,
    /// replicate or gather
    #[arg(long, value_name = "MODE")]
    pub qkv: Option<QkvMode>,
    /// Whether a request's all-to-all runs while the next one's attention does
    #[arg(long, value_name = "on|off")]
    pub hopb: Option<Switch>,
    /// Where latent attention (MLA) turns latents to values: before the all-to-all or after it;
    /// auto tries both [default: auto]
    #[arg(long, value_name = "WHEN")]
    pub mla_up: Option<MlaUpArg>,
}

/// Which of the paper's formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormulasArg {
    /// The text's, and the engine's
    Corrected,
    /// Appendix A's
    PaperAppendix,
}

/// Who is to run a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineArg {
    /// A command
    Helix,
    /// A command
    Vllm,
    /// A command
    Sglang,
    /// The configuration that trtllm-serve takes
    Trtllm,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Switch {
    On,
    Off,
}

/// Numbers of ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranks(pub Vec<usize>);

impl std::str::FromStr for Ranks {
    type Err = String;

    fn from_str(text: &str) -> Result<Ranks, String> {
        let most = helix_layout::MAX_RANKS;
        let number = |text: &str| match text.trim().parse() {
            Ok(number) if (1..=most).contains(&number) => Ok(number),
            _ => Err(format!("{text:?} is no number of ranks: give 1 to {most}")),
        };
        let mut all = Vec::new();
        for part in text.split(',') {
            match part.split_once("..") {
                None => all.push(number(part)?),
                Some((from, to)) => {
                    let (from, to) = (number(from)?, number(to.trim_start_matches('='))?);
                    if from > to {
                        return Err(format!("{part:?} is empty: its first number is larger"));
                    }
                    all.extend(from..=to);
                }
            }
        }
        all.sort_unstable();
        all.dedup();
        Ok(Ranks(all))
    }
}

/// The help, with the names of what comes with the planner.
fn help() -> String {
    let list = |names: &mut dyn Iterator<Item = &'static str>| names.collect::<Vec<_>>().join(", ");
    format!(
        "{PLAN_HELP}\n\nModels: {}.\n\nMachines: {}.",
        list(&mut helix_plan::Model::names()),
        list(&mut helix_plan::machine::names())
    )
}

const PLAN_HELP: &str = "\
Nothing is run or loaded: costs are formulas of the model's sizes and the machine's numbers, one \
for each line of a layer. Every kvp x tpa x tpf x ep x pp x dp that fits is tried, with HOP-B and \
without, at every batch up to 20, from there in steps of a tenth, and at the largest that fits and \
is within --ttl: answers are those of all batches, the front in between has its steps. Printed are \
the configurations that no other beats in both tokens per second of a user and tokens per second \
and rank; then the usual questions, and where the time of the first answer goes. --emit says how \
an engine is told to run it.

With --ttl the questions are for a budget, with --batch for so many users, and no other batch is \
tried. With --kvp, --tpa and the like only such layouts are; what is illegal or does not fit is \
refused with the reason.

Examples:
  helix plan --model llama-3.1-405b --hardware gb200-nvl72 --context 1000000
  helix plan --model deepseek-r1 --hardware hgx-h200 --context 131072 --ranks 8..64 --ttl 30 --weights fp8 --kv bf16
  helix plan --model model.gguf --hardware machine.toml --context 32768 --ranks 1..4 --json
  helix plan --model deepseek-r1 --hardware hgx-b200 --context 131072 --ranks 8 --kv fp8 --hopb off --emit vllm
  helix plan --model deepseek-r1 --hardware gb200-nvl72 --context 1000000 --html plan.html";

#[cfg(test)]
mod tests {
    use super::Ranks;

    #[test]
    fn ranks_are_numbers_lists_and_ranges() {
        let ranks = |text: &str| text.parse::<Ranks>();
        assert_eq!(ranks("8").unwrap().0, [8]);
        assert_eq!(ranks("8,2,2").unwrap().0, [2, 8]);
        assert_eq!(ranks("1..3,6..=7").unwrap().0, [1, 2, 3, 6, 7]);
        for wrong in ["0", "", "4..2", "1..", "1025", "x", "-1", "99999999999999999999999"] {
            assert!(ranks(wrong).is_err(), "{wrong}");
        }
    }
}
