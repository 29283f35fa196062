//! fork, unshare, exec and the exit of a forked process.

use std::ffi::CString;
use std::io;

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// Which side of a fork this is.
pub(crate) enum Forked {
    Parent(Pid),
    Child,
}

/// Forks a process that has one thread.
///
/// # Errors
/// `Unsupported` if there are more threads: the child could then hang on a lock that another thread held.
pub(crate) fn fork_single_threaded() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, format!("the VM must be forked before other threads start; there are {threads}")));
    }
    fork()
}

/// Forks a process that has entered another user namespace: the kernel grants that to processes with one thread only. The
/// `/proc` that is seen there does not know this process.
pub(crate) fn fork_joined() -> io::Result<Forked> {
    fork()
}

fn fork() -> io::Result<Forked> {
    // SAFETY: both callers made sure that there is no other thread, so no lock is held by one, and the child may go on like
    // any process.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Pid::from_raw(pid).map(Forked::Parent).ok_or_else(|| io::Error::other("fork returned no pid")),
    }
}

/// Leaves this process for new namespaces: user, mount, and pid for its children.
pub(crate) fn unshare_namespaces() -> Result<(), Errno> {
    // SAFETY: none of the flags lets threads share less memory or fewer descriptors (no CLONE_FILES or CLONE_FS), which is
    // what makes the call unsafe.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWPID) }
}

/// Leaves this process for a user and a mount namespace below its own: the kernel then locks all mounts together.
pub(crate) fn unshare_for_root() -> Result<(), Errno> {
    // SAFETY: as above.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }
}

/// Sends a signal to every process that this one may send it to, but itself and pid 1 of its pid namespace. Only pid 1 may
/// call it: there, that is every other process of the namespace and nothing else.
///
/// # Errors
/// `SRCH` if there is no other process; `PERM` if this process is not pid 1.
pub(crate) fn kill_all(signal: i32) -> Result<(), Errno> {
    if std::process::id() != 1 {
        return Err(Errno::PERM);
    }
    // SAFETY: `kill` has no precondition.
    match unsafe { libc::kill(-1, signal) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// Ends this process at once, without running what `exit` runs: that belongs to the process it was forked from.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no precondition.
    unsafe { libc::_exit(code) }
}

/// `execve(2)`; returns only if it fails.
pub(crate) fn execve(program: &CString, argv: &[CString], env: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: all pointers are to NUL-terminated strings that live until the call returns, and both lists end with null.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}
