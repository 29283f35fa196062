//! What is really there: layers, sandbox and host, asked by path while a run is planned.
//!
//! The questions are few (see [`crate::regions`]), so each walks from the root. A layer that cannot answer, e.g. because
//! the network is down, is taken to have a directory: the union will find out when it is asked.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use client_store::view::Caller;
use client_store::{FetchError, LayerView};
use layer_format::LayerPath;
use layer_format::entry::{Entry, Kind};
use rustix::fs::{Access, AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, accessat, fstat, getxattr, openat2};

use crate::fs::Verdict;
use crate::regions::{Host, Surroundings, Virtual};

/// How many entries are asked of a layer at a time.
const PAGE: usize = 512;
/// Nobody in particular asks.
const CALLER: Caller = Caller { pid: 0 };

/// Layers, lowest first, the sandbox's `upper`, and the host.
pub(crate) struct Actual<'a> {
    layers: &'a [Arc<dyn LayerView>],
    upper: PathBuf,
    mount_points: OnceCell<HashSet<Vec<u8>>>,
}

/// Permissions and modification time of a directory, to make it again elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectoryMeta {
    pub(crate) mode: u32,
    pub(crate) mtime_s: i64,
    pub(crate) mtime_ns: u32,
}

/// What the sandbox has on the way to a path.
struct InSandbox {
    found: Virtual,
    /// Whether layers and host show through, where it has nothing or a directory.
    open: bool,
}

/// What the layers have at a path.
struct InLayers {
    found: Option<Entry>,
    /// Those that have the directory, highest first.
    layers: Vec<u16>,
    closed: bool,
}

impl<'a> Actual<'a> {
    pub(crate) fn new(layers: &'a [Arc<dyn LayerView>], upper: &Path) -> Self {
        Self { layers, upper: upper.to_owned(), mount_points: OnceCell::new() }
    }

    /// How a directory looks in the VM, sandbox aside.
    pub(crate) fn directory_meta(&self, path: &LayerPath) -> Option<DirectoryMeta> {
        if let Ok(InLayers { found: Some(entry), .. }) = self.in_layers(path)
            && entry.is_dir()
        {
            return Some(DirectoryMeta { mode: entry.meta.mode.into(), mtime_s: entry.meta.mtime_s, mtime_ns: entry.meta.mtime_ns });
        }
        let stat = fstat(open_host(path)?).ok()?;
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        is_dir.then_some(DirectoryMeta { mode: stat.st_mode & 0o7777, mtime_s: stat.st_mtime, mtime_ns: stat.st_mtime_nsec as u32 })
    }

    fn in_upper(&self, path: &LayerPath) -> InSandbox {
        let mut place = self.upper.clone();
        let mut open = true;
        for name in path.as_bytes().split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            place.push(std::ffi::OsStr::from_bytes(name));
            match place.symlink_metadata() {
                Ok(meta) if meta.is_dir() => open &= !is_opaque(&place),
                Ok(_) => return InSandbox { found: Virtual::Other, open: false },
                Err(_) => return InSandbox { found: Virtual::Absent, open },
            }
        }
        InSandbox { found: Virtual::Directory { closed: !open }, open }
    }

    fn in_layers(&self, path: &LayerPath) -> Result<InLayers, FetchError> {
        let mut state = InLayers { found: None, layers: (0..self.layers.len() as u16).rev().collect(), closed: false };
        let mut prefixes: Vec<LayerPath> = std::iter::successors(Some(path.clone()), LayerPath::parent).collect();
        prefixes.reverse();
        for prefix in prefixes {
            let mut verdict = Verdict::default();
            for &number in &state.layers {
                let entry = self.layers[usize::from(number)].lookup(&prefix, CALLER)?;
                if let Some(entry) = entry
                    && !verdict.add(number, entry)
                {
                    break;
                }
            }
            // A root is a directory, opaque or not, and never hides the host as a whole.
            let closed = state.closed || (verdict.closed && !prefix.is_root());
            let is_dir = verdict.found.as_ref().is_some_and(Entry::is_dir);
            state = InLayers { found: verdict.found, layers: if is_dir { verdict.layers } else { Vec::new() }, closed };
        }
        Ok(state)
    }
}

impl Surroundings for Actual<'_> {
    fn virtual_at(&self, path: &LayerPath) -> Virtual {
        let sandbox = self.in_upper(path);
        match sandbox.found {
            Virtual::Other => return Virtual::Other,
            Virtual::Absent if !sandbox.open => return Virtual::Other,
            Virtual::Directory { closed: true } => return sandbox.found,
            _ => {}
        }
        let layers = match self.in_layers(path) {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!("planned without knowing {path}: {error}");
                return Virtual::Directory { closed: false };
            }
        };
        match (layers.found, sandbox.found) {
            (Some(entry), _) if entry.is_dir() => Virtual::Directory { closed: layers.closed },
            // A directory of the sandbox in place of a file of a layer: overlayfs made it opaque, or it is another's mistake.
            (Some(_), Virtual::Directory { .. }) => Virtual::Directory { closed: true },
            (Some(_), _) => Virtual::Other,
            (None, Virtual::Directory { .. }) => Virtual::Directory { closed: layers.closed },
            (None, _) if layers.closed => Virtual::Other,
            (None, _) => Virtual::Absent,
        }
    }

    fn in_sandbox(&self, path: &LayerPath) -> bool {
        self.in_upper(path).found != Virtual::Absent
    }

    fn virtual_children(&self, directory: &LayerPath, max: usize) -> Option<BTreeMap<Vec<u8>, bool>> {
        let mut children = BTreeMap::new();
        let sandbox = self.in_upper(directory);
        if let Virtual::Directory { .. } = sandbox.found {
            let place = self.upper.join(std::ffi::OsStr::from_bytes(directory.as_bytes()));
            for entry in fs::read_dir(place).ok()? {
                let entry = entry.ok()?;
                let is_dir = entry.file_type().ok()?.is_dir();
                children.insert(entry.file_name().as_bytes().to_vec(), is_dir);
            }
        }
        let layers = if sandbox.open { self.in_layers(directory).ok()?.layers } else { Vec::new() };
        for number in layers {
            let mut after: Option<Vec<u8>> = None;
            loop {
                let page = self.layers[usize::from(number)].list(directory, after.as_deref(), PAGE, CALLER).ok()?;
                let Some(last) = page.last() else { break };
                after = Some(last.path.name().to_vec());
                for entry in &page {
                    children.entry(entry.path.name().to_vec()).or_insert(matches!(entry.kind, Kind::Directory { .. }));
                }
                if children.len() > max {
                    return None;
                }
            }
        }
        (children.len() <= max).then_some(children)
    }

    fn host_at(&self, path: &LayerPath) -> Host {
        match open_host(path).map(fstat) {
            Some(Ok(stat)) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Host::Directory,
            Some(_) => Host::Other,
            None => Host::Absent,
        }
    }

    fn host_directories(&self, directory: &LayerPath, max: usize) -> Option<Vec<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat2(CWD, host_path(directory), flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).ok()?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&fd).ok()? {
            let entry = entry.ok()?;
            let name = entry.file_name().to_bytes();
            let is_dir = match entry.file_type() {
                FileType::Directory => name != b"." && name != b"..",
                FileType::Unknown => directory.join(name).is_ok_and(|path| self.host_at(&path) == Host::Directory),
                _ => false,
            };
            if is_dir {
                names.push(name.to_vec());
            }
            if names.len() > max {
                return None;
            }
        }
        names.sort();
        Some(names)
    }

    fn may_write(&self, directory: &LayerPath) -> bool {
        accessat(CWD, host_path(directory), Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_ok()
    }

    fn is_mount_point(&self, path: &LayerPath) -> bool {
        self.mount_points.get_or_init(read_mount_points).contains(&host_path(path))
    }
}

fn host_path(path: &LayerPath) -> Vec<u8> {
    [b"/", path.as_bytes()].concat()
}

/// Opens what the host has at exactly this path. `None` if a component is missing or a symbolic link, but the last.
fn open_host(path: &LayerPath) -> Option<rustix::fd::OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(CWD, host_path(path), flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).ok()
}

fn is_opaque(directory: &Path) -> bool {
    let mut value = [0; 8];
    matches!(getxattr(directory, "user.overlay.opaque", &mut value[..]), Ok(len) if value[..len] == *b"y")
}

fn read_mount_points() -> HashSet<Vec<u8>> {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    table.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(4)).map(unescape).collect()
}

/// Undoes the kernel's octal escapes for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| first == b'\\' && digits.iter().all(|b| (b'0'..=b'7').contains(b)));
        match digits {
            Some(digits) => {
                out.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
#[path = "surroundings_tests.rs"]
mod tests;
