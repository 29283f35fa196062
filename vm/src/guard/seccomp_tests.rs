//! The filter, interpreted here call by call, and once for real.

use super::*;

/// Runs the program on one call, as the kernel would.
fn run(program: &[sock_filter], abi: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [0u8; 64];
    data[..4].copy_from_slice(&number.to_le_bytes());
    data[4..8].copy_from_slice(&abi.to_le_bytes());
    for (at, argument) in arguments.iter().enumerate() {
        data[16 + 8 * at..24 + 8 * at].copy_from_slice(&argument.to_le_bytes());
    }
    let (mut at, mut accumulator) = (0usize, 0u32);
    loop {
        let instruction = program[at];
        at += 1;
        let code = u32::from(instruction.code);
        match code & 0x07 {
            libc::BPF_LD => accumulator = u32::from_le_bytes(data[instruction.k as usize..][..4].try_into().unwrap()),
            libc::BPF_RET => return instruction.k,
            libc::BPF_JMP => {
                let k = instruction.k;
                at += match code & 0xf0 {
                    libc::BPF_JA => k as usize,
                    test => {
                        let holds = match test {
                            libc::BPF_JEQ => accumulator == k,
                            libc::BPF_JGE => accumulator >= k,
                            libc::BPF_JSET => accumulator & k != 0,
                            _ => panic!("an unknown test"),
                        };
                        usize::from(if holds { instruction.jt } else { instruction.jf })
                    }
                };
            }
            _ => panic!("an unknown instruction"),
        }
    }
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

fn answer_to(strict: bool, abi: u32, number: u32, arguments: [u64; 6]) -> u32 {
    run(&program(strict), abi, number, arguments)
}

#[test]
fn only_what_is_listed_is_denied_in_every_abi() {
    for abi in std::iter::once(&NATIVE).chain(&COMPAT) {
        for strict in [false, true] {
            for number in 0..600 {
                let denied = abi.denied.iter().copied().flatten().any(|denied| *denied == number);
                let wanted = match number {
                    _ if denied => refuse(EPERM),
                    _ if abi.io_uring.contains(&number) && strict => refuse(ENOSYS),
                    _ if number == abi.userfaultfd => refuse(EPERM),
                    _ => ALLOW,
                };
                assert_eq!(answer_to(strict, abi.code, number, [0; 6]), wanted, "call {number} of {:x}", abi.code);
            }
        }
    }
}

#[test]
fn what_libraries_and_nested_sandboxes_need_is_allowed() {
    for number in [
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_move_mount,
        libc::SYS_pivot_root,
        libc::SYS_ptrace,
        libc::SYS_personality,
        libc::SYS_seccomp,
        libc::SYS_rseq,
        libc::SYS_openat2,
        libc::SYS_memfd_create,
        libc::SYS_name_to_handle_at,
    ] {
        assert_eq!(answer_to(true, NATIVE.code, number as u32, [u64::MAX; 6]), ALLOW, "{number}");
    }
}

#[test]
fn typing_into_terminals_is_denied_whatever_the_upper_half_says() {
    for abi in std::iter::once(&NATIVE).chain(&COMPAT) {
        for request in [TIOCSTI, TIOCLINUX] {
            for upper in [0, 1, 0xFFFF_FFFF_0000_0000 >> 32] {
                let request = u64::from(request) | (upper << 32);
                assert_eq!(answer_to(false, abi.code, abi.ioctl, [0, request, 0, 0, 0, 0]), refuse(EPERM), "{request:x}");
            }
        }
        for harmless in [0x5401u64, 0x5413, u64::from(TIOCSTI) << 32] {
            assert_eq!(answer_to(false, abi.code, abi.ioctl, [0, harmless, 0, 0, 0, 0]), ALLOW, "{harmless:x}");
        }
    }
}

#[test]
fn faults_may_be_handled_in_user_mode_only() {
    for (flags, wanted) in [(0, refuse(EPERM)), (1, ALLOW), (0o2000001, ALLOW), (0o2000000, refuse(EPERM)), (1 << 32, refuse(EPERM))] {
        assert_eq!(answer_to(false, NATIVE.code, NATIVE.userfaultfd, [flags, 0, 0, 0, 0, 0]), wanted, "{flags:x}");
    }
}

#[test]
fn other_abis_do_not_exist() {
    for abi in [0, 0x4000_0028, 0xC000_00F3, u32::MAX] {
        assert_eq!(answer_to(false, abi, 1, [0; 6]), refuse(ENOSYS), "{abi:x}");
    }
    if cfg!(target_arch = "x86_64") {
        // x32: `read`, `keyctl` and `ioctl(TIOCSTI)`.
        for number in [0x4000_0000u32, 0x4000_00FA, 0x4000_0202] {
            assert_eq!(answer_to(false, NATIVE.code, number, [0, u64::from(TIOCSTI), 0, 0, 0, 0]), refuse(ENOSYS));
        }
    }
}

/// The numbers are written by hand: against the kernel's own header, where there is one.
#[test]
#[cfg(target_arch = "x86_64")]
fn numbers_of_32_bit_calls_are_those_of_the_kernels_header() {
    let header = ["/usr/include/asm/unistd_32.h", "/usr/include/x86_64-linux-gnu/asm/unistd_32.h"];
    let Some(text) = header.iter().find_map(|path| std::fs::read_to_string(path).ok()) else {
        eprintln!("skipped: the kernel's headers are not installed");
        return;
    };
    let number = |name: &str| {
        let line = text.lines().find(|line| line.split_whitespace().nth(1) == Some(&format!("__NR_{name}")));
        line.and_then(|line| line.split_whitespace().nth(2)?.parse::<u32>().ok()).unwrap_or_else(|| panic!("no {name}"))
    };
    let names = [
        "add_key request_key keyctl",
        "bpf perf_event_open",
        "open_by_handle_at",
        "kexec_load init_module finit_module delete_module reboot swapon swapoff",
        "quotactl quotactl_fd acct syslog",
        "iopl ioperm uselib",
    ];
    let compat = COMPAT.unwrap();
    for (group, names) in compat.denied.iter().zip(names) {
        assert_eq!(group.to_vec(), names.split(' ').map(number).collect::<Vec<_>>(), "{names}");
    }
    assert_eq!(compat.denied.len(), names.len());
    assert_eq!((compat.ioctl, compat.userfaultfd), (number("ioctl"), number("userfaultfd")));
    assert_eq!(compat.io_uring, ["io_uring_setup", "io_uring_enter", "io_uring_register"].map(number));
}
