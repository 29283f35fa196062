//! Where the store keeps what, and who may remove it.
//!
//! ```text
//! format                  the store's format version, as text
//! index/                  LMDB: which object lies where, names, manifests, models
//! packs/NAME.pack         finished packs, and `stream-…` packs that grow
//! images/HEX.json         manifest and names of an image once more, so that the index can be built again
//! states/HEX.json         the manifest of a state, as its digest covers it
//! tmp/                    packs being written; each is locked by its writer
//! imports/                what imports remember of the files that they read: a cache
//! checkouts/              what checkouts remember of the directories that they made, and a lock for each
//! running/                one file a running process, locked by it, that lists the images it uses
//! content.lock            held shared by who relies on packs that no image names yet, exclusively by who removes packs
//! repack.lock             held by who repacks
//! ```
//!
//! All locks are `flock(2)`: the kernel frees them when their holder dies, so no lock is ever stale.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::StoreError;

/// Newest format of a store that this version knows, and the one that it writes.
pub(super) const FORMAT: u32 = 1;

/// The paths of one store.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    home: PathBuf,
}

impl Layout {
    /// Opens or creates the folders below `home`.
    pub(crate) fn open(home: &Path) -> Result<Self, StoreError> {
        if !home.is_dir() {
            create_dir(home)?;
            // Not everyone may open the folder that it is in.
            let _ = sync_parent(home);
        }
        let home = home.canonicalize().map_err(io_error("opening", home))?;
        let layout = Self { home };
        layout.check_format()?;
        let folders = [layout.packs(), layout.images(), layout.states(), layout.tmp(), layout.running()];
        let mut is_new = false;
        for folder in &folders {
            is_new |= !folder.is_dir();
            create_dir(folder)?;
        }
        if is_new {
            // What is promised of a file in a folder holds only if the folder itself is durable.
            sync_parent(&layout.packs())?;
        }
        Ok(layout)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let path = self.home.join("format");
        match std::fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse::<u32>() {
                Ok(found) if found > FORMAT => Err(StoreError::NewerFormat { path: self.home.clone(), found, known: FORMAT }),
                Ok(_) => Ok(()),
                // An empty file is what a crash right after creation may leave.
                Err(_) if text.trim().is_empty() => write_durably(&path, &self.tmp_name("format"), format!("{FORMAT}\n").as_bytes()),
                Err(_) => Err(io_error("reading", &path)(io::Error::new(io::ErrorKind::InvalidData, "it holds no format number; is this a store?"))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_dir(&self.tmp())?;
                write_durably(&path, &self.tmp_name("format"), format!("{FORMAT}\n").as_bytes())
            }
            Err(error) => Err(io_error("reading", &path)(error)),
        }
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.home.join("index")
    }

    pub(crate) fn packs(&self) -> PathBuf {
        self.home.join("packs")
    }

    pub(crate) fn pack(&self, file: &str) -> PathBuf {
        self.packs().join(file)
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.home.join("images")
    }

    pub(crate) fn states(&self) -> PathBuf {
        self.home.join("states")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.home.join("tmp")
    }

    pub(crate) fn imports(&self) -> PathBuf {
        self.home.join("imports")
    }

    pub(crate) fn checkouts(&self) -> PathBuf {
        self.home.join("checkouts")
    }

    pub(crate) fn running(&self) -> PathBuf {
        self.home.join("running")
    }

    /// A new name below `tmp/`.
    pub(crate) fn tmp_name(&self, what: &str) -> PathBuf {
        self.tmp().join(format!("{what}-{}-{:016x}", std::process::id(), rand::random::<u64>()))
    }

    /// Removes what dead processes left in `tmp/`. Cheap when it is empty.
    pub(crate) fn remove_leftovers(&self) {
        let Ok(entries) = std::fs::read_dir(self.tmp()) else { return };
        for entry in entries.flatten() {
            remove_if_free(&entry.path());
        }
    }

    fn content_lock_path(&self) -> PathBuf {
        self.home.join("content.lock")
    }

    /// Takes `content.lock`: see the module's description. `Ok(None)` only without `wait`.
    pub(crate) fn content_lock(&self, exclusive: bool, wait: bool) -> Result<Option<File>, StoreError> {
        let path = self.content_lock_path();
        let file = open_lock(&path)?;
        let locked = match (exclusive, wait) {
            (false, true) => file.lock_shared().map_err(TryLockError::Error),
            (true, true) => file.lock().map_err(TryLockError::Error),
            (false, false) => file.try_lock_shared(),
            (true, false) => file.try_lock(),
        };
        taken(file, locked, &path)
    }

    /// Takes `content.lock` exclusively; `Ok(None)` if that was not possible for so long.
    pub(crate) fn content_lock_within(&self, wait: Duration) -> Result<Option<File>, StoreError> {
        /// How often is tried. The kernel's own queue has no bound on the wait that a thread could have without signals.
        const AGAIN: Duration = Duration::from_millis(20);
        let until = Instant::now() + wait;
        loop {
            if let Some(lock) = self.content_lock(true, false)? {
                return Ok(Some(lock));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            std::thread::sleep(AGAIN.min(left));
        }
    }

    /// Numbers of the processes that hold `content.lock` now, as far as the kernel tells.
    pub(crate) fn content_holders(&self) -> Vec<u32> {
        let (Ok(meta), Ok(locks)) = (std::fs::metadata(self.content_lock_path()), std::fs::read_to_string("/proc/locks")) else { return Vec::new() };
        // `1: FLOCK ADVISORY READ 4711 fe:00:1234 0 EOF`; the device is not compared: some file systems show another there.
        let inode = format!(":{}", meta.ino());
        let holder = |line: &str| {
            let mut words = line.split_whitespace().skip_while(|word| *word != "FLOCK").skip(3);
            let pid = words.next()?.parse().ok()?;
            words.next()?.ends_with(&inode).then_some(pid)
        };
        let mut pids: Vec<u32> = locks.lines().filter(|line| !line.contains("->")).filter_map(holder).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// The lock of who repacks; `Ok(None)` if another process does.
    pub(crate) fn repack_lock(&self) -> Result<Option<File>, StoreError> {
        let path = self.home.join("repack.lock");
        let file = open_lock(&path)?;
        let locked = file.try_lock();
        taken(file, locked, &path)
    }
}

fn open_lock(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(io_error("opening", path))
}

fn taken(file: File, locked: Result<(), TryLockError>, path: &Path) -> Result<Option<File>, StoreError> {
    match locked {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(io_error("locking", path)(error)),
    }
}

/// Creates a new file that is locked, so that [`Layout::remove_leftovers`] of other processes leaves it alone.
pub(crate) fn create_locked(path: impl Fn() -> PathBuf) -> Result<(PathBuf, File), StoreError> {
    loop {
        let path = path();
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(io_error("creating", &path))?;
        file.lock().map_err(io_error("locking", &path))?;
        // Between creation and lock another process may have taken it for a leftover.
        if file.metadata().is_ok_and(|meta| meta.nlink() > 0) {
            return Ok((path, file));
        }
    }
}

/// Removes a file unless a living process has it locked. Returns whether it is gone.
pub(crate) fn remove_if_free(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return true };
    file.try_lock().is_ok() && std::fs::remove_file(path).is_ok()
}

/// Replaces `path` by a file with these bytes: a reader sees the old or the new ones, also after a crash.
pub(crate) fn write_durably(path: &Path, temporary: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let written = (|| {
        std::fs::write(temporary, bytes)?;
        File::open(temporary)?.sync_all()?;
        std::fs::rename(temporary, path)
    })();
    if let Err(error) = written {
        let _ = std::fs::remove_file(temporary);
        return Err(io_error("writing", path)(error));
    }
    sync_parent(path)
}

/// Makes the names in the folder of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(io_error("syncing", parent))
}

pub(crate) fn create_dir(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("creating", path))
}

/// Adds step and path to an error of the operating system.
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}
