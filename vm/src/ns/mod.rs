//! The namespaces: the child that makes them, the mounts inside, and pid 1.
//!
//! Everything here but [`protocol`] runs in a forked process with one thread, which may therefore allocate and use the
//! standard library freely. It never returns to the caller of `fork`, and never logs: it reports over the socket.

pub(crate) mod child;
pub(crate) mod exec;
pub(crate) mod freeze;
pub(crate) mod init;
pub(crate) mod join;
pub(crate) mod mounts;
pub(crate) mod protocol;
pub(crate) mod regions;
pub(crate) mod scripts;
pub(crate) mod supervise;
