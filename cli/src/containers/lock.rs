//! A container's lock: `flock` on a file, which a crash frees.
//!
//! Whoever only looks takes a shared lock for an instant, so that it is never mistaken for an owner; an owner that meets one
//! tries again. The file holds the owner's process id, for messages.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// Locks the folder; `None` if it has an owner.
pub fn take(folder: &Path) -> Result<Option<File>> {
    let path = folder.join("lock");
    let mut file = open(&path)?;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) if is_owned(&file)? => return Ok(None),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_micros(200)),
            Err(error) => return Err(error).with_context(|| format!("locking {}", path.display())),
        }
    }
    let note = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    note.with_context(|| format!("writing {}", path.display()))?;
    Ok(Some(file))
}

/// Whether the folder has an owner.
pub fn has_owner(folder: &Path) -> bool {
    open(&folder.join("lock")).and_then(|file| is_owned(&file)).unwrap_or(false)
}

/// The owner's process id, as it said.
pub fn owner(folder: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(folder.join("lock")).ok()?.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Notes that this process owns a lock that was handed to it.
pub fn adopt(mut file: &File) {
    use std::io::{Seek, SeekFrom};
    let _ = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).and_then(|_| writeln!(file, "{}", std::process::id()));
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path).with_context(|| format!("opening {}", path.display()))
}

/// Whether someone holds the exclusive lock. Gives the shared one back at once.
fn is_owned(file: &File) -> Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            rustix::fs::flock(file, FlockOperation::Unlock).context("unlocking")?;
            Ok(false)
        }
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error).context("locking"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_never_keeps_an_owner_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let done = &std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(move || {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        has_owner(path);
                    }
                });
            }
            for _ in 0..500 {
                let lock = take(path).unwrap().expect("only lookers are about");
                assert!(has_owner(path) && take(path).unwrap().is_none());
                assert_eq!(owner(path), Some(std::process::id()));
                drop(lock);
                assert!(!has_owner(path));
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
