//! Runs in the background.
//!
//! `turbo run -d` makes the container, starts itself once more in a session of its own, with output to files in the
//! container's folder, and waits until that process says over a pipe that the application runs, or why it does not.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::app::App;
use crate::args::Command;
use crate::commands::run::without_detach;
use crate::containers::Locked;
use crate::exit::Exit;

/// What the second process says when the application runs.
const STARTED: &[u8] = b"started";

/// The pipe to the process that waits for us to start.
#[derive(Debug)]
pub struct Ready(File);

impl Ready {
    /// Takes the descriptor that `--ready-fd` names.
    #[allow(unsafe_code)]
    pub fn from_fd(fd: i32) -> Result<Self> {
        if fd <= 2 {
            bail!("--ready-fd is for turbo's own use");
        }
        // SAFETY: the descriptor was made by `start` for this process alone, and nothing else here knows its number.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).context("--ready-fd is not open")?;
        Ok(Self(fd.into()))
    }

    /// Says that the application runs.
    pub fn started(mut self) {
        // Whoever waited may be gone; the application runs all the same.
        let _ = self.0.write_all(STARTED);
    }
}

/// In the second process: leaves the terminal's session, so that closing the terminal does not end the application.
pub fn leave_session(command: &Command) {
    let is_second = match command {
        Command::Run(run) => run.is_background(),
        Command::Try(run) => run.is_background(),
        _ => false,
    };
    if is_second {
        // Fails only for the leader of a group, which this process is not.
        let _ = rustix::process::setsid();
    }
}

/// Starts the second process, waits for its word, and prints the container's id.
pub fn start(app: &App, container: Locked) -> Result<Exit> {
    let id = container.container.id.clone();
    let temporary = container.container.temporary;
    let output = |name: &str| File::create(container.folder.join(name)).with_context(|| format!("writing {}", container.folder.join(name).display()));
    let (stdout, stderr) = (output("stdout")?, output("stderr")?);
    let log = container.folder.join("stderr");
    let (reader, writer) = rustix::pipe::pipe().context("no pipe can be made")?;
    rustix::io::fcntl_setfd(&reader, rustix::io::FdFlags::CLOEXEC).context("a pipe cannot be kept back")?;
    let mut args = without_detach(std::env::args_os().skip(1));
    let at = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let ready = [format!("--ready-fd={}", writer.as_raw_fd()), format!("--container={id}")];
    args.splice(at..at, ready.into_iter().map(Into::into));
    let mut command = std::process::Command::new(std::env::current_exe().context("turbo does not know its own path")?);
    command.args(args).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    // The second process locks the container; from here on it owns it.
    drop(container);
    command.spawn().context("a second turbo could not be started")?;
    drop(writer);
    let mut said = Vec::new();
    File::from(reader).read_to_end(&mut said).context("the second turbo could not be heard")?;
    if said != STARTED {
        let why = std::fs::read_to_string(&log).unwrap_or_default();
        bail!("the application did not start: {}", why.trim().trim_start_matches("turbo: "));
    }
    app.output.result(&serde_json::json!({"container": id, "temporary": temporary}), |out| writeln!(out, "{id}"))?;
    Ok(Exit::Success)
}
