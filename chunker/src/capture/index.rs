//! The capture index: which content regular files of a sandbox had when they were read, and how to tell that they still
//! have it. Format: `docs/formats/capture-index.md`.
//!
//! It is a cache: whatever is damaged or missing in it only makes files be read again. Records stand in the order of the
//! tree, in blocks with a checksum each, so that a capture walks through it once beside its own walk, in the memory of
//! one block.
//!
//! **What may be believed.** A record holds as long as the file has the same device, inode number, length, `mtime` and
//! `ctime`: no program can set `ctime` back. But time on a file system has ticks: a file that is written twice in one tick
//! has one `ctime`. So records are only kept of files whose `ctime` is *older* than a moment, told by the clock of that file
//! system, from which on every change gives a `ctime` at or after it.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use layer_format::codec::{FormatError, Reader, Writer};
use layer_format::entry::{Entry, Kind, Meta};
use layer_format::recipe::Recipe;
use layer_format::tree::Node;
use layer_format::{Digest, LayerPath};

use crate::read::Stamp;
use crate::xattr::Xattrs;

const MAGIC: &[u8; 3] = b"TBC";
const VERSION: u8 = 1;
/// Records of a block, at most.
const BLOCK_RECORDS: usize = 128;
/// A block ends when its entries take about this many bytes.
const BLOCK_LEN: usize = 64 * 1024;
/// Longest block that is read, in bytes: one whose last entry is as large as an entry can be.
const MAX_BLOCK_LEN: usize = 4 << 20;
/// Seconds that the coarsest times of a file system are apart.
const COARSEST_S: i64 = 2;
/// Bytes of a block's checksum.
const CHECKSUM_LEN: usize = 16;

/// Writes an index beside the old one, and puts it in its place at the end. A failure to write ends the index, not the
/// capture.
#[derive(Debug)]
pub(crate) struct IndexWriter {
    path: PathBuf,
    temporary: PathBuf,
    /// `None` once writing failed.
    out: Option<BufWriter<File>>,
    /// Files whose `ctime` is not older are left out.
    believed_before: (i64, u32),
    stamps: Vec<Stamp>,
    entries: Vec<Entry>,
    len: usize,
}

impl IndexWriter {
    /// Starts the index that will be at `path`.
    pub(crate) fn create(path: &Path, believed_before: (i64, u32)) -> Self {
        let temporary = path.with_extension("new");
        let created = File::create(&temporary).and_then(|file| {
            let mut out = BufWriter::with_capacity(BLOCK_LEN, file);
            out.write_all(MAGIC)?;
            out.write_all(&[VERSION])?;
            Ok(out)
        });
        Self { path: path.to_owned(), temporary, out: created.ok(), believed_before, stamps: Vec::new(), entries: Vec::new(), len: 0 }
    }

    /// Adds a regular file; files come in the order of the tree.
    pub(crate) fn add(&mut self, stamp: &Stamp, entry: &Entry) {
        let Kind::File(recipe) = &entry.kind else { return };
        if self.out.is_none() || !self.believes(stamp.ctime) {
            return;
        }
        self.len += 128 + entry.path.as_bytes().len() + entry.meta.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let meta = Meta { xattrs: entry.meta.xattrs.clone(), ..Meta::default() };
        self.stamps.push(*stamp);
        self.entries.push(Entry { path: entry.path.clone(), meta, kind: Kind::File(recipe.clone()) });
        if self.entries.len() >= BLOCK_RECORDS || self.len >= BLOCK_LEN {
            self.end_block();
        }
    }

    /// Whether a change from now on gives another `ctime` than this. A time of whole seconds may have been cut to them,
    /// or to two, by a file system with coarse times.
    fn believes(&self, ctime: (i64, u32)) -> bool {
        match ctime {
            (seconds, 0) => seconds.saturating_add(COARSEST_S) < self.believed_before.0,
            ctime => ctime < self.believed_before,
        }
    }

    fn end_block(&mut self) {
        let (stamps, entries) = (std::mem::take(&mut self.stamps), std::mem::take(&mut self.entries));
        self.len = 0;
        if entries.is_empty() {
            return;
        }
        let block = encode_block(&stamps, entries);
        let written = self.out.as_mut().is_some_and(|out| {
            let head = (block.len() as u32).to_le_bytes();
            out.write_all(&head).and_then(|()| out.write_all(&checksum(&block))).and_then(|()| out.write_all(&block)).is_ok()
        });
        if !written {
            self.out = None;
        }
    }

    /// Puts the index in the place of the old one. If that fails, or writing did, the old one stays: it is still right of
    /// whatever has not changed.
    pub(crate) fn finish(mut self) {
        self.end_block();
        let flushed = self.out.take().is_some_and(|out| out.into_inner().is_ok());
        if flushed && std::fs::rename(&self.temporary, &self.path).is_ok() {
            self.temporary = PathBuf::new();
        }
    }
}

impl Drop for IndexWriter {
    fn drop(&mut self) {
        if !self.temporary.as_os_str().is_empty() {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

fn checksum(block: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut sum = [0; CHECKSUM_LEN];
    sum.copy_from_slice(&Digest::of(block).as_bytes()[..CHECKSUM_LEN]);
    sum
}

fn encode_block(stamps: &[Stamp], entries: Vec<Entry>) -> Vec<u8> {
    let mut block = Vec::new();
    block.put_varint(stamps.len() as u64);
    for stamp in stamps {
        for number in [stamp.dev, stamp.ino, stamp.len] {
            block.put_varint(number);
        }
        for (seconds, nanoseconds) in [stamp.mtime, stamp.ctime] {
            block.put_signed(seconds);
            block.put_varint(nanoseconds.into());
        }
    }
    block.extend_from_slice(&Node::Leaf(entries).encode());
    block
}

fn decode_block(block: &[u8]) -> Result<Vec<(Stamp, Entry)>, FormatError> {
    let mut reader = Reader::new("capture index", block);
    let count = reader.count(BLOCK_RECORDS as u64, 7)?;
    let mut stamps = Vec::with_capacity(count);
    for _ in 0..count {
        let mut number = || reader.varint(u64::MAX);
        let (dev, ino, len) = (number()?, number()?, number()?);
        let mut time = || Ok::<_, FormatError>((reader.signed()?, reader.varint(999_999_999)? as u32));
        stamps.push(Stamp { dev, ino, len, mtime: time()?, ctime: time()? });
    }
    let rest = reader.remaining();
    match Node::decode(reader.bytes(rest)?)? {
        Node::Leaf(entries) if entries.len() == count => Ok(stamps.into_iter().zip(entries).collect()),
        _ => Err(FormatError::Invalid { what: "capture index", rule: "a block has an entry for each stamp" }),
    }
}

/// Reads an index in the order of the tree.
#[derive(Debug)]
pub(crate) struct IndexReader {
    file: BufReader<File>,
    /// What is left of the block, next record last.
    block: Vec<(Stamp, Entry)>,
}

impl IndexReader {
    /// Opens the index, if there is one of this version.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        let mut file = BufReader::with_capacity(BLOCK_LEN, File::open(path).ok()?);
        let mut head = [0; 4];
        file.read_exact(&mut head).ok()?;
        (head[..3] == MAGIC[..] && head[3] == VERSION).then_some(Self { file, block: Vec::new() })
    }

    /// What is known of the file with this path. Paths must be asked for in the order of the tree.
    pub(crate) fn record(&mut self, path: &LayerPath) -> Option<(Stamp, Recipe, Xattrs)> {
        loop {
            match self.block.last() {
                Some((_, entry)) if entry.path > *path => return None,
                Some(_) => {
                    let (stamp, entry) = self.block.pop()?;
                    if entry.path == *path {
                        let Kind::File(recipe) = entry.kind else { return None };
                        return Some((stamp, recipe, entry.meta.xattrs));
                    }
                }
                // The end, or damage: nothing more is known.
                None => self.block = self.next_block().ok().flatten().filter(|block| !block.is_empty())?,
            }
        }
    }

    /// Content and attributes of this file, if they are known of exactly this stamp. Paths must be asked for in the order of
    /// the tree.
    pub(crate) fn find(&mut self, path: &LayerPath, stamp: &Stamp) -> Option<(Recipe, Xattrs)> {
        let (known, recipe, xattrs) = self.record(path)?;
        (known == *stamp).then_some((recipe, xattrs))
    }

    fn next_block(&mut self) -> io::Result<Option<Vec<(Stamp, Entry)>>> {
        let mut head = [0; 4 + CHECKSUM_LEN];
        self.file.read_exact(&mut head)?;
        let (len, sum) = head.split_at(4);
        let len = len.iter().rev().fold(0, |len, byte| len << 8 | usize::from(*byte));
        if len > MAX_BLOCK_LEN {
            return Ok(None);
        }
        let mut block = vec![0; len];
        self.file.read_exact(&mut block)?;
        if checksum(&block) != sum {
            return Ok(None);
        }
        Ok(decode_block(&block).ok().map(|mut records| {
            records.reverse();
            records
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer_format::chunk::ChunkRef;
    use layer_format::recipe::Extent;

    fn stamp(number: u64) -> Stamp {
        Stamp { dev: 7, ino: number, len: number % 50, mtime: (-(number as i64), 5), ctime: (100, (number % 1000) as u32) }
    }

    fn entry(number: u64) -> Entry {
        let recipe = Recipe::Extents(vec![Extent::Data(ChunkRef { digest: Digest::of(&number.to_le_bytes()), len: 5 })]);
        let xattrs = vec![(b"user.a".to_vec(), vec![number as u8; (number % 3) as usize])];
        Entry {
            path: LayerPath::new(format!("d{:02}/f{number:05}", number / 100)).unwrap(),
            meta: Meta { xattrs, ..Meta::default() },
            kind: Kind::File(recipe),
        }
    }

    fn write(path: &Path, count: u64) {
        let mut writer = IndexWriter::create(path, (200, 0));
        (0..count).for_each(|number| writer.add(&stamp(number), &entry(number)));
        writer.finish();
    }

    #[test]
    fn what_was_written_is_found_in_order_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        write(&path, 1000);
        assert!(!path.with_extension("new").exists());
        let mut reader = IndexReader::open(&path).unwrap();
        for number in (0..990).step_by(3) {
            assert_eq!(reader.find(&LayerPath::new(format!("d{:02}/f{number:05}-", number / 100)).unwrap(), &stamp(number)), None);
            let wanted = if number % 2 == 0 { stamp(number + 1) } else { stamp(number + 2) };
            let Kind::File(recipe) = entry(number + 2).kind else { unreachable!() };
            let found = reader.find(&entry(number + 2).path, &wanted);
            assert_eq!(found, (number % 2 == 1).then_some((recipe, entry(number + 2).meta.xattrs)), "{number}");
        }
    }

    #[test]
    fn a_file_whose_change_could_go_unseen_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let mut writer = IndexWriter::create(&path, (100, 500));
        writer.add(&stamp(499), &entry(499));
        writer.add(&stamp(500), &entry(500));
        writer.finish();
        let mut reader = IndexReader::open(&path).unwrap();
        assert!(reader.find(&entry(499).path, &stamp(499)).is_some());
        assert_eq!(reader.find(&entry(500).path, &stamp(500)), None);
        // Whole seconds may be all that the file system keeps, or every other one.
        for (now, is_believed) in [((100, 5), false), ((102, 999_999_999), false), ((103, 0), true)] {
            let mut writer = IndexWriter::create(&path, now);
            writer.add(&stamp(1000), &entry(1000));
            writer.finish();
            let mut reader = IndexReader::open(&path).unwrap();
            assert_eq!(reader.find(&entry(1000).path, &stamp(1000)).is_some(), is_believed, "{now:?}");
        }
    }

    #[test]
    fn damage_anywhere_is_never_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        write(&path, 300);
        let good = std::fs::read(&path).unwrap();
        let found = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let Some(mut reader) = IndexReader::open(&path) else { return 0 };
            let mut count = 0;
            for number in 0..300 {
                if let Some((recipe, xattrs)) = reader.find(&entry(number).path, &stamp(number)) {
                    assert_eq!((Kind::File(recipe), xattrs), (entry(number).kind, entry(number).meta.xattrs), "{number}");
                    count += 1;
                }
            }
            count
        };
        assert_eq!(found(&good), 300);
        for at in (0..good.len()).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(found(&bad) < 300, "a flip at {at} goes unseen");
        }
        for len in (0..good.len()).step_by(101) {
            assert!(found(&good[..len]) < 300);
        }
    }
}
