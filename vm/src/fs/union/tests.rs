//! What random operations do not reach: descriptors, copies, crashes, hostile links, listings.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;

use layer_format::manifest::Mode;
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::bench::{NOBODY, Place, User, path, rules, three};
use crate::fs::layer::MemoryLayer;
use crate::fs::{Answer, Change, NodeKind, ROOT, Special};
use crate::rules::Rules;

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
    fs::set_permissions(place.work().join("union/3"), fs::Permissions::from_mode(0o000)).unwrap();
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
fn a_subtree_is_claimed_with_the_metadata_that_is_seen() {
    let place = Place::new();
    let mut layer = MemoryLayer::new();
    layer.dir("home/app").meta.mode = 0o710;
    fs::create_dir_all(place.host("home/user")).unwrap();
    let user = place.union(&[layer], Rules::new(Mode::Merge));
    user.fs.claim(&path("home/app"), NOBODY).unwrap();
    assert_eq!(Place::mode(&place.upper("home/app")), 0o710);
    assert_eq!((user.list("home").unwrap(), user.fs.inode_count()), (vec!["app".to_owned(), "user".to_owned()], 2), "nothing else has changed");
    assert_eq!(user.fs.claim(&path("home/none"), NOBODY), Err(Errno::NOENT));
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
