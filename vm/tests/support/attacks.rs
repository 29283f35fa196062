//! What a hostile program tries. Each attack says what it reached, or why it was held.
//!
//! They know nothing of the VM: the same attack is made outside, where it succeeds, and inside, where it must not.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, openat, renameat_with};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_move, mount_remount, unmount};

/// What secrets contain.
pub(crate) const SECRET: &str = "SECRET";
/// Exit code of an attack that was held.
pub(crate) const HELD: i32 = 7;

type Attack = Result<String, String>;

pub(crate) fn run(name: &str, args: &[String]) -> ! {
    let path = |at: usize| Path::new(&args[at]);
    let outcome = match name {
        "read" => read(args),
        "write" => write(path(0)),
        "descriptors" => descriptors(&args[0]),
        "proc" => proc(&args[0]),
        "trace" => trace(&args[0]),
        "terminals" => terminals(),
        "own-terminal" => own_terminal(),
        "type" => type_into_terminal(),
        "uncover" => uncover(path(0)),
        "uncover-nested" => nest().map_err(|errno| errno.to_string()).and_then(|()| uncover(path(0))),
        "cover-and-uncover" => cover_and_uncover(path(0)),
        "nested-namespaces" => nest().map_err(|errno| errno.to_string()).and_then(|()| nested_mounts()),
        "setuid" => setuid(path(0)),
        "device" => device(path(0)),
        "make-device" => make_device(path(0)),
        "abstract" => abstract_socket(&args[0]),
        "key" => key(&args[0]),
        "with-key" => with_key(&args[0], &args[1..]),
        "chroot" => chroot(&args[0]),
        "fuse-device" => open_all(&["/dev/fuse"], true),
        "switches" => open_all(&["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/mm/transparent_hugepage/enabled"], true),
        "own-sysctl" => open_all(&["/proc/sys/user/max_user_namespaces"], true),
        "race" => race(path(0), path(1), path(2)),
        "calls" => calls(),
        _ => panic!("no attack {name}"),
    };
    match outcome {
        Ok(reached) => {
            println!("reached: {reached}");
            std::process::exit(0)
        }
        Err(why) => {
            println!("held: {why}");
            std::process::exit(HELD)
        }
    }
}

/// A system call without a wrapper; pointers as numbers.
fn call(number: libc::c_long, args: [usize; 5]) -> Result<i64, Errno> {
    // SAFETY: every caller passes what the call takes; what it may write to outlives the call.
    let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4]) };
    if result < 0 { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()) } else { Ok(result) }
}

fn is_secret(path: impl AsRef<Path>) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.starts_with(SECRET.as_bytes()))
}

fn read(paths: &[String]) -> Attack {
    paths.iter().find(|path| is_secret(path)).cloned().ok_or_else(|| format!("none of {paths:?}: {:?}", fs::read(&paths[0]).map(|_| ())))
}

fn write(path: &Path) -> Attack {
    fs::write(path, "hostile").map(|()| path.display().to_string()).map_err(|error| error.to_string())
}

/// Every descriptor that is open, and `..` from each.
fn descriptors(secret: &str) -> Attack {
    let up = "../".repeat(30);
    let relative = format!("{up}{}", secret.trim_start_matches('/'));
    for fd in 0..256 {
        for path in [relative.as_str(), "secret"] {
            let path = CString::new(path).unwrap();
            let Ok(opened) = call(libc::SYS_openat, [fd, path.as_ptr() as usize, libc::O_RDONLY as usize, 0, 0]) else { continue };
            if is_secret(format!("/proc/self/fd/{opened}")) {
                return Ok(format!("descriptor {fd}"));
            }
        }
    }
    Err("no descriptor leads out".to_owned())
}

/// Roots, directories, descriptors and memory of every process in sight.
fn proc(secret: &str) -> Attack {
    let me = std::process::id().to_string();
    let mut seen = 0;
    for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let name = entry.file_name().into_string().unwrap_or_default();
        let process = entry.path();
        if name == me || !name.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        seen += 1;
        for place in ["root", "cwd", "root/..", "task/1/root"] {
            if is_secret(process.join(place).join(secret.trim_start_matches('/'))) {
                return Ok(format!("{}/{place}", process.display()));
            }
        }
        for file in ["mem", "environ", "maps", "exe", "ns/mnt", "ns/user"] {
            if File::open(process.join(file)).is_ok_and(|mut file| file.read(&mut [0; 1]).is_ok() || file.metadata().is_ok()) && name == "1" {
                return Ok(format!("/proc/1/{file}"));
            }
        }
        for fd in fs::read_dir(process.join("fd")).into_iter().flatten().filter_map(Result::ok) {
            let device = fs::metadata(fd.path()).map(|meta| meta.rdev());
            if fs::read_link(fd.path()).is_ok() && (name == "1" || device.is_ok_and(|device| device == rustix::fs::makedev(10, 229))) {
                return Ok(fd.path().display().to_string());
            }
        }
    }
    Err(format!("{seen} processes tell nothing"))
}

/// Tracing, signals and memory of a process by its number, and of pid 1.
fn trace(pid: &str) -> Attack {
    let pid: usize = pid.parse().unwrap();
    for pid in [pid, 1] {
        if call(libc::SYS_ptrace, [libc::PTRACE_ATTACH as usize, pid, 0, 0, 0]).is_ok() {
            return Ok(format!("{pid} is traced"));
        }
        let mut byte = 0u8;
        let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(0x40_0000), iov_len: 1 };
        match call(libc::SYS_process_vm_readv, [pid, &raw const local as usize, 1, &raw const remote as usize, 1]) {
            // The address need not be mapped: that it was looked at is enough.
            Ok(_) | Err(Errno::FAULT) => return Ok(format!("memory of {pid}")),
            Err(_) => {}
        }
    }
    if pid != 1 && call(libc::SYS_kill, [pid, 0, 0, 0, 0]).is_ok() {
        return Ok(format!("{pid} can be sent signals"));
    }
    // Pid 1 does not care.
    let _ = call(libc::SYS_kill, [1, libc::SIGKILL as usize, 0, 0, 0]);
    let _ = call(libc::SYS_kill, [1, libc::SIGSTOP as usize, 0, 0, 0]);
    Err("no rights over the process, nor over pid 1".to_owned())
}

/// Reading and writing terminals other than one's own.
fn terminals() -> Attack {
    let own = fs::metadata("/proc/self/fd/0").map(|meta| meta.rdev()).unwrap_or(0);
    let mut tried = Vec::new();
    for entry in fs::read_dir("/dev/pts").into_iter().flatten().filter_map(Result::ok) {
        let (path, name) = (entry.path(), entry.file_name());
        if name == "ptmx" || entry.metadata().is_ok_and(|meta| meta.rdev() == own) {
            continue;
        }
        let opened = OpenOptions::new().read(true).write(true).custom_flags_nonblock().open(&path);
        if let Ok(mut terminal) = opened
            && terminal.write_all(b"spoofed\n").is_ok()
        {
            return Ok(path.display().to_string());
        }
        tried.push(path);
    }
    Err(format!("no other terminal: {tried:?}"))
}

trait Nonblock {
    fn custom_flags_nonblock(&mut self) -> &mut Self;
}

impl Nonblock for OpenOptions {
    fn custom_flags_nonblock(&mut self) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::custom_flags(self, libc::O_NONBLOCK | libc::O_NOCTTY)
    }
}

/// Not an attack: the terminal that a program was started on works, and new ones can be made.
fn own_terminal() -> Attack {
    let name = rustix::termios::ttyname(std::io::stdin(), Vec::new()).map(|name| name.into_string().unwrap_or_default());
    let looked_up = ttyname();
    rustix::termios::tcgetattr(std::io::stdin()).map_err(|errno| format!("tcgetattr: {errno}"))?;
    OpenOptions::new().read(true).write(true).open("/dev/tty").map_err(|error| format!("/dev/tty: {error}"))?;
    let new = openat(CWD, "/dev/ptmx", OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).map_err(|errno| format!("/dev/ptmx: {errno}"))?;
    rustix::pty::unlockpt(&new).map_err(|errno| format!("unlockpt: {errno}"))?;
    let other = rustix::pty::ptsname(&new, Vec::new()).map_err(|errno| format!("ptsname: {errno}"))?;
    OpenOptions::new().read(true).write(true).custom_flags_nonblock().open(other.to_str().unwrap()).map_err(|error| format!("{other:?}: {error}"))?;
    looked_up.map(|found| format!("{found} ({name:?})")).ok_or_else(|| format!("ttyname finds nothing ({name:?})"))
}

/// The C library's, which most programs use.
fn ttyname() -> Option<String> {
    let mut buffer = [0 as libc::c_char; 256];
    // SAFETY: the buffer is as long as the call is told.
    let failed = unsafe { libc::ttyname_r(0, buffer.as_mut_ptr(), buffer.len()) };
    // SAFETY: on success it holds a string that ends with NUL.
    (failed == 0).then(|| unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_string_lossy().into_owned())
}

/// Typing a command into the terminal for whoever reads it after this program.
fn type_into_terminal() -> Attack {
    let key = b"x";
    let mut reasons = Vec::new();
    for upper in [0usize, 1 << 32] {
        match call(libc::SYS_ioctl, [0, libc::TIOCSTI as usize | upper, key.as_ptr() as usize, 0, 0]) {
            Ok(_) => return Ok("TIOCSTI".to_owned()),
            Err(errno) => reasons.push(errno),
        }
    }
    // With the kernel's own switch on it is EIO outside, too: then the errno is what tells.
    if reasons.iter().all(|errno| *errno == Errno::PERM) { Err("EPERM".to_owned()) } else { Ok(format!("not refused by us: {reasons:?}")) }
}

fn nest() -> Result<(), Errno> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    call(libc::SYS_unshare, [(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) as usize, 0, 0, 0, 0])?;
    let write = |name: &str, text: String| fs::write(format!("/proc/self/{name}"), text).map_err(|error| Errno::from_io_error(&error).unwrap());
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {uid} 1"))?;
    write("gid_map", format!("0 {gid} 1"))
}

/// Not an attack: what nested sandboxes do.
fn nested_mounts() -> Attack {
    let place = std::env::temp_dir().join("nested");
    fs::create_dir_all(&place).map_err(|error| error.to_string())?;
    mount("nested", &place, "tmpfs", MountFlags::NOSUID, None).map_err(|errno| format!("tmpfs: {errno}"))?;
    mount_bind_recursive("/", &place).map_err(|errno| format!("bind: {errno}"))?;
    Ok("mounts of its own".to_owned())
}

/// Taking away mounts, so that what lies below comes out.
fn uncover(covered: &Path) -> Attack {
    let before = fs::read_dir(covered).map(Iterator::count).unwrap_or(0);
    let targets: Vec<PathBuf> =
        fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter_map(|line| line.split(' ').nth(4).map(PathBuf::from)).collect();
    // The root's is the last to be tried: nothing could be looked at afterwards.
    for target in targets.iter().rev() {
        if unmount(target, UnmountFlags::DETACH).is_ok() {
            return Ok(format!("{} is unmounted", target.display()));
        }
    }
    let elsewhere = std::env::temp_dir().join("elsewhere");
    let _ = fs::create_dir_all(&elsewhere);
    // A bind that leaves out what is mounted below; the same with the newer call.
    for source in ["/", "/dev", "/proc"] {
        let has_mounts_below = targets.iter().any(|target| target != Path::new(source) && target.starts_with(source));
        if has_mounts_below && mount_bind(source, &elsewhere).is_ok() {
            return Ok(format!("{source} without its mounts"));
        }
        let path = CString::new(source).unwrap();
        if has_mounts_below && call(libc::SYS_open_tree, [libc::AT_FDCWD as usize, path.as_ptr() as usize, 1, 0, 0]).is_ok() {
            return Ok(format!("{source} without its mounts, by open_tree"));
        }
    }
    for target in targets.iter().filter(|target| target.parent().is_some()) {
        if mount_move(target, &elsewhere).is_ok() {
            return Ok(format!("{} is moved", target.display()));
        }
        if target.starts_with("/sys")
            && mount_remount(target, MountFlags::BIND, c"").is_ok()
            && File::options().write(true).open("/sys/kernel/mm/transparent_hugepage/enabled").is_ok()
        {
            return Ok(format!("{} is writable", target.display()));
        }
    }
    let after = fs::read_dir(covered).map(Iterator::count).unwrap_or(0);
    if after > before { Ok(covered.display().to_string()) } else { Err(format!("{} mounts are held together", targets.len())) }
}

/// What anybody may do to mounts that he made himself: shows that [`uncover`] works.
fn cover_and_uncover(place: &Path) -> Attack {
    nest().map_err(|errno| errno.to_string())?;
    mount("cover", place, "tmpfs", MountFlags::NOSUID, None).map_err(|errno| errno.to_string())?;
    uncover(place)
}

/// A program that belongs to root and has the setuid bit: it prints who it is.
fn setuid(program: &Path) -> Attack {
    let output = Command::new(program).arg("-u").output().map_err(|error| error.to_string())?;
    let who = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if who == "0" { Ok("uid 0".to_owned()) } else { Err(format!("uid {who}")) }
}

/// A device node: `/dev/zero` under another name.
fn device(path: &Path) -> Attack {
    let mut byte = [1];
    match File::open(path).and_then(|mut file| file.read_exact(&mut byte)) {
        Ok(()) if byte == [0] => Ok(path.display().to_string()),
        other => Err(format!("{other:?}")),
    }
}

fn make_device(path: &Path) -> Attack {
    rustix::fs::mknodat(CWD, path, rustix::fs::FileType::CharacterDevice, Mode::from_raw_mode(0o666), rustix::fs::makedev(1, 5))
        .map_err(|errno| format!("mknod: {errno}"))?;
    device(path)
}

fn abstract_socket(name: &str) -> Attack {
    let address = SocketAddr::from_abstract_name(name).unwrap();
    UnixStream::connect_addr(&address).map(|_| name.to_owned()).map_err(|error| error.to_string())
}

/// Reads a key of the session by its description.
fn key(description: &str) -> Attack {
    let (kind, description) = (CString::new("user").unwrap(), CString::new(description).unwrap());
    // KEYCTL_SEARCH in KEY_SPEC_SESSION_KEYRING, then KEYCTL_READ.
    let found =
        call(libc::SYS_keyctl, [10, -3isize as usize, kind.as_ptr() as usize, description.as_ptr() as usize, 0]).map_err(|errno| format!("search: {errno}"))?;
    let mut value = [0u8; 16];
    let len = call(libc::SYS_keyctl, [11, found as usize, value.as_mut_ptr() as usize, value.len(), 0]).map_err(|errno| format!("read: {errno}"))?;
    Ok(String::from_utf8_lossy(&value[..len as usize]).into_owned())
}

/// Becomes `command` in a session that has a key.
fn with_key(description: &str, command: &[String]) -> Attack {
    use std::os::unix::process::CommandExt;
    let (kind, description) = (CString::new("user").unwrap(), CString::new(description).unwrap());
    if call(libc::SYS_keyctl, [1, 0, 0, 0, 0]) == Err(Errno::NOSYS) {
        println!("no keys");
        std::process::exit(99);
    }
    call(libc::SYS_add_key, [kind.as_ptr() as usize, description.as_ptr() as usize, SECRET.as_ptr() as usize, SECRET.len(), -3isize as usize]).unwrap();
    Err(Command::new(&command[0]).args(&command[1..]).exec().to_string())
}

/// The classic way out of a chroot: into another one, and up from outside of it.
fn chroot(secret: &str) -> Attack {
    let jail = std::env::temp_dir().join("jail");
    fs::create_dir_all(&jail).map_err(|error| error.to_string())?;
    std::env::set_current_dir("/").unwrap();
    rustix::process::chroot(&jail).map_err(|errno| format!("chroot: {errno}"))?;
    for _ in 0..40 {
        let _ = std::env::set_current_dir("..");
    }
    rustix::process::chroot(".").map_err(|errno| format!("chroot: {errno}"))?;
    if !Path::new("/proc/self").exists() {
        return Err("not even out of the jail".to_owned());
    }
    if is_secret(secret) { Ok(secret.to_owned()) } else { Err("out of the jail, but not of the VM".to_owned()) }
}

fn open_all(paths: &[&str], write: bool) -> Attack {
    let mut reasons = Vec::new();
    for path in paths {
        match OpenOptions::new().read(!write).write(write).open(path) {
            Ok(_) => return Ok((*path).to_owned()),
            Err(error) => reasons.push(format!("{path}: {error}")),
        }
    }
    Err(reasons.join("; "))
}

/// `writable/d` is now a directory, now a link to the secret's folder; `seen/d/file` is the same place by another name.
fn race(writable: &Path, seen: &Path, secret_folder: &Path) -> Attack {
    let (directory, link) = (writable.join("d"), writable.join("link"));
    let _ = std::os::unix::fs::symlink(secret_folder, &link);
    let (done, swaps) = (AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    let found = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                renameat_with(CWD, &directory, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        });
        let file = seen.join("d/file");
        let found = (0..3000).find(|_| {
            let listed = || fs::read_dir(seen.join("d")).into_iter().flatten().filter_map(Result::ok).any(|entry| is_secret(entry.path()));
            is_secret(&file) || listed()
        });
        done.store(true, Ordering::Relaxed);
        found
    });
    match found {
        Some(at) => Ok(format!("at try {at}")),
        None => Err(format!("{} swaps, none at the wrong moment", swaps.into_inner())),
    }
}

/// System calls that must not be there, with harmless arguments: reached if any is answered by the kernel itself.
fn calls() -> Attack {
    let listed: [(&str, libc::c_long, Errno); 8] = [
        ("keyctl", libc::SYS_keyctl, Errno::PERM),
        ("bpf", libc::SYS_bpf, Errno::PERM),
        ("perf_event_open", libc::SYS_perf_event_open, Errno::PERM),
        ("userfaultfd", libc::SYS_userfaultfd, Errno::PERM),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, Errno::PERM),
        ("syslog", libc::SYS_syslog, Errno::PERM),
        ("quotactl", libc::SYS_quotactl, Errno::PERM),
        ("io_uring_setup", libc::SYS_io_uring_setup, Errno::NOSYS),
    ];
    // Of bad arguments the kernel itself says something else (EFAULT, EINVAL, EOPNOTSUPP), at least of one of them.
    let answers: Vec<_> = listed.iter().map(|(name, number, wanted)| (*name, call(*number, [usize::MAX - 1, 0, 0, 0, 0]), Err(*wanted))).collect();
    let through: Vec<_> = answers.iter().filter(|(_, got, wanted)| got != wanted).map(|(name, got, _)| format!("{name}: {got:?}")).collect();
    if through.is_empty() { Err("all are refused".to_owned()) } else { Ok(through.join(", ")) }
}
