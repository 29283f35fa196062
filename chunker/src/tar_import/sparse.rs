//! The map of a sparse file: where its data lies.

use layer_format::recipe::MAX_FILE_LEN;

use super::error::TarError;

/// Most entries of a map: a file with more pieces is stored without holes by who made the archive.
pub(super) const MAX_MAP_ENTRIES: usize = 1 << 20;

/// Runs of data, ascending, apart from each other, inside of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SparseMap {
    /// Offset and length of each run; no run is empty, and between two there is a hole.
    pub(super) runs: Vec<(u64, u64)>,
    /// Length of the file.
    pub(super) len: u64,
}

impl SparseMap {
    /// Checks a map, whose data must take `stored` bytes in the archive.
    pub(super) fn new(entries: &[(u64, u64)], len: u64, stored: u64, name: &[u8]) -> Result<Self, TarError> {
        if len > MAX_FILE_LEN {
            return Err(TarError::too_large(name, "its size", len, MAX_FILE_LEN));
        }
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut at = 0;
        let mut total = 0;
        for (offset, count) in entries {
            let end = offset.checked_add(*count).filter(|end| *end <= len && *offset >= at);
            at = end.ok_or_else(|| TarError::invalid(name, "its sparse map overlaps or leaves the file"))?;
            total += count;
            match runs.last_mut() {
                _ if *count == 0 => {}
                Some((start, last)) if *start + *last == *offset => *last += count,
                _ => runs.push((*offset, *count)),
            }
        }
        if total != stored {
            return Err(TarError::invalid(name, "its sparse map does not match its size in the archive"));
        }
        Ok(Self { runs, len })
    }

    /// A file without holes.
    pub(super) fn whole(len: u64, name: &[u8]) -> Result<Self, TarError> {
        Self::new(&[(0, len)], len, len, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps() {
        let map = |entries: &[(u64, u64)], len, stored| SparseMap::new(entries, len, stored, b"x").map(|map| map.runs).ok();
        assert_eq!(map(&[(0, 5), (5, 5), (20, 0), (20, 1), (30, 0)], 30, 11), Some(vec![(0, 10), (20, 1)]));
        assert_eq!(map(&[], 30, 0), Some(vec![]));
        assert_eq!(map(&[(0, 0)], 0, 0), Some(vec![]));
        for (entries, len, stored) in [
            (&[(5, 5), (0, 5)][..], 10, 10),
            (&[(0, 5), (4, 2)], 10, 7),
            (&[(0, 11)], 10, 11),
            (&[(1, u64::MAX)], 10, 10),
            (&[(0, 5)], 10, 6),
            (&[], u64::MAX, 0),
        ] {
            assert_eq!(map(entries, len, stored), None, "{entries:?}");
        }
    }
}
