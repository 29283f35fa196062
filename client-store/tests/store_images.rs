//! Names, gc, pins and eviction.

mod store_support;

use client_store::store::{ImageOrigin, PackOrigin};
use client_store::{ObjectCache, StoreError};
use layer_format::Digest;
use store_support::*;

#[test]
fn names_lead_to_images_and_heads_follow() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let (one, two) = (image(1, 2, 1000), image(2, 2, 1000));
    import(&store, "tools/app:1.0", &one);
    import(&store, "tools/app:2.0", &two);
    let get = |name: &str| store.image_get(&reference(name)).unwrap().map(|image| image.digest);
    assert_eq!((get("tools/app:1.0"), get("tools/app:2.0"), get("tools/app")), (Some(one.digest), Some(two.digest), Some(two.digest)));
    assert_eq!(get(&format!("tools/app#{}", one.digest.short())), Some(one.digest));
    assert_eq!(get(&format!("tools/app@{}", one.digest)), Some(one.digest));
    assert_eq!((get("tools/other"), get("tools/app:3")), (None, None));
    let mut releases = store.releases(&reference("tools/app").repository).unwrap();
    releases.sort();
    assert_eq!(releases, [("1.0", one.digest), ("2.0", two.digest), ("head", two.digest)].map(|(name, digest)| (name.to_owned(), digest)));
    // Another repository whose name begins alike is another one.
    assert_eq!(store.releases(&reference("tools/ap").repository).unwrap(), []);
    assert_eq!(store.images().unwrap().len(), 2);
    assert_eq!(store.images().unwrap()[0].bytes, Some(2000));
    // Removing the last real name takes `head` along, to the newest that is left.
    assert_eq!(store.image_remove(&reference("tools/app:2.0")).unwrap(), ["tools/app:2.0", "tools/app:head"]);
    assert_eq!(get("tools/app"), Some(one.digest));
    assert_eq!(store.image_remove(&reference("tools/app:2.0")).unwrap(), [""; 0]);
    drop(store);
    let store = open(home.path());
    assert_eq!(store.images().unwrap().len(), 1);
}

#[test]
fn a_prefix_of_two_images_is_an_error_that_lists_them() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let mut by_prefix = std::collections::HashMap::new();
    let (a, b) = (0..)
        .find_map(|seed| {
            let image = image(seed, 1, 10);
            let prefix = image.digest.to_hex()[..2].to_owned();
            by_prefix.insert(prefix, image).and_then(|other| by_prefix.remove(&other.digest.to_hex()[..2]).map(|image| (other, image)))
        })
        .unwrap();
    import(&store, "tools/app:1", &a);
    import(&store, "tools/app:2", &b);
    let mut reference = reference("tools/app");
    reference.revision = layer_format::reference::Revision::Prefix(a.digest.to_hex()[..2].into());
    for result in [store.image_get(&reference).map(drop), store.image_remove(&reference).map(drop)] {
        assert!(matches!(result, Err(StoreError::Ambiguous { matches, .. }) if matches.len() == 2));
    }
    assert_eq!(store.images().unwrap().len(), 2);
}

#[test]
fn what_is_no_manifest_or_another_one_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let image = image(1, 1, 10);
    let other = format!("tools/app@{}", Digest::of(b"other"));
    for (name, bytes) in [("tools/app", &b"{}"[..]), (&other, &image.manifest)] {
        assert!(matches!(store.image_put(&reference(name), bytes, ImageOrigin::Pulled), Err(StoreError::InvalidImage { .. })));
    }
    assert_eq!(store.images().unwrap(), []);
}

#[test]
fn gc_removes_what_no_image_needs_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let (one, two) = (image(1, 10, 20_000), image(2, 10, 20_000));
    import(&store, "tools/one:1", &one);
    import(&store, "tools/two:1", &two);
    assert_eq!(store.gc(false).unwrap().removed_packs, 0);
    store.image_remove(&reference("tools/one:1")).unwrap();
    assert_eq!(store.gc(true).unwrap().removed_packs, 1);
    assert!(store.contains_all(&digests(&one)).unwrap(), "a dry run removes nothing");
    {
        let hold = store.hold().unwrap();
        assert!(store.gc(false).unwrap().busy);
        drop(hold);
    }
    let report = store.gc(false).unwrap();
    assert!(report.removed_packs == 1 && report.removed_bytes > 100_000, "{report:?}");
    assert!(store.contains(&digests(&one)).unwrap().iter().all(|found| !found));
    assert!(store.contains_all(&digests(&two)).unwrap());
    assert_eq!(store.gc(false).unwrap().removed_packs, 0);
}

#[test]
fn a_running_image_outlives_its_name() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let image = image(1, 10, 20_000);
    import(&store, "tools/app:1", &image);
    import(&store, "tools/app:1", &super_image());
    let guard = store.running(&[image.digest]).unwrap();
    store.gc(false).unwrap();
    assert!(store.contains_all(&digests(&image)).unwrap());
    drop(guard);
    assert_eq!(store.running_images().unwrap(), []);
    assert_eq!(store.gc(false).unwrap().forgotten_images, 1);
    assert!(!store.contains_all(&digests(&image)).unwrap());
}

fn super_image() -> TestImage {
    image(77, 1, 100)
}

#[test]
fn eviction_takes_the_least_used_and_spares_what_is_needed() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let images: Vec<_> = (0..5).map(|seed| image(seed, 10, 50_000)).collect();
    for (n, image) in images.iter().enumerate() {
        let origin = if n == 0 { (PackOrigin::Imported, ImageOrigin::Imported) } else { (PackOrigin::Pulled, ImageOrigin::Pulled) };
        add_pack(&store, &image.objects, origin.0);
        store.image_put(&reference(&format!("tools/app{n}")), &image.manifest, origin.1).unwrap();
    }
    store.image_pin(&reference("tools/app1"), true).unwrap();
    let _running = store.running(&[images[2].digest]).unwrap();
    let stored = store.stats().unwrap().stored_bytes;
    let freed = store.evict_to(stored * 7 / 10).unwrap();
    assert!(freed > 0 && freed <= stored / 2);
    let left = |n: usize| store.contains_all(&digests(&images[n])).unwrap();
    assert!(left(0), "the only copy");
    assert!(left(1), "pinned");
    assert!(left(2), "running");
    assert!(!left(3) && !left(4), "evicted");
    assert_eq!(store.evict_to(1).unwrap(), 0, "what is left is needed");
    assert!(store.images().unwrap().iter().any(|image| image.names == ["tools/app3:head"] && !image.complete));
    assert_eq!(store.stats().unwrap().evicted_packs_count, 2);
}

#[test]
fn a_cap_holds_while_streaming() {
    let home = tempfile::tempdir().unwrap();
    let cap = 100 << 20;
    let store = open_capped(home.path(), cap);
    let mut most = 0;
    for n in 0..60u64 {
        store.insert(&(0..4).map(|m| object(n * 4 + m, 1 << 20)).collect::<Vec<_>>()).unwrap();
        store.flush().unwrap();
        most = most.max(store.stats().unwrap().stored_bytes);
    }
    assert!(most <= cap + (8 << 20), "{most}");
    assert!(store.get(&object(239, 1 << 20).0).unwrap().is_some(), "the newest is here");
    assert!(store.get(&object(0, 1 << 20).0).unwrap().is_none(), "the oldest is not");
    let on_disk: u64 = std::fs::read_dir(home.path().join("packs")).unwrap().flatten().map(|entry| entry.metadata().unwrap().len()).sum();
    assert!(on_disk <= cap + (8 << 20));
}
