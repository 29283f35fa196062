//! Random histories of a store against a map.

mod store_support;

use std::collections::{HashMap, HashSet};

use client_store::store::{PackOrigin, RepackOptions, Repair};
use client_store::{ObjectCache, cache_conformance};
use layer_format::Digest;
use proptest::prelude::*;
use store_support::*;

#[derive(Clone, Debug)]
enum Op {
    /// Streams objects of these seeds.
    Insert(Vec<u8>),
    Flush,
    /// Adds a pack with objects of these seeds.
    Pack(Vec<u8>, bool),
    Get(u8),
    Gc,
    Repack,
    Evict(u8),
    Reopen,
    /// Drops an unfinished pack.
    Abandon(Vec<u8>),
    Verify,
}

fn op() -> impl Strategy<Value = Op> {
    let seeds = || proptest::collection::vec(0u8..60, 1..12);
    prop_oneof![
        4 => seeds().prop_map(Op::Insert),
        2 => Just(Op::Flush),
        3 => (seeds(), any::<bool>()).prop_map(|(seeds, imported)| Op::Pack(seeds, imported)),
        6 => any::<u8>().prop_map(Op::Get),
        1 => Just(Op::Gc),
        1 => Just(Op::Repack),
        1 => (0u8..100).prop_map(Op::Evict),
        2 => Just(Op::Reopen),
        1 => seeds().prop_map(Op::Abandon),
        1 => Just(Op::Verify),
    ]
}

fn bytes_of(seed: u8) -> Vec<u8> {
    noise(seed.into(), usize::from(seed) * 701)
}

/// What is here must be right; what the model says must be here is here, until something may have removed it.
fn run(ops: Vec<Op>) {
    let home = tempfile::tempdir().unwrap();
    let mut store = open(home.path());
    let mut sure: HashSet<Digest> = HashSet::new();
    let mut streamed: HashSet<Digest> = HashSet::new();
    let all: HashMap<Digest, Vec<u8>> = (0..60).map(|seed| (Digest::of(&bytes_of(seed)), bytes_of(seed))).collect();
    for op in ops {
        match op {
            Op::Insert(seeds) => {
                let objects: Vec<_> = seeds.iter().map(|seed| bytes_of(*seed)).map(|bytes| (Digest::of(&bytes), bytes.into())).collect();
                let digests: Vec<_> = objects.iter().map(|(digest, _)| *digest).collect();
                // What is in a pack already is not kept twice.
                let here = store.contains(&digests).unwrap();
                store.insert(&objects).unwrap();
                streamed.extend(digests.iter().zip(here).filter(|(_, here)| !here).map(|(digest, _)| *digest));
                sure.extend(digests);
            }
            Op::Flush => store.flush().unwrap(),
            Op::Pack(seeds, imported) => {
                let objects: Vec<_> = seeds.iter().map(|seed| bytes_of(*seed)).collect();
                add_pack(&store, &objects, if imported { PackOrigin::Imported } else { PackOrigin::Pulled });
                let digests: Vec<_> = objects.iter().map(|object| Digest::of(object)).collect();
                // What was streamed and not flushed is now kept once, in the pack.
                streamed.retain(|digest| !digests.contains(digest));
                sure.extend(digests);
            }
            Op::Abandon(seeds) => {
                use std::io::Write;
                let mut writer = store.pack_writer(PackOrigin::Pulled).unwrap();
                writer.write_all(&bytes_of(seeds[0])).unwrap();
            }
            Op::Get(seed) => {
                let bytes = bytes_of(seed % 60);
                let digest = Digest::of(&bytes);
                match store.get(&digest).unwrap() {
                    Some(found) => assert_eq!(found, bytes),
                    None => assert!(!sure.contains(&digest), "object {seed} is lost"),
                }
            }
            // No image needs anything, so that only what was streamed stays.
            Op::Gc | Op::Repack => {
                match op {
                    Op::Gc => store.gc(false).unwrap(),
                    _ => store.repack(&RepackOptions::default(), |_, _| {}).unwrap().gc,
                };
                sure.retain(|digest| streamed.contains(digest));
                assert_eq!(store.stats().unwrap().dead_bytes, 0);
            }
            Op::Evict(percent) => {
                let stored = store.stats().unwrap().stored_bytes;
                store.evict_to(stored * u64::from(percent) / 100).unwrap();
                sure.clear();
                streamed.clear();
            }
            Op::Reopen => {
                drop(store);
                store = open(home.path());
            }
            Op::Verify => {
                let report = store.verify(Repair::No, |_, _| {}).unwrap();
                assert!(report.damaged.is_empty() && report.missing_packs.is_empty(), "{report:?}");
            }
        }
        let (digests, expected): (Vec<_>, Vec<_>) = all.iter().map(|(digest, bytes)| (*digest, bytes)).unzip();
        for ((digest, found), bytes) in digests.iter().zip(store.contains(&digests).unwrap()).zip(expected) {
            assert!(found || !sure.contains(digest));
            if found {
                assert_eq!(store.get(digest).unwrap().as_deref(), Some(&bytes[..]));
            }
        }
    }
    drop(store);
    assert_eq!(std::fs::read_dir(home.path().join("tmp")).unwrap().count(), 0, "something is left in tmp");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn any_history_agrees_with_a_map(ops in proptest::collection::vec(op(), 1..40)) {
        run(ops);
    }
}

#[test]
fn keeps_the_contract() {
    let home = tempfile::tempdir().unwrap();
    cache_conformance::check(&open(home.path()));
}

#[test]
fn a_full_stream_pack_is_finished_and_goes_on_in_a_new_one() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let mut all = Vec::new();
    for n in 0..80u64 {
        let objects = [object(n, 1 << 20)];
        store.insert(&objects).unwrap();
        all.push(objects[0].0);
        if n % 10 == 0 {
            store.flush().unwrap();
        }
    }
    store.flush().unwrap();
    drop(store);
    let store = open(home.path());
    assert!(store.contains_all(&all).unwrap());
    let stats = store.stats().unwrap();
    assert_eq!((stats.packs, stats.objects), (2, 80));
    let report = store.verify(Repair::No, |_, _| {}).unwrap();
    assert!(report.damaged.is_empty() && report.objects == 80);
    let finished = std::fs::read_dir(home.path().join("packs"))
        .unwrap()
        .flatten()
        .filter(|entry| layer_format::pack::read_index(&std::fs::read(entry.path()).unwrap()).is_ok());
    assert_eq!(finished.count(), 1, "the full one has its index");
}

#[test]
fn short_runs_share_one_stream_pack() {
    let home = tempfile::tempdir().unwrap();
    for n in 0..10u64 {
        let store = open(home.path());
        store.insert(&[object(n, 5000)]).unwrap();
    }
    let store = open(home.path());
    assert_eq!(store.stats().unwrap().packs, 1);
    assert!((0..10).all(|n| store.get(&object(n, 5000).0).unwrap().is_some()));
}

#[test]
fn neighbours_are_decoded_once() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let objects: Vec<_> = (0..64).map(|n| noise(n, 4000)).collect();
    add_pack(&store, &objects, PackOrigin::Pulled);
    for object in &objects {
        assert!(store.get(&Digest::of(object)).unwrap().is_some());
    }
    assert_eq!(store.stats().unwrap().decoded_frames_count, 1);
}
