//! States in the store: kept and found, safe from gc and eviction, verified, pushed and pulled by difference.

mod store_support;

use std::collections::HashSet;

use client_store::store::{GcOptions, PackOrigin, Repair};
use client_store::transfer::{TransferError, TransferOptions, pull_state, push_state};
use client_store::{Store, StoreError};
use layer_format::Digest;
use layer_format::manifest::{ImageManifest, Manifest, StateImage, StateManifest};
use store_support::fake_registry::{FakeRegistry, Fault};
use store_support::*;

/// A state whose sandbox is the one layer of this image.
fn state_of(sandbox: &TestImage) -> Vec<u8> {
    let layer = ImageManifest::decode(&sandbox.manifest).unwrap().layers[0];
    let image = StateImage { reference: "tools/app".into(), digest: Digest::of(b"image"), dependency: false };
    StateManifest::new(vec![image], layer).encode().unwrap()
}

fn keep(store: &Store, sandbox: &TestImage, origin: PackOrigin) -> Digest {
    add_pack(store, &sandbox.objects, origin);
    store.state_put(&state_of(sandbox)).unwrap()
}

#[test]
fn states_are_kept_and_found_by_the_start_of_their_ids() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    assert_eq!(store.states().unwrap(), []);
    let (one, two) = (image(1, 2, 100), image(2, 2, 100));
    let (a, b) = (keep(&store, &one, PackOrigin::Imported), keep(&store, &two, PackOrigin::Imported));
    assert_eq!(store.state_put(&state_of(&one)).unwrap(), a, "again is no error");
    let found = store.state_get(&a).unwrap().unwrap();
    assert_eq!((&found.bytes[..], found.manifest.images.len()), (&state_of(&one)[..], 1));
    assert_eq!(store.state_get(&Digest::of(b"?")).unwrap(), None);
    let hex = a.to_hex();
    for len in [6, 8, 63, 64] {
        assert_eq!(store.state_find(&hex[..len]).unwrap(), [a]);
    }
    for none in [&hex[..5], "", "zzzzzz", &hex.to_uppercase(), "../../", &format!("{hex}0")] {
        assert_eq!(store.state_find(none).unwrap(), [], "{none}");
    }
    assert!(matches!(store.state_put(&one.manifest), Err(StoreError::InvalidState { .. })), "an image is no state");
    // Neither another process nor the loss of the index makes a difference.
    drop(store);
    std::fs::remove_dir_all(home.path().join("index")).unwrap();
    let store = open(home.path());
    let all: HashSet<Digest> = store.states().unwrap().into_iter().map(|(digest, _)| digest).collect();
    assert_eq!(all, HashSet::from([a, b]));
    assert_eq!(store.gc(false).unwrap().removed_packs, 0);
    // Damage on disk: as good as none, and put again by whoever has it.
    let file = home.path().join("states").join(format!("{hex}.json"));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(store.state_get(&a).unwrap(), None);
    assert_eq!(store.verify(Repair::No, |_, _| {}).unwrap().incomplete_states, [a]);
    store.state_put(&state_of(&one)).unwrap();
    assert!(store.state_get(&a).unwrap().is_some());
    assert!(store.state_remove(&a).unwrap() && !store.state_remove(&a).unwrap());
    assert_eq!(store.state_find(&hex).unwrap(), []);
}

#[test]
fn what_states_need_is_neither_collected_nor_evicted() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let (mine, pulled, other) = (image(1, 4, 5000), image(2, 4, 5000), image(3, 4, 5000));
    let a = keep(&store, &mine, PackOrigin::Imported);
    let b = keep(&store, &pulled, PackOrigin::Pulled);
    add_pack(&store, &other.objects, PackOrigin::Pulled);
    let whole = |image: &TestImage| store.contains_all(&digests(image)).unwrap();
    store.evict_to(1).unwrap();
    assert_eq!((whole(&mine), whole(&pulled), whole(&other)), (true, true, false));
    assert_eq!(store.gc(false).unwrap().removed_packs, 0);
    // Listed by a container: kept. Not listed: forgotten, and then collected. Never beside something in progress.
    let listed = |keep: Digest| move || Ok::<_, StoreError>(HashSet::from([keep]));
    let hold = store.hold().unwrap();
    assert_eq!(store.gc_states(&GcOptions { dry_run: false, ..GcOptions::default() }, listed(a)).unwrap(), None);
    drop(hold);
    assert_eq!(store.gc_states(&GcOptions { dry_run: true, ..GcOptions::default() }, listed(a)).unwrap(), Some(1));
    assert_eq!(store.states().unwrap().len(), 2, "a dry run removes nothing");
    assert_eq!(store.gc_states(&GcOptions { dry_run: false, ..GcOptions::default() }, listed(a)).unwrap(), Some(1));
    assert_eq!((store.state_get(&b).unwrap(), store.state_get(&a).unwrap().is_some()), (None, true));
    assert_eq!(store.gc(false).unwrap().removed_packs, 1);
    assert_eq!((whole(&mine), whole(&pulled)), (true, false));
    let failed = store.gc_states(&GcOptions { dry_run: false, ..GcOptions::default() }, || Err(StoreError::Index { message: "no list".into() }));
    assert!(failed.is_err() && store.state_get(&a).unwrap().is_some(), "without a list nothing goes");
}

#[test]
fn verify_names_the_states_that_damage_is_of() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    // Both have the first file; only one has the second.
    let file = |seed: u64| (format!("f{seed}"), noise(seed, 9000));
    let (one, two) = (build_image(&[file(1)]), build_image(&[file(1), file(2)]));
    let (a, b) = (keep(&store, &one, PackOrigin::Imported), keep(&store, &two, PackOrigin::Imported));
    assert_eq!(store.verify(Repair::No, |_, _| {}).unwrap().incomplete_states, []);
    // The second pack, in which the second file's chunk lies.
    let packs: Vec<_> = std::fs::read_dir(home.path().join("packs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let second = packs.iter().max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    std::fs::remove_file(second).unwrap();
    let report = store.verify(Repair::No, |_, _| {}).unwrap();
    assert!(report.incomplete_states.contains(&b));
    let chunk = Digest::of(&noise(2, 9000));
    let damaged = report.damaged.iter().find(|object| object.digest == chunk).expect("the lost chunk is named");
    assert_eq!(damaged.states, [b]);
    assert!(report.damaged.iter().all(|object| object.digest == Digest::of(&noise(1, 9000)) || !object.states.contains(&a)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_travels_by_difference_and_survives_faults() {
    let fake = FakeRegistry::start().await;
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (open(from.path()), open(to.path()));
    let mut files: Vec<_> = (0..200).map(|n| (format!("home/f{n:03}"), noise(n, 9000))).collect();
    let early = build_image(&files);
    files[17].1 = noise(5000, 9000);
    let late = build_image(&files);
    let (a, b) = (keep(&from, &early, PackOrigin::Imported), keep(&from, &late, PackOrigin::Imported));
    let (registry, repository) = (fake.registry(), "states-x/default".parse().unwrap());
    let options = TransferOptions::default();
    let sent = push_state(&from, &registry, &repository, &a, Some("notes"), &options).await.unwrap();
    assert_eq!((sent.moved_objects, sent.requests), (early.objects.len() as u64, 4), "HEAD, missing, pack, state");
    let again = push_state(&from, &registry, &repository, &a, Some("notes"), &options).await.unwrap();
    assert_eq!((again.moved_objects, again.requests), (0, 1));
    fake.fault(Fault::LosePack);
    let sent = push_state(&from, &registry, &repository, &b, None, &options).await.unwrap();
    let new: HashSet<Digest> = digests(&late).into_iter().collect::<HashSet<_>>().difference(&digests(&early).into_iter().collect()).copied().collect();
    assert_eq!(sent.moved_objects, new.len() as u64);

    fake.fault(Fault::Cut(100_000));
    let got = pull_state(&to, &registry, &repository, &a.to_hex()[..8], &options).await.unwrap();
    assert_eq!((got.digest, got.report.moved_objects), (a, early.objects.len() as u64));
    fake.fault(Fault::Damage);
    let got = pull_state(&to, &registry, &repository, &b.to_hex(), &options).await.unwrap();
    assert_eq!((got.digest, got.report.moved_objects), (b, new.len() as u64));
    assert!(to.contains_all(&digests(&late)).unwrap() && to.contains_all(&digests(&early)).unwrap());
    assert_eq!(to.states().unwrap().len(), 2);
    // Nothing of it is garbage, and nothing of it may be evicted.
    assert_eq!((to.gc(false).unwrap().removed_packs, to.evict_to(1).unwrap()), (0, 0));

    let unknown = pull_state(&to, &registry, &repository, "0123456789", &options).await;
    assert!(matches!(unknown, Err(TransferError::Origin(_))), "{unknown:?}");
    let missing = push_state(&to, &registry, &repository, &Digest::of(b"?"), None, &options).await;
    assert!(matches!(missing, Err(TransferError::NotLocal { .. })), "{missing:?}");
    // A state is not kept unless all of it came.
    fake.inner.lock().unwrap().objects.remove(new.iter().next().unwrap());
    let elsewhere = tempfile::tempdir().unwrap();
    let elsewhere = open(elsewhere.path());
    assert!(pull_state(&elsewhere, &registry, &repository, &b.to_hex(), &options).await.is_err());
    assert_eq!(elsewhere.states().unwrap(), []);
}
