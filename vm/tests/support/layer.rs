//! A naive layer in memory: for tests and for the example.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use client_store::view::Caller;
use client_store::{FetchError, LayerView};
use layer_format::chunk::ChunkRef;
use layer_format::entry::{Entry, HardLink, Kind, Meta};
use layer_format::recipe::{Extent, Recipe};
use layer_format::{Digest, LayerPath};

#[derive(Clone, Debug)]
enum Content {
    Bytes(Vec<u8>),
    HostFile(PathBuf),
}

/// All entries of a layer by path. Parents of what is added are made.
#[derive(Clone, Debug)]
pub(crate) struct MemoryLayer {
    entries: BTreeMap<LayerPath, (Entry, Content)>,
}

#[allow(dead_code)]
impl MemoryLayer {
    pub(crate) fn new() -> Self {
        let mut layer = Self { entries: BTreeMap::new() };
        layer.add("", 0o755, Kind::Directory { opaque: false }, Vec::new());
        layer
    }

    pub(crate) fn path(path: impl AsRef<[u8]>) -> LayerPath {
        LayerPath::from_absolute(path.as_ref()).unwrap()
    }

    pub(crate) fn add(&mut self, path: impl AsRef<[u8]>, mode: u16, kind: Kind, bytes: Vec<u8>) -> &mut Entry {
        let path = Self::path(path);
        if let Some(parent) = path.parent()
            && !self.entries.contains_key(&parent)
        {
            self.add(parent.as_bytes(), 0o755, Kind::Directory { opaque: false }, Vec::new());
        }
        let meta = Meta { mode, mtime_s: 1_700_000_000, mtime_ns: 5, ..Meta::default() };
        self.entries.insert(path.clone(), (Entry { path: path.clone(), meta, kind }, Content::Bytes(bytes)));
        &mut self.entries.get_mut(&path).unwrap().0
    }

    pub(crate) fn dir(&mut self, path: impl AsRef<[u8]>) -> &mut Entry {
        self.add(path, 0o755, Kind::Directory { opaque: false }, Vec::new())
    }

    pub(crate) fn opaque(&mut self, path: impl AsRef<[u8]>) -> &mut Entry {
        self.add(path, 0o755, Kind::Directory { opaque: true }, Vec::new())
    }

    pub(crate) fn file(&mut self, path: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>) -> &mut Entry {
        let bytes = bytes.as_ref().to_vec();
        self.add(path, 0o644, Kind::File(recipe(bytes.len() as u64)), bytes)
    }

    pub(crate) fn program(&mut self, path: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>) -> &mut Entry {
        let entry = self.file(path, bytes);
        entry.meta.mode = 0o755;
        entry
    }

    pub(crate) fn symlink(&mut self, path: impl AsRef<[u8]>, target: &str) -> &mut Entry {
        self.add(path, 0o777, Kind::Symlink(target.as_bytes().to_vec()), Vec::new())
    }

    pub(crate) fn whiteout(&mut self, path: impl AsRef<[u8]>) -> &mut Entry {
        self.add(path, 0, Kind::Whiteout, Vec::new())
    }

    /// A file of data, a hole and data again.
    pub(crate) fn sparse(&mut self, path: impl AsRef<[u8]>, data: u32, hole: u64) {
        let mut bytes = vec![b'x'; data as usize];
        bytes.resize(bytes.len() + hole as usize, 0);
        bytes.resize(bytes.len() + data as usize, b'y');
        let chunk = Extent::Data(ChunkRef { digest: Digest::of(b"x"), len: data });
        self.add(path, 0o644, Kind::File(Recipe::Extents(vec![chunk, Extent::Hole(hole), chunk])), bytes);
    }

    /// One file with several names.
    pub(crate) fn hard_links(&mut self, paths: &[&str], bytes: &[u8]) {
        for path in paths {
            let link = HardLink { group: Digest::of(paths[0].as_bytes()).prefix64(), count: paths.len() as u32 };
            self.file(path, bytes).meta.hard_link = Some(link);
        }
    }

    /// Adds a host directory and all below it, at `at`. File content is read when it is asked for.
    pub(crate) fn add_tree(&mut self, source: &Path, at: &Path) {
        let meta = fs::symlink_metadata(source).unwrap();
        let kind = meta.file_type();
        let device = || (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let entry_kind = match () {
            () if kind.is_dir() => Kind::Directory { opaque: false },
            () if kind.is_symlink() => Kind::Symlink(fs::read_link(source).unwrap().as_os_str().as_bytes().to_vec()),
            () if kind.is_fifo() => Kind::Fifo,
            () if kind.is_socket() => Kind::Socket,
            () if kind.is_char_device() => Kind::CharDevice { major: device().0, minor: device().1 },
            () if kind.is_block_device() => Kind::BlockDevice { major: device().0, minor: device().1 },
            () => Kind::File(recipe(meta.len())),
        };
        let entry = self.add(at.as_os_str().as_bytes(), (meta.mode() & 0o7777) as u16, entry_kind, Vec::new());
        entry.meta.mtime_s = meta.mtime();
        entry.meta.mtime_ns = meta.mtime_nsec() as u32;
        let path = entry.path.clone();
        if kind.is_file() {
            self.entries.get_mut(&path).unwrap().1 = Content::HostFile(source.to_owned());
        }
        if kind.is_dir() {
            for child in fs::read_dir(source).unwrap() {
                let child = child.unwrap();
                self.add_tree(&child.path(), &at.join(child.file_name()));
            }
        }
    }

    /// Adds a file of the host under its own path, following links.
    pub(crate) fn add_host_file(&mut self, path: &Path) {
        let mode = fs::metadata(path).unwrap().mode();
        self.file(path.as_os_str().as_bytes(), fs::read(path).unwrap()).meta.mode = (mode & 0o7777) as u16;
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().map(|(entry, _)| entry)
    }

    pub(crate) fn get(&self, path: &LayerPath) -> Option<&Entry> {
        self.entries.get(path).map(|(entry, _)| entry)
    }
}

fn recipe(len: u64) -> Recipe {
    let chunk = |len: u64| Extent::Data(ChunkRef { digest: Digest::of(b""), len: len as u32 });
    let mut extents = Vec::new();
    let mut rest = len;
    while rest > 0 {
        let part = rest.min(1 << 30);
        extents.push(chunk(part));
        rest -= part;
    }
    Recipe::Extents(extents)
}

impl LayerView for MemoryLayer {
    fn lookup(&self, path: &LayerPath, _caller: Caller) -> Result<Option<Entry>, FetchError> {
        Ok(self.get(path).cloned())
    }

    fn list(&self, directory: &LayerPath, after: Option<&[u8]>, max: usize, _caller: Caller) -> Result<Vec<Entry>, FetchError> {
        let from = directory.join(after.unwrap_or(b"\x01")).unwrap();
        let child = |entry: &&Entry| entry.path.split().is_some_and(|(parent, _)| parent == directory.as_bytes());
        let range = self.entries.range(from..).map(|(_, (entry, _))| entry).take_while(child);
        Ok(range.filter(|entry| after.is_none_or(|after| entry.path.name() > after)).take(max).cloned().collect())
    }

    fn read(&self, entry: &Entry, offset: u64, len: usize, _caller: Caller) -> Result<Vec<u8>, FetchError> {
        match &self.entries[&entry.path].1 {
            Content::Bytes(bytes) => Ok(bytes.iter().skip(offset as usize).take(len).copied().collect()),
            Content::HostFile(path) => {
                let file = fs::File::open(path).unwrap();
                let mut bytes = vec![0; len];
                let mut have = 0;
                while have < len {
                    match file.read_at(&mut bytes[have..], offset + have as u64).unwrap() {
                        0 => break,
                        count => have += count,
                    }
                }
                bytes.truncate(have);
                Ok(bytes)
            }
        }
    }

    fn seek(&self, entry: &Entry, offset: u64, hole: bool, _caller: Caller) -> Result<Option<u64>, FetchError> {
        let Kind::File(Recipe::Extents(extents)) = &entry.kind else { return Ok(None) };
        let mut start = 0;
        for extent in extents {
            let end = start + extent.len();
            if end > offset && matches!(extent, Extent::Hole(_)) == hole {
                return Ok(Some(start.max(offset)));
            }
            start = end;
        }
        Ok((hole && offset <= start).then_some(start))
    }
}
