//! The Turbo VM: a virtual filesystem of layers, host and sandbox, run in user namespaces without privilege.
//!
//! One run has three processes of ours. The *parent* (the `turbo` process) stays on the host and answers FUSE requests
//! with the user's own rights. Its *child*, forked by [`Launcher::fork`] before any thread exists, makes the user, mount
//! and pid namespaces, mounts FUSE and overlayfs, and hands the FUSE descriptors back. *Pid 1*, the child's child, enters
//! the new root, starts the application, reaps orphans and ends with it.
//!
//! ```text
//!  application                 /  = overlayfs
//!      │ native                     upper   <sandbox>/upper        native files
//!      ▼                            lower 1 FUSE: image layers     immutable, cached for ever by the kernel
//!  kernel ──── FUSE ───► parent     lower 2 FUSE: the host         only where the mode is write-copy; cached for 1 s
//!                                /a = bind mount                   merge, only the host has something
//!                                /b = FUSE: the union              merge with virtual content, rules for single files
//! ```
//!
//! `regions` decides which of these serves which directory; `serving` makes what is needed for it.
//!
//! What holds today, and what does not, is in `docs/semantics.md`. The logic of the filesystems is in [`fs`], without
//! FUSE; system calls that need `unsafe` are in `sys` alone.

mod coherence;
mod control;
mod error;
mod fuse;
mod guard;
mod joiner;
mod launcher;
mod links;
mod ns;
mod pending;
mod pool;
mod probe;
mod processes;
mod regions;
mod rules;
mod running;
mod sandbox;
mod serving;
mod spec;
mod surroundings;
mod sys;

pub mod fs;

pub use control::{Control, Lease};
pub use error::VmError;
pub use guard::printable;
pub use joiner::{Held, JoinSpec, Joiner, Ticket};
pub use launcher::Launcher;
pub use probe::{Check, Finding, Status, examine, probe};
pub use processes::{Process, processes};
pub use rules::Rules;
pub use running::{ExitStatus, Running, Timings};
pub use spec::{BindMount, DEFAULT_READAHEAD, Mode, RunSpec, ScriptsOfRun};
