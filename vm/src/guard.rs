//! What an application inside may not do, beyond what it cannot see.
//!
//! A [`Guard`] follows from the run's modes. [`Guard::confine`] applies it in the process that becomes the application, as the
//! last step before `execve`; what must be mounted or covered is done earlier by pid 1 ([`dev`], [`kernel_files`]).
//! `docs/security.md` has the promises, the attacks, and the test of each.
//!
//! The main lines: pid 1 and the mounts belong to a user namespace over which the application has no rights. As an ordinary
//! user inside it has none anyway; as uid 0 inside it gets a user and mount namespace of its own, below, in which the kernel
//! locks our mounts together: they cannot be unmounted, moved or uncovered, and pid 1 can be neither traced nor opened.

pub(crate) mod dev;
pub(crate) mod kernel_files;
pub(crate) mod place;
pub(crate) mod seccomp;
mod stdio;
mod text;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs};
use serde::{Deserialize, Serialize};

use crate::ns::mounts::write_maps;
use crate::ns::protocol::Failure;
use crate::sys::confine::{SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS, close_on_exec_from, install_filter, landlock_abi, landlock_scope};
use crate::sys::process::unshare_for_root;
use kernel_files::Limits;
pub use text::printable;

/// First version of Landlock that has scopes.
pub(crate) const LANDLOCK_SCOPES: u32 = 6;

/// What uid 0 inside keeps in a strict VM: what package managers need within their own files. No mounts, no namespaces.
const KEPT_BY_ROOT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// How an application comes into the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// From pid 1, whose namespaces it has.
    Started,
    /// From outside, into the namespaces of pid 1, in which it has all rights until here: so no insider can trace it.
    Joined,
}

/// How much a run is held down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Guard {
    /// `/` is Full: the VM is a boundary against a hostile program, at some cost in what works inside.
    pub(crate) strict: bool,
    /// The application is uid 0 inside.
    pub(crate) root_inside: bool,
    /// The run was started by the machine's root, to whom the kernel's files answer even in a user namespace.
    pub(crate) root_outside: bool,
}

impl Guard {
    /// Whether the VM has a `/dev` of its own.
    pub(crate) fn has_private_dev(self) -> bool {
        self.strict || self.root_outside
    }

    /// Whether [`kernel_files`] are covered.
    pub(crate) fn covers_kernel_files(self) -> bool {
        self.strict || self.root_outside
    }

    /// Takes away what the application must not have, in this process. Descriptors from 3 on go at `execve`. `limits` are
    /// needed of a strict run.
    pub(crate) fn confine(self, limits: Option<&Limits>, entrance: Entrance) -> Result<(), Failure> {
        let at = |what: &'static str| move |errno: Errno| Failure::at(what, "", errno);
        stdio::make_safe().map_err(at("replace standard descriptors"))?;
        close_on_exec_from(3).map_err(at("close descriptors"))?;
        if self.root_inside {
            unshare_for_root().map_err(at("make the application's own user namespace"))?;
            write_maps(0, 0, 0, 0)?;
        }
        // Until execve this process still has turbo's memory.
        hide_from_insiders().map_err(at("PR_SET_DUMPABLE"))?;
        if let Some(limits) = limits.filter(|_| self.strict) {
            limits.forbid_namespaces().map_err(at("forbid nested user namespaces"))?;
        }
        set_no_new_privs(true).map_err(at("PR_SET_NO_NEW_PRIVS"))?;
        self.scope(entrance).map_err(at("restrict sockets and signals with Landlock"))?;
        self.drop_capabilities().map_err(at("drop capabilities"))?;
        install_filter(&seccomp::program(self.strict)).map_err(at("install the system call filter (does the kernel have CONFIG_SECCOMP_FILTER?)"))
    }

    /// Where the kernel has no scopes the run goes on without: `turbo doctor` tells.
    fn scope(self, entrance: Entrance) -> Result<(), Errno> {
        if !self.strict || landlock_abi() < LANDLOCK_SCOPES {
            return Ok(());
        }
        // One who joins is in a domain of his own: with the second scope he could not end what runs in the VM.
        landlock_scope(if entrance == Entrance::Started { SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS } else { SCOPE_ABSTRACT_SOCKETS })
    }

    fn drop_capabilities(self) -> Result<(), Errno> {
        let kept = match (self.root_inside, self.strict) {
            // They reach no further than the application's own namespaces.
            (true, false) => return Ok(()),
            (true, true) => KEPT_BY_ROOT,
            (false, _) => CapabilitySet::empty(),
        };
        clear_ambient_capability_set()?;
        for capability in CapabilitySet::all().difference(kept).iter() {
            match remove_capability_from_bounding_set(capability) {
                // One that this kernel does not know.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
        set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
    }
}

/// Keeps processes inside from tracing this one and from opening what it has open, until it executes another program.
pub(crate) fn hide_from_insiders() -> Result<(), Errno> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}
