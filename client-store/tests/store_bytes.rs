//! Every byte of a pack, of the rows that lead into it and of the files beside it, changed: never a panic, never wrong bytes,
//! never more memory than what is there is worth.

mod store_support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use client_store::store::{PackOrigin, Repair};
use client_store::{ObjectCache, Store};
use layer_format::Digest;
use layer_format::chunk::MAX_OBJECT_LEN;
use layer_format::frame::{FRAME_HEADER_LEN, Frame, FrameBuilder, MAX_FRAME_LEN};
use layer_format::pack::{FOOTER_LEN, HEADER_LEN, PackBuilder, header};
use proptest::prelude::*;
use store_support::*;

/// Some that compress, some that do not, an empty one.
fn objects() -> Vec<Vec<u8>> {
    (0..12u64).map(|n| if n % 2 == 0 { noise(n, 60 * n as usize) } else { format!("{n} ").repeat(40).into_bytes() }).collect()
}

fn only_pack(home: &Path) -> PathBuf {
    let mut packs: Vec<_> = std::fs::read_dir(home.join("packs")).unwrap().flatten().map(|entry| entry.path()).collect();
    assert_eq!(packs.len(), 1);
    packs.remove(0)
}

/// Whatever is found is right. Returns how many are.
fn read_all(store: &Store, objects: &[Vec<u8>]) -> usize {
    let found = objects.iter().filter_map(|object| store.get(&Digest::of(object)).unwrap().map(|found| assert_eq!(found, object[..])));
    found.count()
}

/// Highest address space of this process so far, in bytes: what was allocated counts, also if it was not touched.
fn peak_address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// A store with one pack, and the pack's bytes.
fn store_with_pack(streamed: bool) -> (tempfile::TempDir, Vec<u8>) {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    match streamed {
        true => {
            store.insert(&objects().into_iter().map(|object| (Digest::of(&object), object.into())).collect::<Vec<_>>()).unwrap();
            store.flush().unwrap();
        }
        false => add_pack(&store, &objects(), PackOrigin::Pulled),
    }
    drop(store);
    let bytes = std::fs::read(only_pack(home.path())).unwrap();
    (home, bytes)
}

/// One test at a time: what is measured of the process is then the test's own.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[test]
fn every_byte_of_a_pack_may_be_anything() {
    let _alone = alone();
    for streamed in [false, true] {
        let (home, whole) = store_with_pack(streamed);
        let path = only_pack(home.path());
        let all = objects();
        let mut unharmed = 0;
        let baseline = {
            open(home.path());
            peak_address_space()
        };
        for at in 0..whole.len() {
            // Each bit somewhere, and the extremes; all bytes of header, frame and footer, some of digests and payload.
            let names = whole.len() - FOOTER_LEN - 32 * all.len()..whole.len() - FOOTER_LEN;
            let dense = at < HEADER_LEN + FRAME_HEADER_LEN + 3 * all.len() || at > names.start - 3 * all.len() - 8;
            if (names.contains(&at) && at % 11 != 0) || (!dense && at % 97 != 0) {
                continue;
            }
            for byte in [whole[at] ^ 1 << (at % 8), 0, 0xFF] {
                if byte == whole[at] {
                    continue;
                }
                let mut bytes = whole.clone();
                bytes[at] = byte;
                std::fs::write(&path, &bytes).unwrap();
                let store = open(home.path());
                // The store's own rows lead into the pack: bytes that they do not lead to do no harm.
                unharmed += usize::from(read_all(&store, &all) == all.len());
                if at % 29 == 0 {
                    let report = store.verify(Repair::No, |_, _| {}).unwrap();
                    assert!(streamed || !report.is_clean(), "byte {at} of a pack that is named by its digest");
                }
                // Dropping the store would take what is damaged out of the index: the rows stay for the next byte.
                std::mem::forget(store);
                std::fs::write(&path, &whole).unwrap();
            }
        }
        assert!(unharmed > 0, "the tail is not needed for reading");
        let grown = peak_address_space() - baseline;
        assert!(grown < 512 << 20, "{} MiB were allocated for a pack of {} bytes", grown >> 20, whole.len());
    }
}

#[test]
fn an_index_is_built_again_from_packs_of_which_any_byte_is_wrong() {
    let _alone = alone();
    let (home, whole) = store_with_pack(false);
    let name = only_pack(home.path()).file_name().unwrap().to_owned();
    let all = objects();
    for at in (0..whole.len()).filter(|at| *at < HEADER_LEN + 30 || *at > whole.len() - FOOTER_LEN - 40 || at % 131 == 0) {
        let lost = tempfile::tempdir().unwrap();
        std::fs::create_dir(lost.path().join("packs")).unwrap();
        let mut bytes = whole.clone();
        bytes[at] ^= 0x41;
        std::fs::write(lost.path().join("packs").join(&name), &bytes).unwrap();
        let store = open(lost.path());
        read_all(&store, &all);
        store.verify(Repair::Forget, |_, _| {}).unwrap();
        // And what is lost can be added again.
        add_pack(&store, &all, PackOrigin::Pulled);
        assert_eq!(read_all(&store, &all), all.len(), "byte {at}");
        store.gc(false).unwrap();
    }
}

#[test]
fn every_bit_of_a_row_may_be_wrong() {
    let _alone = alone();
    let (home, _) = store_with_pack(false);
    let data = home.path().join("index/data.mdb");
    let file = std::fs::File::options().read(true).write(true).open(&data).unwrap();
    let image = std::fs::read(&data).unwrap();
    let all = objects();
    let baseline = {
        open(home.path());
        peak_address_space()
    };
    const ROW_LEN: usize = 18;
    let (mut rows, mut harmed) = (0, 0);
    for object in all.iter().step_by(2) {
        let digest = Digest::of(object);
        // In every page that has it with its row: which of them counts is LMDB's business.
        let is_row = |at: usize| image[at + ROW_LEN - 4..at + ROW_LEN] == (object.len() as u32).to_le_bytes();
        let found = image.windows(32).enumerate().filter(|(_, window)| window == digest.as_bytes()).map(|(at, _)| at + 32);
        let places: Vec<usize> = found.filter(|at| is_row(*at)).collect();
        assert!(!places.is_empty());
        rows += 1;
        for bit in 0..ROW_LEN * 8 {
            let (byte, mask) = (bit / 8, 1u8 << (bit % 8));
            for place in &places {
                file.write_all_at(&[image[place + byte] ^ mask], (place + byte) as u64).unwrap();
            }
            let store = open(home.path());
            match store.get(&digest).unwrap_or_else(|error| panic!("bit {bit} of object {rows} at {places:?}: {error:?}")) {
                Some(found) => assert_eq!(found, object[..]),
                None => harmed += 1,
            }
            // Dropping or verifying it would write to the index, and move its pages.
            std::mem::forget(store);
            for place in &places {
                file.write_all_at(&image[place + byte..=place + byte], (place + byte) as u64).unwrap();
            }
        }
    }
    assert!(rows == all.len() / 2 && harmed > rows * 100, "{harmed} of {} changes did harm", rows * ROW_LEN * 8);
    let grown = peak_address_space() - baseline;
    assert!(grown < 512 << 20, "{} MiB were allocated", grown >> 20);
    assert_eq!(read_all(&open(home.path()), &all), all.len(), "and it was the change that did it");
    // What verify and gc make of some of them, each in a store of its own.
    for bit in (0..ROW_LEN * 8).step_by(11) {
        let other = tempfile::tempdir().unwrap();
        for folder in ["index", "packs"] {
            std::fs::create_dir(other.path().join(folder)).unwrap();
        }
        let pack = only_pack(home.path());
        std::fs::copy(&pack, other.path().join("packs").join(pack.file_name().unwrap())).unwrap();
        let mut changed = image.clone();
        let digest = Digest::of(&all[bit % all.len()]);
        let places: Vec<usize> = image.windows(32).enumerate().filter(|(_, window)| window == digest.as_bytes()).map(|(at, _)| at + 32).collect();
        places
            .iter()
            .filter(|at| image[**at + ROW_LEN - 4..**at + ROW_LEN] == (all[bit % all.len()].len() as u32).to_le_bytes())
            .for_each(|at| changed[at + bit / 8] ^= 1 << (bit % 8));
        std::fs::write(other.path().join("index/data.mdb"), changed).unwrap();
        let store = open(other.path());
        let report = store.verify(Repair::Forget, |_, _| {}).unwrap();
        assert!(report.damaged.iter().all(|object| object.digest == digest), "bit {bit}: {report:?}");
        store.insert(&[(digest, all[bit % all.len()].clone().into())]).unwrap();
        store.flush().unwrap();
        assert_eq!(read_all(&store, &all), all.len(), "bit {bit}");
        store.gc(false).unwrap();
    }
}

/// A frame of one object that says something else of itself than what it is.
fn lying_frame(payload: &[u8], codec: u8, object_len: u32) -> Vec<u8> {
    let mut frame = vec![codec, 1, 0];
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(&object_len.to_le_bytes()[..3]);
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn bombs_and_lies_about_lengths_are_refused_before_they_take_memory() {
    let _alone = alone();
    let bomb = zstd::bulk::compress(&vec![0; 1 << 30], 19).unwrap();
    let small = zstd::bulk::compress(&noise(1, 1000), 3).unwrap();
    let baseline = peak_address_space();
    assert!(bomb.len() < 200_000);
    for (payload, codec, len) in [
        (&bomb, 1, 100),
        (&bomb, 1, MAX_OBJECT_LEN),
        (&small, 1, MAX_OBJECT_LEN),
        (&small, 1, 999),
        (&small, 0, small.len() as u32 + 1),
        (&small, 0, small.len() as u32 - 1),
        (&small, 1, 0xFF_FFFF),
        (&small, 7, 1000),
    ] {
        for _ in 0..50 {
            assert!(Frame::decode(&lying_frame(payload, codec, len)).is_err(), "codec {codec}, {len} bytes");
        }
    }
    assert_eq!(Frame::decode(&lying_frame(&small, 1, 1000)).unwrap().object(0).unwrap(), noise(1, 1000));
    let grown = peak_address_space() - baseline;
    assert!(grown < 64 * MAX_FRAME_LEN as u64, "{} MiB were allocated", grown >> 20);
}

#[test]
fn an_index_that_lies_about_its_objects_is_not_believed() {
    let _alone = alone();
    // The pack's index gives objects other names, lengths, frames and places than they have.
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let (right, wrong) = (noise(1, 5000), noise(2, 5000));
    let mut frame = FrameBuilder::new();
    frame.push(&right).unwrap();
    let encoded = frame.finish(None);
    let mut pack = PackBuilder::new();
    pack.push(&encoded, &[(Digest::of(&wrong), 4000)]).unwrap();
    let (tail, index) = pack.finish();
    let bytes = [&header()[..], &encoded, &tail].concat();
    let mut writer = store.pack_writer(PackOrigin::Pulled).unwrap();
    std::io::Write::write_all(&mut writer, &bytes).unwrap();
    writer.finish(Digest::of(&bytes), &index).unwrap();
    assert_eq!(store.get(&Digest::of(&wrong)).unwrap(), None);
    assert_eq!(store.get(&Digest::of(&right)).unwrap(), None, "nobody said that it is here");
    let report = store.verify(Repair::Forget, |_, _| {}).unwrap();
    assert!(report.damaged.is_empty(), "the read has noticed it: {report:?}");
    store.insert(&[(Digest::of(&wrong), wrong.clone().into())]).unwrap();
    store.flush().unwrap();
    assert_eq!(store.get(&Digest::of(&wrong)).unwrap().as_deref(), Some(&wrong[..]));
}

#[test]
fn objects_that_no_row_names_are_found_and_named() {
    let _alone = alone();
    let (home, _) = store_with_pack(false);
    let all = objects();
    // Rows are lost: here, by one bit of the digest in every key.
    let data = home.path().join("index/data.mdb");
    let image = std::fs::read(&data).unwrap();
    let file = std::fs::File::options().write(true).open(&data).unwrap();
    let digest = Digest::of(&all[3]);
    for (at, _) in image.windows(32).enumerate().filter(|(_, window)| window == digest.as_bytes()) {
        file.write_all_at(&[digest.as_bytes()[31] ^ 1], at as u64 + 31).unwrap();
    }
    let store = open(home.path());
    assert_eq!(store.get(&digest).unwrap(), None);
    let report = store.verify(Repair::No, |_, _| {}).unwrap();
    assert_eq!((report.unnamed_objects, report.damaged.len()), (1, 1), "the other name leads to it: {report:?}");
    assert!(store.verify(Repair::Forget, |_, _| {}).unwrap().repaired);
    assert_eq!(read_all(&store, &all), all.len());
    assert!(store.verify(Repair::No, |_, _| {}).unwrap().is_clean());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn pieces_of_packs_may_be_anything(at in any::<proptest::sample::Index>(), bytes in proptest::collection::vec(any::<u8>(), 1..400), how in 0u8..3, streamed: bool) {
        let (home, whole) = store_with_pack(streamed);
        let at = at.index(whole.len());
        let mut damaged = whole.clone();
        match how {
            // Written over, pushed in, cut out.
            0 => bytes.iter().zip(&mut damaged[at..]).for_each(|(new, old)| *old = *new),
            1 => _ = damaged.splice(at..at, bytes.iter().copied()),
            _ => _ = damaged.drain(at..whole.len().min(at + bytes.len())),
        }
        std::fs::write(only_pack(home.path()), &damaged).unwrap();
        let all = objects();
        let store = open(home.path());
        read_all(&store, &all);
        store.verify(Repair::Forget, |_, _| {}).unwrap();
        store.insert(&all.iter().map(|object| (Digest::of(object), object.clone().into())).collect::<Vec<_>>()).unwrap();
        store.flush().unwrap();
        prop_assert_eq!(read_all(&store, &all), all.len());
        drop(store);
        std::fs::remove_dir_all(home.path().join("index")).unwrap();
        let store = open(home.path());
        read_all(&store, &all);
    }
}
