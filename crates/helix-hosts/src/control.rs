//! Requests to the switch while it runs: a line on a socket of the run's folder, a line back.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{host, options};

/// The socket's name in the folder of the run.
const SOCKET: &str = "control";

/// What the switch may be asked.
#[derive(Debug, PartialEq)]
pub enum Request {
    /// Pulls a host's cable, or puts it back: frames are dropped, and nobody is told.
    Cut { host: usize, cut: bool },
    /// Another one-way delay from now on.
    DelayUs(f64),
    /// Another bandwidth.
    Gbit(f64),
    /// What the switch carried since this was last asked.
    Stats,
}

impl Request {
    /// Reads a line such as `cut 1`.
    pub fn parse(line: &str) -> Result<Request, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let index = |word: &str| {
            let digits = word.strip_prefix("host").unwrap_or(word);
            digits.parse().map_err(|_| format!("{word} is no host: host0, host1, …"))
        };
        match words[..] {
            ["cut", host] => Ok(Request::Cut { host: index(host)?, cut: true }),
            ["heal", host] => Ok(Request::Cut { host: index(host)?, cut: false }),
            ["delay-us", value] => options::delay_us(value).map(Request::DelayUs),
            ["gbit", value] => options::gbit(value).map(Request::Gbit),
            ["stats"] => Ok(Request::Stats),
            _ => Err("cut HOST | heal HOST | delay-us N | gbit N | stats".to_owned()),
        }
    }
}

/// The switch's end.
pub fn listen(folder: &Path) -> Result<UnixListener> {
    let listener = UnixListener::bind(folder.join(SOCKET)).context("the control socket")?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers whoever waits at the socket. A peer that sends no line soon is left.
pub fn serve(listener: &UnixListener, mut answer: impl FnMut(Result<Request, String>) -> String) {
    while let Ok((stream, _)) = listener.accept() {
        let patience = Some(Duration::from_millis(2));
        let mut line = String::new();
        let read = stream.set_read_timeout(patience).is_ok()
            && BufReader::new((&stream).take(100)).read_line(&mut line).is_ok();
        if read {
            // Whoever asked and left is not told.
            let _ = writeln!(&stream, "{}", answer(Request::parse(&line)));
        }
    }
}

/// Asks the switch of the run that this process belongs to, and returns what it says.
pub fn ask(request: &str) -> Result<String> {
    ask_at(&host::folder()?, request)
}

/// Asks the switch whose run has this folder.
pub fn ask_at(folder: &Path, request: &str) -> Result<String> {
    let path = folder.join(SOCKET);
    let mut stream = UnixStream::connect(&path)
        .with_context(|| format!("no switch at {}: no emulated hosts here", path.display()))?;
    writeln!(stream, "{request}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.trim().strip_prefix("error: ") {
        Some(error) => bail!("{error}"),
        None => Ok(answer.trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read() {
        assert_eq!(Request::parse("cut host1\n"), Ok(Request::Cut { host: 1, cut: true }));
        assert_eq!(Request::parse("heal 0"), Ok(Request::Cut { host: 0, cut: false }));
        assert_eq!(Request::parse("delay-us 500"), Ok(Request::DelayUs(500.0)));
        for wrong in ["", "cut", "cut x", "gbit 0", "delay-us -1", "stats now"] {
            assert!(Request::parse(wrong).is_err(), "{wrong}");
        }
    }
}
