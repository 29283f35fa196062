//! Taking rights away from this process and from mounts.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Has every descriptor from `first` on closed by `execve`.
pub(crate) fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: the call changes only the close-on-exec flag of descriptors.
    match check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }) {
        // Before Linux 5.11, or filtered by a container's rules.
        Err(Errno::NOSYS | Errno::INVAL | Errno::PERM) => one_by_one(first),
        other => other.map(drop),
    }
}

fn one_by_one(first: u32) -> Result<(), Errno> {
    let failed = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    for entry in std::fs::read_dir("/proc/self/fd").map_err(failed)? {
        let number = entry.map_err(failed)?.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(number) = number.filter(|number| i64::from(*number) >= i64::from(first)) {
            // SAFETY: the call changes only the close-on-exec flag; a number that is not open is refused.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Installs a system call filter for this thread and what it starts. `PR_SET_NO_NEW_PRIVS` must be set.
pub(crate) fn install_filter(program: &[libc::sock_filter]) -> Result<(), Errno> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let install = |flags: libc::c_ulong| {
        // SAFETY: the program is valid for the call, which copies and checks it, and writes nothing.
        check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) }).map(drop)
    };
    // A filter alone would make older kernels slow the process down against leaks between its own threads.
    match install(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW) {
        Err(Errno::INVAL) => install(0),
        other => other,
    }
}

/// Whether the kernel takes system call filters.
pub(crate) fn has_filters() -> bool {
    let action: u32 = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the call reads four bytes.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) == 0 }
}

/// Landlock's version; 0 if the kernel has none or it is switched off.
pub(crate) fn landlock_abi() -> u32 {
    // SAFETY: with a null pointer and this flag (LANDLOCK_CREATE_RULESET_VERSION) the call only returns a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, 1u32) };
    u32::try_from(version).unwrap_or(0)
}

/// Connecting to abstract sockets that were made outside (ABI 6).
pub(crate) const SCOPE_ABSTRACT_SOCKETS: u64 = 1;
/// Signals to processes outside (ABI 6).
pub(crate) const SCOPE_SIGNALS: u64 = 2;

/// Keeps this thread and what it starts from reaching outside in the given ways. `PR_SET_NO_NEW_PRIVS` must be set.
pub(crate) fn landlock_scope(scopes: u64) -> Result<(), Errno> {
    /// `struct landlock_ruleset_attr` since ABI 6.
    #[repr(C)]
    struct Attributes {
        handled_access_fs: u64,
        handled_access_net: u64,
        scoped: u64,
    }
    // Without rights over files the kernel leaves mounts alone, which nested sandboxes make.
    let attributes = Attributes { handled_access_fs: 0, handled_access_net: 0, scoped: scopes };
    // SAFETY: the structure is valid and its size is given.
    let fd = check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size_of::<Attributes>(), 0u32) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the call above returned a new descriptor that nobody else has.
    let ruleset = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the call has no pointers.
    let result = check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd, 0u32) }).map(drop);
    drop(ruleset);
    result
}

/// Makes the mount at `path`, and with `recursive` all mounts below, read-only and without setuid, devices and programs.
pub(crate) fn make_mount_inert(path: &std::ffi::CStr, recursive: bool) -> Result<(), Errno> {
    /// `struct mount_attr`.
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    // MOUNT_ATTR_RDONLY, NOSUID, NODEV, NOEXEC.
    let attributes = Attributes { set: 0b1111, clear: 0, propagation: 0, userns_fd: 0 };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: path and structure are valid, and the structure's size is given.
    let set = unsafe { libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, path.as_ptr(), flags, &raw const attributes, size_of::<Attributes>()) };
    check(set).map(drop)
}

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)) } else { Ok(result) }
}
