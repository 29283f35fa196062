//! Checkout of images as plain directories: everything arrives, an old version is reused only as far as it is right, the target is
//! the old version or the new one whatever happens, and a hostile tree reaches nothing outside.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chunker::{CheckedOut, CheckoutOptions, ImportOptions, MemoryStore, ObjectSource, RestoreError, SourceError, checkout, export_tar, import_directory};
use common::{FoundKind, Rng, Tree, every_kind, import, path, plain, random_tree, read_directory, set_mtime};
use layer_format::chunk::ChunkRef;
use layer_format::entry::{Entry, HardLink, Kind, Meta};
use layer_format::recipe::{Extent, Recipe};
use layer_format::tree::TreeBuilder;
use layer_format::{Digest, LayerPath, pack};
use proptest::prelude::*;

struct Place {
    /// With `v1`, `v2` to import, and `out`.
    folder: tempfile::TempDir,
    remembered: tempfile::TempDir,
    store: MemoryStore,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), remembered: tempfile::tempdir().unwrap(), store: MemoryStore::new() }
    }

    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.folder.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn options(&self) -> CheckoutOptions<'_> {
        CheckoutOptions { folder: self.remembered.path(), overwrite: false, threads: 3 }
    }

    fn try_checkout(&self, layers: &[Digest], source: &dyn ObjectSource) -> Result<CheckedOut, RestoreError> {
        checkout(layers, source, &self.out(), &self.options(), &())
    }

    /// A checkout after which the directory is what `source` is, and nothing else lies beside it.
    fn checkout(&self, source: &Path) -> CheckedOut {
        let root = import(source, &self.store).root;
        let done = self.try_checkout(&[root], &self.store).unwrap();
        assert_same(source, &self.out());
        let names: BTreeSet<_> = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| !name.as_bytes().starts_with(b".")), "{names:?}");
        settle();
        done
    }
}

/// Longer than a tick of any clock of a file system here.
fn settle() {
    std::thread::sleep(Duration::from_millis(25));
}

/// What two names being of one file looks like: for each inode its names, and the blocks that it takes.
fn inodes(dir: &Path) -> BTreeSet<(Vec<LayerPath>, bool)> {
    let mut names: BTreeMap<u64, (Vec<LayerPath>, bool)> = BTreeMap::new();
    for (path, found) in read_directory(dir) {
        if matches!(found.kind, FoundKind::Other(Kind::Directory { .. })) {
            continue;
        }
        let stat = fs::symlink_metadata(dir.join(OsStr::from_bytes(path.as_bytes()))).unwrap();
        let entry = names.entry(stat.ino()).or_insert((Vec::new(), stat.is_file() && stat.blocks() * 512 + 65_536 < stat.len()));
        entry.0.push(path);
    }
    names.into_values().collect()
}

fn as_checked_out(dir: &Path) -> Tree {
    let mut tree = plain(read_directory(dir));
    tree.retain(|_, found| !matches!(found.kind, FoundKind::Other(Kind::Socket)));
    for found in tree.values_mut() {
        found.meta.xattrs.retain(|(name, _)| !name.starts_with(b"user.overlay."));
    }
    tree
}

fn assert_same(source: &Path, out: &Path) {
    let (expected, found) = (as_checked_out(source), as_checked_out(out));
    for (path, wanted) in &expected {
        assert_eq!(found.get(path).map(|found| &found.meta), Some(&wanted.meta), "{path}");
        assert!(found[path].kind == wanted.kind, "{path}: the content differs");
    }
    assert_eq!(found.len(), expected.len());
    assert_eq!(inodes(out), inodes(source), "names of one file, or holes");
}

fn change_in_secret(file: &Path) {
    let before = fs::metadata(file).unwrap();
    let open = OpenOptions::new().write(true).read(true).open(file).unwrap();
    let mut byte = [0];
    open.read_exact_at(&mut byte, before.len() / 2).unwrap();
    open.write_all_at(&[byte[0] ^ 1], before.len() / 2).unwrap();
    set_mtime(file, before.mtime(), before.mtime_nsec());
}

#[test]
fn every_kind_of_entry_arrives() {
    let place = Place::new();
    let v1 = place.dir("v1");
    every_kind(&v1);
    fs::create_dir(v1.join("locked")).unwrap();
    fs::write(v1.join("locked/inside"), "x").unwrap();
    fs::set_permissions(v1.join("locked"), Permissions::from_mode(0o500)).unwrap();
    fs::create_dir(v1.join("shared")).unwrap();
    fs::set_permissions(v1.join("shared"), Permissions::from_mode(0o3777)).unwrap();
    fs::write(v1.join("read only"), "x").unwrap();
    fs::set_permissions(v1.join("read only"), Permissions::from_mode(0o444)).unwrap();
    fs::write(v1.join("many chunks"), Rng(9).bytes(500_000)).unwrap();
    fs::write(v1.join("very large"), Rng(10).bytes(9_000_000)).unwrap();
    let first = place.checkout(&v1);
    assert_eq!(first.kept_files, 0);
    let tree = read_directory(&v1);
    assert_eq!(first.entries, tree.len() as u64);
    assert_eq!(first.skipped, []);
    // Again: what is no hard link is kept.
    let again = place.checkout(&v1);
    let links: usize = inodes(&v1).iter().filter(|(names, _)| names.len() > 1).count();
    assert!(again.written_files <= links as u64, "{again:?}");
    assert_eq!((again.entries, again.bytes), (first.entries, first.bytes));
    assert_eq!(again.kept_files + again.written_files, first.written_files);
}

#[test]
fn only_what_changed_is_written() {
    let place = Place::new();
    let (v1, v2) = (place.dir("v1"), place.dir("v2"));
    for number in 0..600 {
        let name = format!("d{}/f{number}", number % 20);
        for (version, dir) in [(1, &v1), (2, &v2)] {
            let file = dir.join(&name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, Rng(number).bytes(2000)).unwrap();
            // As a new build of the same sources has it: another time, the same content.
            set_mtime(&file, 1000 * version, 5);
        }
    }
    fs::write(v2.join("d3/f3"), "changed").unwrap();
    fs::write(v2.join("d3/new"), "new").unwrap();
    fs::remove_file(v2.join("d4/f4")).unwrap();
    fs::set_permissions(v2.join("d5/f5"), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(place.checkout(&v1).written_files, 600);
    let inode = |name: &str| fs::metadata(place.out().join(name)).unwrap().ino();
    let (same, other) = (inode("d6/f6"), inode("d5/f5"));
    let second = place.checkout(&v2);
    // Changed, new, and with another mode: its content may be shared where the file system can.
    assert!((2..=3).contains(&second.written_files), "{second:?}");
    assert_eq!(second.kept_files + second.written_files, 600);
    assert!(inode("d6/f6") == same && inode("d5/f5") != other);
    assert_eq!(place.checkout(&v2).written_files, 0, "what was kept is remembered like what was written");
    assert!((597..=598).contains(&place.checkout(&v1).kept_files));
}

#[test]
fn what_was_touched_is_written_again() {
    let place = Place::new();
    let v1 = place.dir("v1");
    for name in ["a", "b", "c", "d", "e", "large"] {
        fs::write(v1.join(name), Rng(name.len() as u64).bytes(if name == "large" { 5_000_000 } else { 5_000 })).unwrap();
    }
    fs::create_dir(v1.join("dir")).unwrap();
    fs::write(v1.join("dir/x"), "x").unwrap();
    place.checkout(&v1);
    let out = place.out();
    change_in_secret(&out.join("a"));
    change_in_secret(&out.join("large"));
    // With a name elsewhere it could be changed from there: and must not be changed from here.
    let outside = place.folder.path().join("outside");
    fs::hard_link(out.join("b"), &outside).unwrap();
    let before = fs::metadata(&outside).unwrap();
    fs::set_permissions(out.join("c"), Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(out.join("d")).unwrap();
    symlink(&outside, out.join("d")).unwrap();
    fs::remove_dir_all(out.join("dir")).unwrap();
    symlink(place.folder.path().join("v1/dir"), out.join("dir")).unwrap();
    fs::write(out.join("added"), "lost").unwrap();
    assert_eq!(place.checkout(&v1).kept_files, 1);
    let after = fs::metadata(&outside).unwrap();
    assert_eq!((before.ino(), before.mtime(), before.mode()), (after.ino(), after.mtime(), after.mode()));
    assert_eq!((after.nlink(), fs::read(&outside).unwrap()), (1, fs::read(v1.join("b")).unwrap()));
    assert_eq!(fs::read(v1.join("dir/x")).unwrap(), b"x", "the link was not followed");
    // What is remembered is damaged or gone: all is written.
    let index = fs::read_dir(place.remembered.path()).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.extension() == Some(OsStr::new("index")));
    let index = index.unwrap();
    let mut bytes = fs::read(&index).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&index, bytes).unwrap();
    assert_eq!(place.checkout(&v1).kept_files, 0);
    fs::remove_file(&index).unwrap();
    assert_eq!(place.checkout(&v1).kept_files, 0);
    assert_eq!(place.checkout(&v1).kept_files, 7);
}

#[test]
fn only_what_a_checkout_made_is_replaced() {
    let place = Place::new();
    let v1 = place.dir("v1");
    fs::write(v1.join("f"), "new").unwrap();
    let root = import(&v1, &place.store).root;
    let out = place.out();
    let refused = |what: &str| match place.try_checkout(&[root], &place.store) {
        Err(RestoreError::Occupied { .. }) => {}
        other => panic!("{what}: {other:?}"),
    };
    fs::write(&out, "a file").unwrap();
    refused("a file");
    fs::remove_file(&out).unwrap();
    symlink(&v1, &out).unwrap();
    refused("a link");
    fs::remove_file(&out).unwrap();
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "mine").unwrap();
    refused("someone's directory");
    assert_eq!(fs::read(out.join("mine")).unwrap(), b"mine");
    let options = CheckoutOptions { overwrite: true, ..place.options() };
    checkout(&[root], &place.store, &out, &options, &()).unwrap();
    assert_same(&v1, &out);
    place.checkout(&v1);
    // Another directory under the name of a checkout is someone's.
    fs::rename(&out, place.folder.path().join("moved")).unwrap();
    fs::create_dir(&out).unwrap();
    place.checkout(&v1);
    fs::rename(place.folder.path().join("v1"), place.folder.path().join("v0")).unwrap();
    fs::remove_dir_all(&out).unwrap();
    fs::rename(place.folder.path().join("moved"), &out).unwrap();
    refused("the checkout before the last one");
    // An empty directory is no one's loss; what a killed checkout left goes.
    fs::remove_dir_all(&out).unwrap();
    fs::create_dir(&out).unwrap();
    fs::create_dir_all(place.folder.path().join(".out.turbo-0123456789abcdef/d")).unwrap();
    fs::write(place.folder.path().join(".out.turbo-0123456789abcdef/d/f"), "left").unwrap();
    place.checkout(&place.folder.path().join("v0"));
}

/// A store that fails after some answers.
struct Failing<'a> {
    store: &'a MemoryStore,
    left: AtomicI64,
}

impl ObjectSource for Failing<'_> {
    fn object(&self, digest: &Digest) -> Result<Vec<u8>, SourceError> {
        match self.left.fetch_sub(1, Ordering::SeqCst) {
            1.. => self.store.object(digest),
            _ => Err(SourceError::message("the store has failed")),
        }
    }
}

#[test]
fn a_failure_anywhere_leaves_the_old_version() {
    let place = Place::new();
    let (v1, v2) = (place.dir("v1"), place.dir("v2"));
    random_tree(&v1, 3, 60);
    random_tree(&v2, 4, 60);
    fs::write(v2.join("very large"), Rng(5).bytes(5_000_000)).unwrap();
    place.checkout(&v1);
    let root = import(&v2, &place.store).root;
    let all = Failing { store: &place.store, left: AtomicI64::new(i64::MAX) };
    let elsewhere = CheckoutOptions { folder: place.remembered.path(), overwrite: false, threads: 1 };
    checkout(&[root], &all, &place.folder.path().join("elsewhere"), &elsewhere, &()).unwrap();
    let asked = i64::MAX - all.left.load(Ordering::SeqCst);
    // The tree is read once more for what is remembered: that may fail.
    for answers in 0..asked {
        let failing = Failing { store: &place.store, left: AtomicI64::new(answers) };
        if place.try_checkout(&[root], &failing).is_ok() {
            assert!(answers > 20, "a checkout with {answers} objects");
            break;
        }
        let names: Vec<_> = fs::read_dir(place.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        if answers % 8 == 0 {
            assert_same(&v1, &place.out());
        }
    }
    assert_same(&v2, &place.out());
    assert!(place.checkout(&v2).skipped.is_empty());
}

#[test]
fn a_stack_of_layers_is_what_its_tar_is() {
    for seed in 0..12 {
        let place = Place::new();
        let mut rng = Rng(seed);
        let layers: Vec<Digest> = (0..3)
            .map(|number| {
                let dir = place.dir(&format!("v{number}"));
                random_tree(&dir, seed * 10 + number, 60);
                let directories: Vec<LayerPath> = read_directory(&dir)
                    .into_iter()
                    .filter(|(_, found)| matches!(found.kind, FoundKind::Other(Kind::Directory { .. })))
                    .map(|(path, _)| path)
                    .collect();
                for directory in directories.iter().filter(|_| number > 0) {
                    let full = dir.join(OsStr::from_bytes(directory.as_bytes()));
                    for name in ["a", "b", "Z", "aa"] {
                        if rng.below(4) == 0 && fs::symlink_metadata(full.join(name)).is_err() {
                            rustix::fs::mknodat(rustix::fs::CWD, full.join(name), rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::empty(), 0).unwrap();
                        }
                    }
                    if rng.below(4) == 0 {
                        let _ = rustix::fs::setxattr(&full, "user.overlay.opaque", b"y", rustix::fs::XattrFlags::empty());
                    }
                }
                import_directory(&dir, &ImportOptions { overlay: true, threads: 2, ..ImportOptions::default() }, &place.store, &()).unwrap().root
            })
            .collect();
        let mut tar = Vec::new();
        export_tar(&layers, &place.store, &mut tar, &()).unwrap();
        let (file, unpacked) = (place.folder.path().join("tar"), place.dir("unpacked"));
        fs::write(&file, tar).unwrap();
        let status = Command::new("tar").args(["--xattrs", "--xattrs-include=*", "-xpSf"]).arg(&file).arg("-C").arg(&unpacked).status().unwrap();
        assert!(status.success());
        place.try_checkout(&layers, &place.store).unwrap();
        let (expected, found) = (as_checked_out(&unpacked), as_checked_out(&place.out()));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert!(found == expected, "seed {seed}");
        assert_eq!(inodes(&place.out()).len(), inodes(&unpacked).len());
        settle();
        let again = place.try_checkout(&layers, &place.store).unwrap();
        assert!(as_checked_out(&place.out()) == expected && again.kept_files > again.written_files, "{again:?}");
    }
}

/// A store with a tree of these entries, and these chunks.
fn tree_of(entries: Vec<Entry>, chunks: &[&[u8]]) -> (MemoryStore, Digest) {
    use chunker::ObjectSink;
    let store = MemoryStore::new();
    let mut objects: Vec<Vec<u8>> = chunks.iter().map(|chunk| chunk.to_vec()).collect();
    let mut put = |bytes: Vec<u8>| {
        let digest = Digest::of(&bytes);
        objects.push(bytes);
        Ok::<_, std::convert::Infallible>(digest)
    };
    let mut builder = TreeBuilder::new();
    for entry in entries {
        builder.push(entry, &mut put).unwrap();
    }
    let root = builder.finish(&mut put).unwrap().digest;
    let (file, index) = pack::build(objects.iter().map(|object| &object[..]), Some(1)).unwrap();
    let mut sink = store.create_pack().unwrap();
    std::io::Write::write_all(&mut sink, &file).unwrap();
    sink.finish(Digest::of(&file), index).unwrap();
    (store, root)
}

#[test]
fn a_hostile_tree_reaches_nothing_outside_and_leaves_nothing() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "untouched").unwrap();
    let target = outside.path().as_os_str().as_bytes().to_vec();
    let directory = |at: &str| Entry { path: path(at), meta: Meta { mode: 0o755, ..Meta::default() }, kind: Kind::Directory { opaque: false } };
    let data = |len: u32| Recipe::Extents(vec![Extent::Data(ChunkRef { digest: Digest::of(b"evil"), len })]);
    let file = |at: &str, recipe: Recipe| Entry { path: path(at), meta: Meta { mode: 0o4755, ..Meta::default() }, kind: Kind::File(recipe) };
    let link = |at: &str| Entry { path: path(at), meta: Meta::default(), kind: Kind::Symlink(target.clone()) };
    let linked = |at: &str| {
        let mut entry = file(at, data(4));
        entry.meta.hard_link = Some(HardLink { group: 1, count: 2 });
        entry
    };
    let unknown = Recipe::Extents(vec![Extent::Data(ChunkRef { digest: Digest::of(b"?"), len: 1 })]);
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        ("below a link", vec![directory(""), link("a"), file("a/victim", data(4))]),
        ("a directory below a link", vec![directory(""), link("a"), directory("a/new")]),
        ("far below a link", vec![directory(""), directory("a"), link("a/b"), file("a/b/victim", data(4))]),
        ("a name more below a link", vec![directory(""), link("a"), linked("b"), linked("a/c")]),
        ("below a file", vec![directory(""), file("a", data(4)), file("a/b", data(4))]),
        ("below nothing", vec![directory(""), file("a/b/c", data(4))]),
        ("endless", vec![directory(""), file("a", Recipe::Extents(vec![Extent::Hole(1 << 62), Extent::Hole(1 << 62)]))]),
        ("another length", vec![directory(""), file("a", data(5))]),
        ("a chunk that is not there", vec![directory(""), file("a", unknown)]),
    ];
    for (name, entries) in cases {
        let (store, root) = tree_of(entries, &[b"evil"]);
        for _ in 0..10 {
            let place = Place::new();
            assert!(place.try_checkout(&[root], &store).is_err(), "{name}");
            assert_eq!(fs::read_dir(place.folder.path()).unwrap().count(), 0, "{name}: something is left");
        }
        let names: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["victim"], "{name}");
        assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"untouched", "{name}");
    }
}

#[test]
fn checkouts_to_one_directory_at_once_end_as_one_of_them() {
    let place = Place::new();
    let dirs = [place.dir("v1"), place.dir("v2")];
    let roots: Vec<Digest> = dirs
        .iter()
        .enumerate()
        .map(|(number, dir)| {
            random_tree(dir, number as u64 + 40, 80);
            import(dir, &place.store).root
        })
        .collect();
    std::thread::scope(|scope| {
        for root in &roots {
            let place = &place;
            scope.spawn(move || (0..8).for_each(|_| drop(place.try_checkout(&[*root], &place.store).unwrap())));
        }
    });
    let found = as_checked_out(&place.out());
    assert!(dirs.iter().any(|dir| as_checked_out(dir) == found));
    assert_eq!(fs::read_dir(place.folder.path()).unwrap().count(), 3);
    place.checkout(&dirs[0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_versions_follow_one_another(seed: u64) {
        let place = Place::new();
        let mut rng = Rng(seed);
        for round in 0..5 {
            let dir = place.dir(&format!("v{round}"));
            // Few seeds, so that versions share files.
            random_tree(&dir, seed % 1000 + rng.below(3), 40 + rng.below(40));
            place.checkout(&dir);
            let files: Vec<PathBuf> = read_directory(&place.out()).into_keys().map(|path| place.out().join(OsStr::from_bytes(path.as_bytes())))
                .filter(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() > 0)).collect();
            for file in files.iter().filter(|_| rng.below(10) == 0) {
                change_in_secret(file);
            }
        }
    }
}
