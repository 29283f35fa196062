//! The files of a package, laid out in a folder as they will be installed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// A folder that becomes a package. Made anew: nothing of an earlier run is left.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// An empty one.
    pub(super) fn create(root: PathBuf) -> Result<Self> {
        match fs::remove_dir_all(&root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(|| format!("cannot remove {}", root.display())),
            _ => {}
        }
        let tree = Self { root };
        tree.folder("", 0o755)?;
        Ok(tree)
    }

    /// Where it is.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes a folder of this mode, and those above it.
    pub(super) fn folder(&self, path: &str, mode: u32) -> Result<PathBuf> {
        let mut folder = self.root.clone();
        let parts: Vec<_> = Path::new(path).components().collect();
        for part in std::iter::once(None).chain(parts.iter().map(Some)) {
            folder.extend(part);
            // The mode does not depend on the caller's mask.
            if !folder.is_dir() {
                fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
                set_mode(&folder, 0o755)?;
            }
        }
        set_mode(&folder, mode)?;
        Ok(folder)
    }

    /// Writes a file.
    pub(super) fn file(&self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Result<()> {
        let target = self.place(path)?;
        fs::write(&target, content).with_context(|| format!("cannot write {}", target.display()))?;
        set_mode(&target, mode)
    }

    /// Copies a program without debugging symbols.
    pub(super) fn program(&self, path: &str, from: &Path) -> Result<()> {
        let target = self.place(path)?;
        super::binaries::strip(from, &target)?;
        set_mode(&target, 0o755)
    }

    /// Writes a file compressed as Debian wants manual pages and change logs: as small as gzip can, without name and time.
    pub(super) fn gzipped(&self, path: &str, content: &[u8]) -> Result<()> {
        let mut gzip = Command::new("gzip").arg("-9nc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start gzip")?;
        let mut input = gzip.stdin.take().context("gzip takes nothing")?;
        let content = content.to_owned();
        let writing = std::thread::spawn(move || input.write_all(&content));
        let output = gzip.wait_with_output().context("gzip is gone")?;
        ensure!(output.status.success() && writing.join().is_ok_and(|written| written.is_ok()), "gzip failed on {path}");
        self.file(path, 0o644, output.stdout)
    }

    /// A path in it, whose folder is made.
    fn place(&self, path: &str) -> Result<PathBuf> {
        if let Some(folder) = Path::new(path).parent().and_then(Path::to_str).filter(|folder| !self.root.join(folder).is_dir()) {
            self.folder(folder, 0o755)?;
        }
        Ok(self.root.join(path))
    }

    /// All files, relative, in order of their names, without what is below `except`.
    pub(super) fn files(&self, except: &str) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut pending = vec![PathBuf::new()];
        while let Some(folder) = pending.pop() {
            let path = self.root.join(&folder);
            for entry in fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))? {
                let entry = entry?;
                let relative = folder.join(entry.file_name());
                match entry.file_type()?.is_dir() {
                    true if relative == Path::new(except) => {}
                    true => pending.push(relative),
                    false => found.push(relative),
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Bytes of all files.
    pub(super) fn size(&self) -> Result<u64> {
        let size = |path: &PathBuf| fs::metadata(self.root.join(path)).map(|metadata| metadata.len());
        self.files("DEBIAN")?.iter().map(size).sum::<std::io::Result<u64>>().context("cannot see a file that was just written")
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| format!("cannot set the mode of {}", path.display()))
}
