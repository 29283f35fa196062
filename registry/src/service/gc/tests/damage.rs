//! Damage to packs, packs that are gone, and packs that nothing knows of.

use bytes::Bytes;
use layer_format::Digest;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::world::{HOUR, Sample, World};
use crate::blob_storage::{pack_key, undo_key};
use crate::db::pack_life::{PackRow, pack_list};
use crate::service::gc::{ReconcileOptions, ScrubOptions, ScrubReport};

fn sample(files: std::ops::Range<u64>) -> Sample {
    Sample::new(&files.collect())
}

async fn packs(world: &World) -> Vec<PackRow> {
    let mut db = world.db.read().await.unwrap();
    let namespace = crate::db::namespace::namespace_find(&mut db, "one").await.unwrap().unwrap();
    pack_list(&mut db, namespace).await.unwrap().into_iter().filter(|pack| pack.retired_at.is_none()).collect()
}

async fn read(world: &World, pack: &PackRow) -> Vec<u8> {
    world.backing().read(&pack_key(&pack.name), 0..pack.size_bytes).await.unwrap().to_vec()
}

async fn write(world: &World, name: &Digest, bytes: Vec<u8>) {
    let mut writer = world.backing().create(&pack_key(name)).await.unwrap();
    writer.write(Bytes::from(bytes)).await.unwrap();
    writer.finish().await.unwrap();
}

async fn scrub(world: &World, dry_run: bool) -> ScrubReport {
    world.collector.scrub(&ScrubOptions { dry_run, ..ScrubOptions::default() }).await.unwrap()
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_found_and_the_next_push_heals() {
    let image = sample(0..12);
    let mut random = StdRng::seed_from_u64(7);
    let mut quarantined = 0;
    for round in 0..12 {
        let mut world = World::new().await;
        world.push("one/x", "1.0", &image).await;
        world.push("one/y", "other", &sample(20..24)).await;
        let pack = packs(&world).await[0];
        let mut bytes = read(&world, &pack).await;
        // Header, index and footer as well as frames.
        let at = match round {
            0 => 3,
            1 => bytes.len() - 4,
            2 => bytes.len() - 60,
            3 => bytes.len() - 200,
            _ => random.random_range(0..bytes.len()),
        };
        bytes[at] ^= 1 << random.random_range(0..8);
        write(&world, &pack.name, bytes).await;
        world = world.restart().await;
        let told = scrub(&world, true).await;
        assert_eq!((told.packs, told.damaged.len()), (2, 1), "byte {at}: {told:?}");
        assert!(!told.damaged[0].is_mended);
        assert!(scrub(&world, true).await.damaged.len() == 1, "a dry run changes nothing");
        let mended = scrub(&world, false).await;
        assert_eq!(mended.damaged[0].objects.quarantined, told.damaged[0].objects.quarantined);
        let lost = mended.damaged[0].objects.quarantined.len();
        quarantined += lost;
        assert_eq!(mended.damaged[0].objects.needed_by, if lost > 0 { vec!["one/x:1.0".to_owned(), "one/x:head".to_owned()] } else { vec![] });
        world = world.restart().await;
        assert_eq!(scrub(&world, false).await.damaged.len(), 0, "what is left is right");
        // The truth is told, and heals.
        assert_eq!(world.missing(&World::repository("one/x"), &image).await.len(), lost);
        world.push("one/x", "1.0", &image).await;
        world.check_image("one/x", &image).await;
        world.quiesce().await;
        world.check_image("one/x", &image).await;
    }
    assert!(quarantined > 0, "a damaged frame loses its objects");
}

#[tokio::test]
async fn a_copy_in_another_pack_heals() {
    let mut world = World::new().await;
    let image = sample(0..12);
    world.push("one/x", "1.0", &image).await;
    // The same objects again, and one more: a pack that the first one makes useless.
    let mut more = image.clone();
    more.objects.insert(Digest::of(b"more"), b"more".to_vec());
    assert!(world.put_pack(&World::repository("one/x"), more.pack(|_| true)).await);
    let pack = packs(&world).await[0];
    world.backing().delete(&pack_key(&pack.name)).await.unwrap();
    world = world.restart().await;
    let report = scrub(&world, false).await;
    assert_eq!(report.damaged.len(), 1);
    assert_eq!((report.damaged[0].objects.healed.len(), report.damaged[0].objects.quarantined.len()), (image.objects.len(), 0));
    assert!(report.damaged[0].objects.needed_by.is_empty());
    world.check_image("one/x", &image).await;
    world.quiesce().await;
    world.check_image("one/x", &image).await;
}

#[tokio::test]
async fn a_cut_scrub_goes_on_with_what_was_verified_longest_ago() {
    let mut world = World::new().await;
    for number in 0..3 {
        world.push("one/x", &number.to_string(), &sample(number * 10..number * 10 + 5)).await;
    }
    let report = scrub(&world, false).await;
    assert_eq!((report.packs, report.skipped, report.objects > 0, report.bytes > 0), (3, 0, true, true));
    world.advance(HOUR);
    world.push("one/x", "new", &sample(50..55)).await;
    let options = ScrubOptions { skip_verified_within: std::time::Duration::from_secs(2 * 3600), ..ScrubOptions::default() };
    let report = world.collector.scrub(&options).await.unwrap();
    assert_eq!((report.packs, report.skipped), (1, 3));
    let cap = ScrubOptions { max_bytes_per_second: Some(50_000), ..ScrubOptions::default() };
    let begun = std::time::Instant::now();
    let report = world.collector.scrub(&cap).await.unwrap();
    assert!(begun.elapsed().as_secs_f64() >= report.bytes as f64 / 50_000.0, "the cap is kept");
}

#[tokio::test]
async fn rows_without_packs_and_packs_without_rows() {
    let mut world = World::new().await;
    let (image, other) = (sample(0..12), sample(20..30));
    world.push("one/x", "1.0", &image).await;
    world.push("one/x", "2.0", &other).await;
    let rows = packs(&world).await;
    // One is cut short, as a disk that lied leaves it; and a crash left one that no row names.
    let half = read(&world, &rows[0]).await[..rows[0].size_bytes as usize / 2].to_vec();
    write(&world, &rows[0].name, half).await;
    let orphan = sample(40..45);
    let name = Digest::of(b"an orphan's name");
    write(&world, &name, orphan.pack(|_| true)).await;
    world = world.restart().await;
    let report = world.collector.reconcile(&ReconcileOptions::default()).await.unwrap();
    assert_eq!((report.packs, report.young, report.orphans.len(), report.lost.len()), (1, 1, 0, 1), "{report:?}");
    world.advance(2 * HOUR);
    let report = world.collector.reconcile(&ReconcileOptions::default()).await.unwrap();
    assert_eq!((report.orphans[0].fate.as_str(), report.lost[0].is_mended), ("found", false));
    assert_eq!(report.lost[0].objects.quarantined.len(), image.objects.len());
    assert_eq!(report.lost[0].objects.needed_by, ["one/x:1.0"]);
    assert!(world.missing(&World::repository("one/x"), &image).await.is_empty(), "without --repair nothing changes");
    let repair = ReconcileOptions { repair: true, adopt: None };
    let report = world.collector.reconcile(&repair).await.unwrap();
    assert_eq!((report.orphans[0].fate.as_str(), report.lost[0].is_mended), ("moved to undo/", true));
    assert!(world.backing().stat(&undo_key(&name)).await.unwrap().is_some());
    assert_eq!(world.missing(&World::repository("one/x"), &image).await.len(), image.objects.len());
    let report = world.collector.reconcile(&repair).await.unwrap();
    assert_eq!((report.orphans.len(), report.lost.len()), (0, 0), "{report:?}");
    world.push("one/x", "1.0", &image).await;
    world.check_image("one/x", &image).await;
    world.check_image("one/x", &other).await;
    // What was put aside can be adopted; what is no pack cannot.
    world.backing().rename(&undo_key(&name), &pack_key(&name)).await.unwrap();
    let noise = Digest::of(b"noise");
    write(&world, &noise, vec![7; 5000]).await;
    world.advance(2 * HOUR);
    let adopt = ReconcileOptions { repair: true, adopt: Some("one".into()) };
    let report = world.collector.reconcile(&adopt).await.unwrap();
    let fate = |name: &Digest| report.orphans.iter().find(|orphan| orphan.name == name.to_hex()).unwrap().fate.clone();
    assert_eq!(fate(&name), "adopted");
    assert!(fate(&noise).starts_with("left where it is"));
    world.put_image(&World::repository("one/z"), "1", &orphan).await.unwrap();
    world.check_image("one/z", &orphan).await;
}
