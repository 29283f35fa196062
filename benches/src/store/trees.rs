//! The trees that are stored: how they are made, compared, and how one version becomes the next.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Makes the trees; its text says what each is.
const SCRIPT: &str = include_str!("dataset.sh");

/// A tree in two versions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tree {
    pub(super) name: &'static str,
    first: &'static str,
    second: &'static str,
    /// Whether it has over 20 000 files, so that a plain copy is what a checkout is compared with.
    pub(super) has_many_files: bool,
    /// What version 2 may add to what is stored, in proportion to the best peer.
    pub(super) added_target: f64,
    /// What restoring version 2 over version 1 may take, in proportion to the best peer.
    pub(super) update_target: f64,
}

/// All trees.
pub(super) const ALL: [Tree; 5] = [
    Tree { name: "scipy", first: "1.15.2", second: "1.15.3", has_many_files: false, added_target: 0.70, update_target: 0.85 },
    Tree { name: "jaxlib", first: "0.4.35", second: "0.4.36", has_many_files: false, added_target: 1.02, update_target: 0.70 },
    Tree { name: "img-pg", first: "v1", second: "v2", has_many_files: false, added_target: 0.70, update_target: 0.55 },
    Tree { name: "jsapp", first: "v1", second: "v2", has_many_files: true, added_target: 0.15, update_target: 0.30 },
    Tree { name: "ansible", first: "11.1.0", second: "11.2.0", has_many_files: true, added_target: 0.60, update_target: 0.35 },
];

impl Tree {
    /// Version 1.
    pub(super) fn v1(&self, data: &Path) -> PathBuf {
        data.join(self.name).join(self.first)
    }

    /// Version 2.
    pub(super) fn v2(&self, data: &Path) -> PathBuf {
        data.join(self.name).join(self.second)
    }
}

/// Makes the trees that are not there.
pub(super) fn build(data: &Path, trees: &[Tree]) -> Result<()> {
    let missing: Vec<&str> = trees.iter().filter(|tree| !(tree.v1(data).is_dir() && tree.v2(data).is_dir())).map(|tree| tree.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("making {} in {}", missing.join(", "), data.display());
    fs::create_dir_all(data).with_context(|| format!("cannot create {}", data.display()))?;
    let mut bash =
        Command::new("bash").args(["-s", "--"]).arg(data).args(&missing).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().context("cannot start bash")?;
    if let Some(mut input) = bash.stdin.take() {
        input.write_all(SCRIPT.as_bytes()).context("bash does not read")?;
    }
    let status = bash.wait().context("bash is gone")?;
    ensure!(status.success(), "the trees could not be made ({status}): it takes pip, npm, and apt-get with its lists");
    Ok(())
}

/// What is compared of an entry: kind and content. Tools differ in what metadata they keep.
fn entries(root: &Path) -> Result<BTreeMap<PathBuf, fs::Metadata>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let folder = root.join(&relative);
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            let path = relative.join(entry.file_name());
            if path == Path::new(".c") {
                continue;
            }
            let meta = entry.metadata()?;
            if meta.is_dir() {
                pending.push(path.clone());
            }
            found.insert(path, meta);
        }
    }
    Ok(found)
}

/// Whether two trees have the same names, kinds, contents and link targets; with `strict` also modes and times of files.
pub(super) fn are_same(one: &Path, other: &Path, strict: bool) -> Result<bool> {
    let (left, right) = (entries(one)?, entries(other)?);
    if left.len() != right.len() {
        return Ok(false);
    }
    for ((path, meta), (other_path, other_meta)) in left.iter().zip(&right) {
        if path != other_path || meta.file_type() != other_meta.file_type() {
            return Ok(false);
        }
        let stated = |meta: &fs::Metadata| (meta.mode(), meta.mtime(), meta.mtime_nsec());
        if strict && !meta.is_symlink() && stated(meta) != stated(other_meta) {
            return Ok(false);
        }
        let (from, to) = (one.join(path), other.join(path));
        let same = if meta.is_symlink() {
            fs::read_link(from)? == fs::read_link(to)?
        } else if meta.is_file() {
            meta.len() == other_meta.len() && fs::read(from)? == fs::read(to)?
        } else {
            true
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes `tree` what `wanted` is, as a careful updater would: files of equal content and time are not touched.
pub(super) fn change_to(tree: &Path, wanted: &Path) -> Result<()> {
    let (have, want) = (entries(tree)?, entries(wanted)?);
    for (path, meta) in have.iter().rev().filter(|(path, meta)| want.get(*path).is_none_or(|wanted| wanted.file_type() != meta.file_type())) {
        let full = tree.join(path);
        if meta.is_dir() { fs::remove_dir(full)? } else { fs::remove_file(full)? }
    }
    let have = entries(tree)?;
    for (path, meta) in &want {
        let (from, to) = (wanted.join(path), tree.join(path));
        let there = have.get(path);
        if meta.is_dir() {
            if there.is_none() {
                fs::create_dir(&to)?;
            }
        } else if meta.is_symlink() {
            if there.is_some() && fs::read_link(&to)? == fs::read_link(&from)? {
                continue;
            }
            let _ = fs::remove_file(&to);
            symlink(fs::read_link(&from)?, &to)?;
        } else if meta.is_file() {
            if there.is_none_or(|there| there.len() != meta.len()) || fs::read(&from)? != fs::read(&to)? {
                let _ = fs::remove_file(&to);
                fs::copy(&from, &to)?;
            }
            let now = fs::metadata(&to)?;
            if now.mode() != meta.mode() {
                fs::set_permissions(&to, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
            }
            if (now.mtime(), now.mtime_nsec()) != (meta.mtime(), meta.mtime_nsec()) {
                fs::File::options().write(true).open(&to)?.set_modified(meta.modified()?)?;
            }
        } else {
            bail!("{} is of a kind that the trees do not have", from.display());
        }
    }
    Ok(())
}

/// Bytes of all files below a folder, but for those in the folders of this name at its top: what a tool could lose without losing
/// content. Keeps little in memory, since what a measured process takes is never less than what its parent had.
pub(super) fn stored_bytes(folder: &Path, leave_out: &[&str]) -> Result<u64> {
    let (mut bytes, mut pending) = (0, vec![folder.to_owned()]);
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("cannot list {}", next.display()))? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() && !(next == folder && leave_out.iter().any(|name| entry.file_name() == *name)) {
                pending.push(entry.path());
            } else if meta.is_file() {
                bytes += meta.len();
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_becomes_another_and_is_then_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        for (dir, changed) in [(&one, "old"), (&other, "new!")] {
            fs::create_dir_all(dir.join("d/same")).unwrap();
            fs::write(dir.join("d/same/f"), "same").unwrap();
            fs::write(dir.join("d/changed"), changed).unwrap();
            symlink(changed, dir.join("link")).unwrap();
        }
        fs::write(one.join("gone"), "x").unwrap();
        fs::create_dir(one.join("kind")).unwrap();
        fs::write(one.join("kind/inside"), "x").unwrap();
        fs::write(other.join("kind"), "a file now").unwrap();
        assert!(!are_same(&one, &other, false).unwrap());
        let before = fs::metadata(one.join("d/same/f")).unwrap().ino();
        change_to(&one, &other).unwrap();
        assert!(are_same(&one, &other, false).unwrap());
        assert_eq!(fs::metadata(one.join("d/same/f")).unwrap().ino(), before);
        fs::write(other.join("d/changed"), "NEW!").unwrap();
        assert!(!are_same(&one, &other, false).unwrap());
        assert_eq!(stored_bytes(&one, &[]).unwrap(), 4 + 4 + 10);
        assert_eq!(stored_bytes(&one, &["d"]).unwrap(), 10);
    }
}
