//! Exit codes, decided here alone.
//!
//! An application's own code is passed through. What turbo itself has to say uses the codes that shells and container
//! tools use: 125 an error of ours, 126 the program cannot be executed, 127 it is not found, 2 wrong usage.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Success,
    /// An error of ours; the message was printed.
    Failure,
    /// The command line is wrong.
    Usage,
    /// The program is there and cannot be executed.
    NotExecutable,
    /// The program is not there.
    NotFound,
    /// The application ended with this code.
    Application(u8),
    /// The application was killed by this signal.
    Signal(u8),
}

impl Exit {
    /// The number that the process ends with.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 125,
            Self::Usage => 2,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
            Self::Application(code) => code,
            Self::Signal(signal) => 128u8.saturating_add(signal),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// The command line is right for the parser, and yet makes no sense: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);
