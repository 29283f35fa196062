//! Importing a directory again: what has not changed is not read, and no change goes unseen, whatever a program does to hide it.

mod common;

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use chunker::{ImportAgain, ImportOptions, ImportedAgain, MemoryStore, ObjectSink, ObjectSource, PackSink, SinkError, SourceError, import_directory_again};
use common::{Rng, every_kind, import, path, plain, random_tree, read_back, read_directory, set_mtime};
use layer_format::{Digest, LayerPath};
use proptest::prelude::*;

struct Place {
    dir: tempfile::TempDir,
    folder: tempfile::TempDir,
    store: MemoryStore,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), folder: tempfile::tempdir().unwrap(), store: MemoryStore::new() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn import_with(&self, options: &ImportOptions, reads_all: bool) -> ImportedAgain {
        let again = ImportAgain { folder: self.folder.path(), reads_all };
        import_directory_again(self.dir.path(), &ImportOptions { threads: 2, ..options.clone() }, &again, &self.store, &()).unwrap()
    }

    /// An import that finds what an import into an empty store finds.
    fn import(&self) -> ImportedAgain {
        let done = self.import_with(&ImportOptions::default(), false);
        let naive = import(self.dir.path(), &MemoryStore::new());
        assert_eq!(done.imported.root, naive.root);
        assert_eq!((done.imported.entries, done.imported.files, done.imported.bytes), (naive.entries, naive.files, naive.bytes));
        done
    }

    fn index(&self) -> PathBuf {
        let found: Vec<PathBuf> = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    }
}

/// Longer than a tick of any clock of a file system here.
fn settle() {
    std::thread::sleep(Duration::from_millis(25));
}

/// Changes content, and puts length and `mtime` back.
fn change_in_secret(file: &Path) {
    let before = fs::metadata(file).unwrap();
    let open = OpenOptions::new().write(true).read(true).open(file).unwrap();
    let mut byte = [0];
    open.read_exact_at(&mut byte, before.len() / 2).unwrap();
    open.write_all_at(&[byte[0] ^ 1], before.len() / 2).unwrap();
    set_mtime(file, before.mtime(), before.mtime_nsec());
    let after = fs::metadata(file).unwrap();
    assert_eq!((before.len(), before.mtime(), before.mtime_nsec(), before.ino()), (after.len(), after.mtime(), after.mtime_nsec(), after.ino()));
}

#[test]
fn an_unchanged_tree_is_not_read() {
    let place = Place::new();
    every_kind(place.dir.path());
    settle();
    let first = place.import();
    assert!(first.files_read > 5);
    let second = place.import();
    assert_eq!((second.files_read, second.imported.new_objects), (0, 0));
    assert_eq!(plain(read_back(&place.store, second.imported.root)), plain(read_back(&place.store, first.imported.root)));
    assert_eq!(place.import_with(&ImportOptions::default(), true).files_read, first.files_read, "all of it is read if that is asked for");
    assert_eq!(place.import().files_read, 0, "and remembered by that");
}

#[test]
fn a_change_that_hides_behind_size_and_mtime_is_seen() {
    let place = Place::new();
    for (name, len) in [("small", 100), ("middle", 300_000), ("large", 3_000_000), ("other", 100)] {
        fs::write(place.file(name), Rng(len as u64).bytes(len)).unwrap();
        // As package registries have it: one time for all.
        set_mtime(&place.file(name), 499_162_500, 0);
    }
    settle();
    place.import();
    for name in ["small", "middle", "large"] {
        change_in_secret(&place.file(name));
        settle();
        assert_eq!(place.import().files_read, 1, "{name}");
    }
    // Another file of the same length and time takes the place of one.
    fs::write(place.file("new"), Rng(7).bytes(100)).unwrap();
    set_mtime(&place.file("new"), 499_162_500, 0);
    fs::rename(place.file("new"), place.file("small")).unwrap();
    settle();
    assert_eq!(place.import().files_read, 1);
    // Two directories change names: same paths, other files.
    for (name, seed) in [("x", 8), ("y", 9)] {
        fs::create_dir(place.file(name)).unwrap();
        fs::write(place.file(name).join("f"), Rng(seed).bytes(100)).unwrap();
        set_mtime(&place.file(name).join("f"), 499_162_500, 0);
    }
    settle();
    place.import();
    for (from, to) in [("x", "z"), ("y", "x"), ("z", "y")] {
        fs::rename(place.file(from), place.file(to)).unwrap();
    }
    assert_eq!(place.import().files_read, 2);
}

#[test]
fn a_file_changed_in_the_tick_of_the_import_is_read_by_the_next() {
    let place = Place::new();
    for _ in 0..20 {
        fs::write(place.file("racy"), Rng(1).bytes(50)).unwrap();
        set_mtime(&place.file("racy"), 1, 0);
        place.import();
        // Perhaps in the same tick: the same `ctime`, another content.
        change_in_secret(&place.file("racy"));
        place.import();
    }
}

#[test]
fn hard_links_are_followed_by_their_inode() {
    let place = Place::new();
    fs::write(place.file("b"), Rng(1).bytes(1000)).unwrap();
    fs::hard_link(place.file("b"), place.file("d")).unwrap();
    fs::write(place.file("c"), Rng(2).bytes(1000)).unwrap();
    settle();
    assert_eq!(place.import().files_read, 2);
    assert_eq!(place.import().files_read, 0);
    // A change through the second name is one of the first.
    change_in_secret(&place.file("d"));
    settle();
    assert_eq!(place.import().files_read, 1);
    // A name more before the others: the content has another first name.
    fs::hard_link(place.file("d"), place.file("a")).unwrap();
    settle();
    assert!(place.import().files_read <= 1);
    // Parted: the same content, and a file of its own.
    fs::remove_file(place.file("b")).unwrap();
    fs::copy(place.file("d"), place.file("b")).unwrap();
    settle();
    place.import();
    assert_eq!(place.import().files_read, 0);
}

#[test]
fn metadata_is_taken_anew_without_reading() {
    let place = Place::new();
    fs::create_dir(place.file("d")).unwrap();
    for name in ["d/a", "d/b"] {
        fs::write(place.file(name), b"content").unwrap();
    }
    settle();
    place.import();
    // A directory's bits and times are no reason to read what is in it.
    fs::set_permissions(place.file("d"), fs::Permissions::from_mode(0o750)).unwrap();
    set_mtime(&place.file("d"), 12, 34);
    assert_eq!(place.import().files_read, 0);
    // A file's are: they change its `ctime`.
    fs::set_permissions(place.file("d/a"), fs::Permissions::from_mode(0o600)).unwrap();
    settle();
    assert_eq!(place.import().files_read, 1);
}

#[test]
fn other_options_do_not_mislead() {
    let place = Place::new();
    for name in ["a", "b"] {
        fs::write(place.file(name), name).unwrap();
    }
    settle();
    let at = ImportOptions { at: path("opt/x"), ..ImportOptions::default() };
    place.import();
    assert_eq!(place.import_with(&at, false).files_read, 2, "each place in the layer has an index of its own");
    assert_eq!(place.import_with(&at, false).files_read, 0);
    let without = ImportOptions { exclude: vec![path("a")], owner: Some((1, 2)), ..ImportOptions::default() };
    let done = place.import_with(&without, false);
    assert_eq!(done.files_read, 0);
    let tree = read_back(&place.store, done.imported.root);
    assert_eq!(tree.keys().cloned().collect::<Vec<_>>(), [LayerPath::root(), path("b")]);
    assert_eq!((tree[&path("b")].meta.uid, tree[&path("b")].meta.gid), (1, 2));
    place.import();
}

#[test]
fn a_damaged_index_costs_reading_and_nothing_else() {
    let place = Place::new();
    random_tree(place.dir.path(), 11, 80);
    settle();
    let first = place.import();
    let good = fs::read(place.index()).unwrap();
    for at in (0..good.len()).step_by(good.len() / 40) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(place.index(), &bad).unwrap();
        place.import();
        fs::write(place.index(), &good[..at]).unwrap();
        place.import();
    }
    fs::remove_file(place.index()).unwrap();
    assert_eq!(place.import().files_read, first.files_read);
    fs::remove_file(place.index()).unwrap();
    fs::create_dir(place.index_where_none_is()).unwrap();
    assert_eq!(place.import().files_read, first.files_read, "an index that cannot be written fails no import");
}

impl Place {
    /// The name that the index has, taken while there is none.
    fn index_where_none_is(&self) -> PathBuf {
        self.import();
        let index = self.index();
        fs::remove_file(&index).unwrap();
        index
    }
}

/// A store that has lost objects.
struct Lossy {
    store: MemoryStore,
    lost: Mutex<HashSet<Digest>>,
}

impl ObjectSink for Lossy {
    fn present(&self, digests: &[Digest]) -> Result<Vec<bool>, SinkError> {
        let lost = self.lost.lock().unwrap();
        Ok(self.store.present(digests)?.iter().zip(digests).map(|(here, digest)| *here && !lost.contains(digest)).collect())
    }

    fn create_pack(&self) -> Result<Box<dyn PackSink + '_>, SinkError> {
        self.store.create_pack()
    }
}

impl ObjectSource for Lossy {
    fn object(&self, digest: &Digest) -> Result<Vec<u8>, SourceError> {
        match self.lost.lock().unwrap().contains(digest) {
            true => Err(SourceError::message("lost")),
            false => self.store.object(digest),
        }
    }
}

#[test]
fn what_the_store_has_lost_is_read_again() {
    let place = Place::new();
    fs::write(place.file("small"), Rng(1).bytes(5_000)).unwrap();
    fs::write(place.file("other"), Rng(2).bytes(5_000)).unwrap();
    fs::write(place.file("large"), Rng(3).bytes(8_000_000)).unwrap();
    settle();
    let store = Lossy { store: MemoryStore::new(), lost: Mutex::default() };
    let again = ImportAgain { folder: place.folder.path(), reads_all: false };
    let run = || import_directory_again(place.dir.path(), &ImportOptions { threads: 2, ..ImportOptions::default() }, &again, &store, &()).unwrap();
    let first = run();
    assert_eq!(run().files_read, 0);
    // Each object in turn, be it a chunk or a node: whatever file needs it is read, and the store is whole again.
    let objects = store.store.objects();
    for lost in objects.iter().step_by(objects.len() / 25) {
        store.lost.lock().unwrap().insert(*lost);
        let packs = store.store.packs().len();
        let done = run();
        assert_eq!(done.imported.root, first.imported.root);
        assert!(done.files_read <= 1);
        assert!(store.store.packs().len() > packs, "{lost} was not written again");
        store.lost.lock().unwrap().clear();
    }
    // All gone, as after the image was removed and its packs collected.
    store.lost.lock().unwrap().extend(objects);
    assert_eq!(run().files_read, 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_histories_are_seen_as_they_are(seed: u64) {
        let place = Place::new();
        random_tree(place.dir.path(), seed, 60);
        let mut rng = Rng(seed);
        for round in 0..6 {
            place.import();
            let files: Vec<PathBuf> = read_directory(place.dir.path()).into_keys()
                .map(|path| place.dir.path().join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path.as_bytes())))
                .filter(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() > 0)).collect();
            for _ in 0..rng.below(6) {
                if files.is_empty() {
                    break;
                }
                let mut pick = || &files[rng.below(files.len() as u64) as usize];
                let (one, other) = (pick().clone(), pick().clone());
                if !one.exists() || !other.exists() {
                    continue;
                }
                match rng.below(5) {
                    0 => change_in_secret(&one),
                    1 => fs::rename(&one, &other).unwrap(),
                    2 => OpenOptions::new().append(true).open(&one).unwrap().write_all(b"more").unwrap(),
                    3 => fs::remove_file(&one).unwrap(),
                    _ => {
                        fs::remove_file(&other).unwrap();
                        if one != other {
                            fs::hard_link(&one, &other).unwrap();
                        }
                    }
                }
                if let Some(file) = files.iter().find(|file| file.exists() && fs::metadata(file).is_ok_and(|meta| meta.len() > 0))
                    && round % 2 == 0
                {
                    change_in_secret(file);
                }
            }
            if rng.below(2) == 0 {
                settle();
            }
        }
        place.import();
    }
}
