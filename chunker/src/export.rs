//! Writes a stack of layers as one tar: PAX with GNU sparse files, understood by GNU tar, bsdtar, Go and Python.
//!
//! Layers are merged: of each path the entry of the highest layer wins, whiteouts hide what is below them, opaque
//! directories hide what lower layers have in them. Names come depth first, parents before children; numbers, times and
//! attributes that a ustar header cannot hold stand in PAX records; holes stay holes. Equal layers give equal bytes,
//! and importing the tar of one layer gives the same root again, unless it holds what a tar cannot: whiteouts, opaque
//! directories, sockets.
//!
//! Memory: one chunk, the next 512 entries, 64 tree nodes (about 4 MB), the directories in each directory on the way down, the data runs of one
//! sparse file, and for hard links 100 bytes a file.

mod header;
mod merge;

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::ops::Range;

use layer_format::entry::{Entry, Kind, Meta};
use layer_format::recipe::{Extent, RangeStep, RangeWalk, Recipe};
use layer_format::{Digest, FormatError, LayerPath};

use crate::import::Skipped;
use crate::progress::Progress;
use crate::source::{ObjectSource, SourceError};
use header::{Header, PaxRecords};
use merge::Merge;

/// Entries, and about as many chunks, that are looked at before they are written.
const AHEAD: usize = 512;

/// A finished export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Entries written.
    pub entries: u64,
    /// Bytes of content that they have, with holes; a file with several names counts once.
    pub bytes: u64,
    /// What a tar cannot hold: to show as warnings.
    pub skipped: Vec<Skipped>,
}

/// Why an export failed. What was written until then is not a whole tar, and says so by not ending as one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// An object could not be had.
    #[error("could not read what is to be exported")]
    Source(#[source] SourceError),
    /// An object is not what its place says.
    #[error("object {digest} is not valid: verify the store and fetch it again")]
    Object {
        /// The object.
        digest: Digest,
        /// What is wrong.
        source: FormatError,
    },
    /// The output could not be written.
    #[error("could not write the tar: is the disk full?")]
    Write(#[source] io::Error),
}

/// Writes the layers with these roots, lowest first, as one tar. `out` gets many small writes: buffer it.
///
/// # Errors
/// [`ExportError::Source`] and [`ExportError::Object`] for a store that lacks or damaged an object,
/// [`ExportError::Write`] for the output.
pub fn export_tar(layers: &[Digest], source: &dyn ObjectSource, out: impl Write, progress: &dyn Progress) -> Result<Exported, ExportError> {
    export(Merge::new(layers, source), source, out, progress)
}

/// Writes one layer with this root as a tar in the form of an OCI image's layer: as [`export_tar`], and what it hides of lower
/// layers as `.wh.NAME`, and `.wh..wh..opq` in a directory that hides all. Importing it with
/// [`crate::ImportOptions::oci_whiteouts`] gives the same root again. The bytes for a root never change: digests of what others
/// have pulled rest on that.
///
/// # Errors
/// As [`export_tar`].
pub fn export_layer(root: Digest, source: &dyn ObjectSource, out: impl Write, progress: &dyn Progress) -> Result<Exported, ExportError> {
    export(Merge::layer(root, source), source, out, progress)
}

fn export(mut merge: Merge<'_>, source: &dyn ObjectSource, out: impl Write, progress: &dyn Progress) -> Result<Exported, ExportError> {
    let mut writer = TarWriter { out, source, progress, first_names: HashMap::new(), exported: Exported::default() };
    let mut ahead = VecDeque::new();
    loop {
        if ahead.is_empty() {
            look_ahead(&mut merge, source, &mut ahead)?;
        }
        let Some((layer, entry)) = ahead.pop_front() else { break };
        match (&entry.kind, entry.path.split()) {
            (Kind::Whiteout, Some((parent, name))) => writer.marker(parent, &[b".wh.", name].concat())?,
            (Kind::Directory { opaque: true }, _) if merge.hides() => {
                writer.entry(layer, &entry)?;
                writer.marker(entry.path.as_bytes(), b".wh..wh..opq")?;
            }
            _ => writer.entry(layer, &entry)?,
        }
    }
    writer.finish()
}

/// Takes the next entries, and tells the source which chunks they begin with.
fn look_ahead(merge: &mut Merge<'_>, source: &dyn ObjectSource, ahead: &mut VecDeque<(usize, Entry)>) -> Result<(), ExportError> {
    let mut expected = Vec::new();
    while ahead.len() < AHEAD
        && expected.len() < AHEAD
        && let Some((layer, entry)) = merge.next()?
    {
        if let Kind::File(Recipe::Extents(extents)) = &entry.kind {
            expected.extend(extents.iter().filter_map(|extent| match extent {
                Extent::Data(chunk) => Some(chunk.digest),
                Extent::Hole(_) => None,
            }));
        }
        ahead.push_back((layer, entry));
    }
    source.expect(&expected);
    Ok(())
}

fn fetch(source: &dyn ObjectSource, digest: &Digest) -> Result<Vec<u8>, ExportError> {
    source.object(digest).map_err(ExportError::Source)
}

struct TarWriter<'a, W> {
    out: W,
    source: &'a dyn ObjectSource,
    progress: &'a dyn Progress,
    /// The first name written of each group of hard links: layer and group.
    first_names: HashMap<(usize, u64), LayerPath>,
    exported: Exported,
}

impl<W: Write> TarWriter<'_, W> {
    /// An empty file that says what a layer hides.
    fn marker(&mut self, parent: &[u8], name: &[u8]) -> Result<(), ExportError> {
        let path = LayerPath::new(parent).and_then(|parent| parent.join(name));
        let path = path.map_err(|_| ExportError::Write(io::Error::other("a name is too long to be marked as hidden")))?;
        let entry = Entry { path, meta: Meta::default(), kind: Kind::File(Recipe::Extents(Vec::new())) };
        self.entry(0, &entry)
    }

    fn entry(&mut self, layer: usize, entry: &Entry) -> Result<(), ExportError> {
        let mut pax = PaxRecords::of(entry);
        let mut header = Header::of(entry, &mut pax);
        if let Kind::Socket = entry.kind {
            self.exported.skipped.push(Skipped { path: entry.path.clone(), reason: "a tar cannot hold a socket".to_owned() });
            return Ok(());
        }
        if let Some(link) = entry.meta.hard_link {
            match self.first_names.get(&(layer, link.group)) {
                Some(first) => {
                    header.link_to(first, &mut pax);
                    return self.headers(&header, &pax, 0);
                }
                None => {
                    self.first_names.insert((layer, link.group), entry.path.clone());
                }
            }
        }
        match &entry.kind {
            Kind::File(recipe) => self.file(recipe, header, pax),
            _ => self.headers(&header, &pax, 0),
        }
    }

    fn headers(&mut self, header: &Header, pax: &PaxRecords, bytes: u64) -> Result<(), ExportError> {
        if !pax.is_empty() {
            let (block, body) = pax.encode(header);
            self.write(&block)?;
            self.write(body)?;
            self.pad(body.len() as u64)?;
        }
        self.write(&header.encode())?;
        self.exported.entries += 1;
        self.progress.advance(1, bytes);
        Ok(())
    }

    fn file(&mut self, recipe: &Recipe, mut header: Header, mut pax: PaxRecords) -> Result<(), ExportError> {
        let len = recipe.len();
        self.exported.bytes += len;
        let runs = self.data_runs(recipe)?;
        let stored: u64 = runs.iter().map(|run| run.end - run.start).sum();
        let map = (stored < len).then(|| header.make_sparse(&runs, len, &mut pax));
        let map = map.unwrap_or_default();
        header.set_size(map.len() as u64 + stored, &mut pax);
        self.headers(&header, &pax, len)?;
        self.write(&map)?;
        let mut walk = RangeWalk::new(recipe, 0..len);
        while let Some((_, extent)) = self.step(&mut walk)? {
            if let Extent::Data(chunk) = extent {
                let bytes = fetch(self.source, &chunk.digest)?;
                if bytes.len() != chunk.len as usize {
                    return Err(ExportError::Object { digest: chunk.digest, source: FormatError::Truncated { what: "chunk" } });
                }
                self.write(&bytes)?;
            }
        }
        self.pad(stored)
    }

    /// Where the data of a file lies: one run for a file without holes.
    fn data_runs(&self, recipe: &Recipe) -> Result<Vec<Range<u64>>, ExportError> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut walk = RangeWalk::new(recipe, 0..recipe.len());
        while let Some((offset, extent)) = self.step(&mut walk)? {
            if let Extent::Hole(_) = extent {
                continue;
            }
            let end = offset + extent.len();
            match runs.last_mut() {
                Some(last) if last.end == offset => last.end = end,
                _ => runs.push(offset..end),
            }
        }
        Ok(runs)
    }

    fn step(&self, walk: &mut RangeWalk) -> Result<Option<(u64, Extent)>, ExportError> {
        loop {
            match walk.step() {
                RangeStep::Done => return Ok(None),
                RangeStep::Extent { offset, extent } => return Ok(Some((offset, extent))),
                RangeStep::Need(digest) => {
                    let node = Recipe::decode_node(&fetch(self.source, &digest)?);
                    node.and_then(|node| walk.feed(node)).map_err(|source| ExportError::Object { digest, source })?;
                }
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.out.write_all(bytes).map_err(ExportError::Write)
    }

    fn pad(&mut self, len: u64) -> Result<(), ExportError> {
        let padding = len.next_multiple_of(header::BLOCK_LEN as u64) - len;
        self.write(&[0; header::BLOCK_LEN][..padding as usize])
    }

    fn finish(mut self) -> Result<Exported, ExportError> {
        self.write(&[0; 2 * header::BLOCK_LEN])?;
        self.out.flush().map_err(ExportError::Write)?;
        Ok(self.exported)
    }
}
