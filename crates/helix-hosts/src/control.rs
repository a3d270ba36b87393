//! Requests to the switch while it runs: a datagram to a socket in the run's folder, a datagram back.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{host, options};

/// The socket's name in the folder of the run.
const SOCKET: &str = "control";
/// The switch answers at once, unless it is gone.
const ANSWER: Duration = Duration::from_secs(5);

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
pub fn listen(folder: &Path) -> Result<UnixDatagram> {
    UnixDatagram::bind(folder.join(SOCKET)).context("the control socket")
}

/// Answers whoever asks, until the socket fails.
pub fn serve(socket: &UnixDatagram, mut answer: impl FnMut(Result<Request, String>) -> String) {
    let mut line = [0; 100];
    while let Ok((length, from)) = socket.recv_from(&mut line) {
        let answer = answer(Request::parse(&String::from_utf8_lossy(&line[..length])));
        if let Some(from) = from.as_pathname() {
            // Whoever asked and left is not told.
            let _ = socket.send_to(answer.as_bytes(), from);
        }
    }
}

/// Asks the switch of the run that this process belongs to, and returns what it says.
pub fn ask(request: &str) -> Result<String> {
    ask_at(&host::folder()?, request)
}

/// Asks the switch whose run has this folder.
pub fn ask_at(folder: &Path, request: &str) -> Result<String> {
    let own = folder.join(format!("asks-{}", std::process::id()));
    let socket = UnixDatagram::bind(&own).context("a socket for the answer")?;
    let answer = ask_through(&socket, &folder.join(SOCKET), request);
    // The folder goes with the run in any case.
    let _ = std::fs::remove_file(own);
    let answer = answer?;
    match answer.strip_prefix("error: ") {
        Some(error) => bail!("{error}"),
        None => Ok(answer),
    }
}

fn ask_through(socket: &UnixDatagram, switch: &Path, request: &str) -> Result<String> {
    let here = || format!("no switch at {}: no emulated hosts here", switch.display());
    socket.send_to(request.as_bytes(), switch).with_context(here)?;
    socket.set_read_timeout(Some(ANSWER))?;
    let mut answer = [0; 1000];
    let length = socket.recv(&mut answer).context("the switch does not answer")?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
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
