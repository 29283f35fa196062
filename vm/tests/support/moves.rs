//! Directories that are renamed while files in them are open.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Renames the virtual directory `dir` and the host's `hdir` with files open for writing, one of them new.
pub(crate) fn open_files(merge: &Path) {
    let open = |path: &str| OpenOptions::new().read(true).append(true).create(true).open(merge.join(path)).unwrap();
    let (mut old, mut host) = (open("dir/v"), open("hdir/h"));
    let mut deep = open("deep/er/v");
    old.write_all(b" one").unwrap();
    fs::rename(merge.join("dir"), merge.join("moved")).unwrap();
    fs::rename(merge.join("hdir"), merge.join("moved-h")).unwrap();
    fs::rename(merge.join("deep"), merge.join("moved/deep")).unwrap();
    for file in [&mut old, &mut host, &mut deep] {
        file.write_all(b" two").unwrap();
    }
    old.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    old.read_to_string(&mut text).unwrap();
    assert_eq!(text, "virtual one two");
    let read = |path: &str| fs::read_to_string(merge.join(path)).unwrap();
    assert_eq!((read("moved/v"), read("moved-h/h"), read("moved/deep/er/v")), (text, "host two".to_owned(), "virtual two".to_owned()));
    for gone in ["dir", "hdir", "deep"] {
        assert!(fs::symlink_metadata(merge.join(gone)).is_err(), "{gone}");
    }
    // The old names are free again.
    fs::create_dir(merge.join("dir")).unwrap();
    assert_eq!(fs::read_dir(merge.join("dir")).unwrap().count(), 0);
}
