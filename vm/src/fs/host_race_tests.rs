//! The host's view while somebody changes the host's tree: nothing but what the modes show ever comes out.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::tests::{NOBODY, modes, names, walk};
use super::*;
use crate::spec::Mode as Isolation;

const SECRET: &[u8] = b"the secret";

/// A folder with `secret/file`, hidden by a rule, and `open/d/file` beside it.
fn scene() -> (tempfile::TempDir, HostFs) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["secret", "open/d"] {
        fs::create_dir_all(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("secret/file"), SECRET).unwrap();
    fs::write(dir.path().join("open/d/file"), "harmless").unwrap();
    let rules = modes(Isolation::WriteCopy, &[(&dir.path().join("secret"), Isolation::Hide)]);
    (dir, HostFs::new(rules, Stubs::default(), &[]))
}

/// Everything that can be got at below a path, as a program inside could.
fn read(host: &HostFs, parent: u64, name: &[u8]) -> Option<Vec<u8>> {
    let found = host.lookup(parent, name, NOBODY).ok()??;
    let (handle, _) = host.open(found.ino).ok()?;
    let bytes = host.read(found.ino, handle, 0, 100, NOBODY).ok();
    host.close(handle);
    host.forget(found.ino, 1);
    bytes
}

#[test]
fn a_directory_that_becomes_a_symbolic_link_is_not_followed() {
    let (dir, host) = scene();
    let (open, secret) = (dir.path().join("open"), dir.path().join("secret"));
    let known = walk(&host, &open.join("d")).unwrap();
    let file = walk(&host, &open.join("d/file")).unwrap();
    assert_eq!(read(&host, known.ino, b"file").unwrap(), b"harmless");
    fs::rename(open.join("d"), open.join("was")).unwrap();
    symlink(&secret, open.join("d")).unwrap();
    // What a server that goes by path and follows links would have answered:
    assert_eq!(fs::read(open.join("d/file")).unwrap(), SECRET);
    assert_eq!(read(&host, known.ino, b"file"), None);
    assert!(host.attr(file.ino, NOBODY).is_err());
    assert!(host.open(file.ino).is_err());
    assert_eq!(host.open_dir(known.ino).map(|handle| host.list(known.ino, handle, 0, 10, NOBODY).unwrap().len()).unwrap_or(0), 0);
    assert!(!host.has_directory(&LayerPath::from_absolute(open.join("d").as_os_str().as_bytes()).unwrap()));
    assert_eq!(walk(&host, &open.join("d")).unwrap().kind, NodeKind::Symlink, "looked up again it is what it is");
}

#[test]
fn a_racing_swap_never_leaks() {
    let (dir, host) = scene();
    let (open, secret) = (dir.path().join("open"), dir.path().join("secret"));
    symlink(&secret, open.join("link")).unwrap();
    let known = walk(&host, &open.join("d")).unwrap();
    let (done, leaked_natively) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (d, link) = (open.join("d"), open.join("link"));
            while !done.load(Ordering::Relaxed) {
                // Exchanged at once: the name is always there, now a directory, now a link to the secret.
                rustix::fs::renameat_with(CWD, &d, CWD, &link, rustix::fs::RenameFlags::EXCHANGE).unwrap();
            }
        });
        for _ in 0..20_000 {
            for bytes in [read(&host, known.ino, b"file"), read_listed(&host, known.ino)].into_iter().flatten() {
                assert_eq!(bytes, b"harmless");
            }
            if fs::read(open.join("d/file")).is_ok_and(|bytes| bytes == SECRET) {
                leaked_natively.store(true, Ordering::Relaxed);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(leaked_natively.into_inner(), "the race was never on: this test shows nothing");
}

/// As [`read`], by way of a listing with attributes.
fn read_listed(host: &HostFs, directory: u64) -> Option<Vec<u8>> {
    let handle = host.open_dir(directory).ok()?;
    let children = host.list(directory, handle, 0, 10, NOBODY).unwrap();
    let found = children.iter().find(|child| HostFs::name(child) == b"file").and_then(|child| host.enter(child));
    host.close_dir(handle);
    let found = found?;
    let (handle, _) = host.open(found.ino).ok()?;
    let bytes = host.read(found.ino, handle, 0, 100, NOBODY).ok();
    host.close(handle);
    bytes
}

#[test]
fn what_is_hidden_is_hidden_under_its_other_names() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("real/secret")).unwrap();
    fs::create_dir_all(at("real/fine")).unwrap();
    fs::write(at("real/secret/file"), SECRET).unwrap();
    fs::write(at("real/key"), SECRET).unwrap();
    fs::hard_link(at("real/key"), at("real/KEY")).unwrap();
    symlink("real", at("alias")).unwrap();
    symlink("real/fine", at("shown")).unwrap();
    let by = |rules: &[(&Path, Isolation)]| HostFs::new(modes(Isolation::WriteCopy, rules), Stubs::default(), &[]);
    // The rule names it through a link; inside, the kernel follows the link and asks for the real path.
    for mode in [Isolation::Hide, Isolation::Full] {
        let host = by(&[(&at("alias/secret"), mode)]);
        assert!(walk(&host, &at("real/secret")).is_none() && walk(&host, &at("real/fine")).is_some());
        assert_eq!(names(&host, walk(&host, &at("real")).unwrap().ino), [b"KEY".to_vec(), b"fine".to_vec(), b"key".to_vec()]);
        assert!(walk(&by(&[]), &at("real/secret")).is_some(), "without the rule it is there");
    }
    // Two names of one file, as on a filesystem that ignores case.
    let host = by(&[(&at("real/key"), Isolation::Hide)]);
    assert!(walk(&host, &at("real/KEY")).is_none());
    // A rule that shows the other name wins there.
    let host = by(&[(&at("real/key"), Isolation::Full), (&at("real/KEY"), Isolation::WriteCopy)]);
    assert!(walk(&host, &at("real/KEY")).is_some());
    // Hiding a link hides what it leads to; Full of a link is about the link alone.
    assert!(walk(&by(&[(&at("shown"), Isolation::Hide)]), &at("real/fine")).is_none());
    assert!(walk(&by(&[(&at("shown"), Isolation::Full)]), &at("real/fine")).is_some());
}

#[test]
fn a_hidden_file_that_is_replaced_is_hidden_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("real")).unwrap();
    symlink("real", at("alias")).unwrap();
    fs::write(at("real/key"), "old").unwrap();
    let host = HostFs::new(modes(Isolation::WriteCopy, &[(&at("alias/key"), Isolation::Hide)]), Stubs::default(), &[]);
    assert!(walk(&host, &at("real/key")).is_none());
    fs::write(at("real/new"), SECRET).unwrap();
    fs::rename(at("real/new"), at("real/key")).unwrap();
    let start = std::time::Instant::now();
    while walk(&host, &at("real/key")).is_some() {
        assert!(start.elapsed() < std::time::Duration::from_secs(10), "it stayed visible");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
