//! `helix serve`.

use super::{EngineArgs, LayoutArgs, at_least, between};
use clap::Args;
use std::path::PathBuf;

/// `helix serve`.
#[derive(Args, Debug)]
#[command(after_help = "Endpoints: POST /v1/chat/completions and /v1/completions, whole or as \
    streams; GET /v1/models, /health and /metrics (Prometheus). Nobody is asked who they are: \
    past 127.0.0.1, put something in front that does.\n\n\
    Ctrl-C (or SIGTERM) refuses new requests, finishes those that were taken on, and ends (status \
    0); a second one ends at once (status 130, or 143).\n\n\
    Examples:\n  \
    helix serve model.gguf --parallel 8 -c 16384\n  \
    curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \
    \"content\": \"Hi!\"}]}'")]
pub struct ServeArgs {
    /// A .gguf file, a Hugging Face directory, hf:ORG/NAME@REV, or the name of a fetched model
    pub model: PathBuf,
    /// The address to listen at: a number or a name; 0.0.0.0 for all of this machine's
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// The port; 0 for any that is free
    #[arg(long, value_name = "N", default_value = "8080")]
    pub port: u16,
    /// What clients call the model [default: MODEL, without folders and endings]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Sequences that run at once; the KV cache has room for each at its longest
    #[arg(long, value_name = "N", default_value = "4", value_parser = between(1, 1024))]
    pub parallel: usize,
    /// Positions of each sequence, prompt and answer; a longer prompt is refused, and a text that
    /// reaches it ends [default: 8192, and at most what the model was trained for]
    #[arg(short, long, value_name = "N", value_parser = at_least(1))]
    pub context: Option<usize>,
    /// Requests that may wait while all sequences run; the next one is refused
    #[arg(long, value_name = "N", default_value = "64", value_parser = between(0, 1 << 20))]
    pub queue: usize,
    /// Tokens of a step at most: a token for each sequence that decodes, and pieces of prompts.
    /// Fewer let those who decode wait less while others' prompts are read [default: 512, 256
    /// where a rank has one thread, or --parallel if that is more]
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub step_tokens: Option<usize>,
    #[command(flatten)]
    pub layout: LayoutArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Say nothing on standard error but errors
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
}
