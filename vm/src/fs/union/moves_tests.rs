//! Renames and links of single files and directories.

use std::fs;
use std::os::unix::fs::MetadataExt;

use layer_format::manifest::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::bench::{NOBODY, Place, rules, three};
use crate::fs::Rename;
use crate::fs::layer::MemoryLayer;
use crate::rules::Rules;

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
