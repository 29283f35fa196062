//! What programs do with files besides reading and writing them, checked from inside a directory of any mode.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

/// Everything, in one directory that has `file` (3 bytes) and may be written.
pub(crate) fn all(dir: &Path, may_be_unnamed: bool) {
    hard_links(dir);
    unnamed(dir, may_be_unnamed);
    unlinked(dir);
    attributes(dir);
    nodes(dir);
    space(dir);
    locks(dir);
    watches(dir);
    mapped(dir);
    executed(dir);
    exchanged(dir);
    many(dir);
}

fn hard_links(dir: &Path) {
    let (one, two) = (dir.join("link-one"), dir.join("link-two"));
    fs::write(&one, "1").unwrap();
    fs::hard_link(&one, &two).unwrap();
    OpenOptions::new().append(true).open(&two).unwrap().write_all(b"2").unwrap();
    assert_eq!(fs::read(&one).unwrap(), b"12");
    let (a, b) = (fs::metadata(&one).unwrap(), fs::metadata(&two).unwrap());
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    fs::remove_file(&one).unwrap();
    assert_eq!((fs::read(&two).unwrap(), fs::metadata(&two).unwrap().nlink()), (b"12".to_vec(), 1));
    // Of what was there before, too.
    fs::hard_link(dir.join("file"), dir.join("file-link")).unwrap();
    assert_eq!(fs::read(dir.join("file-link")).unwrap(), fs::read(dir.join("file")).unwrap());
    fs::remove_file(dir.join("file-link")).unwrap();
}

fn unnamed(dir: &Path, may_be: bool) {
    let file = match rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o640)) {
        Err(Errno::OPNOTSUPP) if !may_be => return,
        file => File::from(file.unwrap()),
    };
    (&file).write_all(b"unnamed").unwrap();
    rustix::fs::linkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), CWD, dir.join("named"), AtFlags::SYMLINK_FOLLOW).unwrap();
    assert_eq!(fs::read(dir.join("named")).unwrap(), b"unnamed");
    fs::remove_file(dir.join("named")).unwrap();
}

fn unlinked(dir: &Path) {
    for name in ["unlinked", "file-2"] {
        let path = dir.join(name);
        fs::write(&path, "before").unwrap();
        let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another").unwrap();
        file.write_all(b"after, and longer").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), file.metadata().unwrap().nlink()), ("after, and longer", 0));
        assert_eq!(fs::read(&path).unwrap(), b"another");
        fs::remove_file(&path).unwrap();
    }
}

fn attributes(dir: &Path) {
    let path = dir.join("attributes");
    fs::write(&path, "").unwrap();
    for target in [path.as_path(), &dir.join("file")] {
        rustix::fs::setxattr(target, "user.colour", b"red", XattrFlags::CREATE).unwrap();
        assert_eq!(rustix::fs::setxattr(target, "user.colour", b"red", XattrFlags::CREATE), Err(Errno::EXIST));
        let mut value = [0; 64];
        assert_eq!(rustix::fs::getxattr(target, "user.colour", &mut value[..]), Ok(3));
        let len = rustix::fs::listxattr(target, &mut value[..]).unwrap();
        assert!(value[..len].split(|b| *b == 0).any(|name| name == b"user.colour"));
        assert!(!value[..len].windows(13).any(|part| part == b"user.overlay."), "overlayfs's own attributes are shown");
        rustix::fs::removexattr(target, "user.colour").unwrap();
        assert_eq!(rustix::fs::getxattr(target, "user.colour", &mut value[..]), Err(Errno::NODATA));
    }
    fs::remove_file(&path).unwrap();
}

fn nodes(dir: &Path) {
    let socket = dir.join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
    let mut client = UnixStream::connect(&socket).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"x").unwrap();
    let mut byte = [0];
    server.read_exact(&mut byte).unwrap();
    fs::remove_file(&socket).unwrap();
    let fifo = dir.join("fifo");
    rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let writer = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::write(fifo, "through").unwrap()
    });
    assert_eq!(fs::read(&fifo).unwrap(), b"through");
    writer.join().unwrap();
    fs::remove_file(&fifo).unwrap();
    let device = rustix::fs::mknodat(CWD, dir.join("device"), rustix::fs::FileType::BlockDevice, Mode::from_raw_mode(0o600), 0x0801);
    assert_eq!(device, Err(Errno::PERM));
}

fn space(dir: &Path) {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join("sparse")).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 65536).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 65536);
    file.set_len(1 << 20).unwrap();
    file.write_all_at(b"end", (1 << 20) - 3).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(65536)).unwrap();
    assert!((65536..=1 << 20).contains(&hole));
    file.sync_all().unwrap();
    fs::remove_file(dir.join("sparse")).unwrap();
    let free = rustix::fs::statvfs(dir).unwrap();
    assert!(free.f_bavail > 0 && free.f_bsize > 0, "programs check for free space before they write");
}

fn locks(dir: &Path) {
    let open = || OpenOptions::new().read(true).write(true).open(dir.join("file")).unwrap();
    let (one, two) = (open(), open());
    rustix::fs::flock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(rustix::fs::flock(&two, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
    rustix::fs::flock(&one, FlockOperation::Unlock).unwrap();
    rustix::fs::flock(&two, FlockOperation::NonBlockingLockExclusive).unwrap();
    rustix::fs::fcntl_lock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
    let exe = std::env::current_exe().unwrap();
    let locked = Command::new(exe).args(["inside", "try-lock"]).arg(dir.join("file")).status().unwrap();
    assert_eq!(locked.code(), Some(3), "another process does not see the lock");
}

/// Exit code 3 if a record lock of another process is in the way.
pub(crate) fn try_lock(path: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let result = rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive);
    std::process::exit(if matches!(result, Err(Errno::ACCESS | Errno::AGAIN)) { 3 } else { 0 })
}

fn watches(dir: &Path) {
    let watcher = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watcher, dir, WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE).unwrap();
    fs::write(dir.join("watched"), "x").unwrap();
    fs::rename(dir.join("watched"), dir.join("renamed")).unwrap();
    fs::remove_file(dir.join("renamed")).unwrap();
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&watcher, &mut buffer);
    let mut seen = Vec::new();
    while let Ok(event) = reader.next() {
        seen.push((event.events(), event.file_name().map(|name| name.to_str().unwrap().to_owned()).unwrap_or_default()));
    }
    for (wanted, name) in
        [(ReadFlags::CREATE, "watched"), (ReadFlags::CLOSE_WRITE, "watched"), (ReadFlags::MOVED_TO, "renamed"), (ReadFlags::DELETE, "renamed")]
    {
        assert!(seen.iter().any(|(flags, found)| flags.contains(wanted) && found == name), "{wanted:?} {name} in {seen:?}");
    }
}

/// A program of the compiler's own making would be needed to map memory without `unsafe`; `dd` and `python3` do it.
fn mapped(dir: &Path) {
    let script = "import mmap, sys\n\
        f = open(sys.argv[1], 'r+b'); f.truncate(8192); m = mmap.mmap(f.fileno(), 8192)\n\
        m[4000:4003] = b'abc'; m.flush(); assert open(sys.argv[1], 'rb').read()[4000:4003] == b'abc'\n\
        g = open(sys.argv[1], 'r+b'); g.seek(10); g.write(b'xyz'); g.flush(); assert m[10:13] == b'xyz'\n\
        p = mmap.mmap(f.fileno(), 8192, flags=mmap.MAP_PRIVATE); p[0:1] = b'!'; assert open(sys.argv[1], 'rb').read(1) != b'!'\n";
    if !Path::new("/usr/bin/python3").exists() {
        eprintln!("skipped: mapping needs python3");
        return;
    }
    for name in ["mapped", "file-3"] {
        let path = dir.join(name);
        OpenOptions::new().append(true).create(true).open(&path).unwrap();
        let output = Command::new("/usr/bin/python3").args(["-c", script]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(&fs::read(&path).unwrap()[4000..4003], b"abc");
        fs::remove_file(&path).unwrap();
    }
}

fn executed(dir: &Path) {
    let path = dir.join("program");
    fs::write(&path, "#!/bin/sh\nexit 7\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(Command::new(&path).status().unwrap().code(), Some(7));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if !rustix::process::getuid().is_root() {
        assert_eq!(fs::read(&path).unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
    fs::remove_file(&path).unwrap();
}

fn exchanged(dir: &Path) {
    use rustix::fs::{RenameFlags, renameat_with};
    let (one, two) = (dir.join("one"), dir.join("two"));
    fs::write(&one, "1").unwrap();
    fs::write(&two, "2").unwrap();
    assert_eq!(renameat_with(CWD, &one, CWD, &two, RenameFlags::NOREPLACE), Err(Errno::EXIST));
    renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE).unwrap();
    assert_eq!((fs::read(&one).unwrap(), fs::read(&two).unwrap()), (b"2".to_vec(), b"1".to_vec()));
    fs::remove_file(&one).unwrap();
    fs::remove_file(&two).unwrap();
}

fn many(dir: &Path) {
    let dir = dir.join("many");
    fs::create_dir(&dir).unwrap();
    for n in 0..10_000 {
        let name = CString::new(format!("{}/{n:05}", dir.display())).unwrap();
        rustix::fs::mknodat(CWD, name.as_c_str(), rustix::fs::FileType::RegularFile, Mode::from_raw_mode(0o600), 0).unwrap();
    }
    // Names may be removed while a directory is read: each of those that stay is seen, once.
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let number: usize = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        assert!(seen.insert(number), "{number} twice");
        if number.is_multiple_of(3) {
            fs::remove_file(&path).unwrap();
        }
    }
    assert_eq!(seen.len(), 10_000);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 6_666);
    fs::remove_dir_all(&dir).unwrap();
}
