//! Layers, a sandbox and a host made for the purpose.

use std::os::unix::fs::symlink;

use rustix::fs::{XattrFlags, setxattr};

use super::*;
use crate::fs::Stubs;

fn path(text: &str) -> LayerPath {
    LayerPath::from_absolute(text.as_bytes()).unwrap()
}

fn layer(dirs: &[&str], files: &[&str]) -> Arc<dyn LayerView> {
    let mut stubs = Stubs::default();
    dirs.iter().for_each(|dir| stubs.add_dir(path(dir)));
    files.iter().for_each(|file| stubs.add_file(path(file), b"x".to_vec()));
    Arc::new(stubs)
}

#[test]
fn layers_and_sandbox_are_seen_as_the_application_would() {
    let upper = tempfile::tempdir().unwrap();
    let at = |name: &str| upper.path().join(name);
    fs::create_dir_all(at("s/opaque/in")).unwrap();
    fs::create_dir_all(at("l/over-file")).unwrap();
    fs::write(at("s/file"), "").unwrap();
    fs::write(at("l/replaced"), "").unwrap();
    setxattr(at("s/opaque"), "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    let layers = [layer(&["/l/dir", "/l/replaced", "/s/opaque/below", "/l/high"], &["/l/over-file"]), layer(&["/l/dir/more"], &["/l/high"])];
    let actual = Actual::new(&layers, upper.path());
    let directory = |closed| Virtual::Directory { closed };
    let cases = [
        ("/", directory(false)),
        ("/l/dir/more", directory(false)),
        ("/l/dir/none", Virtual::Absent),
        ("/none/at/all", Virtual::Absent),
        ("/l/replaced", Virtual::Other),
        ("/l/replaced/x", Virtual::Other),
        ("/l/high", Virtual::Other),
        ("/l/high/x", Virtual::Other),
        ("/l/over-file", directory(true)),
        ("/s", directory(false)),
        ("/s/opaque", directory(true)),
        ("/s/opaque/in", directory(true)),
        ("/s/opaque/below", Virtual::Other),
        ("/s/file", Virtual::Other),
    ];
    for (name, wanted) in cases {
        assert_eq!(actual.virtual_at(&path(name)), wanted, "{name}");
    }
    assert!(actual.in_sandbox(&path("/l/replaced")) && !actual.in_sandbox(&path("/l/dir")));
    let children = actual.virtual_children(&path("/l"), 10).unwrap();
    let wanted = [("dir", true), ("high", false), ("over-file", true), ("replaced", false)];
    assert_eq!(children, wanted.map(|(name, is_dir)| (name.as_bytes().to_vec(), is_dir)).into());
    assert_eq!(actual.virtual_children(&path("/l"), 3), None);
    assert_eq!(actual.virtual_children(&path("/s/opaque"), 3), Some([(b"in".to_vec(), true)].into()));
}

#[test]
fn the_host_is_seen_without_following_links() {
    let host = tempfile::tempdir().unwrap();
    let at = |name: &str| LayerPath::from_absolute(host.path().join(name).as_os_str().as_bytes()).unwrap();
    fs::create_dir_all(host.path().join("dir/in")).unwrap();
    fs::write(host.path().join("dir/file"), "").unwrap();
    symlink("dir", host.path().join("link")).unwrap();
    let actual = Actual::new(&[], host.path());
    let cases = [("dir", Host::Directory), ("dir/file", Host::Other), ("link", Host::Other), ("link/in", Host::Absent), ("none", Host::Absent)];
    for (name, wanted) in cases {
        assert_eq!(actual.host_at(&at(name)), wanted, "{name}");
    }
    assert_eq!(actual.host_directories(&at(""), 1), Some(vec![b"dir".to_vec()]), "the link is none");
    assert_eq!(actual.host_directories(&at("dir"), 0), None);
    assert_eq!(actual.host_directories(&at("none"), 9), None);
    assert!(actual.is_mount_point(&path("/proc")) && !actual.is_mount_point(&at("dir")));
}

#[test]
fn names_of_mount_points_are_unescaped() {
    for (escaped, plain) in [("/a\\040b", "/a b"), ("/\\134", "/\\"), ("/x\\04", "/x\\04"), ("/plain", "/plain")] {
        assert_eq!(unescape(escaped.as_bytes()), plain.as_bytes(), "{escaped}");
    }
}
