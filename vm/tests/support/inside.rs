//! What the cases check from inside the VM.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, getxattr, listxattr, seek};

pub(crate) fn run(case: &str) {
    match case {
        "metadata" => metadata(),
        "change" => change(),
        "changed" => changed(),
        "stacked" => stacked(),
        "full" => full(),
        "orphans" => orphans(),
        "slow" => slow(),
        "failing" => failing(),
        "env" => env(),
        _ => panic!("no case {case}"),
    }
}

fn metadata() {
    let (a, b) = (fs::metadata("/img/link-a").unwrap(), fs::metadata("/img/link-b").unwrap());
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    assert_eq!(fs::read_link("/img/symlink").unwrap(), Path::new("dir/one"));
    assert_eq!(fs::read("/img/symlink").unwrap(), b"1");
    assert!(fs::symlink_metadata("/img/fifo").unwrap().file_type().is_fifo());
    let sparse = File::open("/img/sparse").unwrap();
    assert_eq!(seek(&sparse, SeekFrom::Hole(0)), Ok(65536));
    assert_eq!(seek(&sparse, SeekFrom::Data(65536)), Ok(65536 + (1 << 20)));
    assert_eq!(sparse.metadata().unwrap().blocks(), 256);
    let mut value = [0; 16];
    assert_eq!(getxattr("/img/xattr", "user.colour", &mut value), Ok(3));
    assert_eq!(&value[..3], b"red");
    assert_eq!(listxattr("/img/xattr", &mut value), Ok(12));
    assert_eq!(getxattr("/img/file", "user.colour", &mut value), Err(rustix::io::Errno::NODATA));
    let latin = Path::new("/img").join(OsStr::from_bytes(b"caf\xe9"));
    assert_eq!(fs::read(&latin).unwrap(), b"latin");
    assert!(fs::read_dir("/img").unwrap().any(|entry| entry.unwrap().path() == latin));
    let setuid = fs::metadata("/img/setuid").unwrap();
    assert_eq!(setuid.mode() & 0o7777, 0o4755);
    assert_eq!((setuid.uid(), setuid.gid()), (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()));
    let file = fs::metadata("/img/file").unwrap();
    assert_eq!((file.mtime(), file.mtime_nsec()), (1_700_000_000, 5));
    for _ in 0..2 {
        let names: BTreeSet<_> = fs::read_dir("/img/many").unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 10_000);
    }
    assert_eq!(fs::metadata("/img/many/09999").unwrap().len(), 0);
    assert!(fs::metadata("/img/many/10000").is_err());
    assert_eq!(Command::new("/img/script").arg("ran").output().unwrap().stdout, b"script ran\n");
}

fn change() {
    fs::remove_file("/img/file").unwrap();
    assert!(fs::metadata("/img/file").is_err());
    fs::remove_dir_all("/img/dir").unwrap();
    fs::create_dir("/img/dir").unwrap();
    assert_eq!(fs::read_dir("/img/dir").unwrap().count(), 0, "a new directory over a deleted one is empty");
    fs::write("/img/dir/new", "new").unwrap();
    fs::rename("/img/link-a", "/img/moved").unwrap();
    OpenOptions::new().append(true).open("/img/quick1").unwrap().write_all(b" more").unwrap();
    let error = fs::rename("/img/keep", "/img/kept").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CrossesDevices, "known limit: a lower directory cannot be renamed");
    fs::hard_link("/img/moved", "/img/moved-too").unwrap();
    changed();
}

fn changed() {
    assert!(fs::metadata("/img/file").is_err());
    let names = |dir: &str| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(names("/img/dir"), ["new"]);
    assert_eq!(fs::read("/img/moved").unwrap(), b"linked");
    assert_eq!(fs::read("/img/quick1").unwrap(), b"1 more");
    assert!(fs::metadata("/img/link-a").is_err());
    assert!(!names("/img").iter().any(|name| name == "file" || name == "link-a"));
}

fn stacked() {
    let names = |dir: &str| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect::<BTreeSet<_>>();
    assert!(fs::metadata("/img/file").is_err());
    assert!(!names("/img").contains(OsStr::new("file")));
    assert_eq!(names("/img/opaque"), BTreeSet::from(["high".into()]));
    assert_eq!(names("/img/merged"), BTreeSet::from(["high".into(), "low".into()]));
    assert!(fs::symlink_metadata("/etc/hostname").is_err(), "the image deletes a file of the host");
    assert!(!names("/etc").contains(OsStr::new("hostname")));
    assert!(fs::metadata("/etc/passwd").is_ok());
    assert_eq!(names("/usr/share"), BTreeSet::from(["only".into()]), "the image hides a directory of the host");
}

fn full() {
    let names: BTreeSet<_> = fs::read_dir("/").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    for (name, there) in [("img", true), ("proc", true), ("dev", true), ("sys", true), ("tmp", true), ("home", false), ("var", false), ("work", false)] {
        assert_eq!(names.contains(name), there, "{name}");
    }
    assert_eq!(fs::read_dir("/tmp").unwrap().count(), 0);
    assert!(fs::metadata("/etc/passwd").is_err());
    fs::write("/tmp/x", "").unwrap();
    fs::write("/dev/null", "x").unwrap();
    let mut byte = [0];
    File::open("/dev/urandom").unwrap().read_exact(&mut byte).unwrap();
    assert!(fs::metadata("/proc/self/status").is_ok());
    assert_eq!(std::process::id(), 2, "the application comes right after pid 1");
    if Path::new("/bin/static").exists() {
        let output = Command::new("/bin/static").output().unwrap();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(5), &b"static\n"[..]));
    }
}

fn orphans() {
    // A shell that ends at once leaves its background process to pid 1.
    for _ in 0..20 {
        Command::new("/bin/sh").args(["-c", "sleep 0.05 & exit 0"]).status().unwrap();
    }
    let zombies = || {
        let stats = fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("stat")).ok());
        stats.filter(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z') || stat.contains("(sleep)"))).count()
    };
    let start = Instant::now();
    while zombies() > 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "{} zombies", zombies());
        std::thread::sleep(Duration::from_millis(20));
    }
    // This one must not hold up the end.
    Command::new("/bin/sh").args(["-c", "sleep 1000 & exit 0"]).status().unwrap();
}

fn slow() {
    let start = Instant::now();
    let readers: Vec<_> = (0..20).map(|n| std::thread::spawn(move || fs::read(format!("/img/slow{n}")).unwrap().len())).collect();
    std::thread::sleep(Duration::from_millis(200));
    for n in 0..20 {
        assert_eq!(fs::read(format!("/img/quick{n}")).unwrap(), format!("{n}").as_bytes());
    }
    assert_eq!(fs::read_dir("/img/many").unwrap().count(), 10_000);
    assert!(start.elapsed() < Duration::from_secs(3), "others waited {:?}", start.elapsed());
    assert!(readers.into_iter().all(|reader| reader.join().unwrap() == 8192));
}

fn failing() {
    let error = fs::read("/img/bad").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(fs::read("/img/quick3").unwrap(), b"3");
}

fn env() {
    let all: Vec<_> = std::env::vars().collect();
    assert_eq!(all, [("A".to_owned(), "b c".to_owned()), ("PATH".to_owned(), "/bin:/usr/bin".to_owned())]);
    assert_eq!(std::env::current_dir().unwrap(), Path::new("/img/dir"));
}
