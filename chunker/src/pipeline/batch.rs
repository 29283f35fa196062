//! What the producer hands to workers, and workers to the sequencer: some entries, in order, and their content.

use std::ffi::CString;
use std::sync::Arc;

use layer_format::entry::Entry;
use layer_format::recipe::Recipe;
use layer_format::{Digest, LayerPath};

use crate::import::Skipped;
use crate::read::{Directory, Identity, Stamp};
use crate::segments::SegmentedFile;
use crate::xattr::Xattrs;

/// Entries and content in the producer's order. An entry and its content may lie in several batches.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Number in the producer's order, from 0.
    pub(crate) number: u64,
    pub(crate) items: Vec<Item>,
    /// Runs of content, in order, taken up by [`Item::Content`].
    pub(crate) spans: Vec<Span>,
    /// The bytes of all [`Span::Data`], one after the other.
    pub(crate) bytes: Vec<u8>,
    /// Of each [`Span::Data`]; filled in by a worker.
    pub(crate) digests: Vec<Digest>,
    /// Whether the sink has each of them; filled in by a worker.
    pub(crate) present: Vec<bool>,
}

/// A step in the description of a tree.
#[derive(Debug)]
pub(crate) enum Item {
    /// An entry begins. A file's content follows, up to [`Item::End`]; other kinds have none, and no end.
    Begin(Box<Begin>),
    /// The next `count` spans belong to the file that has begun.
    Content { count: usize },
    /// The file is complete.
    End,
    /// A file that a worker shall read: it puts `Begin`, `Content`, `End` in its place.
    Read(Box<FileToRead>),
    /// A small file whose content is known from before: a worker puts `Ready` in its place, or reads it if the sink has lost
    /// a part of it.
    Known(Box<KnownFile>),
    /// A file with its recipe, complete.
    Ready(Box<Begin>),
    /// A segment of a large file that a worker shall read, alone in its batch.
    Segment { file: Arc<SegmentedFile>, index: u64 },
    /// Something that could not be kept.
    Skipped(Skipped),
}

/// A run of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    /// A chunk of this length.
    Data(u32),
    /// A hole of this length.
    Hole(u64),
}

/// An entry, with everything but content.
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) entry: Entry,
    pub(crate) link: Link,
    /// Of a regular file: what tells later whether it is still the same.
    pub(crate) stamp: Option<Stamp>,
}

impl Begin {
    pub(crate) fn new(entry: Entry, link: Link) -> Self {
        Self { entry, link, stamp: None }
    }
}

/// How an entry is joined to others of the same file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// It has one name.
    None,
    /// A name of the inode with this identity, which has `names` names in all. The first one has the content.
    Inode { dev: u64, ino: u64, names: u64 },
    /// Another name of this earlier entry (of a tar).
    Target(LayerPath),
    /// It only says that the directory of this path is opaque (in a layer of an OCI image).
    OpaqueMarker,
}

/// A regular file as it was seen in its directory.
#[derive(Debug)]
pub(crate) struct FileToRead {
    pub(crate) directory: Arc<Directory>,
    pub(crate) name: CString,
    pub(crate) identity: Identity,
    pub(crate) begin: Box<Begin>,
}

/// A regular file that has not changed since its content was last read.
#[derive(Debug)]
pub(crate) struct KnownFile {
    pub(crate) file: FileToRead,
    pub(crate) recipe: Recipe,
    pub(crate) xattrs: Xattrs,
}

impl KnownFile {
    /// The entry, without reading the file.
    pub(crate) fn into_begin(self) -> Box<Begin> {
        let mut begin = self.file.begin;
        begin.entry.kind = layer_format::entry::Kind::File(self.recipe);
        begin.entry.meta.xattrs = self.xattrs;
        begin
    }
}
