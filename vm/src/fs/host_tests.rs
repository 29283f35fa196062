//! The host's view over a temporary directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::*;
use crate::spec::Mode as Isolation;

pub(super) const NOBODY: Caller = Caller { pid: 0 };

/// Looks a path up from the root.
pub(super) fn walk(fs: &HostFs, path: &Path) -> Option<Attr> {
    let path = LayerPath::from_absolute(path.as_os_str().as_bytes()).unwrap();
    let names: Vec<&[u8]> = path.as_bytes().split(|b| *b == b'/').collect();
    let (last, parents) = names.split_last().unwrap();
    let mut parent = ROOT;
    for name in parents {
        parent = fs.lookup(parent, name, NOBODY).unwrap()?.ino;
    }
    fs.lookup(parent, last, NOBODY).unwrap()
}

pub(super) fn names(fs: &HostFs, ino: u64) -> Vec<Vec<u8>> {
    let handle = fs.open_dir(ino).unwrap();
    let names = fs.list(ino, handle, 0, usize::MAX, NOBODY).unwrap().iter().map(|child| HostFs::name(child).to_vec()).collect();
    fs.close_dir(handle);
    names
}

pub(super) fn modes(default: Isolation, stated: &[(&Path, Isolation)]) -> Arc<Rules> {
    let mut rules = Rules::new(default);
    for (path, mode) in stated {
        rules.state(LayerPath::from_absolute(path.as_os_str().as_bytes()).unwrap(), *mode);
    }
    Arc::new(rules)
}

#[test]
fn files_are_read_and_replaced_files_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("f"), dir.path().join("l"));
    fs::write(&file, "first").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    symlink("f", &link).unwrap();
    let host = HostFs::new(modes(Isolation::WriteCopy, &[]), Stubs::default(), &[]);
    let found = walk(&host, &file).unwrap();
    assert_eq!((found.perm, found.size, found.kind), (0o640, 5, NodeKind::File));
    for keep in [false, true] {
        let (handle, unchanged) = host.open(found.ino).unwrap();
        assert_eq!(unchanged, keep);
        assert_eq!(host.read(found.ino, handle, 1, 100, NOBODY).unwrap(), b"irst");
        host.close(handle);
    }
    let found_link = walk(&host, &link).unwrap();
    assert_eq!(host.read_link(found_link.ino).unwrap(), b"f");
    fs::write(dir.path().join("new"), "second").unwrap();
    fs::rename(dir.path().join("new"), &file).unwrap();
    assert_eq!(host.open(found.ino), Err(Errno::STALE));
    assert_ne!(walk(&host, &file).unwrap().ino, found.ino);
}

#[test]
fn modes_decide_what_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["open/deep", "closed/inner", "closed/other"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    let map = modes(Isolation::Full, &[(&at("open"), Isolation::WriteCopy), (&at("closed/inner"), Isolation::WriteCopy)]);
    let host = HostFs::new(map, Stubs::default(), &[at("open/deep")]);
    let top = walk(&host, dir.path()).unwrap();
    assert_eq!(names(&host, top.ino), [b"closed".to_vec(), b"open".to_vec()]);
    assert_eq!(names(&host, walk(&host, &at("closed")).unwrap().ino), [b"inner".to_vec()]);
    assert!(walk(&host, &at("closed/other")).is_none());
    assert!(walk(&host, &at("open/deep")).is_none(), "it is hidden");
    assert!(walk(&host, Path::new("/etc")).is_none());
}

#[test]
fn stubs_appear_where_the_host_has_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut stubs = Stubs::default();
    stubs.add_dir(LayerPath::from_absolute(dir.path().join("x/y").as_os_str().as_bytes()).unwrap());
    let host = HostFs::new(modes(Isolation::WriteCopy, &[]), stubs, &[]);
    let top = walk(&host, dir.path()).unwrap();
    assert_eq!(names(&host, top.ino), [b"x".to_vec()]);
    let stub = walk(&host, &dir.path().join("x")).unwrap();
    assert_eq!((stub.kind, stub.perm), (NodeKind::Directory, 0o755));
    assert_eq!(names(&host, stub.ino), [b"y".to_vec()]);
    assert_eq!(host.attr(stub.ino, NOBODY).unwrap(), stub);
}

#[test]
fn covered_directories_are_places_to_mount_on_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| LayerPath::from_absolute(dir.path().join(name).as_os_str().as_bytes()).unwrap();
    fs::create_dir_all(dir.path().join("secret/in")).unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    fs::write(dir.path().join("beside"), "x").unwrap();
    let covered = BTreeSet::from([at("secret"), at("file"), at("nothing")]);
    let host = HostFs::new(modes(Isolation::WriteCopy, &[]), Stubs::default(), &[]).covering(covered);
    let top = walk(&host, dir.path()).unwrap();
    assert_eq!(names(&host, top.ino), [b"beside".to_vec()]);
    for name in ["secret", "file", "nothing"] {
        let found = walk(&host, &dir.path().join(name)).unwrap();
        assert_eq!((found.kind, host.attr(found.ino, NOBODY).unwrap()), (NodeKind::Directory, found.clone()), "{name}");
        assert_eq!(names(&host, found.ino), Vec::<Vec<u8>>::new());
        assert_eq!(host.lookup(found.ino, b"in", NOBODY), Ok(None));
        assert!(!host.has_directory(&at(name)));
    }
}

#[derive(Debug, Default)]
struct Notes(Mutex<Vec<String>>);

impl Witness for Notes {
    fn looks_into(&self, directory: &LayerPath) {
        self.0.lock().push(format!("into {}", directory.name().escape_ascii()));
    }

    fn saw(&self, path: &LayerPath, there: bool) {
        self.0.lock().push(format!("{} {there}", path.name().escape_ascii()));
    }
}

#[test]
fn looks_are_witnessed_before_and_after() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/f"), "x").unwrap();
    let notes = Arc::new(Notes::default());
    let host = HostFs::new(modes(Isolation::WriteCopy, &[]), Stubs::default(), &[]).witnessed(Some(Arc::clone(&notes) as Arc<dyn Witness>));
    let found = walk(&host, &dir.path().join("d")).unwrap();
    notes.0.lock().clear();
    assert!(host.lookup(found.ino, b"none", NOBODY).unwrap().is_none());
    let handle = host.open_dir(found.ino).unwrap();
    for child in host.list(found.ino, handle, 0, 9, NOBODY).unwrap() {
        host.enter(&child).unwrap();
    }
    assert_eq!(*notes.0.lock(), ["into d", "none false", "into d", "f true"]);
}
