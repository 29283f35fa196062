//! Runs in the background.
//!
//! `turbo run -d` makes the container, starts itself once more with the same arguments, with output to files in the
//! container's folder, and waits until that process says over a pipe that the application runs. Two variables tell the
//! second process what it is; the application does not get them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::app::App;
use crate::containers::{Containers, Locked};
use crate::exit::Exit;

/// Number of the pipe's end that the second process writes to.
const READY_FD: &str = "TURBO_READY_FD";
/// Id of the container that the second process runs.
const CONTAINER: &str = "TURBO_CONTAINER";
/// What the second process says when the application runs.
const STARTED: &[u8; 7] = b"started";

/// What the second process of a detached run knows.
#[derive(Debug)]
pub struct Background {
    ready: File,
    container: String,
}

impl Background {
    /// If this is the second process: leaves the terminal's session, so that closing the terminal does not end the
    /// application, and takes the pipe. Call it before anything is forked, which would inherit the pipe.
    #[allow(unsafe_code)]
    pub fn take() -> Option<Self> {
        let fd: i32 = std::env::var(READY_FD).ok()?.parse().ok().filter(|fd| *fd > 2)?;
        let container = std::env::var(CONTAINER).ok()?;
        // SAFETY: `start` made the descriptor for this process alone, and nothing else here knows its number. Were it not
        // open, the next line says so before it is used.
        let ready = unsafe { OwnedFd::from_raw_fd(fd) };
        if rustix::io::fcntl_setfd(&ready, rustix::io::FdFlags::CLOEXEC).is_err() {
            std::mem::forget(ready);
            return None;
        }
        // Fails only for the leader of a group, which this process is not.
        let _ = rustix::process::setsid();
        Some(Self { ready: ready.into(), container })
    }

    /// The container to run in, locked.
    pub fn container(&self, containers: &Containers) -> Result<Locked> {
        let found = containers.find(&self.container)?.with_context(|| format!("there is no container `{}`", self.container))?;
        containers.lock(&found)?.with_context(|| format!("{} is running", found.shown()))
    }

    /// Says that the application runs.
    pub fn started(mut self) {
        // Whoever waited may be gone; the application runs all the same.
        let _ = self.ready.write_all(STARTED);
    }
}

/// Starts the second process, waits for its word, and prints the container's id.
pub fn start(app: &App, container: Locked) -> Result<Exit> {
    let settings = container.container.clone();
    let output = |name: &str| File::create(container.folder.join(name)).with_context(|| format!("writing {}", container.folder.join(name).display()));
    let (stdout, stderr) = (output("stdout")?, output("stderr")?);
    let log = container.folder.join("stderr");
    let (reader, writer) = rustix::pipe::pipe().context("no pipe can be made")?;
    rustix::io::fcntl_setfd(&reader, rustix::io::FdFlags::CLOEXEC).context("a pipe cannot be kept back")?;
    let mut command = Command::new(std::env::current_exe().context("turbo does not know its own path")?);
    command.args(std::env::args_os().skip(1)).env(READY_FD, writer.as_raw_fd().to_string()).env(CONTAINER, &settings.id);
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    // The second process locks the container; from here on it owns it.
    drop(container);
    command.spawn().context("a second turbo could not be started")?;
    drop(writer);
    let mut said = [0; STARTED.len()];
    // Every holder of the other end dies if the start fails; then this ends, too.
    if File::from(reader).read_exact(&mut said).is_err() || said != *STARTED {
        let why = std::fs::read_to_string(&log).unwrap_or_default();
        if let Some(locked) = app.containers().lock(&settings).ok().flatten().filter(Locked::is_unused) {
            let _ = locked.remove();
        }
        bail!("the application did not start: {}", why.trim().trim_start_matches("turbo: "));
    }
    app.output.result(&serde_json::json!({"container": settings.id, "temporary": settings.temporary}), |out| writeln!(out, "{}", settings.id))?;
    Ok(Exit::Success)
}
