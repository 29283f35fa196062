//! Signals as bytes in a pipe.
//!
//! A handler writes which signal came, and whether the kernel sent it (a terminal's key) or a process did; whoever polls
//! the pipe decides. One watch at a time for the process. Handlers rather than a blocked mask and `signalfd`, so that
//! signals keep their usual effect until a watch starts and after it ends, whatever threads there are.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

static PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(signal: i32, details: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let fd = PIPE.load(Ordering::Relaxed);
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler installed with SA_SIGINFO.
    let by_kernel = unsafe { (*details).si_code } > 0;
    let bytes = [signal as u8, u8::from(by_kernel)];
    // SAFETY: `write` and access to errno are async-signal-safe; the buffer is valid. errno is put back, since the
    // interrupted code may be about to read its own.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(fd, bytes.as_ptr().cast(), bytes.len());
        *libc::__errno_location() = errno;
    }
}

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) signal: i32,
    /// From a terminal, which sent it to the whole foreground process group.
    pub(crate) by_kernel: bool,
}

/// While it lives, the given signals arrive in a pipe. Those that are ignored stay ignored.
pub(crate) struct Watch {
    read: OwnedFd,
    _write: OwnedFd,
    before: Vec<(i32, libc::sigaction)>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("signals", &self.before.len()).finish_non_exhaustive()
    }
}

impl Watch {
    pub(crate) fn start(signals: &[i32]) -> io::Result<Self> {
        use rustix::pipe::{PipeFlags, pipe_with};
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        PIPE.store(write.as_raw_fd(), Ordering::Relaxed);
        let mut before = Vec::new();
        for &signal in signals {
            let old = action(signal, None)?;
            if old.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            action(signal, Some(on_signal as *const () as usize))?;
            before.push((signal, old));
        }
        Ok(Self { read, _write: write, before })
    }

    /// What to poll.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }

    /// The signals that came since the last call.
    pub(crate) fn take(&self) -> Vec<Arrived> {
        let mut bytes = [0u8; 256];
        match rustix::io::read(&self.read, &mut bytes) {
            Ok(len) => bytes[..len].chunks_exact(2).map(|pair| Arrived { signal: pair[0].into(), by_kernel: pair[1] != 0 }).collect(),
            Err(_) => Vec::new(),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for (signal, old) in &self.before {
            // SAFETY: `old` is what `sigaction` returned for this signal.
            unsafe { libc::sigaction(*signal, old, std::ptr::null_mut()) };
        }
        PIPE.store(-1, Ordering::Relaxed);
    }
}

/// Reads the action of a signal, and sets another one if `handler` is given.
fn action(signal: i32, handler: Option<usize>) -> io::Result<libc::sigaction> {
    // SAFETY: all-zero is a valid `sigaction` (default action, empty mask); the pointers are valid or null.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        let mut new: libc::sigaction = std::mem::zeroed();
        new.sa_sigaction = handler.unwrap_or(libc::SIG_DFL);
        new.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
        let new = if handler.is_some() { &raw const new } else { std::ptr::null() };
        match libc::sigaction(signal, new, &raw mut old) {
            0 => Ok(old),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Ignores signals, and returns those that were not ignored before.
pub(crate) fn ignore(signals: &[i32]) -> Vec<i32> {
    let watched = |signal: &i32| action(*signal, None).is_ok_and(|old| old.sa_sigaction != libc::SIG_IGN);
    let changed: Vec<i32> = signals.iter().copied().filter(watched).collect();
    set_all(&changed, libc::SIG_IGN);
    changed
}

/// Gives signals their default action.
pub(crate) fn reset(signals: &[i32]) {
    set_all(signals, libc::SIG_DFL);
}

fn set_all(signals: &[i32], handler: libc::sighandler_t) {
    for &signal in signals {
        // SAFETY: the handler is SIG_IGN or SIG_DFL.
        unsafe { libc::signal(signal, handler) };
    }
}

/// Unblocks all signals of this thread.
pub(crate) fn unblock_all() {
    // SAFETY: an empty set is initialised by `sigemptyset` before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}
