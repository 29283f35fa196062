//! Traces on their way to the registry.
//!
//! A run does not wait until its trace is taken: on a long line that costs round trips, and it is of no use to who waits
//! for the run's end. The trace is left in `traces/outbox`, and `turbo trace send` is started in the background, which
//! sends what lies there and ends. What cannot be sent now is sent after a later run, or forgotten after a week.

use std::fs::{File, TryLockError};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use client_store::{Origin, OriginError};
use layer_format::reference::Repository;
use serde::{Deserialize, Serialize};

use crate::app::App;

/// Most traces that wait; the oldest give way.
const MAX_WAITING: usize = 64;
/// How long one waits at most.
const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long the registry has to take one.
const LIMIT: Duration = Duration::from_secs(60);

/// Where a trace goes; the first line of its file.
#[derive(Debug, Serialize, Deserialize)]
struct Address {
    hub: String,
    repository: Repository,
}

/// What became of the traces that waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// Taken by the registry.
    pub sent: usize,
    /// Refused for good, too old, or damaged: forgotten.
    pub forgotten: usize,
    /// Still waiting.
    pub waiting: usize,
}

fn folder(home: &Path) -> PathBuf {
    home.join("traces/outbox")
}

/// Leaves a trace to be sent to `hub`.
pub fn leave(home: &Path, hub: &str, repository: &Repository, trace: &[u8]) -> Result<()> {
    let folder = folder(home);
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let waiting = waiting(home)?;
    for old in waiting.iter().take((waiting.len() + 1).saturating_sub(MAX_WAITING)) {
        forget(old);
    }
    let mut content = serde_json::to_vec(&Address { hub: hub.to_owned(), repository: repository.clone() })?;
    content.push(b'\n');
    content.extend_from_slice(trace);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Of the images of one run, too, each has a moment of its own: names say the order.
    let file = tempfile::Builder::new().prefix(".").tempfile_in(&folder)?;
    std::fs::write(file.path(), content).with_context(|| format!("writing {}", file.path().display()))?;
    let path = folder.join(format!("{:020}-{}.trace", since.as_nanos(), std::process::id()));
    file.persist(&path).with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

/// Starts a process of its own that sends what waits.
pub fn send_in_background(app: &App) -> Result<()> {
    let program = std::env::current_exe().context("this program has no path")?;
    let settings = &app.settings;
    let mut sender = Command::new(program);
    sender.args(["trace", "send"]).env("TURBO_HOME", &settings.home).env("TURBO_HUB", &settings.hub).current_dir("/");
    // A group of its own: Ctrl-C is meant for the application.
    sender.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    sender.spawn().context("starting the sender of traces")?;
    Ok(())
}

/// Sends what waits for the configured registry. Returns at once if another process is at it.
pub fn send_all(app: &App) -> Result<Sent> {
    let home = &app.settings.home;
    let mut total = Sent::default();
    if waiting(home)?.is_empty() {
        return Ok(total);
    }
    let path = folder(home).join("lock");
    let mut tried: Option<PathBuf> = None;
    loop {
        let lock = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Sent { waiting: waiting(home)?.len(), ..total }),
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("locking {}", path.display())),
        }
        let mut traces = waiting(home)?;
        traces.retain(|path| tried.as_ref() < Some(path));
        for trace in traces {
            match send(app, &trace) {
                Fate::Sent => total.sent += 1,
                Fate::Forgotten => total.forgotten += 1,
                Fate::Waits => {}
            }
            tried = Some(trace);
        }
        drop(lock);
        // Someone may have left one, found the lock held, and gone.
        let waiting = waiting(home)?;
        if waiting.iter().all(|path| tried.as_ref() >= Some(path)) {
            return Ok(Sent { waiting: waiting.len(), ..total });
        }
    }
}

enum Fate {
    Sent,
    Forgotten,
    Waits,
}

fn send(app: &App, path: &Path) -> Fate {
    let Some((address, trace)) = read(path) else {
        forget(path);
        return Fate::Forgotten;
    };
    if address.hub != app.settings.hub {
        return Fate::Waits;
    }
    let sent = app.registry().and_then(|registry| {
        let request = registry.put_trace(&address.repository, trace);
        app.block_on(async { tokio::time::timeout(LIMIT, request).await })
    });
    match sent {
        Ok(Ok(Ok(()))) => {
            forget(path);
            Fate::Sent
        }
        Ok(Ok(Err(OriginError::NotFound { .. } | OriginError::Refused { .. }))) => {
            forget(path);
            Fate::Forgotten
        }
        _ => Fate::Waits,
    }
}

/// A trace that waits, and where it goes; `None` if it is too old, or not what [`leave`] wrote.
fn read(path: &Path) -> Option<(Address, Vec<u8>)> {
    let age = std::fs::metadata(path).ok()?.modified().ok()?.elapsed().unwrap_or_default();
    let content = std::fs::read(path).ok().filter(|_| age < MAX_AGE)?;
    let end = content.iter().position(|byte| *byte == b'\n')?;
    let address = serde_json::from_slice(&content[..end]).ok()?;
    Some((address, content[end + 1..].to_vec()))
}

/// Those that wait, the oldest first.
fn waiting(home: &Path) -> Result<Vec<PathBuf>> {
    let folder = folder(home);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("listing {}", folder.display())),
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "trace")).collect();
    paths.sort();
    Ok(paths)
}

/// Another process may have done so before.
fn forget(path: &Path) {
    let _ = std::fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_wait_and_damaged_ones_are_not_sent() {
        let home = tempfile::tempdir().unwrap();
        let repository: Repository = "tools/app".parse().unwrap();
        for n in 0..MAX_WAITING as u8 + 6 {
            leave(home.path(), "http://hub", &repository, &[n, b'\n', n]).unwrap();
        }
        let paths = waiting(home.path()).unwrap();
        assert_eq!(paths.len(), MAX_WAITING);
        let (address, trace) = read(&paths[0]).unwrap();
        assert_eq!((address.hub.as_str(), address.repository, trace), ("http://hub", repository, vec![6, b'\n', 6]));
        std::fs::write(&paths[1], b"no address").unwrap();
        assert!(read(&paths[1]).is_none());
        File::options().write(true).open(&paths[2]).unwrap().set_modified(SystemTime::now() - MAX_AGE).unwrap();
        assert!(read(&paths[2]).is_none());
    }
}
