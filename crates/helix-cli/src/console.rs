//! What goes to standard error: notes, warnings and progress bars.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal, Write};

/// Writes a line to standard error. That nobody reads it is no reason to stop.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// How much a command says besides its result.
#[derive(Clone, Copy, Debug)]
pub struct Console {
    quiet: bool,
}

/// What a bar counts.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    /// Bytes, with their rate.
    Bytes,
    /// Anything else, by its name.
    Count(&'static str),
}

impl Console {
    /// `quiet` leaves errors alone.
    pub fn new(quiet: bool) -> Console {
        Console { quiet }
    }

    /// A line for whoever is interested.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    /// Something that the user may not have meant.
    pub fn warn(&self, text: &str) {
        self.note(&format!("warning: {text}"));
    }

    /// A progress bar on standard error; nothing where that is not a terminal.
    pub fn bar(&self, what: &'static str, total: u64, unit: Unit) -> Bar {
        if self.quiet || !io::stderr().is_terminal() {
            return Bar(ProgressBar::hidden());
        }
        let count = match unit {
            Unit::Bytes => "{bytes}/{total_bytes} ({bytes_per_sec})".to_owned(),
            Unit::Count(name) => format!("{{pos}}/{{len}} {name} {{wide_msg}}"),
        };
        let template = format!("{{prefix:>10}} [{{bar:30}}] {count}");
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what);
        Bar(bar)
    }
}

/// A progress bar that is gone when it is dropped.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Bar {
    /// So much more is done.
    pub fn add(&self, amount: u64) {
        self.0.inc(amount);
    }

    /// So much more is to be done.
    #[cfg(feature = "hub")]
    pub fn raise_total(&self, amount: u64) {
        self.0.inc_length(amount);
    }

    /// So much is done.
    #[cfg(feature = "hub")]
    pub fn reach(&self, amount: u64) {
        self.0.set_position(amount);
    }

    /// What is going on.
    pub fn message(&self, text: String) {
        self.0.set_message(text);
    }

    /// Runs `print`, which writes to the terminal, with the bar out of the way.
    pub fn beside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
