//! The cells of the table of modes, checked from inside: each operation on a name that only layers have (`-v`), only the
//! host has (`-h`), both have (`-b`), and neither has (`-n`).

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use vm::Mode;

/// Operations; for each there is a file of each kind.
pub(crate) const FILES: [&str; 8] = ["read", "write", "truncate", "chmod", "time", "delete", "recreate", "rename"];
/// Files that are replaced by a new one.
pub(crate) const OVER: &str = "over";

/// What is the case in one directory.
struct Cells {
    dir: PathBuf,
    sees_host: bool,
}

#[track_caller]
fn missing<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOENT));
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// All operations, once, in a directory with the given mode.
pub(crate) fn first(mode: Mode, dir: &Path) {
    if mode == Mode::Hide {
        return hidden(dir);
    }
    let cells = Cells { dir: dir.to_owned(), sees_host: mode != Mode::Full };
    cells.look();
    cells.write();
    cells.change();
    cells.delete();
    cells.rename();
    cells.make();
    cells.directories();
    cells.look_again();
}

/// What is left of them in a later run.
pub(crate) fn again(mode: Mode, dir: &Path) {
    if mode == Mode::Hide {
        return hidden(dir);
    }
    Cells { dir: dir.to_owned(), sees_host: mode != Mode::Full }.look_again();
}

fn hidden(dir: &Path) {
    let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
    let parent = dir.parent().unwrap();
    missing(fs::metadata(dir));
    missing(fs::symlink_metadata(dir));
    missing(fs::read_dir(dir));
    missing(fs::read(dir.join("read-v")));
    missing(fs::metadata(dir.join("read-h")));
    missing(fs::write(dir.join("new"), ""));
    missing(fs::create_dir(dir.join("new")));
    missing(fs::remove_file(dir.join("read-v")));
    missing(std::env::set_current_dir(dir));
    missing(fs::rename(dir.join("read-v"), parent.join("out")));
    assert!(!names(parent).contains(&name), "a hidden directory is listed");
    fs::create_dir(dir).unwrap_err();
    fs::write(dir, "").unwrap_err();
    let other = parent.join("other-dir");
    fs::create_dir_all(&other).unwrap();
    fs::rename(&other, dir).unwrap_err();
    fs::remove_dir(&other).unwrap();
    missing(fs::metadata(dir));
}

impl Cells {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The names of an operation that are there at first, with their content.
    fn there(&self, operation: &str) -> Vec<(PathBuf, &'static str)> {
        let kinds = [("v", "virtual", true), ("h", "host", self.sees_host), ("b", "virtual", true)];
        kinds.into_iter().filter(|(_, _, there)| *there).map(|(kind, content, _)| (self.at(&format!("{operation}-{kind}")), content)).collect()
    }

    fn look(&self) {
        for (path, content) in self.there("read") {
            assert_eq!(fs::read_to_string(&path).unwrap(), content, "{}", path.display());
            assert_eq!(fs::metadata(&path).unwrap().len(), content.len() as u64);
        }
        missing(fs::read(self.at("read-n")));
        let listed = names(&self.dir);
        let unique: BTreeSet<&String> = listed.iter().collect();
        assert_eq!(unique.len(), listed.len(), "a name is listed twice: {listed:?}");
        assert_eq!(listed, names(&self.dir), "the order changes");
        for operation in FILES {
            for kind in ["v", "h", "b"] {
                let name = format!("{operation}-{kind}");
                assert_eq!(unique.contains(&name), kind != "h" || self.sees_host, "{name}");
            }
        }
        if !self.sees_host {
            missing(fs::read(self.at("read-h")));
            missing(OpenOptions::new().append(true).open(self.at("write-h")));
            missing(fs::set_permissions(self.at("chmod-h"), Permissions::from_mode(0o600)));
            missing(fs::remove_file(self.at("delete-h")));
            missing(fs::rename(self.at("rename-h"), self.at("rename-h.new")));
            missing(fs::read_dir(self.at("dir-h")));
        }
    }

    fn write(&self) {
        for (path, content) in self.there("write") {
            // What is open for reading sees what is written later.
            let reader = fs::File::open(&path).unwrap();
            OpenOptions::new().append(true).open(&path).unwrap().write_all(b"+").unwrap();
            assert_eq!(io::read_to_string(reader).unwrap(), format!("{content}+"), "{}", path.display());
        }
        for (path, _) in self.there("truncate") {
            fs::write(&path, "new").unwrap();
        }
    }

    fn change(&self) {
        for (path, content) in self.there("chmod") {
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        for (path, _) in self.there("time") {
            let file = OpenOptions::new().append(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)).unwrap();
        }
    }

    fn delete(&self) {
        for (path, _) in self.there("delete") {
            fs::remove_file(&path).unwrap();
            missing(fs::metadata(&path));
            missing(fs::remove_file(&path));
        }
        for (path, _) in self.there("recreate") {
            fs::remove_file(&path).unwrap();
            let mut file = OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
            file.write_all(b"second").unwrap();
            OpenOptions::new().write(true).create_new(true).open(&path).unwrap_err();
        }
    }

    fn rename(&self) {
        for (path, _) in self.there("rename") {
            fs::rename(&path, path.with_extension("new")).unwrap();
            missing(fs::metadata(&path));
        }
        for (path, _) in self.there(OVER) {
            let temporary = path.with_extension("tmp");
            fs::write(&temporary, "saved").unwrap();
            fs::rename(&temporary, &path).unwrap();
            missing(fs::metadata(&temporary));
        }
    }

    fn make(&self) {
        fs::write(self.at("make-n"), "made").unwrap();
        fs::create_dir_all(self.at("made-n/deep")).unwrap();
        fs::write(self.at("made-n/deep/file"), "made").unwrap();
        std::os::unix::fs::symlink("make-n", self.at("link-n")).unwrap();
    }

    fn directories(&self) {
        for kind in ["v", "b"].into_iter().chain(self.sees_host.then_some("h")) {
            let dir = self.at(&format!("dir-{kind}"));
            fs::write(dir.join("added"), "added").unwrap();
            assert_eq!(fs::remove_dir(&dir).unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
            let gone = self.at(&format!("gone-{kind}"));
            fs::remove_dir_all(&gone).unwrap();
            missing(fs::metadata(&gone));
        }
        // In place of a deleted directory there is an empty one.
        let dir = self.at("gone-b");
        fs::create_dir(&dir).unwrap();
        assert_eq!(names(&dir), Vec::<String>::new());
        fs::write(dir.join("second"), "second").unwrap();
    }

    fn look_again(&self) {
        let read = |name: &str| fs::read_to_string(self.at(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let kinds: &[&str] = if self.sees_host { &["v", "h", "b"] } else { &["v", "b"] };
        let listed: BTreeSet<String> = names(&self.dir).into_iter().collect();
        for kind in kinds {
            let content = if *kind == "h" { "host" } else { "virtual" };
            assert_eq!(read(&format!("read-{kind}")), content);
            assert_eq!(read(&format!("write-{kind}")), format!("{content}+"));
            assert_eq!(read(&format!("truncate-{kind}")), "new");
            assert_eq!(fs::metadata(self.at(&format!("chmod-{kind}"))).unwrap().mode() & 0o777, 0o600, "{kind}");
            assert_eq!(fs::metadata(self.at(&format!("time-{kind}"))).unwrap().mtime(), 1000, "{kind}");
            assert_eq!(read(&format!("recreate-{kind}")), "second");
            assert_eq!(read(&format!("rename-{kind}.new")), content);
            assert_eq!(read(&format!("{OVER}-{kind}")), "saved");
            assert_eq!(read(&format!("dir-{kind}/added")), "added");
            for gone in [format!("delete-{kind}"), format!("rename-{kind}"), format!("{OVER}-{kind}.tmp")] {
                missing(fs::symlink_metadata(self.at(&gone)));
                assert!(!listed.contains(&gone), "{gone} is listed");
            }
        }
        for kind in kinds.iter().filter(|kind| **kind != "b") {
            assert!(!listed.contains(&format!("gone-{kind}")));
        }
        let inner: BTreeSet<String> = names(&self.at("dir-b")).into_iter().collect();
        let wanted: &[&str] = if self.sees_host { &["added", "h", "v"] } else { &["added", "v"] };
        assert_eq!(inner, wanted.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(names(&self.at("gone-b")), ["second"]);
        assert_eq!((read("make-n"), read("made-n/deep/file"), read("link-n")), ("made".into(), "made".into(), "made".into()));
    }
}
