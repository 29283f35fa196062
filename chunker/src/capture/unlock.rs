//! Makes files and directories readable that their owner may not read, and undoes it.
//!
//! A program may take rights away from itself, also the right to read. A capture gives the owner that right for the time
//! of the capture. Before each change a note of it is written to a journal, and synced: if the capture is killed, the next
//! one, or the next start, puts the bits back. A file that has other bits by then than the capture gave it was changed by
//! someone else, and is left alone.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use layer_format::codec::{Reader, Writer};
use layer_format::{Digest, FormatError};
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, chmod, fstat, openat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::beneath::open_directory;

const MAGIC: &[u8; 3] = b"TBU";
const VERSION: u8 = 1;
/// Bytes of a record's checksum.
const CHECKSUM_LEN: usize = 8;
const PATH_ONLY: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// A change of permission bits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    /// Relative to the sandbox.
    path: Vec<u8>,
    ino: u64,
    /// Bits before.
    before: u16,
    /// Bits since.
    since: u16,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Unlocker {
    root: OwnedFd,
    journal: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    done: Vec<Record>,
    /// Bits before, by device and inode.
    before: HashMap<(u64, u64), u16>,
}

impl Unlocker {
    /// For the sandbox `upper`; puts back first what an earlier capture left.
    pub(crate) fn open(upper: &Path, journal: &Path) -> io::Result<Self> {
        undo(upper, journal)?;
        let root = openat(CWD, upper, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { root, journal: journal.to_owned(), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the owner read the file, or list and search the directory, at `path`, which has this identity.
    pub(crate) fn unlock(&self, path: &[u8], dev: u64, ino: u64) -> rustix::io::Result<()> {
        // Who may do everything needs nothing.
        if geteuid().is_root() {
            return Ok(());
        }
        let fd = open_path(&self.root, path)?;
        let stat = fstat(&fd)?;
        if identity(&stat) != (dev, ino) {
            return Err(Errno::NOENT);
        }
        let before = (stat.st_mode & 0o7777) as u16;
        let missing = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => 0o500,
            FileType::RegularFile => 0o400,
            _ => return Ok(()),
        };
        let record = Record { path: path.to_owned(), ino, before, since: before | missing };
        if record.before == record.since {
            return Ok(());
        }
        let mut state = self.state();
        state.note(&self.journal, &record).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        // Whoever sees the new bits finds the old ones here.
        state.before.entry((dev, ino)).or_insert(before);
        let since = record.since;
        state.done.push(record);
        change(&fd, since)
    }

    /// The bits that a file had before [`Self::unlock`], if it was.
    pub(crate) fn original_mode(&self, dev: u64, ino: u64) -> Option<u16> {
        self.state().before.get(&(dev, ino)).copied()
    }
}

impl Drop for Unlocker {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.file.is_some() && put_back(&self.root, &state.done) {
            let _ = std::fs::remove_file(&self.journal);
        }
    }
}

impl State {
    fn note(&mut self, journal: &Path, record: &Record) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let mut file = File::create(journal)?;
                file.write_all(&[MAGIC[0], MAGIC[1], MAGIC[2], VERSION])?;
                // Its name must outlive a power cut, too.
                if let Some(folder) = journal.parent() {
                    File::open(folder)?.sync_all()?;
                }
                self.file.insert(file)
            }
        };
        file.write_all(&record.encode())?;
        file.sync_data()
    }
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_varint(self.ino);
        body.put_varint(self.before.into());
        body.put_varint(self.since.into());
        body.put_sized(&self.path);
        let mut out = Vec::new();
        out.put_sized(&body);
        out.extend_from_slice(&Digest::of(&body).as_bytes()[..CHECKSUM_LEN]);
        out
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let body = reader.sized(1 << 16)?;
        if reader.bytes(CHECKSUM_LEN)? != &Digest::of(body).as_bytes()[..CHECKSUM_LEN] {
            return Err(FormatError::DigestMismatch { what: "journal" });
        }
        let mut inner = Reader::new("journal", body);
        let ino = inner.varint(u64::MAX)?;
        let (before, since) = (inner.varint(0o7777)? as u16, inner.varint(0o7777)? as u16);
        let path = inner.sized(1 << 16)?.to_vec();
        inner.finish()?;
        Ok(Self { path, ino, before, since })
    }
}

/// Puts back the permission bits that a capture of the sandbox `upper` changed before it was killed. Without effect, and
/// nearly without cost, if none was.
///
/// # Errors
/// If the journal cannot be read or removed.
pub(crate) fn undo(upper: &Path, journal: &Path) -> io::Result<()> {
    let bytes = match std::fs::read(journal) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let mut records = Vec::new();
    let mut reader = Reader::new("journal", &bytes);
    if reader.header(MAGIC, VERSION).is_ok() {
        // A record that was not written to its end was not acted on.
        while let Ok(record) = Record::decode(&mut reader) {
            records.push(record);
        }
    }
    if !records.is_empty() {
        let root = openat(CWD, upper, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        put_back(&root, &records);
    }
    std::fs::remove_file(journal)
}

/// Puts the bits back, last change first. Returns whether each was put back or found changed by someone else.
fn put_back(root: &OwnedFd, records: &[Record]) -> bool {
    records.iter().rev().fold(true, |all, record| {
        let done = (|| {
            let fd = match open_path(root, &record.path) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
                other => other?,
            };
            let stat = fstat(&fd)?;
            let is_ours = stat.st_ino == record.ino && (stat.st_mode & 0o7777) as u16 == record.since;
            let is_plain = matches!(FileType::from_raw_mode(stat.st_mode), FileType::Directory | FileType::RegularFile);
            if is_ours && is_plain { change(&fd, record.before) } else { Ok(()) }
        })();
        all & done.is_ok()
    })
}

/// A handle of what is at `path`, which must not be below a symbolic link, nor be one.
fn open_path(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&path[..0], path),
    };
    let parent = open_directory(root, parent, PATH_ONLY | OFlags::DIRECTORY)?;
    if name.is_empty() { Ok(parent) } else { openat(&parent, name, PATH_ONLY, Mode::empty()) }
}

/// Changes the bits of what a handle stands for: there is no such call for handles without a right to read.
fn change(fd: &OwnedFd, bits: u16) -> rustix::io::Result<()> {
    chmod(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()), Mode::from_raw_mode(bits.into()))
}

#[allow(clippy::unnecessary_cast, clippy::useless_conversion, reason = "the fields' types differ between architectures")]
fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_was_cut_short_is_not_one() {
        let record = Record { path: b"a/b".to_vec(), ino: 77, before: 0o200, since: 0o600 };
        let bytes = record.encode();
        assert_eq!(Record::decode(&mut Reader::new("journal", &bytes)), Ok(record));
        for len in 0..bytes.len() {
            assert!(Record::decode(&mut Reader::new("journal", &bytes[..len])).is_err());
        }
    }

    #[test]
    fn what_a_killed_capture_left_is_put_back_unless_it_changed_since() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let folder = tempfile::tempdir().unwrap();
        let (upper, journal) = (folder.path().join("upper"), folder.path().join("journal"));
        std::fs::create_dir_all(upper.join("dir")).unwrap();
        let mut state = State::default();
        for (name, before, now) in [("dir/ours", 0o200, 0o600), ("dir/theirs", 0o200, 0o640), ("dir", 0o300, 0o700), ("link", 0, 0)] {
            let path = upper.join(name);
            match name {
                "dir" => {}
                "link" => std::os::unix::fs::symlink(folder.path().join("victim"), &path).unwrap(),
                _ => std::fs::write(&path, "x").unwrap(),
            }
            std::fs::write(folder.path().join("victim"), "x").unwrap();
            if name != "link" {
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(now)).unwrap();
            }
            let ino = path.symlink_metadata().unwrap().ino();
            state.note(&journal, &Record { path: name.into(), ino, before, since: 0o600 | if name == "dir" { 0o100 } else { 0 } }).unwrap();
        }
        let victim = std::fs::metadata(folder.path().join("victim")).unwrap().mode();
        undo(&upper, &journal).unwrap();
        assert!(!journal.exists());
        let mode = |name: &str| std::fs::metadata(upper.join(name)).unwrap().mode() & 0o7777;
        assert_eq!(mode("dir"), 0o300);
        std::fs::set_permissions(upper.join("dir"), std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!((mode("dir/ours"), mode("dir/theirs")), (0o200, 0o640));
        assert_eq!(std::fs::metadata(folder.path().join("victim")).unwrap().mode(), victim);
        undo(&upper, &journal).unwrap();
    }
}
