//! `helix serve`: OpenAI's API over one engine.

use crate::args::{Expected, ServeArgs};
use crate::console::Console;
use crate::failure::{Failure, Outcome};
use crate::processes::Ranks;
use crate::{interrupt, setup};
use helix_engine::EngineOptions;
use helix_server::{Listener, Served, Server};
use std::path::Path;

/// Runs the command.
pub fn run(mut args: ServeArgs, ranks: &Ranks) -> Outcome {
    let console = Console::new(args.quiet);
    let &ServeArgs { parallel, queue, .. } = &args;
    let step_tokens = step_tokens(&args)?;
    let listener = Listener::bind(&args.host, args.port)?;
    let address = listener.address().map_err(Failure::running)?;
    let model = setup::open(ranks, &args.model, &args.engine, &console)?;
    let tokenizer = model.tokenizer()?;
    let template = model.chat_template()?;
    if template.is_none() {
        console.note("note: this model has no chat template: it serves /v1/completions alone");
    }
    let context = setup::context(args.context, &model, setup::DEFAULT_CONTEXT, &console);
    let expected = Expected { batch: parallel, context, links: None };
    let layout = args.layout.resolve(ranks, &model, &mut args.engine, expected, &console)?;
    let options = setup::options(ranks, &args.engine, &layout, &console)?;
    let options = EngineOptions {
        max_context: context,
        max_sequences: parallel,
        max_step_tokens: step_tokens.unwrap_or(options.max_step_tokens.max(parallel)),
        max_logits: parallel,
        ..options
    };
    let engine = setup::start(ranks, &model, layout, options, &console)?;
    let name = args.name.clone().unwrap_or_else(|| name(&args.model));
    let threads = options.threads_per_rank;
    let says = format!(
        "serving {name} at http://{address}/v1\n{layout}, {threads} threads per rank; {parallel} \
         sequences at once, of {context} positions each; {queue} requests may wait",
    );
    let served = Served { name, tokenizer, template, max_waiting: queue };
    let server = Server::start(listener, engine, served)?;
    let handle = server.handle();
    interrupt::install_with(move || {
        console.note("\nfinishing what runs; Ctrl-C again ends at once");
        handle.drain();
    })?;
    console.note(&says);
    Ok(server.run()?)
}

fn step_tokens(args: &ServeArgs) -> Outcome<Option<usize>> {
    let parallel = args.parallel;
    match args.step_tokens {
        Some(tokens) if tokens < parallel => Err(Failure::request(format!(
            "--step-tokens {tokens} leaves some of --parallel {parallel} sequences without a \
             token per step: give at least {parallel}, or run fewer sequences"
        ))),
        tokens => Ok(tokens),
    }
}

/// What clients call a model, unless the user says: its name without folders and endings.
fn name(model: &Path) -> String {
    let text = model.to_string_lossy();
    if let Some(name) = text.strip_prefix("hf:") {
        return name.split('@').next().unwrap_or(name).to_owned();
    }
    let name = model.canonicalize().ok().unwrap_or_else(|| model.to_owned());
    let name = name.file_name().map_or(text.clone(), |name| name.to_string_lossy());
    let name = name.strip_suffix(".gguf").unwrap_or(&name);
    without_part(name).unwrap_or(name).to_owned()
}

/// The name of a file that is a part of a split one, such as `NAME-00001-of-00003`, without that.
fn without_part(name: &str) -> Option<&str> {
    let (rest, count) = name.rsplit_once("-of-")?;
    let (name, index) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (is_number(index) && is_number(count)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_the_names_that_users_know() {
        let cases = [
            ("dir/SmolLM2.Q4_0.gguf", "SmolLM2.Q4_0"),
            ("SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
            ("/models/Qwen3/", "Qwen3"),
            ("hf:org/name@main", "org/name"),
            ("a-00001-of-00003.gguf", "a"),
            ("house-of-00003.gguf", "house-of-00003"),
        ];
        for (model, expected) in cases {
            assert_eq!(name(Path::new(model)), expected);
        }
    }
}
