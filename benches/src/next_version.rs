//! A next version of an application where no real one is at hand: files moved, changed and renamed.
//!
//! What releases do, as far as a launch sees it: shared libraries get another number in their name (the content moves
//! to another path), a file in ten of the sources gets another first line (all that follows moves by some bytes, and
//! bytecode is compiled anew), and one in seven of the folders of Python packages moves from the distribution's place to
//! the local one. The choice follows from the path alone, so that it is the same on every machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::app::compile_python;

/// One in so many source files changes.
const CHANGED: u64 = 10;
/// One in so many Python packages moves.
const MOVED: u64 = 7;
/// Packages with libraries of their own are found by relative paths, and stay.
const PACKAGES: &str = "usr/lib/python3/dist-packages";

/// Turns a root filesystem into its next version.
///
/// # Errors
/// If an entry cannot be read or written.
pub(crate) fn derive(root: &Path) -> Result<()> {
    let mut files = Vec::new();
    walk(root, Path::new(""), &mut files)?;
    rename_libraries(root, &files)?;
    for path in files.iter().filter(|path| is_source(path) && chosen(path, CHANGED)) {
        let full = root.join(path);
        // Only text that surely is: what does not begin with a comment or a declaration may mind a line before it.
        let Ok(text) = fs::read_to_string(&full) else { continue };
        let comment = if path.extension().is_some_and(|extension| extension == "py") { "# next version\n" } else { "// next version\n" };
        if text.starts_with("#!") || text.starts_with('{') {
            continue;
        }
        fs::write(&full, format!("{comment}{text}")).with_context(|| format!("cannot write {}", full.display()))?;
    }
    let python = root.join("usr/bin/python3").symlink_metadata().is_ok();
    if python {
        move_packages(root)?;
        compile_python(root)?;
    }
    Ok(())
}

/// `libfoo.so.1.2.3`, that a link `libfoo.so.1` leads to, becomes `libfoo.so.1.2.3.1`.
fn rename_libraries(root: &Path, files: &[PathBuf]) -> Result<()> {
    for link in files.iter().filter(|path| path.to_string_lossy().contains(".so.")) {
        let full = root.join(link);
        let Ok(target) = fs::read_link(&full) else { continue };
        let Some(name) = target.to_str().filter(|name| !name.contains('/') && name.contains(".so.")) else { continue };
        let old = full.with_file_name(name);
        if !old.symlink_metadata().is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        let renamed = format!("{name}.1");
        fs::rename(&old, full.with_file_name(&renamed)).with_context(|| format!("cannot rename {}", old.display()))?;
        // Other links to the old name go on working.
        for (path, target) in [(&full, &renamed), (&old, &renamed)] {
            if path.symlink_metadata().is_ok() {
                fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
            symlink(target, path).with_context(|| format!("cannot create the link {}", path.display()))?;
        }
    }
    Ok(())
}

fn move_packages(root: &Path) -> Result<()> {
    let Ok(python) = fs::read_link(root.join("usr/bin/python3")) else { return Ok(()) };
    let to = root.join("usr/local/lib").join(python.file_name().unwrap_or_default()).join("dist-packages");
    fs::create_dir_all(&to).with_context(|| format!("cannot create {}", to.display()))?;
    let Ok(packages) = fs::read_dir(root.join(PACKAGES)) else { return Ok(()) };
    for package in packages.flatten().filter(|entry| entry.path().is_dir() && chosen(Path::new(&entry.file_name()), MOVED)) {
        fs::rename(package.path(), to.join(package.file_name())).with_context(|| format!("cannot move {}", package.path().display()))?;
    }
    Ok(())
}

fn is_source(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "py" || extension == "js")
}

fn chosen(path: &Path, one_in: u64) -> bool {
    // FNV-1a.
    let hash = path.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    hash.is_multiple_of(one_in)
}

fn walk(root: &Path, folder: &Path, all: &mut Vec<PathBuf>) -> Result<()> {
    let full = root.join(folder);
    for entry in fs::read_dir(&full).with_context(|| format!("cannot list {}", full.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", full.display()))?;
        let path = folder.join(entry.file_name());
        if entry.file_type().with_context(|| format!("cannot look at {}", path.display()))?.is_dir() {
            walk(root, &path, all)?;
        } else {
            all.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_found_under_both_names_and_has_another() {
        let root = tempfile::tempdir().unwrap();
        let lib = root.path().join("usr/lib");
        fs::create_dir_all(&lib).unwrap();
        fs::write(lib.join("liba.so.1.2"), "content").unwrap();
        symlink("liba.so.1.2", lib.join("liba.so.1")).unwrap();
        derive(root.path()).unwrap();
        assert!(lib.join("liba.so.1.2.1").symlink_metadata().unwrap().is_file());
        for name in ["liba.so.1", "liba.so.1.2"] {
            assert_eq!(fs::read_link(lib.join(name)).unwrap(), Path::new("liba.so.1.2.1"), "{name}");
        }
    }
}
