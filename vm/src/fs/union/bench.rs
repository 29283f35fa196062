//! What the tests of the union share: a union over temporary directories, used by paths.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use client_store::LayerView;
use client_store::view::Caller;
use layer_format::LayerPath;
use layer_format::manifest::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use tempfile::TempDir;

use crate::fs::layer::MemoryLayer;
use crate::fs::{Answer, NodeKind, ROOT, Rename, Shown, UnionFs, UnionOptions};
use crate::rules::Rules;

pub(super) const NOBODY: Caller = Caller { pid: 0 };

/// Directories for one test, in memory if possible.
pub(super) struct Place {
    pub(super) dir: TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        let place = Self { dir };
        for path in [place.host(""), place.upper("")] {
            fs::create_dir_all(path).unwrap();
        }
        place
    }

    pub(super) fn host(&self, path: &str) -> PathBuf {
        self.dir.path().join("host").join(path)
    }

    pub(super) fn upper(&self, path: &str) -> PathBuf {
        self.dir.path().join("box/upper").join(path)
    }

    pub(super) fn work(&self) -> PathBuf {
        self.dir.path().join("box/work")
    }

    /// Puts a file on the host.
    pub(super) fn put(&self, path: &str, content: &str) {
        let path = self.host(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(super) fn options(&self, layers: &[MemoryLayer], rules: Rules) -> UnionOptions {
        UnionOptions {
            layers: layers.iter().map(|layer| Arc::new(layer.clone()) as Arc<dyn LayerView>).collect(),
            rules: Arc::new(rules),
            upper: self.upper(""),
            hidden: Vec::new(),
            passages: Vec::new(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }

    pub(super) fn open(&self, options: UnionOptions) -> User {
        User { fs: Arc::new(UnionFs::over(options, &self.host(""), &self.work()).unwrap()) }
    }

    pub(super) fn union(&self, layers: &[MemoryLayer], rules: Rules) -> User {
        self.open(self.options(layers, rules))
    }

    /// What the host has at a path.
    pub(super) fn on_host(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.host(path)).ok()
    }

    /// What the sandbox has at a path.
    pub(super) fn in_box(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.upper(path)).ok()
    }

    /// Whether the sandbox has a tombstone at a path.
    pub(super) fn is_buried(&self, path: &str) -> bool {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        self.upper(path).symlink_metadata().is_ok_and(|found| found.file_type().is_char_device() && found.rdev() == 0)
    }

    pub(super) fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }
}

pub(super) fn path(text: &str) -> LayerPath {
    LayerPath::new(text).unwrap()
}

pub(super) fn rules(default: Mode, stated: &[(&str, Mode)]) -> Rules {
    let mut rules = Rules::new(default);
    for (at, mode) in stated {
        rules.state(path(at), *mode);
    }
    rules
}

/// Uses a union by paths, as the kernel would: each name is looked up before it is used.
#[derive(Clone)]
pub(super) struct User {
    pub(super) fs: Arc<UnionFs>,
}

impl User {
    pub(super) fn look(&self, parent: u64, name: &str) -> Result<Shown, Errno> {
        match self.fs.lookup(parent, name.as_bytes(), NOBODY)? {
            Answer::Present(shown) => Ok(shown),
            Answer::Absent { .. } => Err(Errno::NOENT),
        }
    }

    pub(super) fn stat(&self, path: &str) -> Result<Shown, Errno> {
        let mut found = self.fs.attr(ROOT)?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            found = self.look(found.attr.ino, name)?;
        }
        Ok(found)
    }

    pub(super) fn ino(&self, path: &str) -> Result<u64, Errno> {
        self.stat(path).map(|shown| shown.attr.ino)
    }

    /// The parent's inode and the name, which has been looked up in vain or not.
    pub(super) fn at<'a>(&self, path: &'a str) -> Result<(u64, &'a [u8]), Errno> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = self.ino(parent)?;
        self.fs.lookup(parent, name.as_bytes(), NOBODY)?;
        Ok((parent, name.as_bytes()))
    }

    pub(super) fn read(&self, path: &str) -> Result<String, Errno> {
        let opened = self.fs.open(self.ino(path)?, OFlags::RDONLY, NOBODY)?;
        let bytes = self.fs.read(opened.handle, 0, 1 << 20, NOBODY);
        self.fs.close(opened.handle);
        bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(super) fn open(&self, path: &str, flags: OFlags) -> Result<u64, Errno> {
        self.fs.open(self.ino(path)?, flags, NOBODY).map(|opened| opened.handle)
    }

    fn put(&self, handle: u64, offset: u64, content: &str) -> Result<(), Errno> {
        let written = self.fs.write(handle, offset, content.as_bytes(), false, true);
        self.fs.close(handle);
        written.map(|_| ())
    }

    /// Makes a new file.
    pub(super) fn create(&self, path: &str, content: &str) -> Result<(), Errno> {
        let (parent, name) = self.at(path)?;
        let (_, opened) = self.fs.create(parent, name, 0o644, OFlags::RDWR | OFlags::EXCL, NOBODY)?;
        self.put(opened.handle, 0, content)
    }

    /// Replaces a file's content.
    pub(super) fn write(&self, path: &str, content: &str) -> Result<(), Errno> {
        self.put(self.open(path, OFlags::WRONLY | OFlags::TRUNC)?, 0, content)
    }

    /// Overwrites a file's start.
    pub(super) fn patch(&self, path: &str, content: &str) -> Result<(), Errno> {
        self.put(self.open(path, OFlags::RDWR)?, 0, content)
    }

    pub(super) fn mkdir(&self, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.at(path)?;
        self.fs.make_dir(parent, name, 0o755, NOBODY).map(|_| ())
    }

    pub(super) fn symlink(&self, path: &str, target: &str) -> Result<(), Errno> {
        let (parent, name) = self.at(path)?;
        self.fs.make_link(parent, name, target.as_bytes(), NOBODY).map(|_| ())
    }

    pub(super) fn unlink(&self, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.at(path)?;
        self.fs.unlink(parent, name, NOBODY)
    }

    pub(super) fn rmdir(&self, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.at(path)?;
        self.fs.remove_dir(parent, name, NOBODY)
    }

    pub(super) fn rename(&self, from: &str, to: &str, how: Rename) -> Result<(), Errno> {
        let (from, to) = (self.at(from)?, self.at(to)?);
        self.fs.rename(from, to, how, NOBODY)
    }

    pub(super) fn mv(&self, from: &str, to: &str) -> Result<(), Errno> {
        self.rename(from, to, Rename::Replace)
    }

    pub(super) fn link(&self, from: &str, to: &str) -> Result<(), Errno> {
        let ino = self.ino(from)?;
        let (parent, name) = self.at(to)?;
        self.fs.link(ino, parent, name, NOBODY).map(|_| ())
    }

    /// The names that a listing shows.
    pub(super) fn list(&self, path: &str) -> Result<Vec<String>, Errno> {
        let ino = self.ino(path)?;
        let handle = self.fs.open_dir(ino, NOBODY)?;
        let names = self.fs.list(handle, 0, usize::MAX, NOBODY);
        self.fs.close_dir(handle);
        Ok(names?.into_iter().map(|name| String::from_utf8_lossy(&name.name).into_owned()).collect())
    }

    pub(super) fn link_target(&self, path: &str) -> Result<String, Errno> {
        let found = self.stat(path)?;
        assert_eq!(found.attr.kind, NodeKind::Symlink);
        self.fs.read_link(found.attr.ino).map(|target| String::from_utf8_lossy(&target).into_owned())
    }
}

/// A directory `d` with `v` in a layer, `h` on the host, and `b` in both.
pub(super) fn three(mode: Mode) -> (Place, User) {
    let place = Place::new();
    let mut layer = MemoryLayer::new();
    layer.file("d/v", "V");
    layer.file("d/b", "V");
    place.put("d/h", "H");
    place.put("d/b", "H");
    let user = place.union(&[layer], rules(Mode::Full, &[("d", mode)]));
    (place, user)
}
