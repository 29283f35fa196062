//! What holds for single files: each cell of the tables of modes, and what random operations do not reach.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;

use layer_format::manifest::{Attributes, FileMode, Mode};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::bench::{NOBODY, Place, User, path, rules};
use super::layer::MemoryLayer;
use crate::fs::{Answer, Change, NodeKind, ROOT, Rename, Special};
use crate::rules::Rules;

/// A directory `d` with `v` in a layer, `h` on the host, and `b` in both.
fn three(mode: Mode) -> (Place, User) {
    let place = Place::new();
    let mut layer = MemoryLayer::new();
    layer.file("d/v", "V");
    layer.file("d/b", "V");
    place.put("d/h", "H");
    place.put("d/b", "H");
    let user = place.union(&[layer], rules(Mode::Full, &[("d", mode)]));
    (place, user)
}

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
            _ => assert_eq!((user.list("d").unwrap(), user.list("").unwrap()), (listed.iter().map(|name| name.to_string()).collect(), vec!["d".to_owned()]), "{mode}"),
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
fn atomic_saves_in_merge() {
    for name in ["v", "b"] {
        let (place, user) = three(Mode::Merge);
        user.create("d/.tmp", "saved").unwrap();
        assert!(place.host("d/.tmp").exists());
        user.mv("d/.tmp", &format!("d/{name}")).unwrap();
        assert_eq!(user.read(&format!("d/{name}")).unwrap(), "saved");
        assert_eq!(place.in_box(&format!("d/{name}")).as_deref(), Some("saved"));
        assert!(!place.host("d/.tmp").exists() && user.stat("d/.tmp").is_err());
        assert_ne!(place.on_host(&format!("d/{name}")).as_deref(), Some("saved"));
    }
    let (place, user) = three(Mode::Merge);
    user.create("d/.tmp", "saved").unwrap();
    user.mv("d/.tmp", "d/h").unwrap();
    assert_eq!((place.on_host("d/h").as_deref(), place.in_box("d/h")), (Some("saved"), None));
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
fn descriptors_follow_the_content() {
    for (name, flags) in [("d/v", OFlags::RDONLY), ("d/h", OFlags::RDONLY)] {
        let (_place, user) = three(Mode::WriteCopy);
        let before = user.open(name, flags).unwrap();
        let ino = user.ino(name).unwrap();
        user.patch(name, "later").unwrap();
        assert_eq!(user.fs.read(before, 0, 9, NOBODY).unwrap(), b"later");
        assert_eq!(user.ino(name).unwrap(), ino, "a copy keeps its number");
        user.unlink(name).unwrap();
        assert_eq!(user.fs.read(before, 0, 9, NOBODY).unwrap(), b"later", "who has it open goes on using it");
        assert_eq!((user.fs.attr(ino).unwrap().attr.size, user.fs.attr(ino).unwrap().attr.nlink), (5, 0));
        let again = user.fs.open(ino, OFlags::RDWR, NOBODY).unwrap().handle;
        user.fs.write(again, 0, b"L", false, false).unwrap();
        assert_eq!(user.fs.read(before, 0, 9, NOBODY).unwrap(), b"Later");
        assert_eq!(user.fs.change(ino, &Change { size: Some(1), mode: Some(0o600), ..Change::default() }, None, NOBODY).unwrap().attr.size, 1);
    }
}

#[test]
fn an_unlinked_file_of_a_layer_can_still_be_written_by_who_has_it_open() {
    let (place, user) = three(Mode::Full);
    let open = user.open("d/v", OFlags::RDONLY).unwrap();
    let ino = user.ino("d/v").unwrap();
    user.unlink("d/v").unwrap();
    let write = user.fs.open(ino, OFlags::RDWR, NOBODY).unwrap().handle;
    user.fs.write(write, 1, b"!", false, false).unwrap();
    assert_eq!(user.fs.read(open, 0, 9, NOBODY).unwrap(), b"V!");
    assert!(place.is_buried("d/v") && user.stat("d/v").is_err());
}

#[test]
fn moves_across_modes() {
    // From, to: what the old place looks like, and where the content is then.
    let make = || {
        let place = Place::new();
        let mut layer = MemoryLayer::new();
        layer.file("full/v", "x");
        layer.file("merge/v", "x");
        place.put("merge/h", "x");
        place.put("copy/h", "x");
        fs::create_dir_all(place.host("full")).unwrap();
        let user = place.union(&[layer], rules(Mode::Full, &[("merge", Mode::Merge), ("copy", Mode::WriteCopy)]));
        user.mkdir("full/box").unwrap();
        user.create("full/box/u", "x").unwrap();
        (place, user)
    };
    for (from, to, on_host, tomb) in [
        ("full/v", "merge/n", true, true),
        ("full/box/u", "merge/n", true, false),
        ("full/v", "copy/n", false, true),
        ("merge/v", "merge/n", false, true),
        ("merge/v", "full/n", false, true),
        ("merge/h", "merge/n", true, false),
        ("merge/h", "full/n", false, false),
        ("merge/h", "copy/n", false, false),
        ("copy/h", "merge/n", true, true),
        ("copy/h", "full/n", false, true),
        ("copy/h", "copy/n", false, true),
    ] {
        let (place, user) = make();
        let open = user.open(from, OFlags::RDONLY).unwrap();
        let ino = user.ino(from).unwrap();
        user.mv(from, to).unwrap();
        assert_eq!((user.read(to).unwrap().as_str(), user.stat(from).is_err()), ("x", true), "{from} {to}");
        assert_eq!((place.host(to).exists(), place.upper(to).exists()), (on_host, !on_host), "{from} {to}");
        assert_eq!(place.is_buried(from), tomb, "{from} {to}");
        assert_eq!(place.host(from).exists(), from.starts_with("copy"), "{from} {to}");
        assert_eq!(user.ino(to).unwrap(), ino);
        user.patch(to, "y").unwrap();
        assert_eq!(user.fs.read(open, 0, 9, NOBODY).unwrap(), b"y", "{from} {to}: what is open goes along");
    }
}

#[test]
fn a_directory_of_a_layer_moves_with_files_open_for_writing() {
    for (to, on_host) in [("full/to", false), ("merge/to", true), ("copy/to", false)] {
        let place = Place::new();
        let mut layer = MemoryLayer::new();
        layer.file("full/app/deep/a", "aaa");
        layer.file("full/app/b", "bbb").meta.mode = 0o600;
        layer.symlink("full/app/l", "b");
        fs::create_dir_all(place.host("merge")).unwrap();
        let stated = || rules(Mode::Full, &[("merge", Mode::Merge), ("copy", Mode::WriteCopy)]);
        let user = place.union(std::slice::from_ref(&layer), stated());
        if !on_host && to.starts_with("copy") {
            user.mkdir("copy").unwrap();
        }
        let open = user.open("full/app/deep/a", OFlags::RDWR).unwrap();
        user.fs.write(open, 0, b"A", false, false).unwrap();
        let inos = ["full/app", "full/app/deep", "full/app/deep/a"].map(|at| user.ino(at).unwrap());
        user.mv("full/app", to).unwrap();
        user.fs.write(open, 1, b"B", false, false).unwrap();
        assert_eq!([to.to_owned(), format!("{to}/deep"), format!("{to}/deep/a")].map(|at| user.ino(&at).unwrap()), inos, "{to}");
        for user in [user.clone(), place.union(&[layer.clone()], stated())] {
            assert!(user.stat("full/app").is_err() && !user.list("full").unwrap().contains(&"app".to_owned()));
            assert_eq!(user.list(to).unwrap(), ["b", "deep", "l"]);
            assert_eq!(user.read(&format!("{to}/deep/a")).unwrap(), "ABa", "{to}");
            assert_eq!(user.stat(&format!("{to}/b")).unwrap().attr.perm, 0o600);
            assert_eq!(user.link_target(&format!("{to}/l")).unwrap(), "b");
        }
        assert_eq!((place.host(to).exists(), place.upper(to).exists()), (on_host, !on_host));
        // What the kernel knows below goes on working, and new names land by the new mode.
        user.fs.create(inos[1], b"new", 0o644, OFlags::RDWR, NOBODY).unwrap();
        assert_eq!(place.host(&format!("{to}/deep/new")).exists(), on_host);
    }
}

#[test]
fn exchanges_and_renames_that_must_not_replace() {
    let (place, user) = three(Mode::Merge);
    assert_eq!(user.rename("d/h", "d/v", Rename::NoReplace), Err(Errno::EXIST));
    user.rename("d/v", "d/b", Rename::Exchange).unwrap();
    user.patch("d/b", "B").unwrap();
    assert_eq!((user.read("d/v").unwrap().as_str(), user.read("d/b").unwrap().as_str()), ("V", "B"));
    assert_eq!(user.rename("d/v", "d/h", Rename::Exchange), Err(Errno::XDEV), "one virtual, one the host's");
    user.create("d/i", "I").unwrap();
    user.rename("d/i", "d/h", Rename::Exchange).unwrap();
    assert_eq!((place.on_host("d/i").as_deref(), place.on_host("d/h").as_deref()), (Some("H"), Some("I")));
    // A directory of a layer and a file.
    let place = Place::new();
    let mut layer = MemoryLayer::new();
    layer.file("x/deep/f", "1");
    layer.file("y", "2");
    let user = place.union(std::slice::from_ref(&layer), Rules::new(Mode::WriteCopy));
    let inos = (user.ino("x").unwrap(), user.ino("y").unwrap());
    user.rename("x", "y", Rename::Exchange).unwrap();
    assert_eq!((user.ino("y").unwrap(), user.ino("x").unwrap()), inos);
    for user in [user, place.union(&[layer], Rules::new(Mode::WriteCopy))] {
        assert_eq!((user.read("x").unwrap().as_str(), user.read("y/deep/f").unwrap().as_str()), ("2", "1"));
    }
}

#[test]
fn hard_links_stay_together() {
    let place = Place::new();
    let mut layer = MemoryLayer::new();
    layer.hard_links(&["d/one", "d/two", "e/three"], b"old");
    let user = place.union(std::slice::from_ref(&layer), Rules::new(Mode::WriteCopy));
    let one = user.stat("d/one").unwrap();
    assert_eq!((one.attr.nlink, user.ino("d/two").unwrap()), (3, one.attr.ino));
    user.patch("d/two", "new").unwrap();
    // Also the name that nobody had looked at.
    for name in ["d/one", "d/two", "e/three"] {
        assert_eq!(user.read(name).unwrap(), "new");
        let found = user.stat(name).unwrap().attr;
        assert_eq!((found.ino, found.nlink), (one.attr.ino, 3), "{name}");
    }
    user.link("d/one", "d/four").unwrap();
    user.unlink("d/two").unwrap();
    let found = user.stat("d/four").unwrap().attr;
    assert_eq!((found.nlink, found.ino), (3, one.attr.ino));
    let again = place.union(&[layer], Rules::new(Mode::WriteCopy));
    for name in ["d/one", "d/four", "e/three"] {
        assert_eq!((again.read(name).unwrap().as_str(), again.stat(name).unwrap().attr.nlink), ("new", 3));
    }
    // On the host, and across.
    let (place, user) = three(Mode::Merge);
    user.link("d/h", "d/g").unwrap();
    assert_eq!(place.host("d/g").metadata().unwrap().nlink(), 2);
    assert_eq!((user.ino("d/g").unwrap(), user.stat("d/g").unwrap().attr.nlink), (user.ino("d/h").unwrap(), 2));
    user.unlink("d/v").unwrap();
    assert_eq!(user.link("d/h", "d/v"), Err(Errno::XDEV), "the name is virtual, the file the host's");
    user.link("d/b", "d/c").unwrap();
    assert!(place.upper("d/c").exists() && !place.host("d/c").exists(), "what is virtual stays so");
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
    for (name, mode) in
        [("d/full", FileMode::Full), ("d/hide", FileMode::Hide), ("d/def", FileMode::Defaulted), ("d/both", FileMode::Defaulted), ("d/onlyhost", FileMode::Full), ("d/newhide", FileMode::Hide)]
    {
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

#[test]
fn copies_are_faithful() {
    let place = Place::new();
    let mut layer = MemoryLayer::new();
    layer.sparse("d/sparse", 4096, 1 << 20);
    let entry = layer.file("d/f", "content");
    entry.meta.mode = 0o4751;
    entry.meta.xattrs = vec![(b"user.mark".to_vec(), b"1".to_vec()), (b"user.overlay.metacopy".to_vec(), b"".to_vec())];
    layer.dir("d/dir").meta.mode = 0o2551;
    layer.file("d/dir/inner", "i");
    let user = place.union(&[layer], Rules::new(Mode::Full));
    let before = user.stat("d/f").unwrap();
    let time = Change { atime: Some(Some((5, 6))), ..Change::default() };
    let after = user.fs.change(before.attr.ino, &time, None, NOBODY).unwrap();
    assert_eq!((after.attr.mtime, after.attr.perm, after.attr.size, after.attr.atime), (before.attr.mtime, 0o4751, 7, (5, 6)));
    assert_eq!(user.fs.xattr_names(before.attr.ino).unwrap(), b"user.mark\0");
    user.patch("d/sparse", "X").unwrap();
    let copy = place.upper("d/sparse").metadata().unwrap();
    assert!(copy.len() == (1 << 20) + 8192 && copy.blocks() * 512 < 1 << 19, "{} blocks", copy.blocks());
    let open = user.open("d/sparse", OFlags::RDONLY).unwrap();
    assert_eq!((user.fs.seek(open, 0, true, NOBODY), user.fs.seek(open, 8192, false, NOBODY)), (Ok(4096), Ok(4096 + (1 << 20))));
    // A directory that denies writing to its owner takes a copy below it all the same, and its times stay.
    let times = user.stat("d/dir").unwrap().attr.mtime;
    user.patch("d/dir/inner", "I").unwrap();
    assert_eq!((user.stat("d/dir").unwrap().attr.mtime, user.stat("d/dir").unwrap().attr.perm), (times, 0o2551));
    assert_eq!(place.in_box("d/dir/inner").as_deref(), Some("I"));
}

#[test]
fn truncating_copies_only_what_stays() {
    let (place, user) = three(Mode::Full);
    let ino = user.ino("d/v").unwrap();
    user.fs.change(ino, &Change { size: Some(3), ..Change::default() }, None, NOBODY).unwrap();
    assert_eq!(place.in_box("d/v").as_deref(), Some("V\0\0"));
    user.write("d/b", "").unwrap();
    assert_eq!(place.in_box("d/b").as_deref(), Some(""));
}

#[test]
fn special_files_and_space() {
    let place = Place::new();
    let user = place.union(&[], Rules::new(Mode::WriteCopy));
    user.fs.make_special(ROOT, b"fifo", Special::Fifo, 0o622, NOBODY).unwrap();
    user.fs.make_special(ROOT, b"sock", Special::Socket, 0o600, NOBODY).unwrap();
    assert_eq!((user.stat("fifo").unwrap().attr.kind, user.stat("sock").unwrap().attr.kind), (NodeKind::Fifo, NodeKind::Socket));
    assert_eq!(user.stat("fifo").unwrap().attr.perm, 0o622, "the server's umask does not count");
    user.mv("fifo", "moved").unwrap();
    assert_eq!(user.list("").unwrap(), ["moved", "sock"]);
    let (_, opened) = user.fs.create(ROOT, b"f", 0o666, OFlags::RDWR, NOBODY).unwrap();
    user.fs.allocate(opened.handle, 0, 8192, 0).unwrap();
    assert_eq!(user.stat("f").unwrap().attr.size, 8192);
    user.fs.write(opened.handle, 0, &[1; 8192], false, false).unwrap();
    user.fs.allocate(opened.handle, 0, 4096, (FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE).bits()).unwrap();
    assert_eq!(user.fs.seek(opened.handle, 0, false, NOBODY).unwrap(), 4096);
    assert!(user.fs.space().block_size > 0);
    user.fs.sync(opened.handle, false).unwrap();
    user.fs.sync_dir(ROOT).unwrap();
}

#[test]
fn leftovers_of_a_crash_go_and_two_devices_do() {
    let place = Place::new();
    fs::create_dir_all(place.work().join("union/3/deep")).unwrap();
    fs::set_permissions(place.work().join("union/3"), fs::Permissions::from_mode(0)).unwrap();
    fs::create_dir_all(place.upper(".turbo-union-work/1")).unwrap();
    let mut layer = MemoryLayer::new();
    layer.file("f", "V");
    let user = place.union(std::slice::from_ref(&layer), Rules::new(Mode::Full));
    assert!(fs::read_dir(place.work().join("union")).unwrap().next().is_none() && !place.upper(".turbo-union-work").exists());
    drop(user);
    let elsewhere = tempfile::tempdir_in("/tmp").unwrap();
    if elsewhere.path().metadata().unwrap().dev() == place.dir.path().metadata().unwrap().dev() {
        println!("skipped: /tmp and /dev/shm are one device");
        return;
    }
    let options = place.options(&[layer], Rules::new(Mode::Full));
    let fs = super::UnionFs::over(options, &place.host(""), &elsewhere.path().join("work")).unwrap();
    let user = User { fs: Arc::new(fs) };
    user.patch("f", "W").unwrap();
    assert_eq!(user.list("").unwrap(), ["f"], "the working directory is not shown");
    assert_eq!(place.in_box("f").as_deref(), Some("W"));
}

#[test]
fn links_that_someone_puts_in_the_way_are_not_followed() {
    let place = Place::new();
    place.put("home/d/f", "mine");
    place.put("secret/f", "secret");
    let user = place.union(&[], rules(Mode::Full, &[("home", Mode::Merge)]));
    let (dir, file) = (user.ino("home/d").unwrap(), user.ino("home/d/f").unwrap());
    fs::rename(place.host("home/d"), place.host("home/old")).unwrap();
    symlink(place.host("secret"), place.host("home/d")).unwrap();
    assert!(user.fs.open(file, OFlags::RDWR, NOBODY).is_err());
    assert!(user.fs.attr(file).is_err());
    assert!(!matches!(user.fs.lookup(dir, b"f", NOBODY), Ok(Answer::Present(_))));
    assert!(user.fs.unlink(dir, b"f", NOBODY).is_err());
    let _ = user.fs.create(dir, b"new", 0o644, OFlags::RDWR, NOBODY);
    assert_eq!(fs::read_dir(place.host("secret")).unwrap().count(), 1);
    assert_eq!(place.on_host("secret/f").as_deref(), Some("secret"));
    // Nor at the last name.
    symlink(place.host("secret/f"), place.host("home/link")).unwrap();
    let link = user.stat("home/link").unwrap();
    assert_eq!(link.attr.kind, NodeKind::Symlink);
    assert!(user.fs.open(link.attr.ino, OFlags::RDWR | OFlags::TRUNC, NOBODY).is_err());
    assert_eq!(place.on_host("secret/f").as_deref(), Some("secret"));
}

#[test]
fn what_is_the_vms_own_is_neither_shown_nor_moved() {
    let place = Place::new();
    place.put("home/store/objects", "secret");
    let mut options = place.options(&[], Rules::new(Mode::Merge));
    options.hidden = vec!["/home/store".into()];
    options.passages = vec![path("mnt/point"), path("home/mounted")];
    let user = place.open(options);
    assert_eq!(user.list("home").unwrap(), ["mounted"]);
    assert!(user.stat("home/store").is_err());
    assert_eq!(user.mv("home", "other"), Err(Errno::BUSY));
    user.mkdir("home/store").unwrap();
    user.create("home/store/objects", "virtual").unwrap();
    assert_eq!(place.on_host("home/store/objects").as_deref(), Some("secret"));
    assert_eq!((user.list("").unwrap(), user.list("mnt").unwrap()), (vec!["home".to_owned(), "mnt".to_owned()], vec!["point".to_owned()]));
    assert!(user.list("mnt/point").unwrap().is_empty());
    assert_eq!(user.rmdir("mnt/point"), Err(Errno::BUSY));
    assert!(!place.host("mnt").exists() && !place.upper("mnt").exists(), "it is made nowhere");
}

#[test]
fn owners_in_merge_are_as_the_kernel_must_see_them() {
    let place = Place::new();
    place.put("m/mine", "");
    place.put("w/other", "");
    let mut options = place.options(&[], rules(Mode::Full, &[("m", Mode::Merge), ("w", Mode::WriteCopy)]));
    options.uid += 1;
    options.gid += 1;
    let user = place.open(options);
    assert!(!user.stat("m/mine").unwrap().user, "it belongs to someone else");
    assert!(user.stat("w/other").unwrap().user && user.stat("w/other").unwrap().group, "its copy will be the user's");
    fs::set_permissions(place.host("m"), fs::Permissions::from_mode(0o1777)).unwrap();
    assert!(user.stat("m").unwrap().user, "whoever may write it must be able to");
    let user = place.union(&[], rules(Mode::Full, &[("m", Mode::Merge)]));
    assert!(user.stat("m/mine").unwrap().user && user.stat("m/mine").unwrap().group);
}

#[test]
fn large_listings_are_stable_while_open() {
    let place = Place::new();
    let mut layer = MemoryLayer::new();
    for n in 0..5000 {
        layer.file(format!("d/{:05}", n * 2), "");
        place.put(&format!("d/{:05}", n * 2 + 1), "");
    }
    let user = place.union(&[layer], Rules::new(Mode::WriteCopy));
    let ino = user.ino("d").unwrap();
    let handle = user.fs.open_dir(ino, NOBODY).unwrap();
    let mut names = user.fs.list(handle, 0, 100, NOBODY).unwrap();
    user.unlink("d/00150").unwrap();
    user.create("d/00000a", "").unwrap();
    loop {
        let page = user.fs.list(handle, names.len(), 100, NOBODY).unwrap();
        if page.is_empty() {
            break;
        }
        names.extend(page);
    }
    let expected: Vec<Vec<u8>> = (0..10_000).map(|n| format!("{n:05}").into_bytes()).collect();
    assert_eq!(names.iter().map(|name| name.name.clone()).collect::<Vec<_>>(), expected);
    let numbers: std::collections::HashSet<u64> = names.iter().map(|name| name.ino).collect();
    assert_eq!(numbers.len(), 10_000);
    assert_eq!(user.ino("d/00001").unwrap(), names[1].ino, "the number in a listing is the file's");
    // Rewound, it is up to date.
    let again: Vec<_> = user.fs.list(handle, 0, 200, NOBODY).unwrap().into_iter().map(|name| name.name).collect();
    assert!(again.contains(&b"00000a".to_vec()) && !again.contains(&b"00150".to_vec()));
}

#[test]
fn what_the_kernel_forgets_is_forgotten() {
    let (_place, user) = three(Mode::WriteCopy);
    let dir = user.look(ROOT, "d").unwrap().attr.ino;
    let numbers: Vec<u64> = ["v", "h", "b"].iter().map(|name| user.look(dir, name).unwrap().attr.ino).collect();
    user.fs.forget(dir, 1);
    assert_eq!(user.fs.inode_count(), 5, "children hold their parent");
    numbers.iter().for_each(|ino| user.fs.forget(*ino, 1));
    assert_eq!(user.fs.inode_count(), 1);
    assert_eq!(user.fs.attr(dir), Err(Errno::STALE));
    assert_eq!(user.look(ROOT, "d").unwrap().attr.ino, dir, "and has the same number afterwards");
    user.patch("d/v", "copy").unwrap();
    let count = user.fs.inode_count();
    let ino = user.ino("d/v").unwrap();
    assert_eq!(ino, numbers[0]);
    assert_eq!(user.fs.inode_count(), count);
}

#[test]
fn answers_tell_what_may_be_believed() {
    let (_place, user) = three(Mode::Merge);
    let dir = user.ino("d").unwrap();
    assert!(user.stat("d/v").unwrap().fixed && !user.stat("d/h").unwrap().fixed);
    assert_eq!(user.fs.lookup(dir, b"none", NOBODY), Ok(Answer::Absent { fixed: false }));
    assert_eq!(user.fs.lookup(ROOT, b"none", NOBODY), Ok(Answer::Absent { fixed: true }));
    // The host's data stay cached as long as the host's file is what it was.
    let (place, ino) = (&_place, user.ino("d/h").unwrap());
    assert!(!user.fs.open(ino, OFlags::RDONLY, NOBODY).unwrap().unchanged);
    assert!(user.fs.open(ino, OFlags::RDONLY, NOBODY).unwrap().unchanged);
    place.put("d/h", "longer");
    assert!(!user.fs.open(ino, OFlags::RDONLY, NOBODY).unwrap().unchanged);
}

#[test]
fn writers_and_movers_meet() {
    // One thread writes a file through a descriptor, another moves it to and fro between sandbox and host: no byte is lost.
    let place = Place::new();
    fs::create_dir_all(place.host("m")).unwrap();
    let user = place.union(&[], rules(Mode::Full, &[("m", Mode::Merge)]));
    user.mkdir("f").unwrap();
    user.create("f/x", "").unwrap();
    let open = user.open("f/x", OFlags::RDWR).unwrap();
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            for _ in 0..50 {
                user.mv("f/x", "m/x").unwrap();
                user.mv("m/x", "f/x").unwrap();
            }
        });
        let mut at = 0u64;
        while !mover.is_finished() || at < 100 {
            user.fs.write(open, at, &[at as u8], false, false).unwrap();
            at += 1;
        }
        let content = user.fs.read(open, 0, at as usize + 1, NOBODY).unwrap();
        assert_eq!(content, (0..at).map(|at| at as u8).collect::<Vec<_>>());
    });
}
