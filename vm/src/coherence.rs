//! Names that come and go on the host while it shows through an overlay.
//!
//! Overlayfs believes for ever that a name it did not find is absent, and that one it found is there: it asks its lower
//! layers no second time. Changed and replaced files are noticed, a new name or a deleted one is not. So the directories
//! that the VM looks into are watched, and when a name changes about which the VM asked before, pid 1 remounts the overlay
//! as it is, which has the kernel drop what it remembers: at most once in [`PAUSE`].
//!
//! What is missed costs nothing but this: a directory beyond [`MAX_DIRECTORIES`], or one for which the user's quota of
//! watches has nothing left, stays as it was before.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use layer_format::LayerPath;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::fs::Witness;
use crate::running::Control;

/// Shortest time from a change to the remount, and between two: the kernel believes our own filesystem for a second.
const PAUSE: Duration = Duration::from_millis(1100);
/// Most directories that are watched.
const MAX_DIRECTORIES: usize = 8192;
/// Most names that are remembered; in a directory that has more, every change counts.
const MAX_NAMES: usize = 65536;

/// Remembers what the VM asked about.
#[derive(Debug)]
pub(crate) struct Asked {
    inotify: OwnedFd,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By path; `None` if it cannot be watched.
    watches: HashMap<LayerPath, Option<i32>>,
    directories: HashMap<i32, Directory>,
    names: usize,
}

#[derive(Debug, Default)]
struct Directory {
    /// Whether each name was there when it was asked for.
    names: HashMap<Vec<u8>, bool>,
    /// Whether there are more.
    all: bool,
}

impl Asked {
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self { inotify, known: Mutex::default() })
    }

    /// Starts the thread that has the overlay remounted. It ends with the VM, which holds the other end of `socket`.
    pub(crate) fn watch(self: Arc<Self>, control: Control, socket: UnixStream) -> io::Result<()> {
        std::thread::Builder::new().name("turbo-coherence".to_owned()).spawn(move || self.run(&control, &socket)).map(drop)
    }

    fn run(&self, control: &Control, socket: &UnixStream) {
        let mut stale_since: Option<Instant> = None;
        loop {
            let wait = stale_since.map(|since| PAUSE.saturating_sub(since.elapsed()));
            let timeout = wait.map(|wait| Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() });
            let mut fds = [PollFd::new(&self.inotify, PollFlags::IN), PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::empty())];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            if !fds[1].revents().is_empty() {
                return;
            }
            if self.take_events() {
                stale_since.get_or_insert_with(Instant::now);
            }
            if stale_since.is_some_and(|since| since.elapsed() >= PAUSE) {
                stale_since = None;
                control.refresh();
            }
        }
    }

    /// Whether any of the changes since the last call matters.
    fn take_events(&self) -> bool {
        let mut space = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(&self.inotify, &mut space);
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

impl Known {
    /// Whether it matters that a name is there now, or not.
    fn changes(&mut self, watch: i32, name: &[u8], there: bool) -> bool {
        let Some(directory) = self.directories.get_mut(&watch) else { return false };
        match directory.names.get_mut(name) {
            Some(was) => std::mem::replace(was, there) != there,
            None => directory.all,
        }
    }

    /// The directory of a watch is gone.
    fn lose(&mut self, watch: i32) {
        if let Some(directory) = self.directories.remove(&watch) {
            self.names -= directory.names.len();
        }
        self.watches.retain(|_, found| *found != Some(watch));
    }
}

impl Witness for Asked {
    fn looks_into(&self, directory: &LayerPath) {
        let mut known = self.known.lock();
        if known.watches.contains_key(directory) || known.watches.len() >= MAX_DIRECTORIES {
            return;
        }
        let path = [b"/", directory.as_bytes()].concat();
        let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO;
        let watch = inotify::add_watch(&self.inotify, path, flags | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW).ok();
        if let Some(watch) = watch {
            known.directories.entry(watch).or_default();
        }
        known.watches.insert(directory.clone(), watch);
    }

    fn saw(&self, path: &LayerPath, there: bool) {
        let (Some(parent), mut known) = (path.parent(), self.known.lock()) else { return };
        let Some(Some(watch)) = known.watches.get(&parent).copied() else { return };
        let is_full = known.names >= MAX_NAMES;
        let Some(directory) = known.directories.get_mut(&watch) else { return };
        if let Some(was) = directory.names.get_mut(path.name()) {
            *was = there;
        } else if is_full {
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
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn only_changes_of_what_was_asked_for_count() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let at = |name: &str| LayerPath::from_absolute(base.join(name).as_os_str().as_bytes()).unwrap();
        fs::write(base.join("there"), "").unwrap();
        let asked = Asked::new().unwrap();
        asked.looks_into(&at(""));
        asked.saw(&at("absent"), false);
        asked.saw(&at("there"), true);
        asked.saw(&at("unwatched/name"), false);
        fs::write(base.join("other"), "").unwrap();
        fs::write(base.join("there"), "changed").unwrap();
        fs::remove_file(base.join("other")).unwrap();
        assert!(!asked.take_events(), "nobody asked for it");
        fs::write(base.join("absent"), "").unwrap();
        assert!(asked.take_events());
        fs::rename(base.join("there"), base.join("gone")).unwrap();
        assert!(asked.take_events());
        // Replaced files are noticed by the kernel.
        fs::write(base.join("new"), "").unwrap();
        fs::rename(base.join("new"), base.join("absent")).unwrap();
        assert!(!asked.take_events());
        // A directory that comes back is watched again.
        fs::create_dir(base.join("sub")).unwrap();
        asked.looks_into(&at("sub"));
        asked.saw(&at("sub/x"), false);
        fs::remove_dir(base.join("sub")).unwrap();
        asked.take_events();
        fs::create_dir(base.join("sub")).unwrap();
        asked.looks_into(&at("sub"));
        asked.saw(&at("sub/x"), false);
        fs::write(base.join("sub/x"), "").unwrap();
        assert!(asked.take_events());
        let known = asked.known.lock();
        assert_eq!(known.names, known.directories.values().map(|directory| directory.names.len()).sum::<usize>());
    }
}
