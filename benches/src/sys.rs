//! The only unsafe code of this package: fork, interface requests, and what a child does between
//! fork and exec. What runs in a forked child may use system calls only: another thread of the
//! parent may have held the allocator's lock at the time of the fork.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// Forks, runs `child` in the new process, which then ends with the code that `child` returns, and
/// waits for it. `child` must allocate nothing, lock nothing and not panic.
pub(crate) fn in_child(child: impl FnOnce() -> u8) -> io::Result<()> {
    // SAFETY: the child calls nothing but `child`, which by the contract above only makes system
    // calls, and leaves through _exit, so that no destructor or exit handler of the parent runs in it.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = child();
            // SAFETY: _exit never returns and touches no memory of ours.
            unsafe { libc::_exit(i32::from(code)) }
        }
        _ => loop {
            match rustix::process::waitpid(Pid::from_raw(pid), rustix::process::WaitOptions::empty()) {
                Err(Errno::INTR) => {}
                result => return result.map(drop).map_err(io::Error::from),
            }
        },
    }
}

/// What a process took, with all those that it waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Seconds of processor time, in user and kernel.
    pub(crate) cpu_s: f64,
    /// Memory of the largest of the processes, in bytes.
    pub(crate) peak_bytes: u64,
}

/// Waits for a child; whether it succeeded, and what it took. The child must not be waited for again.
pub(crate) fn wait_usage(child: &std::process::Child) -> io::Result<(bool, Usage)> {
    let (mut status, pid) = (0, child.id() as libc::pid_t);
    // SAFETY: rusage is plain integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    loop {
        // SAFETY: both pointers are to locals that outlive the call.
        match unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(io::Error::last_os_error()),
            _ => break,
        }
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    let cpu_s = seconds(usage.ru_utime) + seconds(usage.ru_stime);
    let succeeded = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
    Ok((succeeded, Usage { cpu_s, peak_bytes: usage.ru_maxrss as u64 * 1024 }))
}

/// Leaves the given namespaces of the calling thread for new ones.
pub(crate) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: unsafe only because of CLONE_FILES, which would part the descriptor tables of threads
    // that trust in sharing one; no caller passes it, and all call it in a process of one thread.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Lets `setup` run in the child of `command` after the fork and before the exec. `setup` must
/// allocate nothing and lock nothing.
pub(crate) fn before_exec(command: &mut Command, setup: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: by the contract above `setup` only makes system calls, which is what pre_exec allows.
    unsafe { command.pre_exec(setup) };
}

/// Asks for real-time priority for the calling thread; false if that is not allowed.
pub(crate) fn real_time() -> bool {
    // SAFETY: sched_param is plain integers, for which zero is a value.
    let mut param: libc::sched_param = unsafe { mem::zeroed() };
    param.sched_priority = 10;
    // SAFETY: 0 is the calling thread, and `param` is valid for the length of the call.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) == 0 }
}

/// Blocks the signals that ask a program to end, in the calling thread and those that it starts from
/// now on, and returns a function that waits for one of them. Child processes do not inherit the block.
pub(crate) fn hold_end_signals() -> impl FnOnce() -> i32 + Send {
    // SAFETY: sigset_t is integers, for which zero is a value, and sigemptyset makes it a proper set;
    // all pointers are to `set`, which outlives the calls.
    let set = unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        set
    };
    move || {
        let mut signal = 0;
        // SAFETY: both pointers are to locals that outlive the call.
        unsafe { libc::sigwait(&raw const set, &raw mut signal) };
        signal
    }
}

fn interface_request(name: &CStr) -> libc::ifreq {
    // SAFETY: ifreq is integers and unions of such, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes().iter().take(room)) {
        *to = *from as libc::c_char;
    }
    request
}

fn ioctl(fd: BorrowedFd<'_>, operation: u32, request: &mut libc::ifreq) -> rustix::io::Result<()> {
    // SAFETY: every operation that this file passes takes a pointer to an ifreq, and `request` is one.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), operation as libc::Ioctl, &raw mut *request) };
    if result < 0 { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)) } else { Ok(()) }
}

/// Makes `tun`, an open `/dev/net/tun`, the device `name` of the current network namespace. Offloads
/// stay off, so that each packet read is at most as large as the MTU and has its checksum.
pub(crate) fn tun_attach(tun: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    ioctl(tun, libc::TUNSETIFF as u32, &mut request)
}

/// Sets the interface up, after which its routes exist.
pub(crate) fn interface_up(socket: impl AsFd, name: &CStr) -> rustix::io::Result<()> {
    let mut request = interface_request(name);
    ioctl(socket.as_fd(), libc::SIOCGIFFLAGS as u32, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ioctl(socket.as_fd(), libc::SIOCSIFFLAGS as u32, &mut request)
}

/// Gives the interface its address, netmask, MTU and queue length in packets.
pub(crate) fn interface_configure(
    socket: impl AsFd,
    name: &CStr,
    address: Ipv4Addr,
    prefix_len: u8,
    mtu_bytes: u16,
    queue_packets: u16,
) -> rustix::io::Result<()> {
    let socket = socket.as_fd();
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_addr = socket_address(address);
    ioctl(socket, libc::SIOCSIFADDR as u32, &mut request)?;
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len)).unwrap_or(0);
    request.ifr_ifru.ifru_netmask = socket_address(Ipv4Addr::from_bits(mask));
    ioctl(socket, libc::SIOCSIFNETMASK as u32, &mut request)?;
    request.ifr_ifru.ifru_mtu = mtu_bytes.into();
    ioctl(socket, libc::SIOCSIFMTU as u32, &mut request)?;
    // The queue length shares its place in the union with other integers of the same size.
    request.ifr_ifru.ifru_mtu = queue_packets.into();
    match ioctl(socket, libc::SIOCSIFTXQLEN as u32, &mut request) {
        // Root of a user namespace may not set it this way; the device then keeps its 500 packets.
        Err(Errno::PERM) => Ok(()),
        result => result,
    }
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: sockaddr is plain integers, for which zero is a value.
    let mut plain: libc::sockaddr = unsafe { mem::zeroed() };
    plain.sa_family = libc::AF_INET as libc::sa_family_t;
    // A sockaddr_in is a port in two bytes, then the address in four, after the family.
    for (to, from) in plain.sa_data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    plain
}
