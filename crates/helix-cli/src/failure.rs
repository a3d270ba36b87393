//! How a command ends early, and with which exit status.

use anyhow::anyhow;
use helix_comm::WorldError;
use helix_engine::EngineError;
use helix_engine::sampler::SamplerError;
use helix_layout::LayoutError;
use helix_model::ModelError;
use helix_plan::PlanError;
use helix_server::ServerError;
use std::fmt::{self, Display};
use std::io;
use std::process::ExitCode;

use crate::console;

/// Why a command ended early.
#[derive(Debug)]
pub enum Failure {
    /// The request was wrong: flags, files, layout. Exit status 2.
    Request(anyhow::Error),
    /// It failed while running. Exit status 1.
    Running(anyhow::Error),
    /// It ran, and its result says that something is not as it should be; that is printed
    /// already. Exit status 1.
    Negative,
    /// Nobody reads standard output any more. Exit status 0, without a word.
    Closed,
}

/// What commands return.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A wrong request, in words.
    pub fn request(message: impl Display) -> Failure {
        Failure::Request(anyhow!("{message}"))
    }

    /// Something that went wrong on the way, in words.
    pub fn running(message: impl Display) -> Failure {
        Failure::Running(anyhow!("{message}"))
    }

    /// Says on standard error what happened; gives the exit status.
    pub fn report(self) -> ExitCode {
        let status = match self {
            Failure::Closed => return ExitCode::SUCCESS,
            Failure::Negative => return ExitCode::from(1),
            Failure::Request(_) => 2,
            Failure::Running(_) => 1,
        };
        console::say(&format!("error: {self}"));
        ExitCode::from(status)
    }
}

impl Display for Failure {
    /// What [`Failure::report`] says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Request(error) | Failure::Running(error) => f.write_str(&chain(error)),
            Failure::Negative | Failure::Closed => Ok(()),
        }
    }
}

/// The error and its causes, without those that a message before them quotes already.
fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Failure {
        Failure::Request(error.into())
    }
}

impl From<LayoutError> for Failure {
    fn from(error: LayoutError) -> Failure {
        Failure::Request(error.into())
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Failure {
        Failure::Request(error.into())
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Failure {
        match error {
            EngineError::Model(_)
            | EngineError::Option { .. }
            | EngineError::KvMemory { .. }
            | EngineError::Layout(_)
            | EngineError::Refused { .. } => Failure::Request(error.into()),
            EngineError::Pin
            | EngineError::System { .. }
            | EngineError::Step(_)
            | EngineError::World { .. }
            | EngineError::Protocol { .. }
            | EngineError::Comm { .. } => Failure::Running(error.into()),
        }
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Failure {
        match error {
            ServerError::Bind { .. } | ServerError::Limits(_) => Failure::Request(error.into()),
            ServerError::System { .. } => Failure::Running(error.into()),
            ServerError::Engine(error) => error.into(),
        }
    }
}

impl From<WorldError> for Failure {
    fn from(error: WorldError) -> Failure {
        Failure::Running(error.into())
    }
}

impl From<SamplerError> for Failure {
    fn from(error: SamplerError) -> Failure {
        match error {
            SamplerError::Option { .. } => Failure::Request(error.into()),
            SamplerError::NotFinite { .. } => Failure::Running(error.into()),
        }
    }
}

/// What writing to standard output failed with.
pub fn writing(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::Running(anyhow::Error::new(error).context("cannot write the result")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once() {
        let inner = io::Error::other("disk on fire");
        let error = anyhow::Error::new(inner).context("cannot write x: disk on fire");
        assert_eq!(chain(&error), "cannot write x: disk on fire");
        let error = anyhow::Error::new(io::Error::other("b")).context("a");
        assert_eq!(chain(&error), "a: b");
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        assert!(matches!(writing(io::ErrorKind::BrokenPipe.into()), Failure::Closed));
        assert!(matches!(writing(io::ErrorKind::StorageFull.into()), Failure::Running(_)));
    }
}
