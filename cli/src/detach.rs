//! Runs in the background.
//!
//! `turbo run -d` finds the container, starts itself once more with the same arguments, with output to files in the
//! container's folder, and waits until that process says over a pipe that the application runs. The container's lock goes
//! over to the second process without being free in between; of a container that runs already there is none, and the second
//! process joins it. Variables tell the second process what it is; the application does not get them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::io::FdFlags;

use crate::app::App;
use crate::containers::Containers;
use crate::control::client::connect;
use crate::exit::Exit;
use crate::place::Place;

/// Number of the pipe's end that the second process writes to.
const READY_FD: &str = "TURBO_READY_FD";
/// Number of the locked file, if the second process starts the container.
const LOCK_FD: &str = "TURBO_LOCK_FD";
/// Id of the container that the second process runs or joins.
const CONTAINER: &str = "TURBO_CONTAINER";
/// What the second process says when the application runs.
const STARTED: &[u8; 7] = b"started";

/// What the second process of a detached run knows.
#[derive(Debug)]
pub struct Background {
    /// `None` once the word was said.
    ready: Option<File>,
    lock: Option<File>,
    container: String,
}

impl Background {
    /// If this is the second process: leaves the terminal's session, so that closing the terminal does not end the
    /// application, and takes what was handed over. Call it before anything is forked, which would inherit the pipe.
    pub fn take() -> Option<Self> {
        let ready = inherited(READY_FD)?;
        let container = std::env::var(CONTAINER).ok()?;
        let lock = inherited(LOCK_FD);
        // Fails only for the leader of a group, which this process is not.
        let _ = rustix::process::setsid();
        Some(Self { ready: Some(ready), lock, container })
    }

    /// Id of the container to run in.
    pub fn container_id(&self) -> &str {
        &self.container
    }

    /// The container to run in.
    pub fn place(&self, containers: &Containers) -> Result<Place> {
        if let Some(lock) = &self.lock {
            let lock = lock.try_clone().context("copying the container's lock")?;
            return containers.adopt(&self.container, lock).map(|locked| Place::Own(Box::new(locked)));
        }
        let found = containers.get(&self.container)?;
        let client = connect(containers, &found)?.with_context(|| format!("{} ended before it could be joined; start it anew", found.shown()))?;
        Ok(Place::Join(Box::new(found), client))
    }

    /// Says that the application runs.
    pub fn started(mut self) {
        // Whoever waited may be gone; the application runs all the same.
        let _ = self.ready.take().map(|mut ready| ready.write_all(STARTED));
    }
}

impl Drop for Background {
    /// Without the word, the pipe stays open until this process ends: whoever waits then reads in the log why.
    fn drop(&mut self) {
        std::mem::forget(self.ready.take());
    }
}

/// A descriptor that the first process made for this one.
#[allow(unsafe_code)]
fn inherited(variable: &str) -> Option<File> {
    let fd: i32 = std::env::var(variable).ok()?.parse().ok().filter(|fd| *fd > 2)?;
    // SAFETY: `start` made the descriptor for this process alone, and nothing else here knows its number. Were it not
    // open, the next line says so before it is used.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    if rustix::io::fcntl_setfd(&owned, FdFlags::CLOEXEC).is_err() {
        std::mem::forget(owned);
        return None;
    }
    Some(owned.into())
}

/// Starts the second process, waits for its word, and prints the container's id.
pub fn start(app: &App, place: Place) -> Result<Exit> {
    let (settings, folder) = (place.container().clone(), app.containers().folder(place.container()));
    let mut log = output(&folder, "stderr", &place)?;
    // Of a container that runs, only what comes from now on is about this start.
    let before = log.seek(SeekFrom::End(0)).unwrap_or(0);
    let (reader, writer) = rustix::pipe::pipe().context("no pipe can be made")?;
    rustix::io::fcntl_setfd(&reader, FdFlags::CLOEXEC).context("a pipe cannot be kept back")?;
    let mut command = Command::new(std::env::current_exe().context("turbo does not know its own path")?);
    command.args(std::env::args_os().skip(1)).env(READY_FD, writer.as_raw_fd().to_string()).env(CONTAINER, &settings.id).env_remove(LOCK_FD);
    command.stdin(Stdio::null()).stdout(output(&folder, "stdout", &place)?).stderr(log);
    let mut is_new = false;
    if let Place::Own(locked) = &place {
        is_new = locked.is_new;
        rustix::io::fcntl_setfd(locked.lock_file(), FdFlags::empty()).context("the container's lock cannot be handed over")?;
        command.env(LOCK_FD, locked.lock_file().as_raw_fd().to_string());
    }
    command.spawn().context("a second turbo could not be started")?;
    // It holds the lock as well, and from here on it alone.
    drop(place);
    drop(writer);
    let mut said = [0; STARTED.len()];
    // Every holder of the other end dies if the start fails; then this ends, too.
    if File::from(reader).read_exact(&mut said).is_err() || said != *STARTED {
        let why = read_from(&folder.join("stderr"), before);
        if let Some(locked) = app.containers().lock(&settings).ok().flatten().filter(|locked| is_new && locked.is_unused()) {
            let _ = locked.remove();
        }
        bail!("the application did not start: {}", why.trim().trim_start_matches("turbo: "));
    }
    app.output.result(&serde_json::json!({"container": settings.id, "temporary": settings.temporary}), |out| writeln!(out, "{}", settings.id))?;
    Ok(Exit::Success)
}

/// Where output goes: a file that begins anew with the container, and that programs which join add to.
fn output(folder: &Path, name: &str, place: &Place) -> Result<File> {
    let path = folder.join(name);
    let mut options = File::options();
    options.create(true).append(true);
    if matches!(place, Place::Own(_)) {
        // Removed rather than cut: whoever follows the old log keeps it.
        let _ = std::fs::remove_file(&path);
    }
    options.open(&path).with_context(|| format!("writing {}", path.display()))
}

fn read_from(path: &Path, start: u64) -> String {
    let read = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(1 << 20).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}
