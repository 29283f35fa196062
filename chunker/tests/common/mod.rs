//! Trees to import, what a naive reader finds in them, and what a tree in a store holds.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use chunker::{ImportOptions, Imported, MemoryStore, ObjectSource, import_directory, import_tar};
use layer_format::entry::{Entry, Kind, Meta};
use layer_format::recipe::{Extent, RangeStep, RangeWalk, Recipe};
use layer_format::tree::{Node, Scan, Step};
use layer_format::{Digest, LayerPath};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};

/// A small generator, so that trees depend on a seed only.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }

    /// Text-like bytes, which compress.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        let words = [&b"alpha "[..], b"beta ", b"gamma\n", b"delta ", b"epsilon "];
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(words[self.below(5) as usize]);
        }
        out.truncate(len);
        out
    }
}

pub fn path(text: &str) -> LayerPath {
    LayerPath::new(text).unwrap()
}

/// What is at a path: metadata, kind with file content in place of a recipe, and where the holes are.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub meta: Meta,
    pub kind: FoundKind,
}

#[derive(Clone, PartialEq)]
pub enum FoundKind {
    File { content: Vec<u8>, hole_bytes: u64 },
    Other(Kind),
}

impl std::fmt::Debug for FoundKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { content, hole_bytes } => write!(f, "file of {} bytes, {hole_bytes} in holes, {:?}", content.len(), Digest::of(content)),
            Self::Other(kind) => write!(f, "{kind:?}"),
        }
    }
}

pub type Tree = BTreeMap<LayerPath, Found>;

pub fn entries(source: &dyn ObjectSource, root: Digest) -> Vec<Entry> {
    let mut scan = Scan::all(root);
    let mut found = Vec::new();
    loop {
        match scan.step() {
            Step::Need(digest) => scan.feed(&Node::decode(&source.object(&digest).unwrap()).unwrap()).unwrap(),
            Step::Done(Some(entry)) => found.push(entry),
            Step::Done(None) => return found,
        }
    }
}

pub fn content(source: &dyn ObjectSource, recipe: &Recipe) -> (Vec<u8>, u64) {
    let mut walk = RangeWalk::new(recipe, 0..recipe.len());
    let (mut bytes, mut holes) = (Vec::new(), 0);
    loop {
        match walk.step() {
            RangeStep::Need(digest) => walk.feed(Recipe::decode_node(&source.object(&digest).unwrap()).unwrap()).unwrap(),
            RangeStep::Extent { offset, extent } => {
                assert_eq!(offset, bytes.len() as u64);
                match extent {
                    Extent::Data(chunk) => bytes.extend(source.object(&chunk.digest).unwrap()),
                    Extent::Hole(len) => {
                        holes += len;
                        bytes.resize(bytes.len() + len as usize, 0);
                    }
                }
            }
            RangeStep::Done => return (bytes, holes),
        }
    }
}

/// Everything in a stored tree.
pub fn read_back(source: &dyn ObjectSource, root: Digest) -> Tree {
    let entries = entries(source, root);
    let found = entries.into_iter().map(|Entry { path, meta, kind }| {
        let kind = match kind {
            Kind::File(recipe) => {
                let (content, hole_bytes) = content(source, &recipe);
                FoundKind::File { content, hole_bytes }
            }
            other => FoundKind::Other(other),
        };
        (path, Found { meta, kind })
    });
    found.collect()
}

/// Everything in a directory, read as naively as can be. Hard links and holes are not compared here.
pub fn read_directory(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let full = root.join(&relative);
        let stat = fs::symlink_metadata(&full).unwrap();
        let kind = if stat.is_dir() {
            pending.extend(fs::read_dir(&full).unwrap().map(|entry| relative.join(entry.unwrap().file_name())));
            FoundKind::Other(Kind::Directory { opaque: false })
        } else if stat.is_symlink() {
            FoundKind::Other(Kind::Symlink(fs::read_link(&full).unwrap().as_os_str().as_bytes().to_vec()))
        } else if stat.is_file() {
            FoundKind::File { content: fs::read(&full).unwrap(), hole_bytes: 0 }
        } else if stat.file_type().is_fifo() {
            FoundKind::Other(Kind::Fifo)
        } else if stat.file_type().is_socket() {
            FoundKind::Other(Kind::Socket)
        } else {
            let (major, minor) = (rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev()));
            FoundKind::Other(if stat.file_type().is_char_device() { Kind::CharDevice { major, minor } } else { Kind::BlockDevice { major, minor } })
        };
        let mode = (stat.mode() & 0o7777) as u16;
        let meta =
            Meta { mode, uid: stat.uid(), gid: stat.gid(), mtime_s: stat.mtime(), mtime_ns: stat.mtime_nsec() as u32, xattrs: xattrs(&full), hard_link: None };
        tree.insert(LayerPath::new(relative.as_os_str().as_bytes()).unwrap(), Found { meta, kind });
    }
    tree
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut found: Vec<(Vec<u8>, Vec<u8>)> = names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user."))
        .map(|name| {
            let mut value = vec![0; 65536];
            let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect();
    found.sort();
    found
}

/// A tree without what is not compared: links and holes.
pub fn plain(tree: Tree) -> Tree {
    let plain = tree.into_iter().map(|(path, mut found)| {
        found.meta.hard_link = None;
        if let FoundKind::File { hole_bytes, .. } = &mut found.kind {
            *hole_bytes = 0;
        }
        (path, found)
    });
    plain.collect()
}

pub fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Whether the file system below `dir` keeps `user.*` attributes.
pub fn has_xattrs(dir: &Path) -> bool {
    let probe = dir.join("xattr-probe");
    File::create(&probe).unwrap();
    let works = rustix::fs::setxattr(&probe, "user.probe", b"1", rustix::fs::XattrFlags::empty()).is_ok();
    fs::remove_file(&probe).unwrap();
    if !works {
        eprintln!("skipped attributes: {} does not keep them", dir.display());
    }
    works
}

/// One of everything that a tree may hold. Returns whether attributes are in it.
pub fn every_kind(dir: &Path) -> bool {
    let attributes = has_xattrs(dir);
    fs::create_dir_all(dir.join("b/c")).unwrap();
    fs::create_dir(dir.join("b-x")).unwrap();
    fs::write(dir.join("b/c/deep"), b"deep").unwrap();
    fs::write(dir.join("b-x/y"), b"beside").unwrap();
    fs::write(dir.join("empty"), b"").unwrap();
    fs::write(dir.join("large"), Rng(1).bytes(3_000_000)).unwrap();
    fs::write(dir.join("tool"), Rng(2).text(100_000)).unwrap();
    fs::set_permissions(dir.join("tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(dir.join(OsStr::from_bytes(b"caf\xe9 \x01\n")), b"latin-1").unwrap();
    fs::write(dir.join("n".repeat(255)), b"long name").unwrap();
    let long = dir.join("d".repeat(120)).join(OsStr::from_bytes(&b"\xffe".repeat(60)));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("below a long path"), b"x").unwrap();
    symlink("b/c/deep", dir.join("link")).unwrap();
    symlink(OsStr::from_bytes(&b"\xfe/".repeat(100)), dir.join("long link")).unwrap();
    fs::hard_link(dir.join("tool"), dir.join("b/tool again")).unwrap();
    fs::hard_link(dir.join("tool"), dir.join("a first name")).unwrap();
    fs::hard_link(dir.join("link"), dir.join("b/link again")).unwrap();
    mknodat(CWD, dir.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let mut sparse = File::create(dir.join("sparse")).unwrap();
    for (offset, seed) in [(1 << 20, 3), (5 << 20, 4)] {
        sparse.seek(SeekFrom::Start(offset)).unwrap();
        sparse.write_all(&Rng(seed).bytes(70_000)).unwrap();
    }
    sparse.set_len(9 << 20).unwrap();
    File::create(dir.join("hollow")).unwrap().set_len(123_456_789).unwrap();
    if attributes {
        let set = |name: &str, attribute: &str, value: &[u8]| rustix::fs::setxattr(dir.join(name), attribute, value, rustix::fs::XattrFlags::empty()).unwrap();
        set("tool", "user.a=b%", b"value\0with=all\n");
        set("tool", "user.empty", b"");
        set("tool", "user.overlay.origin", b"not kept");
        set("b", "user.directory", &[7; 1000]);
        set("large", "user.large", b"1");
    }
    for (name, seconds, nanoseconds) in [("tool", -2, 750_000_000), ("empty", 0, 1), ("b/c", 253_402_300_800, 999_999_999), ("link", -1, 0), ("pipe", 1, 100)] {
        set_mtime(&dir.join(name), seconds, nanoseconds);
    }
    attributes
}

/// A random tree of about `count` entries.
pub fn random_tree(dir: &Path, seed: u64, count: u64) {
    let mut rng = Rng(seed);
    let mut directories = vec![dir.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    let attributes = has_xattrs(dir);
    for _ in 0..count {
        let parent = directories[rng.below(directories.len() as u64) as usize].clone();
        let alphabet = [&b"a"[..], b"b", b"-", b".", b"\xc3\xa9", b"\xff", b"Z", b" "];
        let name: Vec<u8> = (0..=rng.below(3)).flat_map(|_| alphabet[rng.below(8) as usize].to_vec()).collect();
        let target = parent.join(OsStr::from_bytes(&name));
        if matches!(&name[..], b"." | b"..") || fs::symlink_metadata(&target).is_ok() {
            continue;
        }
        match rng.below(12) {
            0..=2 => {
                fs::create_dir(&target).unwrap();
                directories.push(target.clone());
            }
            3 => symlink(OsStr::from_bytes(&name), &target).unwrap(),
            4 if !files.is_empty() => fs::hard_link(&files[rng.below(files.len() as u64) as usize], &target).unwrap(),
            5 => mknodat(CWD, &target, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap(),
            6 => {
                let mut file = File::create(&target).unwrap();
                for _ in 0..rng.below(4) {
                    file.seek(SeekFrom::Current((rng.below(100) * 4096) as i64)).unwrap();
                    let len = rng.below(50_000) as usize;
                    file.write_all(&rng.bytes(len)).unwrap();
                }
                file.set_len(rng.below(3_000_000)).unwrap();
            }
            kind => {
                let bound = [10u64, 5_000, 100_000, 2_000_000][rng.below(4) as usize];
                let len = rng.below(bound) as usize;
                // Few seeds, so that contents repeat.
                let mut rng = Rng(rng.below(5));
                fs::write(&target, if kind % 2 == 0 { rng.text(len) } else { rng.bytes(len) }).unwrap();
                files.push(target.clone());
            }
        }
        if attributes && rng.below(5) == 0 {
            let value = rng.bytes(20);
            let _ = rustix::fs::lsetxattr(&target, "user.random", &value, rustix::fs::XattrFlags::empty());
        }
        if !target.is_symlink() {
            fs::set_permissions(&target, fs::Permissions::from_mode(0o600 + rng.below(0o200) as u32 + if target.is_dir() { 0o100 } else { 0 })).unwrap();
        }
        set_mtime(&target, rng.next() as i32 as i64, rng.below(1_000_000_000) as i64);
    }
}

pub fn import(dir: &Path, store: &MemoryStore) -> Imported {
    import_directory(dir, &ImportOptions { threads: 2, ..ImportOptions::default() }, store, &()).unwrap()
}

pub fn import_bytes(tar: &[u8], store: &MemoryStore) -> Imported {
    import_tar(tar, &ImportOptions { threads: 2, ..ImportOptions::default() }, store, &()).unwrap()
}
