//! Measurements, and what needs a special disk; run by hand with `--ignored --nocapture`.

mod store_support;

use std::time::Instant;

use client_store::store::PackOrigin;
use client_store::{ObjectCache, Store, StoreOptions};
use layer_format::Digest;
use store_support::*;

fn report(what: &str, count: usize, bytes: usize, started: Instant) {
    let s = started.elapsed().as_secs_f64();
    println!("{what}: {:.1} ms, {:.2} us each, {:.0} MB/s", s * 1e3, s * 1e6 / count as f64, bytes as f64 / s / 1e6);
}

#[test]
#[ignore = "a measurement"]
fn speeds() {
    const LEN: usize = 16 << 10;
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let packs: Vec<Vec<Vec<u8>>> = (0..8).map(|pack| (0..2000).map(|n| noise(pack * 2000 + n, LEN)).collect()).collect();
    let built: Vec<_> = packs.iter().map(|objects| layer_format::pack::build(objects, Some(1)).unwrap()).collect();
    let (count, bytes) = (16_000, 16_000 * LEN);
    let started = Instant::now();
    for (bytes, index) in &built {
        use std::io::Write;
        let mut writer = store.pack_writer(PackOrigin::Pulled).unwrap();
        writer.write_all(bytes).unwrap();
        writer.finish(Digest::of(bytes), index).unwrap();
    }
    report("write and finish 8 packs", count, bytes, started);
    let digests: Vec<Digest> = built.iter().flat_map(|(_, index)| index.objects.iter().map(|object| object.digest)).collect();
    let started = Instant::now();
    assert!(store.contains_all(&digests).unwrap());
    report("contains, in one batch", count, 0, started);
    let started = Instant::now();
    for digest in &digests {
        assert!(store.get(digest).unwrap().is_some());
    }
    report("get, in order", count, bytes, started);
    let started = Instant::now();
    for n in 0..1000 {
        store.get(&digests[n * 7919 % count]).unwrap();
    }
    report("get, at random from frames", 1000, 1000 * LEN, started);
    let objects: Vec<_> = (0..4000u64).map(|n| object(1_000_000 + n, LEN)).collect();
    let started = Instant::now();
    objects.chunks(16).for_each(|objects| store.insert(objects).unwrap());
    report("insert, 16 at a time", 4000, 4000 * LEN, started);
    let started = Instant::now();
    store.flush().unwrap();
    report("flush of it", 4000, 4000 * LEN, started);
    let started = Instant::now();
    for n in 0..100u64 {
        store.insert(&[object(2_000_000 + n, LEN)]).unwrap();
        store.flush().unwrap();
    }
    report("insert and flush, one by one", 100, 100 * LEN, started);
    let started = Instant::now();
    for n in 0..4000 {
        store.get(&objects[n * 7919 % 4000].0).unwrap();
    }
    report("get, at random, streamed", 4000, 4000 * LEN, started);
    let stats = store.stats().unwrap();
    println!("index: {} bytes for {} objects, {:.0} each", stats.index_bytes, stats.objects, stats.index_bytes as f64 / stats.objects as f64);
    drop(store);
    let started = Instant::now();
    let store = Store::open(home.path(), StoreOptions::default()).unwrap();
    report("open", 1, 0, started);
    let started = Instant::now();
    store.verify(Default::default(), |_, _| {}).unwrap();
    report("verify", 20_100, 20_100 * LEN, started);
}

/// `TURBO_TEST_SMALL_DISK` is an empty folder on a file system of about 8 MiB.
#[test]
#[ignore = "needs a small disk"]
fn a_full_disk_is_an_error_that_leaves_the_store_usable() {
    let Ok(dir) = std::env::var("TURBO_TEST_SMALL_DISK") else {
        println!("skipped: TURBO_TEST_SMALL_DISK is not set");
        return;
    };
    const ENOSPC: i32 = 28;
    let home = std::path::Path::new(&dir).join("store");
    let store = open(&home);
    let (mut kept, mut refused) = (Vec::new(), 0);
    for n in 0..40u64 {
        let objects: Vec<_> = (0..4).map(|m| object(n * 4 + m, 100_000)).collect();
        match store.insert(&objects).and_then(|()| store.flush()) {
            Ok(()) => kept.extend(objects),
            Err(error) => {
                assert_eq!(error.errno(), Some(ENOSPC), "{error:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && kept.len() > 20, "{refused} refused, {} kept", kept.len());
    use std::io::Write;
    let mut writer = store.pack_writer(PackOrigin::Pulled).unwrap();
    let written = writer.write_all(&noise(1, 12 << 20));
    assert_eq!(written.unwrap_err().raw_os_error(), Some(ENOSPC));
    drop(writer);
    drop(store);
    let store = open(&home);
    assert!(kept.iter().all(|(digest, bytes)| store.get(digest).unwrap().as_ref() == Some(bytes)));
    assert_eq!(store.verify(Default::default(), |_, _| {}).unwrap().damaged, []);
    assert!(store.evict_to(1 << 20).unwrap() > 0, "room can be made on a full disk");
    store.insert(&[object(1_000_000, 100_000)]).and_then(|()| store.flush()).unwrap();
}
