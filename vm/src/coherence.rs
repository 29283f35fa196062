//! Names that come and go on the host while it shows through an overlay.
//!
//! Overlayfs believes for ever that a name it did not find is absent, and that one it found is there: it asks its lower
//! layers no second time. Changed and replaced files are noticed, a new name or a deleted one is not. So the directories
//! that the VM looks into are watched, and when a name changes about which the VM asked before, pid 1 remounts the overlay
//! as it is, which has the kernel drop what it remembers: at most once in [`PAUSE`].
//!
//! Watching begins when a run has lasted for [`GRACE`]: to end a watch takes the kernel longer than a short run.
//!
//! What is missed costs nothing but this: a directory beyond [`MAX_DIRECTORIES`], or one for which the user's quota of
//! watches has nothing left, stays as it was before.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use layer_format::LayerPath;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::control::Control;
use crate::fs::Witness;

/// Shortest time from a change to the remount, and between two: the kernel believes our own filesystem for a second.
const PAUSE: Duration = Duration::from_millis(1100);
/// How long a run must last before its directories are watched.
const GRACE: Duration = Duration::from_millis(400);
/// Most directories that are watched.
const MAX_DIRECTORIES: usize = 8192;
/// Most names that are remembered; in a directory that has more, every change counts.
const MAX_NAMES: usize = 65536;

/// Remembers what the VM asked about.
#[derive(Debug)]
pub(crate) struct Asked {
    begun: SystemTime,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    directories: HashMap<LayerPath, Directory>,
    /// Once directories are watched.
    watches: Option<Watches>,
    names: usize,
}

/// A directory has one watch under all its names.
#[derive(Debug)]
struct Watches {
    inotify: Arc<OwnedFd>,
    paths: HashMap<i32, Vec<LayerPath>>,
}

#[derive(Debug, Default)]
struct Directory {
    /// Whether each name was there when it was asked for.
    names: HashMap<Vec<u8>, bool>,
    /// Whether there are more.
    all: bool,
}

impl Asked {
    pub(crate) fn new() -> Self {
        // The clock of filesystems goes in steps, and lags behind.
        let begun = SystemTime::now().checked_sub(Duration::from_millis(50)).unwrap_or(SystemTime::UNIX_EPOCH);
        Self { begun, known: Mutex::default() }
    }

    /// Starts the thread that has the overlay remounted. It ends with the VM, which holds the other end of `socket`.
    pub(crate) fn watch(self: Arc<Self>, control: Control, socket: UnixStream) -> io::Result<()> {
        std::thread::Builder::new().name("turbo-coherence".to_owned()).spawn(move || self.run(&control, &socket)).map(drop)
    }

    fn run(&self, control: &Control, socket: &UnixStream) {
        if has_ended(&[], socket, Some(GRACE)) {
            return;
        }
        let Ok((inotify, stale)) = self.begin() else { return };
        let mut stale_since = stale.then(Instant::now);
        while !has_ended(&[&inotify], socket, stale_since.map(|since| PAUSE.saturating_sub(since.elapsed()))) {
            if self.take_events(&inotify) {
                stale_since.get_or_insert_with(Instant::now);
            }
            if stale_since.is_some_and(|since| since.elapsed() >= PAUSE) {
                stale_since = None;
                control.refresh();
            }
        }
    }

    /// Watches all directories that were looked into so far. Whether names in one of them have changed since.
    fn begin(&self) -> io::Result<(Arc<OwnedFd>, bool)> {
        let inotify = Arc::new(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?);
        let mut known = self.known.lock();
        let mut watches = Watches { inotify: Arc::clone(&inotify), paths: HashMap::new() };
        known.directories.keys().for_each(|directory| watches.add(directory));
        known.watches = Some(watches);
        // A change after this is an event.
        let changed = |directory: &LayerPath| std::fs::symlink_metadata(on_host(directory)).and_then(|found| found.modified()).is_ok_and(|at| at >= self.begun);
        let stale = known.directories.keys().any(changed);
        Ok((inotify, stale))
    }

    /// Whether any of the changes since the last call matters.
    fn take_events(&self, inotify: &OwnedFd) -> bool {
        let mut space = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(inotify, &mut space);
        let mut stale = false;
        // Until there are no more, which is an error here.
        while let Ok(event) = reader.next() {
            let mut known = self.known.lock();
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                stale = true;
            } else if event.events().contains(ReadFlags::IGNORED) {
                known.lose(event.wd());
            } else if let Some(name) = event.file_name() {
                let there = event.events().intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
                stale |= known.changes(event.wd(), name.to_bytes(), there);
            }
        }
        stale
    }
}

/// Waits until one of `sources` has something to say, for at most `limit`. Whether the VM has ended.
fn has_ended(sources: &[&OwnedFd], socket: &UnixStream, limit: Option<Duration>) -> bool {
    let begun = Instant::now();
    loop {
        let left = limit.map(|limit| limit.saturating_sub(begun.elapsed()));
        let timeout = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        let mut fds = vec![PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::empty())];
        fds.extend(sources.iter().map(|source| PollFd::new(*source, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            Err(_) => return true,
            Ok(_) => return !fds[0].revents().is_empty(),
        }
    }
}

/// Where a directory is on the host.
fn on_host(directory: &LayerPath) -> PathBuf {
    Path::new("/").join(OsStr::from_bytes(directory.as_bytes()))
}

impl Watches {
    fn add(&mut self, directory: &LayerPath) {
        let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO;
        if let Ok(watch) = inotify::add_watch(&self.inotify, on_host(directory), flags | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW) {
            self.paths.entry(watch).or_default().push(directory.clone());
        }
    }
}

impl Known {
    /// Whether it matters that a name is there now, or not.
    fn changes(&mut self, watch: i32, name: &[u8], there: bool) -> bool {
        let paths = self.watches.as_ref().and_then(|watches| watches.paths.get(&watch));
        let mut matters = false;
        for path in paths.into_iter().flatten() {
            let Some(directory) = self.directories.get_mut(path) else { continue };
            matters |= match directory.names.get_mut(name) {
                Some(was) => std::mem::replace(was, there) != there,
                None => directory.all,
            };
        }
        matters
    }

    /// The directory of a watch is gone.
    fn lose(&mut self, watch: i32) {
        let paths = self.watches.as_mut().and_then(|watches| watches.paths.remove(&watch));
        for path in paths.into_iter().flatten() {
            if let Some(directory) = self.directories.remove(&path) {
                self.names -= directory.names.len();
            }
        }
    }
}

impl Witness for Asked {
    fn looks_into(&self, directory: &LayerPath) {
        let mut known = self.known.lock();
        if known.directories.contains_key(directory) || known.directories.len() >= MAX_DIRECTORIES {
            return;
        }
        if let Some(watches) = &mut known.watches {
            watches.add(directory);
        }
        known.directories.insert(directory.clone(), Directory::default());
    }

    fn saw(&self, path: &LayerPath, there: bool) {
        let (Some(parent), mut known) = (path.parent(), self.known.lock()) else { return };
        let known = &mut *known;
        let Some(directory) = known.directories.get_mut(&parent) else { return };
        if let Some(was) = directory.names.get_mut(path.name()) {
            *was = there;
        } else if known.names >= MAX_NAMES {
            directory.all = true;
        } else {
            directory.names.insert(path.name().to_vec(), there);
            known.names += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_changes_of_what_was_asked_for_count() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let at = |name: &str| LayerPath::from_absolute(base.join(name).as_os_str().as_bytes()).unwrap();
        fs::write(base.join("there"), "").unwrap();
        let asked = Asked::new();
        // Looked into before watching begins, and changed meanwhile.
        asked.looks_into(&at(""));
        fs::write(base.join("early"), "").unwrap();
        let (inotify, stale) = asked.begin().unwrap();
        assert!(stale);
        asked.saw(&at("absent"), false);
        asked.saw(&at("there"), true);
        asked.saw(&at("unwatched/name"), false);
        fs::write(base.join("other"), "").unwrap();
        fs::write(base.join("there"), "changed").unwrap();
        fs::remove_file(base.join("other")).unwrap();
        assert!(!asked.take_events(&inotify), "nobody asked for it");
        fs::write(base.join("absent"), "").unwrap();
        assert!(asked.take_events(&inotify));
        fs::rename(base.join("there"), base.join("gone")).unwrap();
        assert!(asked.take_events(&inotify));
        // Replaced files are noticed by the kernel.
        fs::write(base.join("new"), "").unwrap();
        fs::rename(base.join("new"), base.join("absent")).unwrap();
        assert!(!asked.take_events(&inotify));
        // A directory that comes back is watched again.
        fs::create_dir(base.join("sub")).unwrap();
        asked.looks_into(&at("sub"));
        asked.saw(&at("sub/x"), false);
        fs::remove_dir(base.join("sub")).unwrap();
        asked.take_events(&inotify);
        fs::create_dir(base.join("sub")).unwrap();
        asked.looks_into(&at("sub"));
        asked.saw(&at("sub/x"), false);
        fs::write(base.join("sub/x"), "").unwrap();
        assert!(asked.take_events(&inotify));
        let known = asked.known.lock();
        assert_eq!(known.names, known.directories.values().map(|directory| directory.names.len()).sum::<usize>());
    }
}
