//! The rules one by one.

use std::time::Duration;

use layer_format::Digest;

use super::world::{Artifact, HOUR, Sample, World, noise, sha256};
use crate::db::namespace::namespace_find;
use crate::db::trash::trash_list;
use crate::service::gc::GcOptions;
use crate::service::gc::pace::Pace;
use crate::service::image::{Reference, image_delete};
use crate::service::lease::Leases;
use crate::service::trash::{Deleted, undelete};

fn sample(files: std::ops::Range<u64>) -> Sample {
    Sample::new(&files.collect())
}

async fn delete(world: &World, name: &str, sample: &Sample) {
    assert!(image_delete(&world.db, &World::repository(name), &Reference::Digest(sample.digest()), "tester").await.unwrap());
}

#[tokio::test]
async fn what_was_deleted_comes_back_within_its_window_and_not_after() {
    let mut world = World::new().await;
    let (image, other) = (sample(0..9), sample(20..25));
    world.push("one/x", "1.0", &image).await;
    world.push("one/x", "2.0", &other).await;
    delete(&world, "one/x", &image).await;
    for _ in 0..4 {
        world.advance(HOUR);
        world.gc().await.unwrap();
    }
    let rows = trash_list(&mut world.db.read().await.unwrap(), Some("one/x"), 10).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].kind.as_str(), rows[0].deleted_by.as_str()), ("image", "tester"));
    let restored = undelete(&world.db, &Deleted::Name(World::repository("one/x"), image.digest().to_string())).await.unwrap();
    assert_eq!(restored[0], ("release".to_owned(), "1.0".to_owned()));
    world.check_image("one/x", &image).await;
    delete(&world, "one/x", &image).await;
    world.quiesce().await;
    assert!(undelete(&world.db, &Deleted::Name(World::repository("one/x"), image.digest().to_string())).await.is_err());
    assert_eq!(world.index().await["one"].len(), other.objects.len());
}

#[tokio::test]
async fn an_object_said_to_be_present_stays_for_its_lease() {
    let mut world = World::new().await;
    let (old, next) = (sample(0..10), sample(0..12));
    world.push("one/x", "1", &old).await;
    delete(&world, "one/x", &old).await;
    // It is a candidate, and its time is almost over.
    world.advance(6 * HOUR);
    world.gc().await.unwrap();
    world.advance(2 * HOUR - 60_000);
    let repository = World::repository("one/x");
    let missing = world.missing(&repository, &next).await;
    assert!(missing.len() < next.objects.len());
    for _ in 0..5 {
        world.advance(11 * 60_000);
        world.gc().await.unwrap();
    }
    assert!(world.put_pack(&repository, next.pack(|digest| missing.contains(digest))).await);
    world.put_image(&repository, "2", &next).await.unwrap();
    world.quiesce().await;
    world.check_image("one/x", &next).await;
}

#[tokio::test]
async fn a_long_push_keeps_what_it_was_told_by_its_requests() {
    let mut world = World::new().await;
    let (old, next) = (sample(0..10), sample(0..12));
    world.push("one/x", "1", &old).await;
    let repository = World::repository("one/x");
    let missing = world.missing(&repository, &next).await;
    Leases::new(world.db.clone()).renew(&repository).await.unwrap();
    delete(&world, "one/x", &old).await;
    // Twelve hours, with a request every half an hour; the old image is gone for good long before.
    for _ in 0..24 {
        world.advance(HOUR / 2);
        Leases::new(world.db.clone()).renew(&repository).await.unwrap();
        world.gc().await.unwrap();
    }
    assert!(world.put_pack(&repository, next.pack(|digest| missing.contains(digest))).await);
    world.put_image(&repository, "2", &next).await.unwrap();
    world.check_image("one/x", &next).await;
    // One that goes on for ever does not stop collections for ever.
    delete(&world, "one/x", &next).await;
    for _ in 0..80 {
        world.advance(HOUR / 2);
        Leases::new(world.db.clone()).renew(&repository).await.unwrap();
        world.gc().await.unwrap();
    }
    assert!(world.index().await["one"].is_empty());
}

#[tokio::test]
async fn a_pack_that_lost_objects_can_be_pushed_again() {
    let mut world = World::new().await;
    let (small, large) = (sample(0..3), sample(0..30));
    let repository = World::repository("one/x");
    world.push("one/x", "large", &large).await;
    world.push("one/x", "small", &small).await;
    delete(&world, "one/x", &large).await;
    world.quiesce().await;
    assert!(world.index().await["one"].len() < large.objects.len());
    // The same bytes under the same digest, all of them.
    assert!(world.put_pack(&repository, large.pack(|_| true)).await);
    world.put_image(&repository, "again", &large).await.unwrap();
    world.check_image("one/x", &large).await;
    world.check_image("one/x", &small).await;
}

#[tokio::test]
async fn dead_space_is_bounded_and_small_packs_are_merged() {
    let mut world = World::new().await;
    let versions: Vec<Sample> = (0..12).map(|version| sample(version..version + 14)).collect();
    for (number, version) in versions.iter().enumerate() {
        world.push("one/x", &format!("{number}"), version).await;
    }
    assert_eq!(world.stored_packs().await, 12);
    world.quiesce().await;
    assert_eq!(world.stored_packs().await, 1, "twelve small packs became one");
    for version in &versions {
        world.check_image("one/x", version).await;
    }
    for version in &versions[..11] {
        delete(&world, "one/x", version).await;
    }
    world.quiesce().await;
    world.check_image("one/x", &versions[11]).await;
    let alive: usize = versions[11].objects.values().map(Vec::len).sum();
    let mut stored = 0;
    let mut packs = world.backing().list_packs();
    while let Some(found) = futures::StreamExt::next(&mut packs).await {
        stored += found.unwrap().1.len as usize;
    }
    assert!(stored < alive * 14 / 10 + 4000, "{stored} bytes are stored for {alive}");
}

#[tokio::test]
async fn readers_of_an_old_pack_finish() {
    let mut world = World::new().await;
    let image = sample(0..10);
    for (release, files) in [("1", 0..10), ("2", 2..12), ("3", 4..14), ("4", 6..16)] {
        world.push("one/x", release, &sample(files)).await;
    }
    let namespace = namespace_find(&mut world.db.read().await.unwrap(), "one").await.unwrap().unwrap();
    let digests: Vec<Digest> = image.objects.keys().copied().collect();
    let before = world.objects.locate(namespace, &digests).await.unwrap();
    let report = world.gc().await.unwrap().remove(0);
    assert_eq!((report.packs_rewritten, report.packs_made), (4, 1), "{report:?}");
    world.advance(HOUR / 2);
    world.gc().await.unwrap();
    for digest in &digests {
        assert_eq!(&world.objects.read(digest, &before[digest]).await.unwrap(), &image.objects[digest]);
    }
    world.advance(HOUR);
    world.gc().await.unwrap();
    assert_eq!(world.stored_packs().await, 1);
    world.check_image("one/x", &image).await;
}

#[tokio::test]
async fn one_collector_at_a_time_and_a_dead_one_frees_itself() {
    let mut world = World::new().await;
    world.push("one/x", "1", &sample(0..5)).await;
    let namespace = namespace_find(&mut world.db.read().await.unwrap(), "one").await.unwrap().unwrap();
    let db = world.db.clone();
    let mut dead = Pace::take(&db, namespace, 0.0).await.unwrap().unwrap();
    let report = world.gc().await.unwrap().remove(0);
    assert!(report.held_back.is_some());
    world.advance(5 * 60_000);
    let report = world.gc().await.unwrap().remove(0);
    assert_eq!(report.held_back, None);
    // And it does nothing any more when it wakes up.
    let mut transaction = world.db.begin().await.unwrap();
    assert!(dead.check(&mut transaction).await.is_err());
}

async fn dry_run(world: &World) -> crate::service::gc::GcReport {
    let options = GcOptions { dry_run: true, list_objects: true, list_packs: true };
    world.collector.run(None, options).await.unwrap().remove(0)
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_says_why() {
    let mut world = World::new().await;
    let (image, other) = (sample(0..9), sample(30..35));
    world.push("one/x", "1", &image).await;
    world.push("one/x", "2", &other).await;
    delete(&world, "one/x", &image).await;
    let report = dry_run(&world).await;
    assert_eq!((report.reached, report.candidates_new), (report.objects, 0), "what can be brought back is kept: {report:?}");
    world.advance(6 * HOUR);
    assert_eq!(dry_run(&world).await.purged, 1);
    world.gc().await.unwrap();
    let report = dry_run(&world).await;
    assert_eq!(report.candidates_waiting as usize, image.objects.len());
    assert!(report.reasons.iter().all(|reason| reason.reason == "waiting" && reason.since.is_some()));
    assert!(report.packs.iter().any(|pack| pack.fate == "kept"));
    world.advance(3 * HOUR);
    let (first, second) = (dry_run(&world).await, dry_run(&world).await);
    assert_eq!(first.objects_removed as usize, image.objects.len());
    assert_eq!(second.objects_removed, first.objects_removed, "nothing was removed");
    assert!(first.reasons.iter().all(|reason| reason.reason == "due"));
    assert_eq!(world.index().await["one"].len(), image.objects.len() + other.objects.len());
}

#[tokio::test]
async fn blobs_without_a_manifest_go_and_those_that_are_asked_for_stay() {
    let mut world = World::new().await;
    let repository = World::repository("one/x");
    let (wanted, left) = (noise(1, 40_000), noise(2, 40_000));
    for blob in [&wanted, &left] {
        world.push_blob(&repository, blob).await.unwrap();
    }
    for _ in 0..6 {
        world.advance(4 * HOUR);
        assert!(world.oci.blob_find(&repository, &sha256(&wanted)).await.unwrap().is_some());
        world.gc().await.unwrap();
    }
    assert!(world.oci.blob_find(&repository, &sha256(&left)).await.unwrap().is_none());
    let artifact = Artifact::new(wanted);
    world.push_artifact(&repository, "1", &artifact).await.unwrap();
    world.quiesce().await;
    world.check_artifact("one/x", &artifact).await;
}

#[tokio::test]
async fn a_lost_node_holds_removals_back() {
    let mut world = World::new().await;
    let (image, other) = (sample(0..9), sample(30..35));
    world.push("one/x", "1", &image).await;
    world.push("one/x", "2", &other).await;
    delete(&world, "one/x", &other).await;
    let namespace = namespace_find(&mut world.db.read().await.unwrap(), "one").await.unwrap().unwrap();
    let mut transaction = world.db.begin().await.unwrap();
    crate::db::gc::object_delete(&mut transaction, namespace, &[image.layer]).await.unwrap();
    crate::db::commit(transaction).await.unwrap();
    for _ in 0..3 {
        world.advance(8 * HOUR);
        let report = world.gc().await.unwrap().remove(0);
        assert!(report.held_back.is_some_and(|why| why.contains(&image.layer.to_string())));
    }
    assert_eq!(world.index().await["one"].len(), image.objects.len() + other.objects.len() - 1);
    // Pushed again it is whole, and the rest goes.
    world.push("one/x", "1", &image).await;
    world.quiesce().await;
    world.check_image("one/x", &image).await;
    assert_eq!(world.index().await["one"].len(), image.objects.len());
    assert!(settings_are_safe(Duration::ZERO) >= Duration::from_secs(3600));
}

/// Whatever is configured, leases are kept.
fn settings_are_safe(delay: Duration) -> Duration {
    crate::service::gc::GcSettings { delay, ..super::world::settings() }.safe_delay()
}
