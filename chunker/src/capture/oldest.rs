//! Bounds a folder of indexes.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Most indexes that are kept in a folder, and most bytes of them: the one written last stays in any case.
const MAX_INDEXES: usize = 64;
const MAX_INDEX_BYTES: u64 = 512 << 20;

/// Removes the indexes that were written longest ago, as far as there are too many. Failing is no one's loss but the disk's.
pub(crate) fn forget_oldest(folder: &Path, newest: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut found: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in entries.flatten() {
        if let Ok(meta) = entry.metadata()
            && entry.path() != newest
            // Also what a killed process was writing.
            && entry.path().extension().is_some_and(|end| end == "index" || end == "new")
        {
            found.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len(), entry.path()));
        }
    }
    found.sort_unstable_by(|one, other| other.cmp(one));
    let mut bytes = std::fs::metadata(newest).map_or(0, |meta| meta.len());
    for (at, (_, len, path)) in found.into_iter().enumerate() {
        bytes = bytes.saturating_add(len);
        if at + 1 >= MAX_INDEXES || bytes > MAX_INDEX_BYTES {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_indexes_are_forgotten_and_the_newest_stays() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("0.lock"), "").unwrap();
        let path = |number: usize| folder.path().join(format!("{number}.index"));
        for number in 0..MAX_INDEXES + 5 {
            let file = std::fs::File::create(path(number)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + number as u64)).unwrap();
        }
        // The newest is the one just written, whatever its time says.
        forget_oldest(folder.path(), &path(0));
        let left: Vec<usize> = (0..MAX_INDEXES + 5).filter(|number| path(*number).exists()).collect();
        assert_eq!(left, [0].into_iter().chain(6..MAX_INDEXES + 5).collect::<Vec<_>>());
        std::fs::File::create(path(1000)).unwrap().set_len(MAX_INDEX_BYTES + 1).unwrap();
        forget_oldest(folder.path(), &path(1000));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "only indexes go");
    }
}
