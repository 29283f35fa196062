//! Giving space back: repacking, gc beside others, a limit that cannot be kept, and what is said of it.

mod store_support;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client_store::store::{GcOptions, ImageOrigin, PackOrigin, RepackOptions, Repair};
use client_store::{ObjectCache, Store};
use layer_format::Digest;
use proptest::prelude::*;
use store_support::*;

fn repack(store: &Store) -> client_store::store::RepackReport {
    store.repack(&RepackOptions::default(), |_, _| {}).unwrap()
}

fn stored(store: &Store) -> u64 {
    store.stats().unwrap().stored_bytes
}

fn on_disk(home: &Path) -> u64 {
    std::fs::read_dir(home.join("packs")).unwrap().flatten().map(|entry| entry.metadata().unwrap().len()).sum()
}

/// The files of a version: each has its own content, and every third changes with each version.
fn version(number: u64, files: u64) -> TestImage {
    let content = |file: u64| noise(if file % 3 == number % 3 { file + 1000 * number } else { file }, 9000);
    build_image(&(0..files).map(|file| (format!("usr/f{file:04}"), content(file))).collect::<Vec<_>>())
}

/// Imports as the importer does: what is here is not packed again.
fn import_new(store: &Store, name: &str, image: &TestImage) {
    let here = store.contains(&digests(image)).unwrap();
    let new: Vec<_> = image.objects.iter().zip(here).filter(|(_, here)| !here).map(|(object, _)| object.clone()).collect();
    if !new.is_empty() {
        add_pack(store, &new, PackOrigin::Imported);
    }
    store.image_put(&reference(name), &image.manifest, ImageOrigin::Imported).unwrap();
}

fn check(store: &Store, image: &TestImage) {
    for object in &image.objects {
        assert_eq!(store.get(&Digest::of(object)).unwrap().as_deref(), Some(&object[..]));
    }
}

#[test]
fn a_repack_gives_dead_space_back_and_keeps_every_image_whole() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let versions: Vec<_> = (0..12).map(|number| version(number, 120)).collect();
    for (number, image) in versions.iter().enumerate() {
        import_new(&store, &format!("tools/app:{number}"), image);
    }
    for number in 0..10 {
        store.image_remove(&reference(&format!("tools/app:{number}"))).unwrap();
    }
    let before = stored(&store);
    let dry = store.repack(&RepackOptions { dry_run: true, ..RepackOptions::default() }, |_, _| {}).unwrap();
    assert!(dry.dead_packs > 0 && dry.written_packs == 0 && stored(&store) == before, "{dry:?}");
    let mut last = (0, 0);
    let report = store.repack(&RepackOptions::default(), |done, total| last = (done, total)).unwrap();
    assert!(report.written_packs == 1 && report.damaged_objects == 0 && !report.gc.busy, "{report:?}");
    assert!(last.0 == last.1 && last.1 > 0, "progress ends at its total");
    // What is left is what two images need, and little more.
    let needed: u64 = versions[10..]
        .iter()
        .flat_map(|image| &image.objects)
        .map(|object| (Digest::of(object), object.len() as u64))
        .collect::<BTreeMap<_, _>>()
        .values()
        .sum();
    assert!(stored(&store) < needed * 21 / 20 && on_disk(home.path()) == stored(&store), "{} of {before}, {needed} needed", stored(&store));
    versions[10..].iter().for_each(|image| check(&store, image));
    assert!(store.verify(Repair::No, |_, _| {}).unwrap().is_clean());
    assert_eq!(report.gc.dead_bytes, 0);
    // Nothing is left to do.
    let again = repack(&store);
    assert_eq!((again.written_packs, again.source_bytes), (0, 0), "{again:?}");
    drop(store);
    let store = open(home.path());
    versions[10..].iter().for_each(|image| check(&store, image));
}

#[test]
fn a_spread_image_is_read_in_order_again_and_whole_frames_are_copied_as_they_are() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    // 40 versions; the newest one's files come from all of them.
    let mut files: Vec<_> = (0..400u64).map(|file| (format!("usr/f{file:04}"), noise(file, 12_000))).collect();
    for round in 0..40u64 {
        for file in (round..400).step_by(40) {
            files[file as usize].1 = noise(1_000_000 * (round + 1) + file, 12_000);
        }
        import_new(&store, "tools/app:1", &build_image(&files));
    }
    let newest = build_image(&files);
    let usage = || store.image_usage().unwrap().into_iter().find(|usage| usage.digest == newest.digest).unwrap();
    let before = usage();
    assert!(before.fragmentation > 1.5, "{before:?}");
    let report = repack(&store);
    assert!(report.written_packs > 0, "{report:?}");
    let after = usage();
    assert!(after.fragmentation < 1.1 && after.frames < before.frames, "{before:?} {after:?}");
    check(&store, &newest);
    // Reading it in order now decodes each frame once.
    let fresh = open(home.path());
    let decoded = store.stats().unwrap().decoded_frames_count;
    let all: Vec<Digest> = digests(&newest);
    fresh.read_each(&all, &mut |_, bytes| bytes.is_some()).unwrap();
    assert!(fresh.stats().unwrap().decoded_frames_count <= decoded + after.frames + 8);
    assert_eq!(repack(&store).written_packs, 0, "a second repack finds nothing");
    // Of an image of which every other pack is dead, whole frames go as they are.
    let (keep, drop) = (image(5, 60, 16_384), image(6, 60, 16_384));
    add_pack(&store, &keep.objects.iter().chain(&drop.objects).cloned().collect::<Vec<_>>(), PackOrigin::Imported);
    store.image_put(&reference("tools/keep:1"), &keep.manifest, ImageOrigin::Imported).unwrap();
    let report = repack(&store);
    assert!(report.copied_frames >= 2 && report.dead_packs == 1, "{report:?}");
    check(&store, &keep);
}

#[test]
fn classes_are_not_mixed_and_streams_are_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let images: Vec<_> = (0..3).map(|seed| image(seed, 20, 10_000)).collect();
    let waste: Vec<_> = (900..930).map(|seed| noise(seed, 10_000)).collect();
    for (image, (pack, origin)) in images.iter().zip([
        (PackOrigin::Imported, ImageOrigin::Imported),
        (PackOrigin::Pulled, ImageOrigin::Pulled),
        (PackOrigin::Streamed, ImageOrigin::Streamed),
    ]) {
        match pack {
            PackOrigin::Streamed => store.insert(&image.objects.iter().map(|object| (Digest::of(object), object.clone().into())).collect::<Vec<_>>()).unwrap(),
            _ => add_pack(&store, &image.objects.iter().chain(&waste).cloned().collect::<Vec<_>>(), pack),
        }
        store.image_put(&reference(&format!("tools/{pack:?}").to_lowercase()), &image.manifest, origin).unwrap();
    }
    store.flush().unwrap();
    let streamed = store.stats().unwrap().streamed_bytes;
    let report = repack(&store);
    assert_eq!((report.dead_packs, report.written_packs), (2, 2), "{report:?}");
    let stats = store.stats().unwrap();
    assert_eq!((stats.packs, stats.streamed_bytes), (3, streamed));
    assert!(stats.imported_bytes > 200_000 && stats.pulled_bytes > 200_000);
    // What was pulled may still be evicted, and the only copy may not. Nobody writes to the stream any more.
    drop(store);
    let store = open(home.path());
    store.evict_to(1).unwrap();
    let left = |image: &TestImage| store.contains_all(&digests(image)).unwrap();
    assert_eq!((left(&images[0]), left(&images[1]), left(&images[2])), (true, false, false));
}

#[test]
fn what_is_damaged_stays_where_it_is_and_the_rest_moves() {
    use std::os::unix::fs::FileExt;
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let image = image(1, 40, 30_000);
    let waste: Vec<_> = (900..960).map(|seed| noise(seed, 30_000)).collect();
    add_pack(&store, &image.objects.iter().chain(&waste).cloned().collect::<Vec<_>>(), PackOrigin::Imported);
    store.image_put(&reference("tools/app:1"), &image.manifest, ImageOrigin::Imported).unwrap();
    drop(store);
    let pack = std::fs::read_dir(home.path().join("packs")).unwrap().flatten().next().unwrap().path();
    std::fs::File::options().write(true).open(&pack).unwrap().write_all_at(&[0x55; 64], 500_000).unwrap();
    let store = open(home.path());
    let report = repack(&store);
    assert!((1..4).contains(&report.damaged_objects) && report.moved_objects as usize + report.damaged_objects as usize == image.objects.len(), "{report:?}");
    let whole = image.objects.iter().filter(|object| store.get(&Digest::of(object)).unwrap().is_some_and(|found| found == **object)).count();
    assert_eq!(whole as u64, report.moved_objects);
    let found = store.verify(Repair::Forget, |_, _| {}).unwrap();
    assert_eq!(found.incomplete_images, [image.digest]);
}

#[test]
fn a_damaged_stream_is_written_anew() {
    use std::os::unix::fs::FileExt;
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let image = image(1, 10, 10_000);
    store.insert(&image.objects.iter().map(|object| (Digest::of(object), object.clone().into())).collect::<Vec<_>>()).unwrap();
    store.image_put(&reference("tools/app:1"), &image.manifest, ImageOrigin::Streamed).unwrap();
    drop(store);
    let pack = std::fs::read_dir(home.path().join("packs")).unwrap().flatten().next().unwrap().path();
    std::fs::File::options().write(true).open(&pack).unwrap().write_all_at(b"X", 0).unwrap();
    let store = open(home.path());
    let found = store.verify(Repair::Forget, |_, _| {}).unwrap();
    assert!(found.damaged.is_empty() && found.damaged_packs.len() == 1, "{found:?}");
    let report = repack(&store);
    assert_eq!((report.damaged_packs, report.moved_objects as usize), (1, image.objects.len()), "{report:?}");
    check(&store, &image);
    assert!(store.verify(Repair::No, |_, _| {}).unwrap().is_clean() && !pack.exists());
    assert!(store.stats().unwrap().imported_bytes == 0, "it is a cache as before");
}

#[test]
fn a_gc_waits_for_others_says_who_they_are_and_goes_on_beside_containers() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let (one, two) = (image(1, 10, 20_000), image(2, 10, 20_000));
    import(&store, "tools/one:1", &one);
    import(&store, "tools/two:1", &two);
    let _running = store.running(&[two.digest]).unwrap();
    store.image_remove(&reference("tools/one:1")).unwrap();
    store.image_remove(&reference("tools/two:1")).unwrap();
    let hold = store.hold().unwrap();
    let busy = store.gc(false).unwrap();
    assert!(busy.busy && busy.removed_packs == 1, "what could go is told: {busy:?}");
    assert_eq!(busy.holders, [std::process::id()]);
    assert!(store.contains_all(&digests(&one)).unwrap());
    let dry = store.gc(true).unwrap();
    assert!(!dry.busy && dry.removed_packs == 1, "a dry run waits for nobody");
    let released = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(60));
            released.store(true, Ordering::SeqCst);
            drop(hold);
        });
        let report = store.gc_with(&GcOptions { dry_run: false, wait: Duration::from_secs(60) }).unwrap();
        assert!(released.load(Ordering::SeqCst) && !report.busy && report.removed_packs == 1, "{report:?}");
    });
    assert!(store.contains_all(&digests(&two)).unwrap(), "it runs");
}

#[test]
fn an_image_that_comes_between_the_walk_and_the_lock_is_kept() {
    // The walk comes to an image of which a node is missing; then the node comes, while gc waits.
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let image = image(1, 30, 5000);
    let (inner, chunks): (Vec<_>, Vec<_>) = image.objects.iter().cloned().partition(|object| object.len() != 5000);
    add_pack(&store, &chunks, PackOrigin::Pulled);
    store.image_put(&reference("tools/app:1"), &image.manifest, ImageOrigin::Streamed).unwrap();
    let hold = store.hold().unwrap();
    std::thread::scope(|scope| {
        let gc = scope.spawn(|| store.gc_with(&GcOptions { dry_run: false, wait: Duration::from_secs(60) }).unwrap());
        std::thread::sleep(Duration::from_millis(100));
        add_pack(&store, &inner, PackOrigin::Pulled);
        drop(hold);
        assert_eq!(gc.join().unwrap().removed_packs, 0);
    });
    check(&store, &image);
}

#[test]
fn what_images_share_and_what_their_removal_frees_is_what_gc_then_frees() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let versions: Vec<_> = (0..4).map(|number| version(number, 60)).collect();
    versions.iter().enumerate().for_each(|(number, image)| import_new(&store, &format!("app{number}/app:1"), image));
    let alone = image(77, 10, 10_000);
    import(&store, "alone/app:1", &alone);
    let needs: Vec<HashSet<Digest>> = versions.iter().chain([&alone]).map(|image| digests(image).into_iter().collect()).collect();
    let len = |digest: &Digest| store.get(digest).unwrap().unwrap().len() as u64;
    for usage in store.image_usage().unwrap() {
        let number = versions.iter().chain([&alone]).position(|image| image.digest == usage.digest).unwrap();
        let unique = needs[number].iter().filter(|digest| needs.iter().enumerate().all(|(other, needs)| other == number || !needs.contains(digest)));
        assert_eq!(usage.objects, needs[number].len() as u64);
        assert_eq!(usage.plain_bytes, needs[number].iter().map(len).sum::<u64>());
        assert_eq!(usage.unique_plain_bytes, unique.map(len).sum::<u64>());
        assert_eq!(usage.removal_frees_bytes, store.removal_frees(&HashSet::from([usage.digest])).unwrap());
        assert_eq!(usage.missing_objects, 0);
    }
    let frees = store.removal_frees(&HashSet::from([alone.digest, versions[3].digest])).unwrap();
    let alone_frees = store.image_usage().unwrap().iter().find(|usage| usage.digest == alone.digest).unwrap().removal_frees_bytes;
    assert!(alone_frees > 0 && frees > alone_frees);
    store.image_remove(&reference("alone/app:1")).unwrap();
    store.image_remove(&reference("app3/app:1")).unwrap();
    assert_eq!(store.gc(false).unwrap().removed_bytes, frees);
}

#[test]
fn a_limit_that_cannot_be_kept_says_why() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let images: Vec<_> = (0..4).map(|seed| image(seed, 30, 40_000)).collect();
    for (n, image) in images.iter().enumerate() {
        let (pack, origin) = if n == 0 { (PackOrigin::Imported, ImageOrigin::Imported) } else { (PackOrigin::Pulled, ImageOrigin::Pulled) };
        add_pack(&store, &image.objects, pack);
        store.image_put(&reference(&format!("tools/app{n}")), &image.manifest, origin).unwrap();
    }
    store.image_pin(&reference("tools/app1"), true).unwrap();
    let running = store.running(&[images[2].digest]).unwrap();
    {
        let _hold = store.hold().unwrap();
        assert!(store.evict(1 << 20).unwrap().problem().unwrap().contains("going on"));
    }
    let report = store.evict(1 << 20).unwrap();
    assert!(report.freed_bytes > 1_000_000 && report.only_copy_bytes > 1_000_000 && report.pinned_bytes > 1_000_000 && report.running_bytes > 1_000_000);
    assert_eq!(report.stored_bytes, report.only_copy_bytes + report.pinned_bytes + report.running_bytes);
    let problem = report.problem().unwrap();
    assert!(problem.contains("turbo push") && problem.contains("pinned") && problem.contains("run"), "{problem}");
    drop(running);
    let report = store.evict(4 << 20).unwrap();
    assert!(report.problem().is_none() && report.running_bytes == 0, "{report:?}");
    assert_eq!(store.evict(0).unwrap().problem(), None, "no limit");
}

#[derive(Clone, Debug)]
enum Op {
    Import(u8),
    Remove(u8),
    Gc,
    Repack,
    Stream(u8),
    Evict,
    Reopen,
    Verify,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (0u8..6).prop_map(Op::Import),
        3 => (0u8..6).prop_map(Op::Remove),
        1 => Just(Op::Gc),
        3 => Just(Op::Repack),
        1 => (0u8..6).prop_map(Op::Stream),
        1 => Just(Op::Evict),
        1 => Just(Op::Reopen),
        1 => Just(Op::Verify),
    ]
}

/// Images that have a name here are whole, whatever happens; after a gc nothing of others is left in packs of theirs.
fn run(ops: Vec<Op>) {
    let home = tempfile::tempdir().unwrap();
    let mut store = open(home.path());
    let versions: Vec<_> = (0..6).map(|number| version(number, 20)).collect();
    let mut named = HashSet::new();
    for op in ops {
        match op {
            Op::Import(number) => {
                import_new(&store, &format!("app{number}/app:1"), &versions[usize::from(number)]);
                named.insert(number);
            }
            Op::Remove(number) => {
                store.image_remove(&reference(&format!("app{number}/app:1"))).unwrap();
                named.remove(&number);
            }
            Op::Gc => assert!(!store.gc(false).unwrap().busy),
            Op::Repack => {
                let report = store.repack(&RepackOptions { dead_percent: 0, ..RepackOptions::default() }, |_, _| {}).unwrap();
                assert!(report.gc.dead_bytes == 0 && report.damaged_objects == 0, "{report:?}");
            }
            Op::Stream(number) => {
                let objects = &versions[usize::from(number)].objects;
                store.insert(&objects.iter().map(|object| (Digest::of(object), object.clone().into())).collect::<Vec<_>>()).unwrap();
            }
            Op::Evict => {
                // What is not the only copy may go, and what images that were made here need may not.
                store.evict_to(1).unwrap();
            }
            Op::Reopen => {
                drop(store);
                store = open(home.path());
            }
            Op::Verify => assert!(store.verify(Repair::No, |_, _| {}).unwrap().is_clean()),
        }
        named.iter().for_each(|number| check(&store, &versions[usize::from(*number)]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn whatever_is_removed_and_repacked_images_stay_whole(ops in proptest::collection::vec(op(), 1..24)) {
        run(ops);
    }
}
