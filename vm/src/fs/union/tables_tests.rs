//! Each cell of the tables of modes, and attributes.

use std::os::unix::fs::MetadataExt;

use layer_format::manifest::{Attributes, FileMode, Mode};
use rustix::io::Errno;

use super::bench::{NOBODY, Place, User, path, rules, three};
use crate::fs::Change;
use crate::fs::layer::MemoryLayer;
use crate::rules::Rules;

fn read(user: &User, path: &str) -> Option<String> {
    match user.read(path) {
        Ok(content) => Some(content),
        Err(errno) => {
            assert_eq!(errno, Errno::NOENT, "{path}");
            None
        }
    }
}

#[test]
fn directories_table_seen_and_listed() {
    let cases = [
        (Mode::Full, [Some("V"), None, Some("V")], &["b", "v"][..]),
        (Mode::Merge, [Some("V"), Some("H"), Some("V")], &["b", "h", "v"]),
        (Mode::WriteCopy, [Some("V"), Some("H"), Some("V")], &["b", "h", "v"]),
        (Mode::Hide, [None, None, None], &[]),
    ];
    for (mode, seen, listed) in cases {
        let (_place, user) = three(mode);
        for (name, expected) in ["d/v", "d/h", "d/b"].iter().zip(seen) {
            assert_eq!(read(&user, name).as_deref(), expected, "{mode} {name}");
        }
        match mode {
            Mode::Hide => assert_eq!((user.list("d"), user.list("").unwrap()), (Err(Errno::NOENT), vec![])),
            _ => assert_eq!(
                (user.list("d").unwrap(), user.list("").unwrap()),
                (listed.iter().map(|name| name.to_string()).collect(), vec!["d".to_owned()]),
                "{mode}"
            ),
        }
    }
}

#[test]
fn directories_table_written() {
    // After each write: what the host has, what the sandbox has.
    let cases: [(Mode, &str, Option<&str>, Option<&str>); 12] = [
        (Mode::Full, "v", None, Some("new")),
        (Mode::Full, "b", Some("H"), Some("new")),
        (Mode::Full, "n", None, Some("new")),
        (Mode::Full, "h", Some("H"), Some("new")),
        (Mode::Merge, "v", None, Some("new")),
        (Mode::Merge, "h", Some("new"), None),
        (Mode::Merge, "b", Some("H"), Some("new")),
        (Mode::Merge, "n", Some("new"), None),
        (Mode::WriteCopy, "v", None, Some("new")),
        (Mode::WriteCopy, "h", Some("H"), Some("new")),
        (Mode::WriteCopy, "b", Some("H"), Some("new")),
        (Mode::WriteCopy, "n", None, Some("new")),
    ];
    for (mode, name, host, sandbox) in cases {
        let (place, user) = three(mode);
        let at = format!("d/{name}");
        if user.stat(&at).is_ok() { user.write(&at, "new") } else { user.create(&at, "new") }.unwrap();
        assert_eq!(user.read(&at).unwrap(), "new");
        assert_eq!((place.on_host(&at).as_deref(), place.in_box(&at).as_deref()), (host, sandbox), "{mode} {name}");
    }
    let (_place, user) = three(Mode::Hide);
    assert_eq!((user.create("d/n", ""), user.mkdir("d")), (Err(Errno::NOENT), Err(Errno::NOENT)));
}

#[test]
fn directories_table_deleted_and_made_again() {
    // Whether the host still has it, whether there is a tombstone, and where a new one goes: to the host?
    let cases = [
        (Mode::Full, "v", false, true, false),
        (Mode::Full, "b", true, true, false),
        (Mode::Merge, "v", false, true, false),
        (Mode::Merge, "h", false, false, true),
        (Mode::Merge, "b", true, true, false),
        (Mode::WriteCopy, "v", false, true, false),
        (Mode::WriteCopy, "h", true, true, false),
        (Mode::WriteCopy, "b", true, true, false),
    ];
    for (mode, name, on_host, buried, again_on_host) in cases {
        for copied in [false, true] {
            let (place, user) = three(mode);
            let at = format!("d/{name}");
            if copied {
                user.patch(&at, "copy").unwrap();
            }
            user.unlink(&at).unwrap();
            assert_eq!(user.read(&at), Err(Errno::NOENT));
            assert!(!user.list("d").unwrap().contains(&name.to_owned()));
            assert_eq!((place.host(&at).exists(), place.is_buried(&at)), (on_host, buried), "{mode} {name}");
            user.create(&at, "again").unwrap();
            assert_eq!(user.read(&at).unwrap(), "again");
            let there = if again_on_host { place.on_host(&at) } else { place.in_box(&at) };
            assert_eq!(there.as_deref(), Some("again"), "{mode} {name}");
        }
    }
    // What only the sandbox ever had leaves nothing behind.
    let (place, user) = three(Mode::WriteCopy);
    user.create("d/n", "").unwrap();
    user.unlink("d/n").unwrap();
    assert!(place.upper("d/n").symlink_metadata().is_err());
}

#[test]
fn metadata_changes_go_where_the_content_would() {
    for (mode, name, on_host) in [(Mode::Full, "v", false), (Mode::Merge, "v", false), (Mode::Merge, "h", true), (Mode::WriteCopy, "h", false)] {
        let (place, user) = three(mode);
        let at = format!("d/{name}");
        let ino = user.ino(&at).unwrap();
        let change = Change { mode: Some(0o600), mtime: Some(Some((1000, 7))), ..Change::default() };
        let shown = user.fs.change(ino, &change, None, NOBODY).unwrap();
        assert_eq!((shown.attr.perm, shown.attr.mtime, shown.attr.ino), (0o600, (1000, 7), ino));
        user.fs.set_xattr(ino, b"user.x", b"1", 0, NOBODY).unwrap();
        assert_eq!(user.fs.xattr(ino, b"user.x").unwrap(), b"1");
        assert_eq!(user.fs.xattr_names(ino).unwrap(), b"user.x\0");
        let (changed, other) = if on_host { (place.host(&at), place.upper(&at)) } else { (place.upper(&at), place.host(&at)) };
        assert_eq!((Place::mode(&changed), changed.metadata().unwrap().mtime()), (0o600, 1000), "{mode} {name}");
        assert!(!other.exists() || Place::mode(&other) == 0o644);
    }
}

#[test]
fn new_directories_have_missing_parents_made_on_the_host_with_the_modes_that_are_seen() {
    let place = Place::new();
    let mut layer = MemoryLayer::new();
    layer.dir("home/app").meta.mode = 0o750;
    layer.file("home/app/conf", "V");
    let user = place.union(&[layer], rules(Mode::Full, &[("home", Mode::Merge)]));
    user.mkdir("home/app/cache").unwrap();
    user.create("home/app/cache/x", "1").unwrap();
    assert_eq!(place.on_host("home/app/cache/x").as_deref(), Some("1"));
    assert_eq!(Place::mode(&place.host("home/app")), 0o750);
    assert_eq!(user.list("home/app").unwrap(), ["cache", "conf"]);
    assert!(place.upper("home").symlink_metadata().is_err(), "nothing went to the sandbox");
}

#[test]
fn a_tombstone_or_a_new_directory_hides_the_host_in_the_next_run_as_well() {
    let place = Place::new();
    let mut layer = MemoryLayer::new();
    layer.file("d/sub/v", "V");
    place.put("d/sub/h", "H");
    let stated = || rules(Mode::WriteCopy, &[]);
    let user = place.union(std::slice::from_ref(&layer), stated());
    for name in ["d/sub/v", "d/sub/h"] {
        user.unlink(name).unwrap();
    }
    user.rmdir("d/sub").unwrap();
    user.mkdir("d/sub").unwrap();
    user.create("d/sub/n", "N").unwrap();
    for user in [user, place.union(&[layer], stated())] {
        assert_eq!(user.list("d/sub").unwrap(), ["n"]);
        let ino = user.ino("d/sub").unwrap();
        assert_eq!(user.fs.xattr_names(ino).unwrap(), b"", "overlayfs' attributes are not shown");
        assert_eq!(user.fs.xattr(ino, b"user.overlay.opaque"), Err(Errno::NODATA));
        assert_eq!(user.fs.set_xattr(ino, b"user.overlay.opaque", b"n", 0, NOBODY), Err(Errno::PERM));
    }
}

#[test]
fn files_table() {
    let place = Place::new();
    let mut layer = MemoryLayer::new();
    for name in ["full", "hide", "def", "both"] {
        layer.file(format!("d/{name}"), "V");
    }
    for name in ["d/full", "d/hide", "d/both", "d/onlyhost"] {
        place.put(name, "H");
    }
    let mut stated = rules(Mode::Merge, &[]);
    for (name, mode) in [
        ("d/full", FileMode::Full),
        ("d/hide", FileMode::Hide),
        ("d/def", FileMode::Defaulted),
        ("d/both", FileMode::Defaulted),
        ("d/onlyhost", FileMode::Full),
        ("d/newhide", FileMode::Hide),
    ] {
        stated.state_file(path(name), mode);
    }
    let user = place.union(&[layer], stated);
    assert_eq!(user.list("d").unwrap(), ["both", "def", "full"]);
    assert_eq!([read(&user, "d/full"), read(&user, "d/hide"), read(&user, "d/onlyhost")].map(|found| found.unwrap_or_default()), ["V", "V", ""]);
    assert_eq!(read(&user, "d/both").as_deref(), Some("H"), "a defaulted file is the host's");
    assert_eq!((read(&user, "d/def").as_deref(), place.on_host("d/def").as_deref()), (Some("V"), Some("V")), "it is placed there");
    user.write("d/hide", "new").unwrap();
    user.create("d/newhide", "new").unwrap();
    assert_eq!((place.in_box("d/hide").as_deref(), place.in_box("d/newhide").as_deref()), (Some("new"), Some("new")));
    assert_eq!(user.list("d").unwrap(), ["both", "def", "full"], "also after it was written");
    for name in ["d/def", "d/both"] {
        user.patch(name, "D").unwrap();
        assert_eq!((place.on_host(name).as_deref(), place.in_box(name)), (Some("D"), None));
        user.unlink(name).unwrap();
        assert!(!place.host(name).exists() && user.stat(name).is_err(), "once is enough");
        user.create(name, "again").unwrap();
        assert_eq!(place.on_host(name).as_deref(), Some("again"));
    }
    user.unlink("d/full").unwrap();
    assert!(user.stat("d/full").is_err() && place.is_buried("d/full") && place.host("d/full").exists());
}

#[test]
fn attributes() {
    let place = Place::new();
    let mut layer = MemoryLayer::new();
    layer.file("d/hid", "V");
    layer.file("d/ro", "V");
    layer.file("keep/x", "V");
    place.put("d/roh", "H");
    place.put("d/hidh", "H");
    let mut stated = rules(Mode::Merge, &[("w", Mode::WriteCopy)]);
    for at in ["d/hid", "d/hidh", "w/hid"] {
        stated.add_attributes(path(at), Attributes { hidden: true, ..Attributes::default() });
    }
    for at in ["d/ro", "d/roh", "keep"] {
        stated.add_attributes(path(at), Attributes { read_only: true, ..Attributes::default() });
    }
    place.put("w/hid", "H");
    let user = place.union(&[layer], stated);
    assert_eq!(user.list("d").unwrap(), ["ro", "roh"]);
    assert_eq!(user.read("d/hid").unwrap(), "V");
    assert_eq!(user.patch("d/hid", "x"), Err(Errno::ACCESS), "it must not be copied");
    assert_eq!(user.patch("w/hid", "x"), Err(Errno::ACCESS));
    user.patch("d/hidh", "x").unwrap();
    assert_eq!(place.on_host("d/hidh").as_deref(), Some("x"), "what is written in place need not be copied");
    assert_eq!(user.rmdir("d"), Err(Errno::NOTEMPTY));
    for name in ["d/ro", "d/roh", "keep/x"] {
        assert!(user.read(name).is_ok());
        assert_eq!(user.patch(name, "x"), Err(Errno::ACCESS));
        assert_eq!(user.unlink(name), Err(Errno::ACCESS));
        assert_eq!(user.mv(name, "d/elsewhere"), Err(Errno::ACCESS));
        assert_eq!(user.fs.change(user.ino(name).unwrap(), &Change { mode: Some(0), ..Change::default() }, None, NOBODY), Err(Errno::ACCESS));
        assert_eq!(user.fs.set_xattr(user.ino(name).unwrap(), b"user.x", b"", 0, NOBODY), Err(Errno::ACCESS));
    }
    assert_eq!(user.create("keep/new", ""), Err(Errno::ACCESS));
    assert_eq!(user.mv("d/hidh", "keep/new"), Err(Errno::ACCESS));
    assert_eq!(place.in_box("d/ro"), None);
}

#[test]
fn a_file_that_a_lower_layer_keeps_is_not_replaced() {
    let mut layers = [MemoryLayer::new(), MemoryLayer::new(), MemoryLayer::new()];
    layers[0].file("d/data", "mine");
    layers[0].file("d/gone", "mine");
    layers[1].file("d/data", "upgrade");
    layers[1].whiteout("d/gone");
    layers[2].file("d/data", "patch");
    let place = Place::new();
    let mut stated = Rules::new(Mode::Full);
    stated.keep(path("d/data"), 0);
    stated.keep(path("d/gone"), 0);
    let user = place.union(&layers, stated);
    assert_eq!((user.read("d/data").unwrap().as_str(), user.read("d/gone").unwrap().as_str()), ("mine", "mine"));
    assert_eq!(user.list("d").unwrap(), ["data", "gone"]);
    user.patch("d/data", "M").unwrap();
    assert_eq!(user.read("d/data").unwrap(), "Mine");
}
