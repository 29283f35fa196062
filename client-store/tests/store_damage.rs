//! Damage in every place, and what still works.

mod store_support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use client_store::store::{PackOrigin, Repair};
use client_store::{ObjectCache, StoreError};
use layer_format::Digest;
use layer_format::pack::{FOOTER_LEN, HEADER_LEN};
use store_support::*;

fn only_pack(home: &Path) -> PathBuf {
    let mut packs: Vec<_> = std::fs::read_dir(home.join("packs")).unwrap().flatten().map(|entry| entry.path()).collect();
    assert_eq!(packs.len(), 1);
    packs.remove(0)
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Frame,
    FrameHeader,
    Index,
    Footer,
    Truncated,
    Emptied,
    Deleted,
}

fn damage(path: &Path, how: Damage) {
    let len = std::fs::metadata(path).unwrap().len();
    let cut = |len| std::fs::File::options().write(true).open(path).unwrap().set_len(len).unwrap();
    match how {
        Damage::Frame => flip(path, HEADER_LEN as u64 + 3000),
        Damage::FrameHeader => flip(path, HEADER_LEN as u64 + 1),
        Damage::Index => flip(path, len - FOOTER_LEN as u64 - 10),
        Damage::Footer => flip(path, len - 3),
        Damage::Truncated => cut(HEADER_LEN as u64 + 2000),
        Damage::Emptied => cut(0),
        Damage::Deleted => std::fs::remove_file(path).unwrap(),
    }
}

#[test]
fn whatever_is_damaged_nothing_wrong_is_returned_and_it_can_be_put_right() {
    use Damage::*;
    for how in [Frame, FrameHeader, Index, Footer, Truncated, Emptied, Deleted] {
        for streamed in [false, true] {
            let home = tempfile::tempdir().unwrap();
            let store = open(home.path());
            let objects: Vec<_> = (0..8).map(|n| noise(n, 2000)).collect();
            if streamed {
                store.insert(&objects.iter().map(|object| (Digest::of(object), object.clone().into())).collect::<Vec<_>>()).unwrap();
                store.flush().unwrap();
            } else {
                add_pack(&store, &objects, PackOrigin::Pulled);
            }
            drop(store);
            damage(&only_pack(home.path()), how);
            let store = open(home.path());
            let found: Vec<_> = objects.iter().map(|object| store.get(&Digest::of(object)).unwrap()).collect();
            for (object, found) in objects.iter().zip(&found) {
                assert!(found.as_ref().is_none_or(|found| found == object), "{how:?}");
            }
            let lost = found.iter().filter(|found| found.is_none()).count();
            match how {
                Index | Footer if !streamed => assert_eq!(lost, 0, "the rows say where objects are"),
                Emptied | Deleted => assert_eq!(lost, 8),
                _ => {}
            }
            // Absent from now on, and here again once it was fetched again.
            let digests: Vec<_> = objects.iter().map(|object| Digest::of(object)).collect();
            let contained = store.contains(&digests).unwrap();
            assert!(contained.iter().zip(&found).all(|(contained, found)| *contained == found.is_some()), "{how:?}");
            store.insert(&objects.iter().map(|object| (Digest::of(object), object.clone().into())).collect::<Vec<_>>()).unwrap();
            store.flush().unwrap();
            drop(store);
            let store = open(home.path());
            for object in &objects {
                assert_eq!(store.get(&Digest::of(object)).unwrap().as_deref(), Some(&object[..]), "{how:?} streamed={streamed}");
            }
            let report = store.verify(Repair::Forget, |_, _| {}).unwrap();
            assert!(report.damaged.is_empty(), "{how:?}: {report:?}");
            store.gc(false).unwrap();
            store.verify(Repair::No, |_, _| {}).unwrap();
        }
    }
}

#[test]
fn verify_names_damaged_objects_and_the_images_that_need_them() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let image = image(1, 4, 40_000);
    import(&store, "tools/app:1.0", &image);
    let path = only_pack(home.path());
    let len = std::fs::metadata(&path).unwrap().len();
    flip(&path, len * 2 / 3);
    let report = store.verify(Repair::Forget, |_, _| {}).unwrap();
    assert!(!report.damaged.is_empty() && report.repaired);
    assert!(report.damaged.iter().all(|object| object.images == [image.digest]));
    assert_eq!(report.incomplete_images, [image.digest]);
    assert!(!store.images().unwrap()[0].complete);
    // A pack with the same content puts it right.
    add_pack(&store, &image.objects, PackOrigin::Pulled);
    assert_eq!(store.verify(Repair::No, |_, _| {}).unwrap().damaged, []);
    assert!(store.images().unwrap()[0].complete);
}

#[test]
fn a_lost_index_is_built_again_with_all_names() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let image = image(2, 5, 30_000);
    import(&store, "tools/app:1.0", &image);
    let (digest, bytes) = object(9, 9000);
    store.insert(&[(digest, bytes.clone())]).unwrap();
    drop(store);
    std::fs::remove_dir_all(home.path().join("index")).unwrap();
    let store = open(home.path());
    assert!(store.contains_all(&digests(&image)).unwrap());
    assert_eq!(store.get(&digest).unwrap(), Some(bytes));
    assert_eq!(store.image_get(&reference("tools/app")).unwrap().unwrap().digest, image.digest);
    assert_eq!(store.images().unwrap()[0].names, ["tools/app:1.0", "tools/app:head"]);
}

#[test]
fn a_damaged_index_is_an_error_that_says_what_to_do() {
    for cut in [true, false] {
        let home = tempfile::tempdir().unwrap();
        let store = open(home.path());
        add_pack(&store, &(0..3000).map(|n| noise(n, 100)).collect::<Vec<_>>(), PackOrigin::Pulled);
        drop(store);
        let path = home.path().join("index/data.mdb");
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        match cut {
            true => file.set_len(20_000).unwrap(),
            false => file.write_all_at(&[0xA5; 12_000], 0).unwrap(),
        }
        let error = client_store::Store::open(home.path(), Default::default()).unwrap_err();
        assert!(matches!(error, StoreError::IndexDamaged { .. }), "{error:?}");
        assert!(error.to_string().contains("remove that folder"));
        std::fs::remove_dir_all(home.path().join("index")).unwrap();
        assert!(open(home.path()).get(&Digest::of(&noise(7, 100))).unwrap().is_some());
    }
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let home = tempfile::tempdir().unwrap();
    drop(open(home.path()));
    std::fs::write(home.path().join("format"), "2\n").unwrap();
    let error = client_store::Store::open(home.path(), Default::default()).unwrap_err();
    assert!(matches!(error, StoreError::NewerFormat { found: 2, .. }), "{error:?}");
}

#[test]
fn reading_many_gives_what_reading_one_by_one_does() {
    use Damage::*;
    for how in [None, Some(Frame), Some(FrameHeader), Some(Truncated), Some(Deleted)] {
        let home = tempfile::tempdir().unwrap();
        let store = open(home.path());
        let packed: Vec<_> = (0..300).map(|n| noise(n, 2000)).collect();
        add_pack(&store, &packed, PackOrigin::Pulled);
        drop(store);
        if let Some(how) = how {
            damage(&only_pack(home.path()), how);
        }
        let store = open(home.path());
        // Streamed and not flushed, never stored, and one asked for twice.
        let streamed = noise(1000, 3000);
        store.insert(&[(Digest::of(&streamed), streamed.clone().into())]).unwrap();
        let mut wanted: Vec<Digest> = packed.iter().map(|object| Digest::of(object)).collect();
        wanted.insert(5, Digest::of(&streamed));
        wanted.insert(9, Digest::of(b"never stored"));
        wanted.push(wanted[3]);
        let mut found = Vec::new();
        store
            .read_each(&wanted, &mut |number, bytes| {
                assert_eq!(number, found.len());
                assert!(bytes.is_none_or(|bytes| Digest::of(bytes) == wanted[number]), "{how:?}");
                found.push(bytes.is_some());
                true
            })
            .unwrap();
        let one_by_one: Vec<bool> = wanted.iter().map(|digest| store.get(digest).unwrap().is_some()).collect();
        assert_eq!(found, one_by_one, "{how:?}");
        assert!(found[5] && !found[9]);
        assert_eq!(found.iter().filter(|found| **found).count() == wanted.len() - 1, how.is_none(), "{how:?}");
        // It ends where it is told to.
        let mut count = 0;
        store
            .read_each(&wanted, &mut |_, _| {
                count += 1;
                count < 7
            })
            .unwrap();
        assert_eq!(count, 7);
    }
}
