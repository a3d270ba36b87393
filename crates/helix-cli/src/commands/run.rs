//! `helix run`: text from a prompt.

use super::chat;
use crate::args::{Expected, RunArgs};
use crate::console::Console;
use crate::failure::{Failure, Outcome};
use crate::figures::{self, Spread};
use crate::generate::{Generated, Sequence, Stop, Until, check_context};
use crate::processes::Ranks;
use crate::ranks::{self, RankReport};
use crate::setup::Choices;
use crate::trace::Trace;
use crate::{interrupt, output, setup};
use helix_engine::EngineOptions;
use helix_engine::sampler::{Sampler, SamplerOptions};
use helix_model::{ChatTemplate, Message, Model, Tokenizer};
use serde::Serialize;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::sync::Arc;

/// Runs the command.
pub fn run(mut args: RunArgs, ranks: &Ranks) -> Outcome {
    let console = Console::new(args.output.quiet);
    let sampling = args.sampling.options(&console)?;
    if args.interactive {
        return chat::run(&mut args, sampling, ranks, &console);
    }
    let trace = Trace::new(&args.trace)?;
    let text = prompt_text(&args)?;
    let model = setup::open(ranks, &args.model, &args.engine, &console)?;
    let tokenizer = model.tokenizer()?;
    let prompt = encode(&args, &text, &model, &tokenizer)?;
    if prompt.is_empty() {
        return Err(Failure::request("the prompt has no tokens of this model's"));
    }
    let needed = prompt.len().saturating_add(args.tokens);
    let context = setup::context(args.context, &model, needed, &console);
    check_context(prompt.len(), context)?;
    model.check_tokens(&prompt)?;
    let end = needed.min(context);
    let mut sequence = start(ranks, &mut args, &model, (context, end), &trace, &console)?;
    let mut sampler = Sampler::new(sampling, sequence.engine().vocab())?;
    interrupt::install()?;
    let until = Until { tokens: args.tokens, ends: !args.ignore_eos };
    let mut emit = |text: &str| match args.output.json || text.is_empty() {
        true => Ok(()),
        false => output::text(text),
    };
    let made = sequence.generate(&prompt, &tokenizer, &mut sampler, until, &console, &mut emit)?;
    trace.write(sequence.engine())?;
    if args.output.json {
        return output::json(&Report::new(
            &args,
            Choices::new(&args.engine, &model),
            &sequence,
            &made,
            sampling,
        ));
    }
    if !made.text.ends_with('\n') {
        output::text("\n")?;
    }
    summarise(&made, &sequence, sampling, &console);
    Ok(())
}

/// The prompt, wherever it comes from.
fn prompt_text(args: &RunArgs) -> Outcome<String> {
    let text = match (&args.prompt, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) if path.as_os_str() != "-" => read_text(path)?,
        (None, None) if io::stdin().is_terminal() => {
            return Err(Failure::request(
                "there is no prompt: give one by -p TEXT, -f FILE or standard input, or chat with \
                 -i",
            ));
        }
        _ => {
            let mut text = String::new();
            let read = io::stdin().lock().read_to_string(&mut text);
            read.map_err(|e| Failure::request(format!("cannot read standard input: {e}")))?;
            text
        }
    };
    match text.is_empty() {
        true => Err(Failure::request("the prompt is empty")),
        false => Ok(text),
    }
}

/// The whole of a text file.
pub fn read_text(path: &Path) -> Outcome<String> {
    let wrong = |problem: String| Failure::request(format!("{}: {problem}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| wrong(format!("cannot read it: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        wrong(format!("it is not UTF-8 text, from byte {} on", error.utf8_error().valid_up_to()))
    })
}

fn encode(args: &RunArgs, text: &str, model: &Model, tokenizer: &Tokenizer) -> Outcome<Vec<u32>> {
    if !args.chat {
        if args.system.is_some() {
            return Err(Failure::request("--system needs --chat or -i"));
        }
        return Ok(tokenizer.encode_with_control(text, true));
    }
    let system = args.system.iter().map(|text| Message::new("system", text));
    let messages: Vec<Message> = system.chain([Message::new("user", text)]).collect();
    tokenizer.encode_chat(&template(model)?, &messages, true).map_err(refused)
}

/// The model's chat template, or why there can be no chat.
pub fn template(model: &Model) -> Outcome<ChatTemplate> {
    model.chat_template()?.ok_or_else(|| {
        Failure::request("this model has no chat template: continue a text instead, with -p")
    })
}

/// What a template's refusal of a chat is.
pub fn refused(error: impl std::fmt::Display) -> Failure {
    Failure::request(format!("the model's chat template: {error}"))
}

/// An engine with room for one sequence of up to `context` tokens; its layout is chosen for about
/// `length`.
pub fn start(
    ranks: &Ranks,
    args: &mut RunArgs,
    model: &Arc<Model>,
    (context, length): (usize, usize),
    trace: &Trace,
    console: &Console,
) -> Outcome<Sequence> {
    let layout =
        args.layout.resolve(ranks, model, &mut args.engine, Expected::one(length), console)?;
    let options = EngineOptions {
        max_context: context,
        trace: trace.events(),
        ..setup::options(ranks, &args.engine, &layout, console)?
    };
    Ok(Sequence::new(setup::start(ranks, model, layout, options, console)?))
}

/// Says how fast it was, and what each rank did.
pub fn summarise(
    made: &Generated,
    sequence: &Sequence,
    sampling: SamplerOptions,
    console: &Console,
) {
    let seed = match sampling.temperature == 0.0 {
        true => String::new(),
        false => format!(", seed {}", sampling.seed),
    };
    console.note(&format!("\n{}{seed}", speed(made)));
    if !made.others.is_empty() {
        console.note(&format!("{}\n", sequence.engine().layout()));
        let table = ranks::table(&ranks::reports(&made.counters)).to_string();
        console.note(table.trim_end());
    }
}

/// One line about a text: its length, why it ended, and how fast it was.
pub fn speed(made: &Generated) -> String {
    let mut text = format!("{} tokens", made.tokens.len());
    text += match made.stop {
        Stop::End => "",
        Stop::Length => " (-n)",
        Stop::Context => " (the context is full: -c)",
        Stop::Interrupted => " (interrupted)",
    };
    if let Some(first) = made.first {
        let (prompt, ms) = (made.prompt_tokens, first.as_secs_f64() * 1e3);
        text += &format!("; the first after {ms:.1} ms ({prompt} prompt tokens)");
    }
    if let Some(ttl) = ttl_ms(made) {
        let per_s = 1e3 / ttl.median;
        text += &format!(", then one every {:.2} ms (median): {per_s:.1} tokens/s", ttl.median);
    }
    text
}

fn ttl_ms(made: &Generated) -> Option<Spread> {
    let ms: Vec<f64> = made.others.iter().map(|took| took.as_secs_f64() * 1e3).collect();
    Spread::of(&ms)
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    model: String,
    layout: String,
    threads_per_rank: usize,
    #[serde(flatten)]
    choices: Choices,
    text: &'a str,
    tokens: &'a [u32],
    stop: Stop,
    prompt_tokens: usize,
    /// Time to the first token.
    ttft_ms: Option<f64>,
    /// Median time from a token to the next.
    ttl_ms: Option<f64>,
    tokens_per_s: Option<f64>,
    temperature: f32,
    seed: u64,
    ranks: Vec<RankReport>,
}

impl<'a> Report<'a> {
    fn new(
        args: &RunArgs,
        choices: Choices,
        sequence: &Sequence,
        made: &'a Generated,
        sampling: SamplerOptions,
    ) -> Report<'a> {
        let ttl = ttl_ms(made).map(|ttl| ttl.median);
        let round = |value| figures::rounded(value, 3);
        Report {
            model: args.model.display().to_string(),
            layout: sequence.engine().layout().name(),
            threads_per_rank: sequence.engine().options().threads_per_rank,
            choices,
            text: &made.text,
            tokens: &made.tokens,
            stop: made.stop,
            prompt_tokens: made.prompt_tokens,
            ttft_ms: made.first.map(|first| round(first.as_secs_f64() * 1e3)),
            ttl_ms: ttl.map(round),
            tokens_per_s: ttl.map(|ttl| round(1e3 / ttl)),
            temperature: sampling.temperature,
            seed: sampling.seed,
            ranks: ranks::reports(&made.counters),
        }
    }
}
