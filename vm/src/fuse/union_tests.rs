//! The union through a real mount, in a namespace made by util-linux' `unshare`.
//!
//! The test runs itself again inside: one process serves the mount and uses it, from different threads.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use client_store::LayerView;
use layer_format::LayerPath;
use layer_format::manifest::Mode;
use rustix::fs::{FlockOperation, OFlags, RenameFlags, flock, renameat_with};
use rustix::mount::{MountFlags, mount};

use super::*;
use crate::fs::UnionOptions;
use crate::rules::Rules;

use crate::fs::layer::MemoryLayer;

const PLACE: &str = "TURBO_TEST_UNION";

#[test]
fn behaves_as_a_filesystem() {
    let place = tempfile::tempdir().unwrap();
    let mut inside = Command::new("unshare");
    inside.args(["--user", "--map-root-user", "--mount"]).arg(std::env::current_exe().unwrap());
    inside.args(["--exact", "fuse::union::tests::inside", "--ignored", "--nocapture", "--test-threads", "1"]).env(PLACE, place.path());
    let can = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "sh", "-c", ": < /dev/fuse"]).output();
    if !can.is_ok_and(|done| done.status.success()) {
        println!("skipped: no user namespaces, no `unshare`, or no access to /dev/fuse");
        return;
    }
    let done = inside.output().unwrap();
    assert!(done.status.success(), "{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
}

struct Mounted {
    /// The merged directory as the application sees it; on the host; in the sandbox.
    seen: PathBuf,
    host: PathBuf,
    upper: PathBuf,
}

fn mounted(place: &Path) -> Mounted {
    let (host, mnt, upper) = (place.join("work"), place.join("mnt"), place.join("box/upper"));
    for dir in [&host, &mnt, &upper] {
        fs::create_dir_all(dir).unwrap();
    }
    fs::write(host.join("h"), "host").unwrap();
    let inside = |name: &str| LayerPath::from_absolute(host.join(name).as_os_str().as_bytes()).unwrap();
    let mut layer = MemoryLayer::new();
    layer.file(inside("v").as_bytes(), "virtual");
    layer.program(inside("run").as_bytes(), "#!/bin/sh\necho ran $1\n");
    layer.file(inside("app/deep/data").as_bytes(), "data");
    let mut rules = Rules::new(Mode::Full);
    rules.state(inside(""), Mode::Merge);
    let options = UnionOptions {
        layers: vec![Arc::new(layer) as Arc<dyn LayerView>],
        rules: Arc::new(rules),
        upper: upper.clone(),
        hidden: vec![place.join("box")],
        passages: Vec::new(),
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    };
    let device: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap().into();
    let data = CString::new(format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions", device.as_raw_fd())).unwrap();
    mount("turbo", &mnt, "fuse.turbo", MountFlags::NOSUID | MountFlags::NODEV, data.as_c_str()).unwrap();
    let fs = Arc::new(UnionFs::new(options).unwrap());
    serve_union(fs, device, Ids { uid: 0, gid: 0 }, &Arc::default()).unwrap();
    let seen = mnt.join(host.strip_prefix("/").unwrap());
    let upper = upper.join(host.strip_prefix("/").unwrap());
    Mounted { seen, host, upper }
}

#[test]
#[ignore = "run by `behaves_as_a_filesystem`, in a namespace"]
fn inside() {
    let Some(place) = std::env::var_os(PLACE) else { return };
    let m = mounted(Path::new(&place));
    files(&m);
    names(&m);
    memory(&m);
    special(&m);
    many(&m);
}

fn files(m: &Mounted) {
    let at = |name: &str| m.seen.join(name);
    assert_eq!((fs::read_to_string(at("v")).unwrap(), fs::read_to_string(at("h")).unwrap()), ("virtual".into(), "host".into()));
    let mut old = File::open(at("v")).unwrap();
    OpenOptions::new().append(true).open(at("v")).unwrap().write_all(b"+").unwrap();
    let mut text = String::new();
    old.read_to_string(&mut text).unwrap();
    assert_eq!(text, "virtual+", "opened before the copy");
    assert_eq!(fs::read_to_string(m.upper.join("v")).unwrap(), "virtual+");
    assert!(!m.host.join("v").exists());
    OpenOptions::new().append(true).open(at("h")).unwrap().write_all(b"+").unwrap();
    assert_eq!(fs::read_to_string(m.host.join("h")).unwrap(), "host+");
    // Longer than one request, at odd offsets.
    let big: Vec<u8> = (0..3_000_001u32).map(|n| (n % 251) as u8).collect();
    fs::write(at("big"), &big).unwrap();
    assert_eq!(fs::read(m.host.join("big")).unwrap(), big);
    let file = OpenOptions::new().read(true).write(true).open(at("big")).unwrap();
    file.write_all_at(b"xyz", 1_999_999).unwrap();
    file.set_len(2_000_001).unwrap();
    let mut tail = [0; 4];
    assert_eq!((file.read_at(&mut tail, 1_999_998).unwrap(), &tail[1..3]), (3, &b"xy"[..]));
    assert!(OpenOptions::new().read(true).write(true).custom_flags(OFlags::TMPFILE.bits() as i32).open(&m.seen).is_err());
    // Seen by the next open, if the host changes a file that is cached.
    assert_eq!(fs::read_to_string(at("h")).unwrap(), "host+");
    fs::write(m.host.join("h"), "HOST+").unwrap();
    assert_eq!(fs::read_to_string(at("h")).unwrap(), "HOST+");
    let ran = Command::new(at("run")).arg("it").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "ran it\n");
}

fn names(m: &Mounted) {
    let at = |name: &str| m.seen.join(name);
    // An editor's save.
    fs::write(at(".v.tmp"), "saved").unwrap();
    fs::rename(at(".v.tmp"), at("v")).unwrap();
    assert_eq!((fs::read_to_string(at("v")).unwrap(), fs::read_to_string(m.upper.join("v")).unwrap()), ("saved".into(), "saved".into()));
    assert!(!m.host.join(".v.tmp").exists() && !at(".v.tmp").exists());
    // A directory of a layer moves while a file in it is open, and what the kernel knows of it stays right.
    let mut open = OpenOptions::new().write(true).open(at("app/deep/data")).unwrap();
    let ino = at("app/deep").metadata().unwrap().ino();
    fs::rename(at("app"), at("moved")).unwrap();
    open.write_all(b"DATA").unwrap();
    assert_eq!((fs::read_to_string(at("moved/deep/data")).unwrap(), at("moved/deep").metadata().unwrap().ino()), ("DATA".into(), ino));
    assert!(!at("app").exists());
    // Replaced, exchanged, linked, removed while open.
    fs::write(at("a"), "a").unwrap();
    fs::write(at("b"), "b").unwrap();
    renameat_with(rustix::fs::CWD, at("a"), rustix::fs::CWD, at("b"), RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read_to_string(at("a")).unwrap(), "b");
    assert!(renameat_with(rustix::fs::CWD, at("a"), rustix::fs::CWD, at("b"), RenameFlags::NOREPLACE).is_err());
    fs::hard_link(at("a"), at("c")).unwrap();
    assert_eq!((at("c").metadata().unwrap().nlink(), at("c").metadata().unwrap().ino()), (2, at("a").metadata().unwrap().ino()));
    let mut gone = OpenOptions::new().read(true).write(true).open(at("b")).unwrap();
    fs::remove_file(at("b")).unwrap();
    gone.write_all(b"still").unwrap();
    gone.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    gone.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), gone.metadata().unwrap().nlink(), gone.metadata().unwrap().len()), ("still", 0, 5));
    // A tombstone stays when its name is made anew: in the sandbox.
    fs::remove_file(at("v")).unwrap();
    assert!(!at("v").exists());
    fs::write(at("v"), "third").unwrap();
    assert_eq!(fs::read_to_string(m.upper.join("v")).unwrap(), "third");
    fs::set_permissions(at("v"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(at("v").metadata().unwrap().permissions().mode() & 0o7777, 0o640);
}

fn memory(m: &Mounted) {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(m.seen.join("mapped")).unwrap();
    file.set_len(8192).unwrap();
    crate::sys::memory::write_mapped(&file, 8192, 5000, b'M').unwrap();
    assert_eq!(fs::read(m.host.join("mapped")).unwrap()[5000], b'M');
}

fn special(m: &Mounted) {
    let at = |name: &str| m.seen.join(name);
    let listener = UnixListener::bind(at("socket")).unwrap();
    let served = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello"));
    let mut text = String::new();
    UnixStream::connect(at("socket")).unwrap().read_to_string(&mut text).unwrap();
    served.join().unwrap().unwrap();
    assert_eq!(text, "hello");
    let (one, other) = (File::open(at("h")).unwrap(), File::open(at("h")).unwrap());
    flock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
    rustix::fs::setxattr(at("v"), "user.note", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    let mut value = [0; 4];
    assert_eq!(rustix::fs::getxattr(at("v"), "user.note", &mut value), Ok(1));
}

fn many(m: &Mounted) {
    let dir = m.seen.join("many");
    fs::create_dir(&dir).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let dir = &dir;
            scope.spawn(move || (0..250).for_each(|n| fs::write(dir.join(format!("{thread}-{n:03}")), "x").unwrap()));
        }
    });
    let names: Vec<String> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.len() == 1000 && names.is_sorted());
    fs::remove_dir_all(&dir).unwrap();
    assert!(!m.host.join("many").exists());
    // Nothing of it is left in the working directory of the sandbox.
    let work = m.host.parent().unwrap().join("box/work/union");
    assert!(fs::read_dir(work).unwrap().next().is_none());
}
