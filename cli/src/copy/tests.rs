use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use rustix::fs::XattrFlags;

use super::*;

/// All that a copy must keep of a tree, by path.
fn described(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![folder.to_owned()];
    let mut first_names: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    while let Some(path) = pending.pop() {
        let meta = path.symlink_metadata().unwrap();
        let below = path.strip_prefix(folder).unwrap().to_owned();
        let kind = meta.file_type();
        let mut content = String::new();
        if kind.is_dir() {
            let mode = meta.permissions();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
            let mut children: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            children.sort();
            pending.extend(children.into_iter().rev());
            std::fs::set_permissions(&path, mode).unwrap();
        } else if kind.is_symlink() {
            content = std::fs::read_link(&path).unwrap().display().to_string();
        } else if kind.is_file() && meta.mode() & 0o400 != 0 {
            let file = File::open(&path).unwrap();
            let mut buffer = [0; 64];
            let attribute = rustix::fs::fgetxattr(&file, "user.test", &mut buffer[..]).map_or(0, |len| len);
            content = format!("{:?} {:?}", std::fs::read(&path).unwrap().iter().map(|byte| u64::from(*byte)).sum::<u64>(), &buffer[..attribute]);
        }
        let name = first_names.entry((meta.dev(), meta.ino())).or_insert_with(|| below.clone()).clone();
        let is_root = below.as_os_str().is_empty();
        let times = if is_root { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
        found.insert(below, format!("{:o} {:?} {} {:?} {content}", meta.mode(), times, meta.rdev(), name));
    }
    found
}

fn copy_all(kind: Kind, from: &Path, to: &Path) -> Vec<String> {
    let mut copier = Copier::new(kind, open_folder(to).unwrap());
    copier.copy_content(open_folder(from).unwrap().as_fd()).unwrap();
    copier.into_skipped()
}

/// A tree with everything that is hard to copy and that an ordinary user can make.
fn hard_tree(folder: &Path) {
    std::fs::create_dir_all(folder.join("d/e")).unwrap();
    std::fs::write(folder.join("d/file"), b"data").unwrap();
    std::fs::hard_link(folder.join("d/file"), folder.join("d/e/link")).unwrap();
    std::fs::hard_link(folder.join("d/file"), folder.join("a-link")).unwrap();
    symlink("/nowhere/at/all", folder.join("dangling")).unwrap();
    symlink("d", folder.join("to-d")).unwrap();
    rustix::fs::mknodat(CWD, folder.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    let sparse = File::create(folder.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"end", (64 << 20) - 3).unwrap();
    let _ = rustix::fs::fsetxattr(&sparse, "user.test", b"value", XattrFlags::empty());
    std::fs::write(folder.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"bad\xff\nname")), "x").unwrap();
    std::fs::write(folder.join("setuid"), "x").unwrap();
    std::fs::set_permissions(folder.join("setuid"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    std::fs::set_permissions(folder.join("d/e"), std::fs::Permissions::from_mode(0o1555)).unwrap();
    let old = Timespec { tv_sec: 1_000_000, tv_nsec: 123_456_789 };
    for name in ["d/file", "d", "fifo", "dangling"] {
        rustix::fs::utimensat(CWD, folder.join(name), &Timestamps { last_access: old, last_modification: old }, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

use rustix::fs::{Timespec, Timestamps};

#[test]
fn a_copy_is_like_the_original_in_every_respect() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    hard_tree(from.path());
    assert_eq!(copy_all(Kind::Files, from.path(), to.path()), Vec::<String>::new());
    assert_eq!(described(to.path()), described(from.path()));
    let blocks = |folder: &Path| folder.join("sparse").metadata().unwrap().blocks();
    assert!(blocks(to.path()) <= blocks(from.path()) + 64, "holes stay holes");
    assert_eq!(to.path().join("a-link").metadata().unwrap().nlink(), 3);
    // Again, over what is there.
    assert_eq!(copy_all(Kind::Files, from.path(), to.path()), Vec::<String>::new());
    assert_eq!(described(to.path()), described(from.path()));
}

#[test]
fn a_sandbox_keeps_its_whiteouts_and_what_its_user_may_not_read() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(from.path().join("closed")).unwrap();
    std::fs::write(from.path().join("closed/secret"), "data").unwrap();
    if mknodat(CWD, from.path().join("closed/gone"), FileType::CharacterDevice, Mode::empty(), 0).is_err() {
        eprintln!("skipped: this system lets no ordinary user make a whiteout");
        return;
    }
    let opaque = open_folder(&from.path().join("closed")).unwrap();
    let path = format!("/proc/self/fd/{}", opaque.as_raw_fd());
    for (name, value) in [("user.overlay.opaque", b"y"), ("user.overlay.impure", b"y")] {
        rustix::fs::setxattr(&*path, name, value, XattrFlags::empty()).unwrap();
    }
    std::fs::set_permissions(from.path().join("closed/secret"), std::fs::Permissions::from_mode(0o000)).unwrap();
    std::fs::set_permissions(from.path().join("closed"), std::fs::Permissions::from_mode(0o000)).unwrap();
    copy_all(Kind::Sandbox, from.path(), to.path());
    assert_eq!(described(to.path()), described(from.path()));
    std::fs::set_permissions(to.path().join("closed"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut names = vec![0u8; 1024];
    let len = rustix::fs::listxattr(to.path().join("closed"), &mut names[..]).unwrap();
    let names = String::from_utf8_lossy(&names[..len]).into_owned();
    assert!(names.contains("user.overlay.opaque") && !names.contains("impure"), "{names}");
    std::fs::set_permissions(from.path().join("closed"), std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn links_in_the_target_are_replaced_not_followed() {
    let (from, to, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(from.path().join("file"), "new").unwrap();
    std::fs::create_dir(from.path().join("folder")).unwrap();
    std::fs::write(from.path().join("folder/inner"), "new").unwrap();
    std::fs::write(outside.path().join("victim"), "old").unwrap();
    symlink(outside.path().join("victim"), to.path().join("file")).unwrap();
    symlink(outside.path(), to.path().join("folder")).unwrap();
    let mut copier = Copier::new(Kind::Files, open_folder(to.path()).unwrap());
    let source = open_folder(from.path()).unwrap();
    assert!(copier.copy(At { folder: source.as_fd(), name: c"folder" }, c"folder").is_err(), "a folder does not take the place of a link");
    copier.copy(At { folder: source.as_fd(), name: c"file" }, c"file").unwrap();
    assert_eq!(std::fs::read_to_string(outside.path().join("victim")).unwrap(), "old");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read_to_string(to.path().join("file")).unwrap(), "new");
}
