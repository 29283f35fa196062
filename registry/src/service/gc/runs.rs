//! Sets of records that need not fit into memory: sorted runs in files without a name, merged when they are read. A crash
//! leaves nothing behind.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Records that are sorted in memory: with digests, 16 MiB.
const IN_MEMORY: usize = 1 << 19;

/// Records of `N` bytes, being collected.
#[derive(Debug)]
pub(crate) struct Runs<const N: usize> {
    folder: PathBuf,
    buffer: Vec<[u8; N]>,
    files: Vec<File>,
    in_memory: usize,
}

impl<const N: usize> Runs<N> {
    /// An empty set, whose files are made in this folder.
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.into(), buffer: Vec::new(), files: Vec::new(), in_memory: IN_MEMORY }
    }

    /// Adds a record.
    pub(crate) fn push(&mut self, record: [u8; N]) -> io::Result<()> {
        self.buffer.push(record);
        if self.buffer.len() < self.in_memory {
            return Ok(());
        }
        self.sort();
        // What is referred to often is often the same.
        if self.buffer.len() < self.in_memory / 2 {
            return Ok(());
        }
        self.spill()
    }

    fn sort(&mut self) {
        self.buffer.sort_unstable();
        self.buffer.dedup();
    }

    fn spill(&mut self) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, tempfile::tempfile_in(&self.folder)?);
        for record in self.buffer.drain(..) {
            out.write_all(&record)?;
        }
        let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        self.files.push(file);
        Ok(())
    }

    /// All records in order, each once.
    pub(crate) fn sorted(mut self) -> io::Result<Sorted<N>> {
        self.sort();
        let mut sources: Vec<Source<N>> = self.files.into_iter().map(|file| Source::File(BufReader::with_capacity(1 << 16, file))).collect();
        sources.push(Source::Memory(self.buffer.into_iter()));
        let mut heads = BinaryHeap::with_capacity(sources.len());
        for (number, source) in sources.iter_mut().enumerate() {
            if let Some(record) = source.next()? {
                heads.push(Reverse((record, number)));
            }
        }
        Ok(Sorted { sources, heads, last: None })
    }
}

#[derive(Debug)]
enum Source<const N: usize> {
    Memory(std::vec::IntoIter<[u8; N]>),
    File(BufReader<File>),
}

impl<const N: usize> Source<N> {
    fn next(&mut self) -> io::Result<Option<[u8; N]>> {
        match self {
            Self::Memory(records) => Ok(records.next()),
            Self::File(file) => {
                let mut record = [0; N];
                match file.read_exact(&mut record) {
                    Ok(()) => Ok(Some(record)),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                    Err(error) => Err(error),
                }
            }
        }
    }
}

/// Records in order, each once.
#[derive(Debug)]
pub(crate) struct Sorted<const N: usize> {
    sources: Vec<Source<N>>,
    heads: BinaryHeap<Reverse<([u8; N], usize)>>,
    last: Option<[u8; N]>,
}

impl<const N: usize> Sorted<N> {
    /// The next record.
    pub(crate) fn next(&mut self) -> io::Result<Option<[u8; N]>> {
        while let Some(Reverse((record, number))) = self.heads.pop() {
            if let Some(source) = self.sources.get_mut(number)
                && let Some(next) = source.next()?
            {
                self.heads.push(Reverse((next, number)));
            }
            if self.last != Some(record) {
                self.last = Some(record);
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// The next records, at most `count`; empty at the end.
    pub(crate) fn take(&mut self, count: usize) -> io::Result<Vec<[u8; N]>> {
        let mut taken = Vec::new();
        while taken.len() < count {
            match self.next()? {
                Some(record) => taken.push(record),
                None => break,
            }
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn records_come_in_order_and_once(records in proptest::collection::vec(any::<[u8; 3]>(), 0..300), in_memory in 1usize..50, common in 0u8..3) {
            let folder = tempfile::tempdir().unwrap();
            let mut runs = Runs::<3> { in_memory, ..Runs::new(folder.path()) };
            let records: Vec<[u8; 3]> = records.into_iter().map(|[a, b, c]| if common == 0 { [a, b, c] } else { [a % 4, b % common, 0] }).collect();
            for record in &records {
                runs.push(*record).unwrap();
            }
            let mut sorted = runs.sorted().unwrap();
            let expected: Vec<[u8; 3]> = records.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
            let mut got = Vec::new();
            loop {
                let some = sorted.take(7).unwrap();
                if some.is_empty() { break; }
                got.extend(some);
            }
            prop_assert_eq!(got, expected);
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
