//! What a power cut leaves of a folder, for every moment of a real program's run.
//!
//! The program runs once under strace, which writes down every system call that changes a file below the folder
//! ([`record`]). From that, and from what was there before, any number of *crash states* are made without running it again
//! ([`disk`]): the calls up to some moment, of which those survive that were synced, and of the others any. A state is put
//! on a real disk, and the product is asked to go on from there.

pub mod disk;
mod parse;

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::binaries::test_user;

/// System calls that change files, or make changes durable, and those that say where.
const TRACED: &str = "trace=lseek,write,pwrite64,writev,pwritev,pwritev2,ftruncate,fallocate,fsync,fdatasync,syncfs,sync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,open,openat,creat,link,linkat,copy_file_range,sendfile";

/// A change of the folder, or a sync, in the order in which they ended. Paths are relative to the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A file was opened that may be created by that.
    Open {
        /// Which.
        path: PathBuf,
        /// Whether it is emptied.
        cut: bool,
    },
    /// Bytes were written.
    Write {
        /// Where to.
        path: PathBuf,
        /// At which offset; `None` for the end.
        offset: Option<u64>,
        /// What.
        bytes: Vec<u8>,
        /// Whether the file was opened so that each write is durable when it returns.
        durable: bool,
    },
    /// A file has this length now.
    SetLen {
        /// Which.
        path: PathBuf,
        /// In bytes.
        len: u64,
    },
    /// A file has at least this length now.
    Reserve {
        /// Which.
        path: PathBuf,
        /// In bytes.
        len: u64,
    },
    /// A file or folder was synced.
    Sync {
        /// Which.
        path: PathBuf,
    },
    /// All was synced.
    SyncAll,
    /// A file or folder has another name.
    Rename {
        /// The old one.
        from: PathBuf,
        /// The new one.
        to: PathBuf,
    },
    /// A file has a second name.
    Link {
        /// The first.
        from: PathBuf,
        /// The second.
        to: PathBuf,
    },
    /// A name is gone.
    Remove {
        /// Which.
        path: PathBuf,
    },
    /// A folder was made.
    MakeFolder {
        /// Which.
        path: PathBuf,
    },
}

/// A call, and when it began and ended.
#[derive(Clone, Debug)]
pub struct Timed {
    /// Seconds.
    pub begun: f64,
    /// Seconds.
    pub ended: f64,
    /// What it did.
    pub call: Call,
}

/// Whether strace can be used here; if not, says so. A test that needs it returns.
pub fn can_trace() -> bool {
    let works = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success());
    if !works {
        eprintln!("skipped: strace does not work here (`cargo xtask setup` installs it; tracing of own processes must be allowed)");
    }
    works
}

/// Who runs a traced command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// The ordinary user of the tests.
    Ordinary,
    /// Whoever runs the tests.
    Same,
}

/// A command as it is, under strace with these options.
pub fn traced<S: AsRef<OsStr>>(command: &Command, user: User, options: impl IntoIterator<Item = S>) -> Command {
    let mut strace = Command::new("strace");
    strace.args(options).arg("--").arg(command.get_program()).args(command.get_args()).env_clear();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            strace.env(name, value);
        }
    }
    if let Some(folder) = command.get_current_dir() {
        strace.current_dir(folder);
    }
    strace.stdin(Stdio::null());
    if let Some((uid, gid)) = test_user().filter(|_| user == User::Ordinary) {
        strace.uid(uid).gid(gid);
    }
    strace
}

/// What a program did to a folder.
#[derive(Debug)]
pub struct Recorder {
    log: tempfile::TempDir,
    folder: PathBuf,
}

impl Recorder {
    /// Records what happens below `folder`.
    pub fn new(folder: &Path) -> Self {
        let log = tempfile::tempdir().expect("a temporary folder");
        crate::turbo::own(log.path());
        Self { log, folder: folder.to_owned() }
    }

    /// The command, so that it is recorded.
    pub fn command(&self, command: &Command, user: User) -> Command {
        let output = self.log.path().join("calls");
        let options = ["-ff", "--seccomp-bpf", "-ttt", "-T", "-y", "-xx", "-s", "268435456", "-e", "signal=none", "-e", TRACED, "-o"];
        traced(command, user, options.iter().map(OsStr::new).chain([output.as_os_str()]))
    }

    /// All calls so far, in the order in which they ended. The command has ended.
    pub fn calls(&self) -> Vec<Timed> {
        let folder = self.folder.canonicalize().expect("the folder is there");
        let mut calls = Vec::new();
        for entry in std::fs::read_dir(self.log.path()).expect("a log").flatten() {
            let text = std::fs::read(entry.path()).expect("a log");
            parse::thread(&text, &folder, &mut calls);
        }
        calls.sort_by(|a, b| a.ended.total_cmp(&b.ended));
        calls
    }
}

/// Runs a command to its end and says what it did below `folder`.
#[track_caller]
pub fn record(command: &Command, folder: &Path) -> Vec<Timed> {
    let recorder = Recorder::new(folder);
    let output = recorder.command(command, User::Ordinary).output().expect("strace runs");
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let calls = recorder.calls();
    assert!(!calls.is_empty(), "nothing was recorded");
    calls
}
