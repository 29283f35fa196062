//! The rules one by one.

use std::time::Duration;

use layer_format::Digest;
use layer_format::frame::FrameBuilder;
use layer_format::manifest::{LayerManifest, Manifest};
use layer_format::pack::{PackBuilder, header_with_deltas};

use super::world::{Artifact, HOUR, Sample, World, noise, sha256};
use crate::db::namespace::namespace_find;
use crate::db::trash::trash_list;
use crate::db::verified::{NodeKey, NodeKind, verified_find};
use crate::service::closure::closure_check;
use crate::service::gc::pace::Pace;
use crate::service::gc::{GcOptions, GcReport, ScrubOptions};
use crate::service::image::{Reference, image_delete};
use crate::service::lease::Leases;
use crate::service::pack_upload::pack_promise;
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

/// The root of the sample's tree.
fn root(sample: &Sample) -> Digest {
    LayerManifest::decode(&sample.objects[&sample.layer]).unwrap().root
}

/// A pack of one delta frame: `new`, compressed against `base`.
fn delta_pack(new: &[u8], base: &[u8]) -> Vec<u8> {
    let mut builder = FrameBuilder::new();
    builder.push(new).unwrap();
    let frame = builder.encode_delta(3, &[Digest::of(base)], base).unwrap();
    let mut pack = PackBuilder::new();
    pack.push(&frame, &[(Digest::of(new), new.len() as u32)]).unwrap();
    [&header_with_deltas()[..], &frame, &pack.finish().0].concat()
}

#[tokio::test]
async fn what_delta_frames_need_stays_as_long_as_they_do_and_is_believed_of_nothing() {
    let mut world = World::new().await;
    let repository = World::repository("one/x");
    let old = Sample::new(&(0..10).chain(50..55).collect());
    let new = sample(0..11);
    world.push("one/x", "1", &old).await;
    let (old_root, new_root) = (root(&old), root(&new));
    let missing = world.missing(&repository, &new).await;
    assert!(world.put_pack(&repository, new.pack(|digest| missing.contains(digest) && *digest != new_root)).await);
    assert!(world.put_pack(&repository, delta_pack(&new.objects[&new_root], &old.objects[&old_root])).await);
    world.put_image(&repository, "2", &new).await.unwrap();
    let verified = world.collector.scrub(&ScrubOptions::default()).await.unwrap();
    assert!(verified.damaged.is_empty() && verified.packs == 3, "{verified:?}");
    delete(&world, "one/x", &old).await;
    world.quiesce().await;
    world = world.restart().await;
    world.check_image("one/x", &new).await;
    let left = &world.index().await["one"];
    assert!(left.contains(&old_root) && !left.contains(&old.layer));
    assert_eq!(left.len(), new.objects.len() + 1, "nothing else of the old image");
    // That it is there says nothing of what it leads to.
    assert!(world.put_pack(&repository, old.pack(|digest| *digest == old.layer)).await);
    assert!(world.put_image(&repository, "1", &old).await.is_err(), "files of the old image are gone");
    world.push("one/x", "1", &old).await;
    world.check_image("one/x", &old).await;
    delete(&world, "one/x", &old).await;
    delete(&world, "one/x", &new).await;
    world.quiesce().await;
    assert!(world.index().await["one"].is_empty());
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
    // Frames that the push left in memory would hide what is gone.
    world = world.restart().await;
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
async fn a_manifest_takes_its_blobs_out_of_the_unused_ones() {
    let mut world = World::new().await;
    let repository = World::repository("one/x");
    let artifact = Artifact::new(noise(1, 40_000));
    for blob in [&b"{}"[..], &artifact.blob] {
        world.push_blob(&repository, blob).await.unwrap();
    }
    world.gc().await.unwrap();
    let unused = async |world: &World| {
        let mut db = world.db.read().await.unwrap();
        let row = crate::db::repository::repository_find(&mut db, &World::repository("one/x")).await.unwrap().unwrap();
        crate::db::oci_unused::oci_blob_is_unused(&mut db, row.id, sha256(&artifact.blob).as_str()).await.unwrap()
    };
    assert!(unused(&world).await);
    world.advance(4 * HOUR);
    // Without asking for them again.
    assert!(world.put_manifest(&repository, "1", &artifact).await);
    assert!(!unused(&world).await);
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

/// A namespace in which all of `image` is due, and a collection that has found that out and not removed it yet.
async fn about_to_remove(image: &Sample) -> World {
    let mut world = World::new().await;
    world.push("one/x", "1", image).await;
    delete(&world, "one/x", image).await;
    world.advance(6 * HOUR);
    world.gc().await.unwrap();
    world.advance(3 * HOUR);
    world
}

/// Lets something happen between the moments in which a collection has found out what is due, and removes it.
async fn in_between(world: &World, what: impl Future<Output = ()>) -> u64 {
    let namespace = namespace_find(&mut world.db.read().await.unwrap(), "one").await.unwrap().unwrap();
    let mut pace = Pace::take(&world.db, namespace, 0.0).await.unwrap().unwrap();
    let mut report = GcReport::default();
    let swept = world.collector.sweep(namespace, &mut pace, GcOptions::default(), &mut report).await.unwrap();
    what.await;
    world.collector.remove_due(namespace, &mut pace, swept.due, swept.due_since, &mut report).await.unwrap();
    pace.end().await.unwrap();
    report.objects_removed
}

#[tokio::test]
async fn what_is_relied_on_at_the_last_moment_stays() {
    let image = sample(0..10);
    let repository = World::repository("one/x");
    // Nothing happens: all goes.
    let world = about_to_remove(&image).await;
    assert_eq!(in_between(&world, async {}).await as usize, image.objects.len());
    // Somebody is told that it is there.
    let world = about_to_remove(&image).await;
    assert_eq!(in_between(&world, async { assert!(world.missing(&repository, &image).await.is_empty()) }).await, 0);
    world.put_image(&repository, "2", &image).await.unwrap();
    world.check_image("one/x", &image).await;
    // An image is put without asking first: what it needs is looked at, although it was once known to be complete.
    let world = about_to_remove(&image).await;
    assert_eq!(in_between(&world, async { world.put_image(&repository, "2", &image).await.unwrap() }).await, 0);
    world.check_image("one/x", &image).await;
    // It is brought again, in a pack that is new and in one that is known.
    for only in [0, 1] {
        let world = about_to_remove(&image).await;
        let bytes = image.pack(|digest| only == 0 || *digest != image.layer);
        let brought = if only == 0 { image.objects.len() } else { image.objects.len() - 1 };
        assert_eq!(in_between(&world, async { assert!(world.put_pack(&repository, bytes).await) }).await as usize, image.objects.len() - brought);
    }
    // It is deleted and brought back: never due.
    let world = about_to_remove(&image).await;
    world.push("one/x", "2", &image).await;
    delete(&world, "one/x", &image).await;
    assert_eq!(in_between(&world, async {}).await, 0);
}

#[tokio::test]
async fn a_put_remembers_no_closure_below_which_candidates_were_recorded_meanwhile() {
    let mut world = World::new().await;
    let image = sample(0..10);
    let repository = World::repository("one/x");
    assert!(world.put_pack(&repository, image.pack(|_| true)).await);
    world.advance(HOUR);
    let namespace = namespace_find(&mut world.db.read().await.unwrap(), "one").await.unwrap().unwrap();
    let key = NodeKey { digest: image.layer, kind: NodeKind::Layer };
    for (collect, is_remembered) in [(true, false), (false, true)] {
        let walked = closure_check(&world.objects, &world.nodes, namespace, &[image.layer]).await.unwrap();
        if collect {
            assert!(world.gc().await.unwrap()[0].candidates_new > 0);
        }
        let mut transaction = world.db.begin().await.unwrap();
        walked.remember(&mut transaction, namespace).await.unwrap();
        let known = verified_find(&mut transaction, namespace, &[key]).await.unwrap();
        assert_eq!(known.contains(&key), is_remembered);
        crate::db::commit(transaction).await.unwrap();
    }
}

#[tokio::test]
async fn a_pack_that_lost_a_few_objects_is_not_known_any_more() {
    let mut world = World::new().await;
    let (large, most) = (sample(0..30), sample(1..30));
    let repository = World::repository("one/x");
    world.push("one/x", "large", &large).await;
    world.push("one/x", "most", &most).await;
    delete(&world, "one/x", &large).await;
    world.quiesce().await;
    assert!(world.index().await["one"].len() < large.objects.len());
    let pack = large.pack(|_| true);
    assert!(!pack_promise(&world.objects, &world.storage, "one", &Digest::of(&pack)).await.unwrap());
    assert!(world.put_pack(&repository, pack.clone()).await);
    assert!(pack_promise(&world.objects, &world.storage, "one", &Digest::of(&pack)).await.unwrap());
    world.put_image(&repository, "again", &large).await.unwrap();
    world.check_image("one/x", &large).await;
}

/// Whatever is configured, leases are kept.
fn settings_are_safe(delay: Duration) -> Duration {
    crate::service::gc::GcSettings { delay, ..super::world::settings() }.safe_delay()
}
