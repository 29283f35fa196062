//! Import of directories: everything survives, the result does not depend on threads, known objects are not written.

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use chunker::{Counters, ImportError, ImportOptions, MemoryStore, ObjectSink, PackSink, SinkError, import_directory};
use common::{Found, FoundKind, Rng, every_kind, import, path, plain, random_tree, read_back, read_directory};
use layer_format::Digest;
use layer_format::entry::Kind;
use layer_format::pack::{PackIndex, read_index};
use proptest::prelude::*;

fn options(threads: usize) -> ImportOptions {
    ImportOptions { threads, ..ImportOptions::default() }
}

#[test]
fn every_kind_of_entry_survives() {
    let dir = tempfile::tempdir().unwrap();
    let attributes = every_kind(dir.path());
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let store = MemoryStore::new();
    let imported = import(dir.path(), &store);
    let tree = read_back(&store, imported.root);
    let mut expected = read_directory(dir.path());
    if attributes {
        expected.get_mut(&path("tool")).unwrap().meta.xattrs.retain(|(name, _)| !name.starts_with(b"user.overlay."));
        for name in ["a first name", "b/tool again"] {
            expected.get_mut(&path(name)).unwrap().meta.xattrs.retain(|(name, _)| !name.starts_with(b"user.overlay."));
        }
        assert_eq!(tree[&path("tool")].meta.xattrs.len(), 2);
    }
    assert_eq!(plain(tree.clone()), plain(expected));
    assert_eq!(imported.entries, tree.len() as u64);
    assert_eq!(imported.skipped, []);
    let link = |name: &str| tree[&path(name)].meta.hard_link;
    let group = Digest::of(b"a first name").prefix64();
    assert_eq!(link("tool").map(|link| (link.group, link.count)), Some((group, 3)));
    assert_eq!((link("b/tool again"), link("a first name")), (link("tool"), link("tool")));
    assert_eq!(link("link").map(|link| link.count), Some(2));
    assert_eq!(link("large"), None);
    let holes = |name: &str| match &tree[&path(name)].kind {
        FoundKind::File { hole_bytes, .. } => *hole_bytes,
        FoundKind::Other(_) => 0,
    };
    assert_eq!(holes("hollow"), 123_456_789);
    assert!(holes("sparse") > 8 << 20, "{}", holes("sparse"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_random_tree_survives(seed: u64, count in 0u64..120) {
        let dir = tempfile::tempdir().unwrap();
        random_tree(dir.path(), seed, count);
        let store = MemoryStore::new();
        let imported = import(dir.path(), &store);
        prop_assert_eq!(plain(read_back(&store, imported.root)), plain(read_directory(dir.path())));
        let objects = store.objects();
        prop_assert_eq!(objects.len() as u64, imported.new_objects);
        prop_assert_eq!(objects.iter().collect::<HashSet<_>>().len(), objects.len(), "an object was written twice");
    }
}

#[test]
fn the_packs_do_not_depend_on_the_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    random_tree(dir.path(), 7, 600);
    let results: Vec<_> = [1, 2, 8]
        .map(|threads| {
            let store = MemoryStore::new();
            let imported = import_directory(dir.path(), &options(threads), &store, &()).unwrap();
            (imported, store.packs())
        })
        .into();
    assert!(!results[0].1.is_empty());
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

#[test]
fn file_content_and_nodes_lie_in_separate_frames_in_the_order_of_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..500 {
        fs::write(dir.path().join(format!("{number:03}")), Rng(number).text(4000)).unwrap();
    }
    let store = MemoryStore::new();
    let imported = import(dir.path(), &store);
    let index = read_index(&store.packs()[0].1).unwrap();
    let chunks: Vec<Digest> = read_back(&store, imported.root)
        .values()
        .filter_map(|found| match &found.kind {
            FoundKind::File { content, .. } => Some(Digest::of(content)),
            FoundKind::Other(_) => None,
        })
        .collect();
    let packed: Vec<Digest> = index.objects.iter().map(|object| object.digest).filter(|digest| chunks.contains(digest)).collect();
    assert_eq!(packed, chunks);
    for frame in 0..index.frames.len() as u32 {
        let kinds: HashSet<bool> = index.objects.iter().filter(|object| object.frame == frame).map(|object| chunks.contains(&object.digest)).collect();
        assert_eq!(kinds.len(), 1, "frame {frame} mixes content and nodes");
    }
}

#[test]
fn a_second_import_writes_nothing_and_a_change_little() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..1000 {
        fs::write(dir.path().join(number.to_string()), Rng(number).bytes(3000)).unwrap();
    }
    fs::write(dir.path().join("large"), Rng(1000).bytes(20_000_000)).unwrap();
    let store = MemoryStore::new();
    let first = import(dir.path(), &store);
    assert_eq!(first.new_objects, store.objects().len() as u64);
    let second = import(dir.path(), &store);
    assert_eq!((second.root, second.new_objects, second.new_bytes, second.stored_bytes), (first.root, 0, 0, 0));
    assert_eq!(store.packs().len(), 1);
    fs::write(dir.path().join("500"), b"changed").unwrap();
    let mut large = fs::read(dir.path().join("large")).unwrap();
    large[10_000_000] ^= 1;
    fs::write(dir.path().join("large"), large).unwrap();
    let third = import(dir.path(), &store);
    assert!(third.new_objects <= 8, "{} objects for a change in two files of 1001", third.new_objects);
    assert_eq!(third.entries, 1002);
}

#[test]
fn a_tree_is_placed_below_at_and_its_parents_are_plain() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"x").unwrap();
    let store = MemoryStore::new();
    let options = ImportOptions { at: path("opt/app"), owner: Some((5, 6)), exclude: vec![path("left/out")], ..options(2) };
    fs::create_dir_all(dir.path().join("left/out/below")).unwrap();
    let imported = import_directory(dir.path(), &options, &store, &()).unwrap();
    let tree = read_back(&store, imported.root);
    let names: Vec<String> = tree.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["/", "/opt", "/opt/app", "/opt/app/file", "/opt/app/left"]);
    let Found { meta, .. } = &tree[&path("opt")];
    assert_eq!((meta.mode, meta.uid, meta.gid, meta.mtime_s, meta.mtime_ns), (0o755, 0, 0, 0, 0));
    assert_eq!((tree[&path("opt/app/file")].meta.uid, tree[&path("opt/app")].meta.gid), (5, 6));
}

#[test]
fn an_empty_directory_is_a_tree() {
    let dir = tempfile::tempdir().unwrap();
    let store = MemoryStore::new();
    let imported = import(dir.path(), &store);
    assert_eq!((imported.entries, imported.files, imported.bytes), (1, 0, 0));
    assert_eq!(read_back(&store, imported.root).len(), 1);
}

#[test]
fn a_hard_link_to_outside_counts_the_names_inside() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("in")).unwrap();
    fs::write(dir.path().join("in/alone"), b"1").unwrap();
    fs::hard_link(dir.path().join("in/alone"), dir.path().join("outside")).unwrap();
    fs::write(dir.path().join("in/two"), b"2").unwrap();
    fs::hard_link(dir.path().join("in/two"), dir.path().join("in/zwei")).unwrap();
    fs::hard_link(dir.path().join("in/two"), dir.path().join("outside 2")).unwrap();
    let store = MemoryStore::new();
    let tree = read_back(&store, import(&dir.path().join("in"), &store).root);
    assert_eq!(tree[&path("alone")].meta.hard_link, None);
    assert_eq!(tree[&path("two")].meta.hard_link.map(|link| link.count), Some(2));
}

#[test]
fn overlay_whiteouts_are_only_taken_where_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let whiteout = rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("gone"), rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::empty(), 0);
    if whiteout.is_err() || !common::has_xattrs(dir.path()) {
        eprintln!("skipped: whiteouts or attributes cannot be made here");
        return;
    }
    fs::create_dir(dir.path().join("opaque")).unwrap();
    rustix::fs::setxattr(dir.path().join("opaque"), "user.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
    let store = MemoryStore::new();
    let kinds = |overlay| {
        let options = ImportOptions { overlay, ..options(2) };
        let tree = read_back(&store, import_directory(dir.path(), &options, &store, &()).unwrap().root);
        assert_eq!(tree[&path("opaque")].meta.xattrs, []);
        [tree[&path("gone")].kind.clone(), tree[&path("opaque")].kind.clone()]
    };
    assert_eq!(kinds(true), [FoundKind::Other(Kind::Whiteout), FoundKind::Other(Kind::Directory { opaque: true })]);
    assert_eq!(kinds(false), [FoundKind::Other(Kind::CharDevice { major: 0, minor: 0 }), FoundKind::Other(Kind::Directory { opaque: false })]);
}

#[test]
fn progress_adds_up() {
    let dir = tempfile::tempdir().unwrap();
    random_tree(dir.path(), 3, 100);
    let (store, counters) = (MemoryStore::new(), Counters::default());
    let imported = import_directory(dir.path(), &options(2), &store, &counters).unwrap();
    assert_eq!(counters.entries.into_inner(), imported.entries);
    assert!(counters.bytes.into_inner() <= imported.bytes);
    assert!(counters.stored.into_inner() <= imported.stored_bytes);
}

/// A store that does something when it is asked for the first time.
struct Hooked<F> {
    store: MemoryStore,
    hook: F,
    done: AtomicBool,
}

impl<F: Fn() + Sync> ObjectSink for Hooked<F> {
    fn present(&self, digests: &[Digest]) -> Result<Vec<bool>, SinkError> {
        if !self.done.swap(true, Ordering::SeqCst) {
            (self.hook)();
        }
        self.store.present(digests)
    }

    fn create_pack(&self) -> Result<Box<dyn PackSink + '_>, SinkError> {
        self.store.create_pack()
    }
}

fn import_while(dir: &Path, hook: impl Fn() + Sync) -> ImportError {
    let sink = Hooked { store: MemoryStore::new(), hook, done: AtomicBool::new(false) };
    import_directory(dir, &options(2), &sink, &()).unwrap_err()
}

#[test]
fn a_file_that_changes_meanwhile_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (large, last) = (dir.path().join("large"), dir.path().join("last"));
    let prepare = || {
        fs::write(&large, Rng(1).bytes(20_000_000)).unwrap();
        let _ = fs::remove_dir_all(&last);
        let _ = fs::remove_file(&last);
        fs::write(&last, b"x").unwrap();
    };
    let changes: [(&Path, &(dyn Fn() + Sync)); 4] = [
        (&large, &|| fs::OpenOptions::new().append(true).open(&large).unwrap().write_all(b"more").unwrap()),
        (&large, &|| fs::OpenOptions::new().write(true).open(&large).unwrap().set_len(19_000_000).unwrap()),
        (&last, &|| fs::remove_file(&last).unwrap()),
        (&large, &|| fs::OpenOptions::new().write(true).open(&large).unwrap().write_all(b"other").unwrap()),
    ];
    for (path, change) in changes {
        prepare();
        match import_while(dir.path(), change) {
            ImportError::Changed { path: named } => assert_eq!(named, path),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_may_not_be_read_is_named_with_the_remedy() {
    if rustix::process::geteuid().is_root() {
        // Root may read everything: run this test again as nobody.
        let test = std::env::current_exe().unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(test).args(["--exact", "what_may_not_be_read_is_named_with_the_remedy"]);
        match command.current_dir("/").output() {
            Ok(output) if output.status.success() => {}
            Ok(output) if String::from_utf8_lossy(&output.stderr).starts_with("setpriv: failed") => eprintln!("skipped: cannot become another user"),
            Ok(output) => panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
            Err(error) => eprintln!("skipped: cannot become another user: {error}"),
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    for is_dir in [false, true] {
        if is_dir {
            fs::remove_file(&secret).unwrap();
            fs::create_dir(&secret).unwrap();
        } else {
            fs::write(&secret, b"x").unwrap();
        }
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
        let error = import_directory(dir.path(), &options(2), &MemoryStore::new(), &()).unwrap_err();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(matches!(&error, ImportError::Denied { path, .. } if *path == secret), "{error:?}");
        assert!(error.to_string().contains("chmod u+r"), "{error}");
    }
}

#[test]
fn a_wrong_source_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"x").unwrap();
    let import = |name: &str, options: &ImportOptions| import_directory(&dir.path().join(name), options, &MemoryStore::new(), &()).unwrap_err();
    assert!(matches!(import("file", &options(1)), ImportError::NotADirectory { .. }));
    assert!(matches!(import("missing", &options(1)), ImportError::Read { .. }));
    assert!(matches!(import("", &ImportOptions { zstd_level: 99, ..options(1) }), ImportError::Level { level: 99, .. }));
    symlink(dir.path(), dir.path().join("to itself")).unwrap();
    assert_eq!(import_directory(&dir.path().join("to itself"), &options(1), &MemoryStore::new(), &()).unwrap().entries, 3);
}

/// Fails at the n-th call of any kind.
struct Failing {
    store: MemoryStore,
    calls_left: AtomicU64,
}

impl Failing {
    fn call(&self) -> Result<(), io::Error> {
        let left = self.calls_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(1)));
        if left == Ok(0) { Err(io::Error::other("the disk is on fire")) } else { Ok(()) }
    }
}

struct FailingPack<'a>(Box<dyn PackSink + 'a>, &'a Failing);

impl ObjectSink for Failing {
    fn present(&self, digests: &[Digest]) -> Result<Vec<bool>, SinkError> {
        self.call().map_err(|error| SinkError::new("cannot ask", error))?;
        self.store.present(digests)
    }

    fn create_pack(&self) -> Result<Box<dyn PackSink + '_>, SinkError> {
        self.call().map_err(|error| SinkError::new("cannot create", error))?;
        Ok(Box::new(FailingPack(self.store.create_pack()?, self)))
    }
}

impl Write for FailingPack<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.call()?;
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl PackSink for FailingPack<'_> {
    fn finish(self: Box<Self>, digest: Digest, index: PackIndex) -> Result<(), SinkError> {
        self.1.call().map_err(|error| SinkError::new("cannot finish", error))?;
        self.0.finish(digest, index)
    }
}

#[test]
fn a_failing_sink_ends_the_import_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("large"), Rng(1).bytes(6_000_000)).unwrap();
    for number in 0..300 {
        fs::write(dir.path().join(number.to_string()), Rng(number).text(9000)).unwrap();
    }
    let mut calls = 0;
    loop {
        let sink = Failing { store: MemoryStore::new(), calls_left: AtomicU64::new(calls) };
        match import_directory(dir.path(), &options(3), &sink, &()) {
            Err(ImportError::Sink(_)) => assert_eq!(sink.store.packs(), [], "after {calls} calls"),
            Err(other) => panic!("{other:?}"),
            Ok(_) => break,
        }
        calls += 1;
    }
    assert!(calls > 30, "{calls}");
}

#[test]
fn a_panicking_sink_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"x").unwrap();
    assert!(matches!(import_while(dir.path(), || panic!("on purpose")), ImportError::Internal(_)));
}
