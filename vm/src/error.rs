//! Why a run could not start or go on.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::ns::protocol::{Failure, Step};

/// Why a run could not start or go on. `NotFound` and `NotExecutable` are about the user's command, all others about
/// the VM.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// The command does not exist in the VM (127 by convention).
    #[error("`{}` was not found in the VM{}", command.display(), if *interpreter_missing { ": the file exists, but not the interpreter or loader that it names" } else { "" })]
    NotFound {
        /// The command as given.
        command: OsString,
        /// The file is there, but what its first line or ELF header asks for is not.
        interpreter_missing: bool,
    },
    /// The command exists but cannot be executed (126 by convention).
    #[error("`{}` cannot be executed: {source}", command.display())]
    NotExecutable {
        /// The command as given.
        command: OsString,
        /// `EACCES`, `ENOEXEC` or another answer of `execve(2)`.
        source: io::Error,
    },
    /// There is no command.
    #[error("there is no command to run")]
    NoCommand,
    /// The working directory cannot be entered.
    #[error("the working directory {} cannot be entered in the VM: {source}", path.display())]
    WorkingDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mode of the root is Hide.
    #[error("isolation mode `hide` for / leaves nothing to run; use `full`")]
    HiddenRoot,
    /// `/dev/fuse` cannot be opened.
    #[error("{}", match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => "`/dev/fuse` is not accessible to this user; as root once per boot: chmod 666 /dev/fuse",
        _ => "`/dev/fuse` does not exist; as root: modprobe fuse (in a container: start it with --device /dev/fuse)",
    })]
    FuseDevice {
        /// Why.
        source: io::Error,
    },
    /// User namespaces are not allowed.
    #[error(
        "this user may not create user namespaces: {source}; as root: sysctl -w user.max_user_namespaces=15000, on Debian also \
         sysctl -w kernel.unprivileged_userns_clone=1, on Ubuntu 23.10 and later sysctl -w kernel.apparmor_restrict_unprivileged_userns=0; \
         in Docker: --security-opt seccomp=unconfined"
    )]
    Namespace {
        /// Why.
        source: io::Error,
    },
    /// overlayfs refuses the sandbox.
    #[error(
        "overlayfs cannot use the sandbox {}: {source}; put it on a local filesystem such as ext4, xfs, btrfs or tmpfs (not overlayfs, NFS or FUSE); Linux 5.11 or later is needed",
        sandbox.display()
    )]
    Overlay {
        /// The container's directory.
        sandbox: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The sandbox directory cannot be prepared.
    #[error("the sandbox {} cannot be prepared: {source}", path.display())]
    Sandbox {
        /// The file or directory at fault.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another step of the set-up failed.
    #[error("could not set up the VM ({what}): {source}")]
    SetUp {
        /// The step, with the path it concerns.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A check that an earlier failure left no way to make; only [`crate::probe()`] says so.
    #[error("not tried, since an earlier check failed")]
    NotTried,
    /// A startup script failed, so the application was not started.
    #[error("the startup script `{script}` {problem}; the application was not started")]
    Script {
        /// Its program.
        script: String,
        /// What became of it, such as `ended with code 3`.
        problem: String,
    },
    /// A VM that was to be joined has ended.
    #[error("the container ended before it could be joined; start it anew")]
    Ended,
    /// A VM that runs cannot be entered.
    #[error("the running container cannot be joined: {source}; only the user who started it, on the host, can")]
    Join {
        /// Why.
        source: io::Error,
    },
    /// The VM's own processes ended without a word, e.g. because someone killed them.
    #[error("the VM ended unexpectedly")]
    Died,
}

impl VmError {
    pub(crate) fn set_up(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::SetUp { what: what.into(), source: source.into() }
    }

    /// What a failure reported by the child means.
    pub(crate) fn from_child(failure: Failure, sandbox: PathBuf) -> Self {
        let source: io::Error = Errno::from_raw_os_error(failure.errno).into();
        match failure.step {
            Step::OpenFuse => Self::FuseDevice { source },
            Step::Unshare | Step::WriteMaps => Self::Namespace { source },
            Step::Overlay => Self::Overlay { sandbox, source },
            Step::Exec => {
                let command = OsString::from(failure.path);
                match failure.errno {
                    libc::ENOENT | libc::ENOTDIR => Self::NotFound { command, interpreter_missing: failure.interpreter_missing },
                    _ => Self::NotExecutable { command, source },
                }
            }
            Step::Script(problem) => Self::Script { script: failure.path, problem },
            Step::Join if matches!(failure.errno, libc::ESRCH | libc::ENOMEM) => Self::Ended,
            Step::Join => Self::Join { source },
            Step::WorkingDir => Self::WorkingDir { path: failure.path.into(), source },
            Step::Other(what) => Self::SetUp { what: format!("{what} {}", failure.path).trim_end().to_owned(), source },
        }
    }
}
