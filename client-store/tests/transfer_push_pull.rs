//! Push and pull against a registry in memory: how much travels, and what faults do.

mod store_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use client_store::remote::retry::RetryPolicy;
use client_store::store::{PackOrigin, Repair};
use client_store::transfer::{Phase, Progress, TransferError, TransferOptions, pull, push};
use client_store::{ObjectCache, Store};
use layer_format::Digest;
use store_support::fake_registry::{FakeRegistry, Fault};
use store_support::*;

fn options() -> TransferOptions {
    let retry = RetryPolicy { attempts: 3, first_pause: Duration::from_millis(1), longest_pause: Duration::from_millis(5) };
    TransferOptions { retry, ..TransferOptions::default() }
}

async fn check_pulled(store: &Store, fake: &FakeRegistry, name: &str, image: &TestImage) {
    let found = store.image_get(&reference(name)).unwrap().unwrap();
    assert_eq!(found.bytes, image.manifest);
    for object in &image.objects {
        assert_eq!(store.get(&Digest::of(object)).unwrap().as_deref(), Some(&object[..]));
    }
    fake.take_log();
    let again = pull(store, &fake.registry(), &reference(name), &options()).await.unwrap();
    assert_eq!((again.requests, again.moved_objects), (1, 0));
    assert_eq!(fake.take_log().len(), 1);
}

#[derive(Default)]
struct Counting(AtomicU64, AtomicU64);

impl Progress for Counting {
    fn phase(&self, phase: Phase, total: Option<u64>) {
        if phase == Phase::Data {
            self.1.store(total.unwrap(), Ordering::Relaxed);
            self.0.store(0, Ordering::Relaxed);
        }
    }

    fn advance(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_there_and_comes_back() {
    let fake = FakeRegistry::start().await;
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (open(from.path()), open(to.path()));
    // One large file has recipe nodes.
    let mut files: Vec<_> = (0..300).map(|n| (format!("usr/lib/d{}/f{n}", n % 7), noise(n, 3000 + n as usize))).collect();
    files.push(("usr/large".into(), noise(999, 3_000_000)));
    let image = build_image(&files);
    import(&from, "tools/app:1.0", &image);
    let name = reference("tools/app:1.0");
    let sent = push(&from, &fake.registry(), &name, &name, &options()).await.unwrap();
    assert_eq!((sent.moved_objects, sent.packs), (image.objects.len() as u64, 1));
    // HEAD by name, HEAD by digest, missing, pack, manifest.
    assert_eq!(sent.requests, 5);
    // Frames went as they are stored.
    let stored = std::fs::read_dir(from.home().join("packs")).unwrap().flatten().next().unwrap();
    let stored_frames = layer_format::pack::read_index(&std::fs::read(stored.path()).unwrap()).unwrap().frames.len();
    assert_eq!(fake.inner.lock().unwrap().frames.len(), stored_frames);
    fake.take_log();
    let again = push(&from, &fake.registry(), &name, &name, &options()).await.unwrap();
    assert_eq!((again.moved_objects, fake.take_log()), (0, vec!["HEAD manifests/1.0".to_owned()]));
    let counting = Arc::new(Counting::default());
    let got = pull(&to, &fake.registry(), &name, &TransferOptions { progress: counting.clone(), ..options() }).await.unwrap();
    assert_eq!(got.moved_objects, image.objects.len() as u64);
    assert_eq!(counting.0.load(Ordering::Relaxed), counting.1.load(Ordering::Relaxed), "progress ends at its total");
    check_pulled(&to, &fake, "tools/app:1.0", &image).await;
    assert!(to.verify(Repair::No, |_, _| {}).unwrap().incomplete_images.is_empty());
    assert!(to.gc(false).unwrap().removed_packs == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_sends_and_fetches_only_what_is_new() {
    let fake = FakeRegistry::start().await;
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (open(from.path()), open(to.path()));
    let mut files: Vec<_> = (0..200).map(|n| (format!("usr/f{n:03}"), noise(n, 9000))).collect();
    let one = build_image(&files);
    files[17].1 = noise(5000, 9000);
    let two = build_image(&files);
    import(&from, "tools/app:1", &one);
    import(&from, "tools/app:2", &two);
    let names = [reference("tools/app:1"), reference("tools/app:2")];
    push(&from, &fake.registry(), &names[0], &names[0], &options()).await.unwrap();
    pull(&to, &fake.registry(), &names[0], &options()).await.unwrap();
    let sent = push(&from, &fake.registry(), &names[1], &names[1], &options()).await.unwrap();
    assert!(sent.moved_objects <= 5, "{sent:?}");
    let got = pull(&to, &fake.registry(), &names[1], &options()).await.unwrap();
    assert!(got.moved_objects <= 5 && got.moved_plain_bytes < 60_000, "{got:?}");
    check_pulled(&to, &fake, "tools/app:2", &two).await;
    // A release more for what is there: two questions and the manifest.
    fake.take_log();
    push(&from, &fake.registry(), &names[0], &reference("tools/app:stable"), &options()).await.unwrap();
    assert_eq!(fake.take_log().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_streamed_can_be_pushed_elsewhere() {
    let fake = FakeRegistry::start().await;
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let image = image(3, 20, 10_000);
    store.insert(&image.objects.iter().map(|object| (Digest::of(object), object.clone().into())).collect::<Vec<_>>()).unwrap();
    store.image_put(&reference("tools/app"), &image.manifest, client_store::store::ImageOrigin::Streamed).unwrap();
    let sent = push(&store, &fake.registry(), &reference("tools/app"), &reference("other/app:1"), &options()).await.unwrap();
    assert_eq!(sent.moved_objects, image.objects.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn cuts_damage_and_a_busy_server_are_survived() {
    for faults in [
        vec![Fault::Cut(10)],
        vec![Fault::Cut(50_000), Fault::Cut(200_000), Fault::Cut(100)],
        vec![Fault::Damage, Fault::Damage],
        vec![Fault::Busy(0), Fault::Damage, Fault::Cut(70_000)],
    ] {
        let fake = FakeRegistry::start().await;
        let image = image(4, 40, 20_000);
        fake.put("1.0", &image);
        faults.iter().for_each(|fault| fake.fault(fault.clone()));
        let home = tempfile::tempdir().unwrap();
        let store = open(home.path());
        pull(&store, &fake.registry(), &reference("tools/app:1.0"), &options()).await.unwrap_or_else(|error| panic!("{faults:?}: {error}"));
        assert!(fake.inner.lock().unwrap().faults.is_empty(), "{faults:?}");
        check_pulled(&store, &fake, "tools/app:1.0", &image).await;
        assert_eq!(store.verify(Repair::No, |_, _| {}).unwrap().damaged, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_where_it_was_cut() {
    let fake = FakeRegistry::start().await;
    let image = image(5, 100, 60_000);
    fake.put("1.0", &image);
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let name = reference("tools/app:1.0");
    let options = TransferOptions { parallel: 1, retry: RetryPolicy { attempts: 1, ..options().retry }, ..options() };
    // The tree comes, then the data is cut.
    let mut failures = 0;
    let mut moved = 0;
    loop {
        fake.fault(Fault::Cut(1_500_000));
        match pull(&store, &fake.registry(), &name, &options).await {
            Ok(report) => break moved += report.moved_objects,
            Err(TransferError::Origin(error)) if error.is_retryable() => failures += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(store.image_get(&name).unwrap().is_none(), "no name before all is here");
        assert!(failures < 20);
    }
    fake.inner.lock().unwrap().faults.clear();
    assert!(failures >= 2 && moved < image.objects.len() as u64 / 2, "{failures} failures, {moved} objects in the last pull");
    check_pulled(&store, &fake, "tools/app:1.0", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_the_registry_lacks_parts_of_is_named_and_not_kept() {
    let fake = FakeRegistry::start().await;
    let image = image(6, 10, 20_000);
    fake.put("1.0", &image);
    let gone = Digest::of(image.objects.last().unwrap());
    {
        let mut inner = fake.inner.lock().unwrap();
        inner.objects.remove(&gone);
        inner.frames.clear();
    }
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let error = pull(&store, &fake.registry(), &reference("tools/app:1.0"), &options()).await.unwrap_err();
    assert!(matches!(&error, TransferError::MissingOnRegistry { count: 1, examples, .. } if *examples == [gone]), "{error:?}");
    assert!(error.to_string().contains(&gone.to_string()));
    assert_eq!(store.images().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stays_damaged_is_never_stored() {
    let fake = FakeRegistry::start().await;
    let image = image(7, 1, 10_000);
    fake.put("1.0", &image);
    let victim = Digest::of(image.objects.last().unwrap());
    {
        let mut inner = fake.inner.lock().unwrap();
        inner.frames.clear();
        inner.objects.get_mut(&victim).unwrap()[0] ^= 1;
    }
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let error = pull(&store, &fake.registry(), &reference("tools/app:1.0"), &options()).await.unwrap_err();
    assert!(matches!(&error, TransferError::Damaged { example, .. } if *example == victim), "{error:?}");
    assert_eq!((store.images().unwrap(), store.get(&victim).unwrap()), (vec![], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_repeated_and_says_what_is_lacking() {
    let fake = FakeRegistry::start().await;
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let image = image(8, 20, 20_000);
    import(&store, "tools/app:1", &image);
    let name = reference("tools/app:1");
    fake.fault(Fault::LosePack);
    fake.fault(Fault::Busy(0));
    push(&store, &fake.registry(), &name, &name, &options()).await.unwrap();
    assert_eq!(std::fs::read_dir(home.path().join("tmp")).unwrap().count(), 0, "temporary packs are removed");
    // An image of which a chunk is not here.
    let other = super_image();
    add_pack(&store, &other.objects[..other.objects.len() - 1], PackOrigin::Imported);
    store.image_put(&reference("tools/broken"), &other.manifest, client_store::store::ImageOrigin::Imported).unwrap();
    let error = push(&store, &fake.registry(), &reference("tools/broken"), &reference("tools/broken"), &options()).await.unwrap_err();
    assert!(matches!(error, TransferError::Incomplete { count: 1, .. }), "{error:?}");
    let error = push(&store, &fake.registry(), &reference("tools/nothing"), &reference("tools/nothing"), &options()).await.unwrap_err();
    assert!(matches!(error, TransferError::NotLocal { .. }));
}

fn super_image() -> TestImage {
    image(99, 5, 20_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_image_may_be_evicted_and_not_before() {
    let fake = FakeRegistry::start().await;
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let image = image(9, 20, 20_000);
    import(&store, "tools/app:1", &image);
    assert_eq!(store.evict_to(1).unwrap(), 0);
    let name = reference("tools/app:1");
    push(&store, &fake.registry(), &name, &name, &options()).await.unwrap();
    assert!(store.evict_to(1).unwrap() > 0);
    pull(&store, &fake.registry(), &name, &options()).await.unwrap();
    check_pulled(&store, &fake, "tools/app:1", &image).await;
}
