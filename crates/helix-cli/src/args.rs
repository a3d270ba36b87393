//! The command line: one struct per command, and the groups of flags that they share.

mod engine;
mod layout;
pub mod plan;
mod probe;
mod sampling;
mod serve;
mod timing;
mod transport;

pub use engine::{EngineArgs, MlaUpArg};
pub use layout::{Expected, LayoutArgs};
pub use plan::PlanArgs;
pub use probe::ProbeArgs;
pub use sampling::SamplingArgs;
pub use serve::ServeArgs;
pub use timing::{LinkArgs, TraceArgs};
#[cfg(feature = "mpi")]
pub use transport::CommThreadArg;
pub use transport::{Transport, TransportArgs};

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use std::path::{Path, PathBuf};

/// Decodes large language models over long contexts, exactly, with the KV cache sharded over the
/// sequence and the FFN over the same ranks.
#[derive(Debug, Parser)]
#[command(name = "helix", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  helix run model.gguf -p 'Once upon a time'          continue a text
  helix run model.gguf -i                             chat in the terminal
  helix run model.gguf --chat -p 'Why is the sky blue?' --ranks 2
  helix serve model.gguf --port 8080                  OpenAI's API for programs
  helix bench model.gguf -d 0,8192,32768              speed at three depths of context
  helix inspect model.gguf --kvp 4 --tpa 2            what each of 8 ranks would hold
  helix bench DIR --kvp 4 --tpf 2 --ep 2              experts on a grid of columns and groups
  helix verify model.gguf --ranks 4                   every layout against one rank
  helix plan --model llama-3.1-405b --hardware gb200-nvl72 --context 1000000

MODEL is a .gguf file (of a split one, the first part); a Hugging Face directory: config.json,
safetensors, tokenizer.json; hf:ORG/NAME, which downloads one from the Hub into Hugging Face's usual
cache, at a branch, tag or commit with @REV; or the name of a model that `cargo x model NAME` has
fetched into the user's cache directory.

Exit status: 0 done; 1 it failed while running; 2 the request was wrong (flags, files, layout).";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate text: continue a prompt, or chat.
    #[command(long_about = RUN_ABOUT)]
    Run(RunArgs),
    /// Serve the model over HTTP, in the form of OpenAI's API
    Serve(ServeArgs),
    /// Write the logits of every position of a sequence of tokens to a file.
    Logits(LogitsArgs),
    /// Measure how well the model predicts a text, by llama.cpp's definition.
    Perplexity(PerplexityArgs),
    /// Measure speed, as llama-bench does: prompts (pp) and decoding (tg) at depths of context.
    Bench(BenchArgs),
    /// Show what the model is and what each rank of a layout holds and reads, without loading it.
    Inspect(InspectArgs),
    /// Compare every legal layout of up to N ranks with one rank: logits and greedy tokens.
    Verify(VerifyArgs),
    /// Find the best layouts of a model on a machine that you need not have, and say why.
    Plan(Box<PlanArgs>),
    /// Measure this machine for the planner: bandwidth, products, attention, collectives.
    Probe(ProbeArgs),
}

impl Command {
    /// What is common to all commands that run a model: the model, and how it is run.
    pub fn engine(&self) -> Option<(&Path, &EngineArgs)> {
        Some(match self {
            Command::Run(args) => (&args.model, &args.engine),
            Command::Serve(args) => (&args.model, &args.engine),
            Command::Logits(args) => (&args.model, &args.engine),
            Command::Perplexity(args) => (&args.model, &args.engine),
            Command::Bench(args) => (&args.model, &args.engine),
            Command::Inspect(args) => (&args.model, &args.engine),
            Command::Verify(args) => (&args.model, &args.engine),
            Command::Plan(_) | Command::Probe(_) => return None,
        })
    }

    /// What ranks are, and the threads of each, of commands that have any.
    pub fn transport(&self) -> Option<(&TransportArgs, Option<usize>)> {
        match self {
            Command::Probe(args) => Some((&args.transport, args.cores)),
            _ => self.engine().map(|(_, engine)| (&engine.transport, engine.threads)),
        }
    }

    fn layout(&self) -> Option<&LayoutArgs> {
        match self {
            Command::Run(args) => Some(&args.layout),
            Command::Serve(args) => Some(&args.layout),
            Command::Logits(args) => Some(&args.layout),
            Command::Perplexity(args) => Some(&args.layout),
            Command::Bench(args) => Some(&args.layout),
            Command::Inspect(args) => Some(&args.layout),
            Command::Verify(_) | Command::Plan(_) | Command::Probe(_) => None,
        }
    }

    /// The flags that ranks that are processes must agree in: all but threads, of which hosts may
    /// have as many as they have cores for.
    pub fn terms(&self) -> String {
        let engine = self.engine().map(|(_, engine)| engine.with_threads(None));
        format!("{:?}, {engine:?}", self.layout())
    }
}

const RUN_ABOUT: &str = "\
Generate text: continue a prompt, or chat.

A prompt given by -p, -f or standard input is continued as it stands; with --chat it becomes a \
user's message in the model's own chat template, and the answer is printed. -i chats in the \
terminal (or with lines from standard input), with the template and the history kept in the KV \
cache.

The text goes to standard output as it is made; a summary of speed and of what each rank held and \
read follows on standard error. Ctrl-C stops generating; a second one ends the program (status \
130).";

/// What is printed where.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Print one JSON document on standard output, and nothing else there
    #[arg(long)]
    pub json: bool,
    /// Say nothing on standard error but errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// `helix run`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    helix run model.gguf -p 'The three laws of robotics:' -n 200\n  \
    helix run model.gguf --chat -p 'Write a haiku about rain' --temp 0.8 --seed 7\n  \
    helix run model.gguf -f book.txt -c 32768 --ranks 2 --kv-type q8_0\n  \
    git log -5 | helix run model.gguf --json | jq .text")]
pub struct RunArgs {
    /// A .gguf file, a Hugging Face directory, hf:ORG/NAME@REV, or the name of a fetched model
    pub model: PathBuf,
    /// The prompt
    #[arg(short, long, value_name = "TEXT", group = "source", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// A file with the prompt; - is standard input, which is also read when no prompt is given
    #[arg(short, long, value_name = "FILE", group = "source")]
    pub file: Option<PathBuf>,
    /// Chat: read messages line by line and answer each
    #[arg(short, long, group = "source", conflicts_with = "json")]
    pub interactive: bool,
    /// Answer the prompt as a user's message, in the model's chat template
    #[arg(long)]
    pub chat: bool,
    /// A system message for --chat and -i
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Tokens to generate at most
    #[arg(short = 'n', long, value_name = "N", default_value = "128", value_parser = at_least(1))]
    pub tokens: usize,
    /// Positions that the KV cache has room for; a longer prompt is refused, and a text that
    /// reaches it ends [default: what the prompt and -n need, for -i 8192, and at most what the
    /// model was trained for]
    #[arg(short, long, value_name = "N", value_parser = at_least(1))]
    pub context: Option<usize>,
    /// Go on past the tokens that end a text
    #[arg(long)]
    pub ignore_eos: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub trace: TraceArgs,
    #[command(flatten)]
    pub layout: LayoutArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `helix logits`.
#[derive(Args, Debug)]
#[command(after_help = "The file has one tensor, f32 `logits` [tokens, vocabulary], and the \
    layout, model, precision and KV type as metadata. It is complete or not there: it gets its \
    name when all of it is written.\n\nExample:\n  \
    helix logits model.gguf --tokens 1,2,3 --out logits.safetensors --kvp 2 --precise")]
pub struct LogitsArgs {
    /// A .gguf file, a Hugging Face directory, hf:ORG/NAME@REV, or the name of a fetched model
    pub model: PathBuf,
    /// The tokens' ids
    #[arg(long, value_name = "1,2,3", value_delimiter = ',', required = true)]
    pub tokens: Vec<u32>,
    /// The file to write
    #[arg(long, value_name = "FILE.safetensors")]
    pub out: PathBuf,
    #[command(flatten)]
    pub layout: LayoutArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `helix perplexity`.
#[derive(Args, Debug)]
#[command(after_help = "The definition is llama.cpp's, so that figures compare: the text is cut \
    into chunks of CONTEXT tokens, what is left over is dropped, and only the second half of each \
    chunk is scored: the predictions of positions CONTEXT/2 + 1 to CONTEXT - 1 from all before \
    them. Where the model's tokenizer starts texts with a BOS token, BOS takes the place of each \
    chunk's first token. Perplexity is the exponential of the mean negative log-likelihood.\n\n\
    Example:\n  helix perplexity model.gguf -f wiki.test.raw -c 512")]
pub struct PerplexityArgs {
    /// A .gguf file, a Hugging Face directory, hf:ORG/NAME@REV, or the name of a fetched model
    pub model: PathBuf,
    /// The text
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Tokens of a chunk
    #[arg(short, long, value_name = "N", default_value = "512", value_parser = at_least(4))]
    pub context: usize,
    /// Stop after so many chunks
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub chunks: Option<usize>,
    #[command(flatten)]
    pub layout: LayoutArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `helix bench`.
#[derive(Args, Debug)]
#[command(after_help = "Tests: ppP runs a prompt of P tokens after DEPTH others; tgN decodes N \
    tokens after DEPTH others, of BATCH sequences at a time. The cache before DEPTH is filled with \
    seeded noise, which costs as much to read as a real text's; depths past the context that the \
    model was trained for are fine, as speed does not depend on what the tokens say. Each test \
    runs once to warm up and is then repeated; the median, least and greatest speed are \
    printed.\n\n\
    Bytes per token are the weights and KV that the ranks' counters say were read. Read bandwidth \
    is measured in turns with the repetitions, by as many threads, and GB/s of a test are given \
    as a share of it. The attention row is the partial attention of tg alone: KV bytes over the \
    time of that line.\n\n\
    Of several ranks, exposed is the time of a step that a rank stood still for messages, hidden \
    the time that messages were in flight while it did something else: means over ranks.\n\n\
    Example:\n  helix bench model.gguf -p 512 -n 64 -d 0,8192,32768 --kvp 2 --lines")]
pub struct BenchArgs {
    /// A .gguf file, a Hugging Face directory, hf:ORG/NAME@REV, or the name of a fetched model
    pub model: PathBuf,
    /// Tokens of a prompt; 0 for no pp test
    #[arg(short, long, value_name = "N,..", default_value = "512", value_delimiter = ',')]
    pub prompt: Vec<usize>,
    /// Tokens to decode; 0 for no tg test
    #[arg(short = 'n', long, value_name = "N,..", default_value = "64", value_delimiter = ',')]
    pub tokens: Vec<usize>,
    /// Positions before those that are timed
    #[arg(short, long, value_name = "N,..", default_value = "0,4096", value_delimiter = ',')]
    pub depth: Vec<usize>,
    /// Sequences that decode in one step
    #[arg(short, long, value_name = "N,..", default_value = "1", value_delimiter = ',')]
    pub batch: Vec<usize>,
    /// Repetitions of each test
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = at_least(1))]
    pub repetitions: usize,
    /// Break the time of decoding down by line of the layer
    #[arg(long)]
    pub lines: bool,
    /// Compare decoding with the planner's prediction for a machine, such as helix probe's file of
    /// this one
    #[arg(long, value_name = "FILE.toml|NAME")]
    pub compare_plan: Option<PathBuf>,
    #[command(flatten)]
    pub trace: TraceArgs,
    #[command(flatten)]
    pub link: LinkArgs,
    #[command(flatten)]
    pub layout: LayoutArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `helix inspect`.
#[derive(Args, Debug)]
#[command(after_help = "Nothing is loaded: sizes come from the file's header and the layout. \
    Weight bytes are those on disk.\n\n\
    Example:\n  helix inspect model.gguf --strategy tp --ranks 8 -c 131072")]
pub struct InspectArgs {
    /// A .gguf file, a Hugging Face directory, hf:ORG/NAME@REV, or the name of a fetched model
    pub model: PathBuf,
    /// Tokens of the sequence that reads are given for [default: 0, 4096 and the model's context]
    #[arg(short, long, value_name = "N,..", value_delimiter = ',')]
    pub context: Vec<usize>,
    #[command(flatten)]
    pub layout: LayoutArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `helix verify`.
#[derive(Args, Debug)]
#[command(after_help = VERIFY_HELP)]
pub struct VerifyArgs {
    /// A .gguf file, a Hugging Face directory, hf:ORG/NAME@REV, or the name of a fetched model
    pub model: PathBuf,
    /// Ranks of the largest layouts
    #[arg(long, value_name = "N", default_value = "4", value_parser = between(1, 64))]
    pub ranks: usize,
    /// Which layouts: all, or a list such as 'helix kvp=2 tpa=1, tp tpa=3'
    #[arg(long, value_name = "all|LIST", default_value = "all")]
    pub layouts: String,
    /// A prompt instead of the built-in ones
    #[arg(short, long, value_name = "TEXT", group = "source", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// A file with a prompt instead of the built-in ones
    #[arg(short, long, value_name = "FILE", group = "source")]
    pub file: Option<PathBuf>,
    /// Tokens to decode after each prompt
    #[arg(short = 'n', long, value_name = "N", default_value = "48", value_parser = at_least(1))]
    pub tokens: usize,
    /// Largest logit difference that passes [default: see below]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub tolerance: Option<f32>,
    /// Compare the default path, which quantises activations, instead of the precise one
    #[arg(long, conflicts_with = "precise")]
    pub fast: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

const VERIFY_HELP: &str = "\
Layouts: all strategies, KV blocks of 1, 16 and 32, both QKV modes; where the sequence has one \
shard, blocks and modes make no difference and one of each is run. -t is 1 here unless given.

Every layout runs the same prompts as sequences of one batch, then decodes. Each decoded position \
gets the token that one rank chose, so that all of them compare even after a disagreement. \
Compared are all logits of the decoded positions and of the last 64 of each prompt.

Verdicts: OK, all tokens equal and all logits within the tolerance. TIE, logits within it, and \
tokens differ only where one rank's own two candidates are no further apart than the tolerance. \
FAIL, anything else; the exit status is then 1.

Layouts add numbers up in different orders, which changes their last bits. With f32 activations \
and KV, as verify runs unless told otherwise, that is all: logits of a 30-layer model differ by \
less than 1e-4, and the tolerance is 1e-3. Where numbers are rounded on the way, a last bit \
decides now and then which way, and later layers see a whole step of the rounding. So the \
tolerance is 0.05 with --kv-type f16, 0.3 with bf16 and 1 with q8_0 (measured: 0.014, 0.08 and \
0.33), and with --fast, which rounds activations to 8 bits in every product, it is 5 (measured: 1.9): as far as \
that rounding itself moves logits.

Examples:
  helix verify model.gguf --ranks 4
  helix verify model.gguf --layouts 'helix kvp=2 tpa=2 block=1, tp tpa=8' --kv-type f16";

/// Parses a count from `least` to `most`.
fn between(least: u64, most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=most)
}

/// Parses a count of at least `least`.
fn at_least(least: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
