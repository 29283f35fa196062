//! Can this machine and user run VMs? By trying, and by reading what the kernel says of itself.

mod attempt;
mod disk;
mod kernel;
mod namespaces;

use std::fs::File;
use std::path::Path;

use crate::error::VmError;
use attempt::Attempts;

/// One thing that a VM needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// `fuse-device`, `user-namespaces`, `overlayfs` or `fuse-in-namespace`.
    pub name: &'static str,
    /// Whether it is there. False also for what could not be tried because an earlier check failed.
    pub ok: bool,
    /// What is wrong and how to cure it; `None` if nothing is.
    pub remedy: Option<String>,
}

/// How well something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is there.
    Ok,
    /// It is there in part: what depends on it works less well.
    Degraded,
    /// It is not there.
    Missing,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Missing => "missing",
        })
    }
}

/// What was found out about one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its name, for programs: lower case, with hyphens.
    pub name: &'static str,
    /// How well it is there.
    pub status: Status,
    /// Whether nothing can run without it.
    pub needed: bool,
    /// What it is for.
    pub purpose: &'static str,
    /// What was found: a version, a number, what went wrong.
    pub detail: String,
    /// What to do about it, commands first, if there is something to do.
    pub remedy: Option<String>,
}

impl Finding {
    /// Something that is there.
    pub fn ok(name: &'static str, purpose: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, needed: false, purpose, detail: detail.into(), remedy: None }
    }

    /// The same with another status and what to do.
    #[must_use]
    pub fn but(self, status: Status, remedy: impl Into<String>) -> Self {
        Self { status, remedy: Some(remedy.into()), ..self }
    }

    /// The same, without which nothing can run.
    #[must_use]
    pub fn needed(self) -> Self {
        Self { needed: true, ..self }
    }

    /// Whether this alone prevents runs.
    pub fn prevents_runs(&self) -> bool {
        self.needed && self.status == Status::Missing
    }
}

/// Tries everything that a run needs, with a sandbox in `directory` (where sandboxes will be; made if missing). Forks, so
/// call it before threads start. A few milliseconds.
pub fn probe(directory: &Path) -> Vec<Check> {
    let device = fuse_device().map_err(|source| VmError::FuseDevice { source }.to_string());
    let tried = Attempts::make(directory);
    let text = |result: &Result<(), VmError>| result.as_ref().map_or_else(|error| Some(error.to_string()), |()| None);
    let of = |name, remedy: Option<String>| Check { name, ok: remedy.is_none(), remedy };
    vec![
        of("fuse-device", device.err()),
        of("user-namespaces", text(&tried.namespaces)),
        of("overlayfs", text(&tried.overlay)),
        of("fuse-in-namespace", text(&tried.fuse)),
    ]
}

/// All that can be said about this machine, for [`probe`]'s caller who wants to know what is wrong and what to do about it.
/// `executable` is the program that makes VMs: rules of the system may name it. Forks, as [`probe`] does.
pub fn examine(directory: &Path, executable: &Path) -> Vec<Finding> {
    let tried = Attempts::make(directory);
    vec![
        kernel::version(),
        namespaces::finding(&tried.namespaces, executable),
        fuse(&tried),
        disk::overlay(&tried, directory),
        kernel::filters(),
        kernel::landlock(),
        terminals(&tried),
        disk::folder(directory),
        disk::space(directory),
    ]
}

fn fuse_device() -> std::io::Result<()> {
    File::options().read(true).write(true).open("/dev/fuse").map(drop)
}

fn fuse(tried: &Attempts) -> Finding {
    let finding = Finding::ok("fuse", "shows images and the host to programs inside", "/dev/fuse can be opened").needed();
    match fuse_device().map_err(|error| (error.raw_os_error(), error)) {
        Err((Some(libc::EACCES | libc::EPERM), error)) => {
            let remedy = "sudo chmod 666 /dev/fuse\nand for every boot: echo 'KERNEL==\"fuse\", MODE=\"0666\"' | sudo tee /etc/udev/rules.d/60-fuse.rules";
            Finding { detail: format!("/dev/fuse: {error}"), ..finding }.but(Status::Missing, remedy)
        }
        Err((_, error)) => {
            let remedy = "sudo modprobe fuse\nand for every boot: echo fuse | sudo tee /etc/modules-load.d/fuse.conf";
            let remedy =
                namespaces::container().map_or(remedy.to_owned(), |_| format!("start the container with --device /dev/fuse; if its host has none:\n{remedy}"));
            Finding { detail: format!("/dev/fuse: {error}"), ..finding }.but(Status::Missing, remedy)
        }
        Ok(()) => match &tried.fuse {
            Ok(()) => finding,
            Err(VmError::NotTried) => Finding { detail: format!("{}; in a namespace it was not tried", finding.detail), ..finding },
            Err(error) => {
                let finding = Finding { detail: format!("it cannot be mounted in a user namespace: {error}"), ..finding };
                finding.but(Status::Missing, "Linux 4.18 or later is needed, and no security module that forbids the mount")
            }
        },
    }
}

fn terminals(tried: &Attempts) -> Finding {
    let finding = Finding::ok("devpts", "terminals of its own for a run whose root is full", "a new instance can be mounted");
    match &tried.terminals {
        Ok(()) => finding,
        Err(VmError::NotTried) => {
            Finding { detail: "not tried, since there are no user namespaces".to_owned(), ..finding }.but(Status::Degraded, "cure that first")
        }
        Err(error) => Finding { detail: error.to_string(), ..finding }
            .but(Status::Degraded, "runs whose root is full fail; the kernel needs CONFIG_UNIX98_PTYS, and no security module may forbid the mount"),
    }
}
