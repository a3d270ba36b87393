//! `helix run -i`: a chat, line by line.

use super::run::{refused, speed, start, template};
use crate::args::RunArgs;
use crate::console::{Console, say};
use crate::failure::{Failure, Outcome};
use crate::generate::{Sequence, Until};
use crate::processes::Ranks;
use crate::setup;
use crate::trace::Trace;
use crate::{interrupt, output};
use helix_engine::sampler::{Sampler, SamplerOptions};
use helix_model::{ChatTemplate, Message, Model, Tokenizer};
use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::Arc;

const HELP: &str = "\
/help          this
/clear         forget what was said
/system TEXT   start over with a system message; without TEXT, with none
/exit          end (so does the end of the input)
Anything else is a message. Ctrl-C stops an answer; at the prompt it ends the chat.";

/// What one line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Help,
    Clear,
    System(&'a str),
    Exit,
    Unknown(&'a str),
    Nothing,
    Message(&'a str),
}

impl Line<'_> {
    fn parse(line: &str) -> Line<'_> {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (word, rest.trim()) {
            ("", _) => Line::Nothing,
            ("/help", "") => Line::Help,
            ("/clear", "") => Line::Clear,
            ("/exit" | "/quit", "") => Line::Exit,
            ("/system", text) => Line::System(text),
            // A path is a message; a word with one slash was meant as a command.
            (word, _) if word.starts_with('/') && !word[1..].contains('/') => Line::Unknown(word),
            _ => Line::Message(line),
        }
    }
}

struct Chat<'a> {
    model: Arc<Model>,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    sampler: Sampler,
    sequence: Sequence,
    messages: Vec<Message>,
    until: Until,
    console: &'a Console,
}

/// Runs the chat.
pub fn run(
    args: &mut RunArgs,
    sampling: SamplerOptions,
    ranks: &Ranks,
    console: &Console,
) -> Outcome {
    let trace = Trace::new(&args.trace)?;
    let model = setup::open(ranks, &args.model, &args.engine, console)?;
    let template = template(&model)?;
    let tokenizer = model.tokenizer()?;
    let room = setup::context(args.context, &model, setup::DEFAULT_CONTEXT, console);
    let sequence = start(ranks, args, &model, (room, room), &trace, console)?;
    let mut chat = Chat {
        model,
        template,
        tokenizer,
        sampler: Sampler::new(sampling, sequence.engine().vocab())?,
        sequence,
        messages: Vec::new(),
        until: Until { tokens: args.tokens, ends: !args.ignore_eos },
        console,
    };
    chat.restart(args.system.as_deref().unwrap_or_default());
    interrupt::install()?;
    let ask = io::stdin().is_terminal();
    if ask {
        let name = &chat.model.config.name;
        console.note(&format!("{name}, {}; /help", chat.sequence.engine().layout()));
    }
    chat.converse(io::stdin().lock(), ask)?;
    trace.write(chat.sequence.engine())
}

impl Chat<'_> {
    fn converse(&mut self, mut input: impl BufRead, ask: bool) -> Outcome {
        let mut bytes = Vec::new();
        loop {
            if ask {
                let _ = write!(io::stderr(), "> ");
            }
            bytes.clear();
            let read = input.read_until(b'\n', &mut bytes);
            if read.map_err(|e| Failure::running(format!("cannot read the input: {e}")))? == 0 {
                return Ok(());
            }
            match Line::parse(&String::from_utf8_lossy(&bytes)) {
                Line::Nothing => {}
                Line::Help => say(HELP),
                Line::Clear => self.messages.retain(|message| message.role == "system"),
                Line::System(text) => self.restart(text),
                Line::Exit => return Ok(()),
                Line::Unknown(word) => say(&format!("there is no {word}; /help lists what is")),
                Line::Message(text) => match self.answer(text) {
                    // Nothing happened yet, so the chat can go on without this message.
                    Err(Failure::Request(error)) => {
                        self.messages.pop();
                        say(&format!("{error}; /clear starts over"));
                    }
                    other => other?,
                },
            }
        }
    }

    /// Forgets all; a text that is not empty is the new system message.
    fn restart(&mut self, system: &str) {
        self.messages.clear();
        if !system.is_empty() {
            self.messages.push(Message::new("system", system));
        }
    }

    fn answer(&mut self, text: &str) -> Outcome {
        self.messages.push(Message::new("user", text));
        let prompt =
            self.tokenizer.encode_chat(&self.template, &self.messages, true).map_err(refused)?;
        self.model.check_tokens(&prompt)?;
        let made = self.sequence.generate(
            &prompt,
            &self.tokenizer,
            &mut self.sampler,
            self.until,
            self.console,
            &mut |text| if text.is_empty() { Ok(()) } else { output::text(text) },
        )?;
        output::text(if made.text.ends_with('\n') { "" } else { "\n" })?;
        self.console.note(&format!("[{}]", speed(&made)));
        self.messages.push(Message::new("assistant", made.text));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_messages() {
        let cases = [
            ("\n", Line::Nothing),
            ("/help\n", Line::Help),
            (" /clear \n", Line::Clear),
            ("/exit", Line::Exit),
            ("/system You are  terse.\n", Line::System("You are  terse.")),
            ("/system", Line::System("")),
            ("/sytem x\n", Line::Unknown("/sytem")),
            ("/etc/passwd holds what?", Line::Message("/etc/passwd holds what?")),
            ("hi there\r\n", Line::Message("hi there")),
        ];
        for (text, line) in cases {
            assert_eq!(Line::parse(text), line, "{text:?}");
        }
    }
}
