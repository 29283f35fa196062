//! Capture of a sandbox and restore of a layer: nothing is lost on the way there and back, only what changed is read, no
//! change goes unseen, and a hostile tree reaches nothing outside.

mod common;

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use chunker::{
    CaptureOptions, Captured, ImportError, MemoryStore, ObjectSink, ObjectSource, PackSink, RestoreError, RestoreOptions, Restored, SinkError, SourceError,
    capture, restore,
};
use common::{FoundKind, Rng, Tree, entries, every_kind, path, plain, random_tree, read_back, read_directory, set_mtime};
use layer_format::chunk::ChunkRef;
use layer_format::entry::{Entry, HardLink, Kind, Meta};
use layer_format::recipe::{Extent, Recipe};
use layer_format::tree::TreeBuilder;
use layer_format::{Digest, LayerPath, pack};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

/// A container's folder with its sandbox.
struct Sandbox {
    folder: tempfile::TempDir,
    store: MemoryStore,
}

impl Sandbox {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("sandbox/upper")).unwrap();
        Self { folder, store: MemoryStore::new() }
    }

    fn upper(&self) -> PathBuf {
        self.folder.path().join("sandbox/upper")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.upper().join(name)
    }

    fn capture(&self) -> Captured {
        self.try_capture(&CaptureOptions::new(self.folder.path())).unwrap()
    }

    fn try_capture(&self, options: &CaptureOptions<'_>) -> Result<Captured, ImportError> {
        capture(&self.upper(), &CaptureOptions { threads: 2, ..*options }, &self.store, &())
    }

    /// A capture, begun when all that was written before is older than it.
    fn settled_capture(&self) -> Captured {
        settle();
        self.capture()
    }

    fn tree(&self, captured: &Captured) -> Tree {
        read_back(&self.store, captured.imported.root)
    }
}

/// Longer than a tick of any clock of a file system here.
fn settle() {
    std::thread::sleep(Duration::from_millis(25));
}

fn restored(root: Digest, source: &dyn ObjectSource, folder: &Path) -> Result<Restored, RestoreError> {
    fs::create_dir_all(folder.join("sandbox")).unwrap();
    restore(root, source, &folder.join("sandbox/upper"), &RestoreOptions { folder, max_bytes: 1 << 30 }, &())
}

fn whiteout(path: &Path) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

fn opaque(path: &Path) {
    setxattr(path, "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
}

/// What a tree is expected to be after a capture of what [`read_directory`] found.
fn as_captured(mut tree: Tree) -> Tree {
    for (at, found) in &mut tree {
        (found.meta.uid, found.meta.gid) = (0, 0);
        if at.is_root() {
            (found.meta.mtime_s, found.meta.mtime_ns) = (0, 0);
        }
        let is_opaque = found.meta.xattrs.iter().any(|(name, _)| name == b"user.overlay.opaque");
        found.meta.xattrs.retain(|(name, _)| !name.starts_with(b"user.overlay."));
        match &mut found.kind {
            FoundKind::Other(Kind::Directory { opaque }) => *opaque = is_opaque,
            FoundKind::Other(kind @ Kind::CharDevice { major: 0, minor: 0 }) => {
                *kind = Kind::Whiteout;
                found.meta = Meta::default();
            }
            _ => {}
        }
    }
    plain(tree)
}

/// Deleted names and replaced directories, as overlayfs leaves them.
fn tombstones(sandbox: &Sandbox, rng: &mut Rng) {
    let tree = read_directory(&sandbox.upper());
    let directories = tree.iter().filter(|(_, found)| matches!(found.kind, FoundKind::Other(Kind::Directory { .. }))).map(|(path, _)| path);
    for directory in directories.cloned().collect::<Vec<_>>() {
        let full = sandbox.upper().join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(directory.as_bytes()));
        if rng.below(3) == 0 {
            whiteout(&full.join("gone"));
        }
        if rng.below(4) == 0 {
            opaque(&full);
            setxattr(&full, "user.overlay.impure", b"y", XattrFlags::empty()).unwrap();
        }
    }
}

#[test]
fn every_kind_of_entry_goes_there_and_back() {
    let sandbox = Sandbox::new();
    every_kind(&sandbox.upper());
    fs::create_dir(sandbox.file("replaced")).unwrap();
    opaque(&sandbox.file("replaced"));
    whiteout(&sandbox.file("b/deleted"));
    let _socket = std::os::unix::net::UnixListener::bind(sandbox.file("socket")).unwrap();
    let captured = sandbox.capture();
    let mut expected = as_captured(read_directory(&sandbox.upper()));
    expected.remove(&path("socket"));
    assert_eq!(plain(sandbox.tree(&captured)), expected);
    assert_eq!(captured.imported.skipped.iter().map(|skipped| skipped.path.clone()).collect::<Vec<_>>(), [path("socket")]);

    let other = Sandbox::new();
    let made = restored(captured.imported.root, &sandbox.store, other.folder.path()).unwrap();
    assert_eq!((made.entries + 1, &made.skipped[..]), (captured.imported.entries, &[][..]));
    let again = other.capture();
    assert_eq!(again.imported.root, captured.imported.root);
    assert_eq!(as_captured(read_directory(&other.upper())), expected);
    let links = |name: &str| fs::metadata(other.file(name)).unwrap();
    assert_eq!((links("tool").ino(), links("tool").nlink()), (links("b/tool again").ino(), 3));
    assert_eq!(links("hollow").blocks(), 0);
    assert!(links("sparse").blocks() * 512 < 1 << 20, "holes stay holes");
    let mut names: Vec<_> = fs::read_dir(other.folder.path().join("sandbox")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["upper"], "nothing else is left");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn capture_restore_capture_is_capture(seed: u64, count in 0u64..100) {
        let sandbox = Sandbox::new();
        random_tree(&sandbox.upper(), seed, count);
        tombstones(&sandbox, &mut Rng(seed ^ 1));
        let captured = sandbox.capture();
        prop_assert_eq!(plain(sandbox.tree(&captured)), as_captured(read_directory(&sandbox.upper())));
        let other = Sandbox::new();
        restored(captured.imported.root, &sandbox.store, other.folder.path()).unwrap();
        // The index that the restore left answers for every file; the other store has none of them, the first all.
        let options = CaptureOptions { threads: 2, ..CaptureOptions::new(other.folder.path()) };
        let known = capture(&other.upper(), &options, &sandbox.store, &()).unwrap();
        prop_assert_eq!((known.imported.root, known.files_read), (captured.imported.root, 0));
        let read = other.capture();
        prop_assert_eq!(&read.imported.root, &captured.imported.root);
        prop_assert_eq!(entries(&other.store, read.imported.root), entries(&sandbox.store, captured.imported.root));
    }

    #[test]
    fn any_history_of_changes_is_captured_as_if_for_the_first_time(seed: u64) {
        let sandbox = Sandbox::new();
        random_tree(&sandbox.upper(), seed, 40);
        let mut rng = Rng(seed);
        for _ in 0..6 {
            let captured = sandbox.capture();
            let fresh = Sandbox::new();
            let scratch = CaptureOptions { threads: 1, ..CaptureOptions::new(fresh.folder.path()) };
            let anew = capture(&sandbox.upper(), &scratch, &fresh.store, &()).unwrap();
            prop_assert_eq!(anew.imported.root, captured.imported.root);
            prop_assert_eq!((anew.imported.entries, anew.imported.files, anew.imported.bytes), (captured.imported.entries, captured.imported.files, captured.imported.bytes));
            change(&sandbox, &mut rng);
        }
    }
}

/// Some random changes, many of which keep length and `mtime`.
fn change(sandbox: &Sandbox, rng: &mut Rng) {
    let files: Vec<PathBuf> = read_directory(&sandbox.upper())
        .into_iter()
        .filter(|(_, found)| matches!(found.kind, FoundKind::File { .. }))
        .map(|(path, _)| sandbox.upper().join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path.as_bytes())))
        .collect();
    for at in 0..3 {
        if files.is_empty() {
            return;
        }
        let file = &files[rng.below(files.len() as u64) as usize];
        let Ok(before) = fs::metadata(file) else { continue };
        match rng.below(6) {
            0 => {
                let mut content = fs::read(file).unwrap();
                if let Some(byte) = content.first_mut() {
                    *byte ^= 1;
                }
                fs::write(file, content).unwrap();
                set_mtime(file, before.mtime(), before.mtime_nsec());
            }
            1 => {
                fs::set_permissions(file, Permissions::from_mode(0o600 + rng.below(0o100) as u32)).unwrap();
            }
            2 => drop(setxattr(file, "user.changed", &rng.bytes(4), XattrFlags::empty())),
            3 => drop(fs::rename(file, &files[rng.below(files.len() as u64) as usize])),
            4 => drop(fs::hard_link(file, sandbox.file(&format!("link {at} {}", rng.below(1000))))),
            _ => fs::remove_file(file).unwrap(),
        }
    }
}

#[test]
fn only_what_changed_is_read() {
    let sandbox = Sandbox::new();
    for number in 0..300 {
        fs::create_dir_all(sandbox.file(&format!("d{}", number % 10))).unwrap();
        fs::write(sandbox.file(&format!("d{}/f{number}", number % 10)), Rng(number).bytes(3000)).unwrap();
    }
    fs::write(sandbox.file("large"), Rng(1).bytes(9_000_000)).unwrap();
    fs::hard_link(sandbox.file("d3/f3"), sandbox.file("another name")).unwrap();
    let first = sandbox.settled_capture();
    assert_eq!(first.files_read, 301);
    let second = sandbox.capture();
    assert_eq!((second.files_read, second.imported.new_objects, second.imported.root), (0, 0, first.imported.root));
    assert_eq!(second.imported.bytes, first.imported.bytes);

    let metadata = fs::metadata(sandbox.file("d7/f17")).unwrap();
    fs::write(sandbox.file("d7/f17"), Rng(9999).bytes(3000)).unwrap();
    set_mtime(&sandbox.file("d7/f17"), metadata.mtime(), metadata.mtime_nsec());
    fs::write(sandbox.file("d1/new"), "new").unwrap();
    setxattr(sandbox.file("large"), "user.note", b"1", XattrFlags::empty()).unwrap();
    let third = sandbox.capture();
    assert_eq!(third.files_read, 3);
    assert_ne!(third.imported.root, first.imported.root);
    let tree = sandbox.tree(&third);
    assert_eq!(tree[&path("d7/f17")].kind, FoundKind::File { content: Rng(9999).bytes(3000), hole_bytes: 0 });
    assert_eq!(tree[&path("large")].meta.xattrs, [(b"user.note".to_vec(), b"1".to_vec())]);

    // Gone, damaged, of another container: only time is lost.
    let index = sandbox.folder.path().join("capture.index");
    let good = fs::read(&index).unwrap();
    for bad in [None, Some(Vec::new()), Some(good[..good.len() / 2].to_vec()), Some(good.iter().map(|byte| byte ^ 1).collect())] {
        match bad {
            None => fs::remove_file(&index).unwrap(),
            Some(bytes) => fs::write(&index, bytes).unwrap(),
        }
        let again = sandbox.settled_capture();
        assert_eq!(again.imported.root, third.imported.root);
        assert!(again.files_read > 100, "{}", again.files_read);
        assert_eq!(sandbox.capture().files_read, 0, "the index is whole again");
    }
}

#[test]
fn a_write_in_the_same_tick_is_seen() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("file");
    let mut content = Vec::new();
    for round in 0..300u32 {
        content = round.to_le_bytes().to_vec();
        fs::write(&file, &content).unwrap();
        set_mtime(&file, 1, 1);
        let captured = sandbox.capture();
        assert_eq!(sandbox.tree(&captured)[&path("file")].kind, FoundKind::File { content: content.clone(), hole_bytes: 0 }, "{round}");
    }
    assert_eq!(fs::read(&file).unwrap(), content);
}

#[test]
fn stores_through_a_mapping_after_a_live_capture_are_seen() {
    let python = Command::new("python3").arg("--version").output();
    if !python.is_ok_and(|output| output.status.success()) {
        return eprintln!("skipped: there is no python3");
    }
    let sandbox = Sandbox::new();
    fs::write(sandbox.file("mapped"), [0; 4096]).unwrap();
    settle();
    let script = "import mmap,sys\nf=open(sys.argv[1],'r+b');m=mmap.mmap(f.fileno(),0)\nfor line in sys.stdin:\n m[0]=int(line);print('done',flush=True)";
    let mut child = Command::new("python3").args(["-c", script]).arg(sandbox.file("mapped")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    for value in 1..20u8 {
        writeln!(to, "{value}").unwrap();
        from.next().unwrap().unwrap();
        if value % 2 == 0 {
            settle();
        }
        let options = CaptureOptions { live: true, ..CaptureOptions::new(sandbox.folder.path()) };
        let captured = sandbox.try_capture(&options).unwrap();
        let FoundKind::File { content, .. } = &sandbox.tree(&captured)[&path("mapped")].kind else { panic!() };
        assert_eq!(content[0], value);
    }
    drop(to);
    child.wait().unwrap();
}

#[test]
fn left_out_paths_are_not_even_looked_at() {
    let sandbox = Sandbox::new();
    fs::create_dir_all(sandbox.file("home/cache/deep")).unwrap();
    fs::write(sandbox.file("home/cache/deep/file"), "local").unwrap();
    fs::write(sandbox.file("home/cached"), "kept").unwrap();
    let cache = path("home/cache");
    let leave_out = |path: &LayerPath| path.starts_with(&cache);
    let captured = sandbox.try_capture(&CaptureOptions { leave_out: &leave_out, ..CaptureOptions::new(sandbox.folder.path()) }).unwrap();
    let names: Vec<LayerPath> = sandbox.tree(&captured).into_keys().collect();
    assert_eq!(names, [path(""), path("home"), path("home/cached")]);
    assert_eq!(captured.files_read, 1);
}

/// A store that has lost some objects.
struct Lossy<'a>(&'a MemoryStore, Mutex<HashSet<Digest>>);

impl ObjectSink for Lossy<'_> {
    fn present(&self, digests: &[Digest]) -> Result<Vec<bool>, SinkError> {
        let lost = self.1.lock().unwrap();
        Ok(self.0.present(digests)?.into_iter().zip(digests).map(|(here, digest)| here && !lost.contains(digest)).collect())
    }

    fn create_pack(&self) -> Result<Box<dyn PackSink + '_>, SinkError> {
        self.0.create_pack()
    }
}

impl ObjectSource for Lossy<'_> {
    fn object(&self, digest: &Digest) -> Result<Vec<u8>, SourceError> {
        match self.1.lock().unwrap().contains(digest) {
            true => Err(SourceError::message("lost")),
            false => self.0.object(digest),
        }
    }
}

#[test]
fn what_the_store_lost_is_read_again() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.file("small"), "small").unwrap();
    fs::write(sandbox.file("middle"), Rng(2).bytes(400_000)).unwrap();
    fs::write(sandbox.file("large"), Rng(3).bytes(4_000_000)).unwrap();
    let first = sandbox.settled_capture();
    let mut digests = Vec::new();
    for entry in entries(&sandbox.store, first.imported.root) {
        let Kind::File(recipe) = &entry.kind else { continue };
        // The first and the last chunk, and each node above.
        let mut lists = vec![recipe.clone()];
        while let Some(list) = lists.pop() {
            match list {
                Recipe::Extents(extents) => {
                    for extent in [extents.first(), extents.last()].into_iter().flatten() {
                        let Extent::Data(chunk) = extent else { continue };
                        digests.push(chunk.digest);
                    }
                }
                Recipe::Nodes { nodes, .. } => {
                    for node in nodes {
                        digests.push(node.digest);
                        lists.push(Recipe::decode_node(&sandbox.store.object(&node.digest).unwrap()).unwrap());
                    }
                }
            }
        }
    }
    assert!(digests.len() > 6);
    for lost in digests {
        let lossy = Lossy(&sandbox.store, Mutex::new(HashSet::from([lost])));
        let options = CaptureOptions { threads: 2, ..CaptureOptions::new(sandbox.folder.path()) };
        let again = capture(&sandbox.upper(), &options, &lossy, &()).unwrap();
        assert_eq!((again.files_read, again.imported.new_objects), (1, 1), "{lost}");
        assert_eq!(again.imported.root, first.imported.root);
    }
}

/// Runs this test again as an ordinary user, who may not read what its owner may not read.
#[test]
fn what_its_owner_may_not_read_is_captured_and_keeps_its_bits() {
    const FOLDER: &str = "CAPTURE_TEST_FOLDER";
    let Some(folder) = std::env::var_os(FOLDER) else {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "what_its_owner_may_not_read_is_captured_and_keeps_its_bits", "--nocapture"]).env(FOLDER, folder.path());
        let program = folder.path().join("program");
        if rustix::process::geteuid().is_root() {
            // The build folder may be closed to others.
            fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
            let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            command = Command::new(&program);
            command.args(args).env(FOLDER, folder.path()).uid(65533).gid(65533);
        }
        let output = command.current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        return;
    };
    let container = Path::new(&folder).join("container");
    let upper = container.join("sandbox/upper");
    fs::create_dir_all(upper.join("closed/inner")).unwrap();
    fs::create_dir(upper.join("blind")).unwrap();
    fs::write(upper.join("secret"), "secret").unwrap();
    fs::hard_link(upper.join("secret"), upper.join("zweitname")).unwrap();
    fs::write(upper.join("closed/inner/file"), "deep").unwrap();
    fs::write(upper.join("blind/file"), "unlisted").unwrap();
    opaque(&upper.join("closed"));
    let modes = [("secret", 0o000), ("closed/inner/file", 0o200), ("closed/inner", 0o000), ("closed", 0o200), ("blind", 0o400), ("", 0o100)];
    for (name, mode) in modes {
        fs::set_permissions(upper.join(name), Permissions::from_mode(mode)).unwrap();
    }
    assert!(fs::read(upper.join("secret")).is_err(), "this test would prove nothing");
    let store = MemoryStore::new();
    let captured = capture(&upper, &CaptureOptions { threads: 2, ..CaptureOptions::new(&container) }, &store, &()).unwrap();
    assert!(!container.join("capture.unlocked").exists());
    assert_eq!(captured.imported.skipped, []);
    let tree = read_back(&store, captured.imported.root);
    for (name, content) in [("secret", "secret"), ("zweitname", "secret"), ("closed/inner/file", "deep"), ("blind/file", "unlisted")] {
        let FoundKind::File { content: found, .. } = &tree[&path(name)].kind else { panic!("{name}") };
        assert_eq!(found, content.as_bytes(), "{name}");
    }
    for (name, mode) in modes {
        assert_eq!(tree[&path(name)].meta.mode, mode as u16, "{name} in the layer");
    }
    assert_eq!(tree[&path("zweitname")].meta.mode, 0);
    assert_eq!(tree[&path("closed")].kind, FoundKind::Other(Kind::Directory { opaque: true }));
    // And back, as that user.
    let second = Path::new(&folder).join("second");
    restored(captured.imported.root, &store, &second).unwrap();
    let again = capture(&second.join("sandbox/upper"), &CaptureOptions::new(&second), &store, &()).unwrap();
    assert_eq!(again.imported.root, captured.imported.root);
    for folder in [upper, second.join("sandbox/upper")] {
        for (name, mode) in modes.iter().rev() {
            let path = folder.join(name);
            assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o7777, *mode, "{name} on disk");
            if fs::metadata(&path).unwrap().is_dir() {
                fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
            }
        }
    }
}

/// A store with a tree of exactly these entries.
fn tree_of(entries: Vec<Entry>, chunks: &[&[u8]]) -> (MemoryStore, Digest) {
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
    let (bytes, index) = pack::build(&objects, Some(1)).unwrap();
    let store = MemoryStore::new();
    let mut writer = store.create_pack().unwrap();
    writer.write_all(&bytes).unwrap();
    writer.finish(Digest::of(&bytes), index).unwrap();
    (store, root)
}

#[test]
fn a_hostile_tree_reaches_nothing_outside_and_leaves_nothing() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "untouched").unwrap();
    let target = outside.path().as_os_str().as_encoded_bytes().to_vec();
    let directory = |at: &str| Entry { path: path(at), meta: Meta { mode: 0o755, ..Meta::default() }, kind: Kind::Directory { opaque: false } };
    let data = |len: u32| Recipe::Extents(vec![Extent::Data(ChunkRef { digest: Digest::of(b"evil"), len })]);
    let file = |at: &str, recipe: Recipe| Entry { path: path(at), meta: Meta { mode: 0o4755, ..Meta::default() }, kind: Kind::File(recipe) };
    let link = |at: &str| Entry { path: path(at), meta: Meta::default(), kind: Kind::Symlink(target.clone()) };
    let linked = |at: &str, group| {
        let mut entry = file(at, data(4));
        entry.meta.hard_link = Some(HardLink { group, count: 2 });
        entry
    };
    let hole = |len| Recipe::Extents(vec![Extent::Hole(len)]);
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        ("below a link", vec![directory(""), link("a"), file("a/victim", data(4))]),
        ("a directory below a link", vec![directory(""), link("a"), directory("a/new")]),
        ("far below a link", vec![directory(""), directory("a"), link("a/b"), file("a/b/victim", data(4))]),
        ("below a file", vec![directory(""), file("a", data(4)), file("a/b", data(4))]),
        ("below nothing", vec![directory(""), file("a/b/c", data(4))]),
        ("endless", vec![directory(""), file("a", hole(1 << 61))]),
        ("more than it says", vec![directory(""), file("a", Recipe::Extents(vec![Extent::Data(ChunkRef { digest: Digest::of(b"evil"), len: 4 }); 8]))]),
        ("another length", vec![directory(""), file("a", data(5))]),
        ("a chunk that is not there", vec![directory(""), file("a", Recipe::Extents(vec![Extent::Data(ChunkRef { digest: Digest::of(b"?"), len: 1 })]))]),
    ];
    for (name, entries) in cases {
        let (store, root) = tree_of(entries, &[b"evil"]);
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sandbox")).unwrap();
        let target = folder.path().join("sandbox/upper");
        let result = restore(root, &store, &target, &RestoreOptions { folder: folder.path(), max_bytes: 16 }, &());
        assert!(result.is_err(), "{name}");
        assert_eq!(fs::read_dir(folder.path().join("sandbox")).unwrap().count(), 0, "{name}: something is left");
        let names: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["victim"], "{name}");
        assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"untouched", "{name}");
    }
    // What may not be set or made here is left out, and told.
    let mut attributes = file("b", data(4));
    attributes.meta.xattrs = [("trusted.overlay.redirect", "/"), ("user.fine", "1"), ("user.overlay.metacopy", ""), ("user.overlay.redirect", "/etc")]
        .map(|(name, value)| (name.into(), value.into()))
        .to_vec();
    let device = Entry { path: path("a"), meta: Meta::default(), kind: Kind::BlockDevice { major: 8, minor: 0 } };
    let socket = |at: &str| {
        let mut entry = linked(at, 9);
        entry.kind = Kind::Socket;
        entry
    };
    let (store, root) = tree_of(vec![directory(""), device, attributes, linked("c", 5), linked("d", 5), socket("e"), socket("f"), link("g")], &[b"evil"]);
    let sandbox = Sandbox::new();
    let made = restored(root, &store, sandbox.folder.path()).unwrap();
    assert_eq!(made.skipped.len(), 6, "{:?}", made.skipped);
    let names: HashSet<String> = fs::read_dir(sandbox.upper()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names, HashSet::from(["b", "c", "d", "g"].map(String::from)));
    assert_eq!(sandbox.tree(&sandbox.capture())[&path("b")].meta.xattrs, [(b"user.fine".to_vec(), b"1".to_vec())]);
    let mut list = [0; 1024];
    let len = rustix::fs::listxattr(sandbox.file("b"), &mut list[..]).unwrap();
    assert!(!String::from_utf8_lossy(&list[..len]).contains("overlay"), "overlayfs would obey it");
}

#[test]
fn a_target_that_is_in_use_is_not_touched() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.file("mine"), "mine").unwrap();
    let captured = sandbox.capture();
    let other = Sandbox::new();
    fs::write(other.file("theirs"), "theirs").unwrap();
    assert!(restored(captured.imported.root, &sandbox.store, other.folder.path()).is_err());
    assert_eq!(fs::read(other.file("theirs")).unwrap(), b"theirs");
    assert_eq!(fs::read_dir(other.folder.path().join("sandbox")).unwrap().count(), 1);
}

#[test]
fn a_sandbox_that_is_no_directory_or_gone_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let options = CaptureOptions::new(folder.path());
    assert!(capture(&folder.path().join("absent"), &options, &MemoryStore::new(), &()).is_err());
    fs::write(folder.path().join("file"), "x").unwrap();
    assert!(capture(&folder.path().join("file"), &options, &MemoryStore::new(), &()).is_err());
    symlink("/", folder.path().join("link")).unwrap();
    assert!(!folder.path().join("capture.new").exists());
}
