//! The system call filter: a small classic BPF program that allows everything but what is listed here.
//!
//! Two ABIs are filtered, each with its own numbers: the machine's, and on x86-64 that of 32-bit programs. Any other ABI
//! (x32, 32-bit Arm) gets `ENOSYS` for every call, since it would lead around the list. What is not listed is decided by
//! privileges alone: mounts, namespaces and tracing need rights that the application has only over what it made itself, and
//! nested sandboxes (browsers, bubblewrap) live on them.

use libc::{ENOSYS, EPERM, sock_filter};

/// `ioctl` requests that type into a terminal or paste into it, for whoever reads it next.
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541C;
/// Faults of the kernel itself cannot be held up with this flag, and holding those up is what makes the call dangerous.
const UFFD_USER_MODE_ONLY: u32 = 1;

/// `seccomp_data`: where the number, the ABI and the low halves of the arguments are.
const NUMBER: u32 = 0;
const ABI: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// System calls of one ABI, by number.
struct Abi {
    /// `AUDIT_ARCH_*`
    code: u32,
    /// Numbers from here on are another ABI's.
    limit: u32,
    ioctl: u32,
    userfaultfd: u32,
    denied: &'static [&'static [u32]],
    io_uring: [u32; 3],
}

macro_rules! numbers {
    ($($name:ident)*) => { &[$(libc::$name as u32),*] };
}

/// As the machine's own programs call them.
const NATIVE: Abi = Abi {
    #[cfg(target_arch = "x86_64")]
    code: 0xC000_003E,
    #[cfg(target_arch = "aarch64")]
    code: 0xC000_00B7,
    limit: if cfg!(target_arch = "x86_64") { 0x4000_0000 } else { u32::MAX },
    ioctl: libc::SYS_ioctl as u32,
    userfaultfd: libc::SYS_userfaultfd as u32,
    denied: &[
        // Keys of the session outside: no namespace keeps them apart.
        numbers![SYS_add_key SYS_request_key SYS_keyctl],
        // Programs in the kernel, and counters that see more than their own process.
        numbers![SYS_bpf SYS_perf_event_open],
        // Files without a path, hence without a mode.
        numbers![SYS_open_by_handle_at],
        // What administrators of machines do.
        numbers![SYS_kexec_load SYS_kexec_file_load SYS_init_module SYS_finit_module SYS_delete_module SYS_reboot SYS_swapon SYS_swapoff],
        numbers![SYS_quotactl SYS_quotactl_fd SYS_acct SYS_syslog],
        // I/O ports, and what no program needs any more.
        #[cfg(target_arch = "x86_64")]
        numbers![SYS_iopl SYS_ioperm SYS_uselib],
    ],
    io_uring: [libc::SYS_io_uring_setup as u32, libc::SYS_io_uring_enter as u32, libc::SYS_io_uring_register as u32],
};

/// As 32-bit programs call them on x86-64: the same, in the same order.
#[cfg(target_arch = "x86_64")]
const COMPAT: Option<Abi> = Some(Abi {
    code: 0x4000_0003,
    limit: u32::MAX,
    ioctl: 54,
    userfaultfd: 374,
    denied: &[
        &[286, 287, 288],
        &[357, 336],
        &[342],
        // There is no kexec_file_load.
        &[283, 128, 350, 129, 88, 87, 115],
        &[131, 443, 51, 103],
        &[110, 101, 86],
    ],
    io_uring: [425, 426, 427],
});

#[cfg(not(target_arch = "x86_64"))]
const COMPAT: Option<Abi> = None;

/// The filter. With `strict` also without io_uring, whose operations no filter sees and whose kernel code is young.
pub(crate) fn program(strict: bool) -> Vec<sock_filter> {
    let mut program = Vec::new();
    for abi in std::iter::once(&NATIVE).chain(&COMPAT) {
        let block = block(abi, strict);
        program.push(load(ABI));
        // A jump over the block: conditional ones reach only 255 instructions.
        program.push(jump(libc::BPF_JEQ, abi.code, 1, 0));
        program.push(statement(libc::BPF_JMP | libc::BPF_JA, block.len() as u32));
        program.extend(block);
    }
    program.push(answer(refuse(ENOSYS)));
    program
}

fn block(abi: &Abi, strict: bool) -> Vec<sock_filter> {
    let mut out = vec![load(NUMBER), jump(libc::BPF_JGE, abi.limit, 0, 1), answer(refuse(ENOSYS))];
    // The kernel compares the request as 32 bits, so nothing may depend on the upper half.
    out.extend([
        jump(libc::BPF_JEQ, abi.ioctl, 0, 5),
        load(argument(1)),
        jump(libc::BPF_JEQ, TIOCSTI, 1, 0),
        jump(libc::BPF_JEQ, TIOCLINUX, 0, 1),
        answer(refuse(EPERM)),
        answer(libc::SECCOMP_RET_ALLOW),
    ]);
    out.extend([
        jump(libc::BPF_JEQ, abi.userfaultfd, 0, 4),
        load(argument(0)),
        jump(libc::BPF_JSET, UFFD_USER_MODE_ONLY, 1, 0),
        answer(refuse(EPERM)),
        answer(libc::SECCOMP_RET_ALLOW),
    ]);
    let denied = abi.denied.iter().copied().flatten().map(|number| (*number, EPERM));
    // Libraries ask whether it is there, and do without.
    let absent = abi.io_uring.iter().filter(|_| strict).map(|number| (*number, ENOSYS));
    for (number, errno) in denied.chain(absent) {
        out.extend([jump(libc::BPF_JEQ, number, 0, 1), answer(refuse(errno))]);
    }
    out.push(answer(libc::SECCOMP_RET_ALLOW));
    out
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn answer(action: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

fn refuse(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Compares with `k`, then skips `yes` or `no` instructions.
fn jump(test: u32, k: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt: yes, jf: no, k }
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
