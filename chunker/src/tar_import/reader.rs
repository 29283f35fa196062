//! Reads the entries of an archive, one after the other, and describes them to the pipeline.

use std::io::{self, Read};

use layer_format::LayerPath;
use layer_format::entry::{Entry, Kind, MAX_TARGET_LEN, Meta};
use layer_format::path::MAX_PATH_LEN;
use layer_format::recipe::{MAX_FILE_LEN, Recipe};

use super::error::TarError;
use super::header::{BLOCK_LEN, Header, sparse_entries};
use super::pax::{Pax, decimal};
use super::sparse::{MAX_MAP_ENTRIES, SparseMap};
use crate::error::ImportError;
use crate::import::{ImportOptions, Skipped};
use crate::pipeline::{Begin, DataError, Feed, Link};
use crate::xattr;

/// Longest extended header: all attributes that an entry may have, and names.
const MAX_PAX_LEN: u64 = 2 << 20;
/// Longest payload of a GNU long name.
const MAX_LONG_NAME_LEN: u64 = MAX_PATH_LEN as u64 + 1024;
/// Most bytes read after the end of the archive, so that who writes to the pipe does not get a broken one.
const MAX_TAIL_LEN: u64 = 16 << 20;

/// See the module.
pub(super) struct TarReader<'a, R> {
    stream: Stream<R>,
    options: &'a ImportOptions,
}

/// The uncompressed bytes, and how many were read.
struct Stream<R> {
    inner: R,
    offset: u64,
    /// Most bytes to read.
    max: u64,
}

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.offset += count as u64;
        if self.offset > self.max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(count) }
    }
}

/// What the headers before an entry's own say of it.
#[derive(Default)]
struct Extensions {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Stream<R> {
    fn truncated(&self) -> TarError {
        TarError::Truncated { offset: self.offset }
    }

    fn read_error(&self, source: io::Error) -> TarError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => self.truncated(),
            io::ErrorKind::FileTooLarge => TarError::TooLong { max: self.max },
            _ => TarError::Read { offset: self.offset, source },
        }
    }

    /// The next block; `None` if the stream ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK_LEN]>, TarError> {
        let mut block = [0; BLOCK_LEN];
        let mut filled = 0;
        while filled < BLOCK_LEN {
            match self.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(self.truncated()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.read_error(error)),
            }
        }
        Ok(Some(block))
    }

    fn needed_block(&mut self) -> Result<[u8; BLOCK_LEN], TarError> {
        self.block()?.ok_or_else(|| self.truncated())
    }

    /// A payload that is kept in memory, with its padding.
    fn payload(&mut self, len: u64, max: u64, name: &[u8]) -> Result<Vec<u8>, TarError> {
        if len > max {
            return Err(TarError::too_large(name, "the length of an extended header", len, max));
        }
        let mut bytes = Vec::new();
        self.by_ref().take(padded(len)).read_to_end(&mut bytes).map_err(|error| self.read_error(error))?;
        if (bytes.len() as u64) < padded(len) {
            return Err(self.truncated());
        }
        bytes.truncate(len as usize);
        Ok(bytes)
    }

    fn skip(&mut self, len: u64) -> Result<(), TarError> {
        let skipped = io::copy(&mut self.by_ref().take(len), &mut io::sink()).map_err(|error| self.read_error(error))?;
        if skipped < len { Err(self.truncated()) } else { Ok(()) }
    }
}

impl<'a, R: Read> TarReader<'a, R> {
    pub(super) fn new(inner: R, options: &'a ImportOptions) -> Self {
        Self { stream: Stream { inner, offset: 0, max: options.max_tar_bytes }, options }
    }

    /// Describes the whole archive to `feed`.
    pub(super) fn run(mut self, feed: &mut Feed) -> Result<(), ImportError> {
        let mut extensions = Extensions::default();
        loop {
            let offset = self.stream.offset;
            let Some(block) = self.stream.block()? else {
                if self.options.oci_whiteouts && offset > 0 {
                    return Ok(());
                }
                return Err(if offset == 0 { TarError::NotATar } else { self.stream.truncated() }.into());
            };
            if block.iter().all(|byte| *byte == 0) {
                return self.end().map_err(ImportError::Tar);
            }
            let header = Header::new(&block).ok_or(if offset == 0 { TarError::NotATar } else { TarError::Checksum { offset } })?;
            if !self.extension(&header, &mut extensions)? {
                self.entry(&header, std::mem::take(&mut extensions), feed)?;
            }
        }
    }

    /// After the first zero block, another and any padding may follow.
    fn end(&mut self) -> Result<(), TarError> {
        io::copy(&mut self.stream.by_ref().take(MAX_TAIL_LEN), &mut io::sink()).map(drop).map_err(|error| self.stream.read_error(error))
    }

    /// Takes a header that only says something about others; `false` if it is an entry's own.
    fn extension(&mut self, header: &Header<'_>, extensions: &mut Extensions) -> Result<bool, TarError> {
        let name = header.short_name();
        match header.kind() {
            b'x' | b'X' => extensions.pax = Pax::parse(&self.stream.payload(header.size()?, MAX_PAX_LEN, name)?, name)?,
            b'L' => extensions.long_name = Some(until_nul(self.stream.payload(header.size()?, MAX_LONG_NAME_LEN, name)?)),
            b'K' => extensions.long_link = Some(until_nul(self.stream.payload(header.size()?, MAX_LONG_NAME_LEN, name)?)),
            // Global PAX headers (git writes a commit there) and volume labels.
            b'g' | b'V' => {
                let len = header.size()?;
                self.stream.payload(len, MAX_PAX_LEN, name)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn entry(&mut self, header: &Header<'_>, extensions: Extensions, feed: &mut Feed) -> Result<(), ImportError> {
        let Extensions { mut pax, long_name, long_link } = extensions;
        let raw_name = pax.sparse.name.take().or(pax.path.take()).or(long_name).unwrap_or_else(|| header.name());
        let raw_link = pax.link_path.take().or(long_link).unwrap_or_else(|| header.link_name());
        let path = self.path(&raw_name)?;
        let size = pax.size.map_or_else(|| header.size(), Ok)?;
        let meta = self.meta(header, &mut pax, &raw_name)?;
        if pax.has_text_acl {
            feed.skipped(Skipped { path: path.clone(), reason: "its access list is in text form, which is not kept".to_owned() })?;
        }
        let file = Kind::File(Recipe::Extents(Vec::new()));
        let numbers =
            |(major, minor): (u64, u64)| Ok::<_, TarError>((small(major, "its device number", &raw_name)?, small(minor, "its device number", &raw_name)?));
        let mut link = Link::None;
        let kind = match header.kind() {
            // Before ustar, a directory was a file whose name ends in a slash.
            0 | b'0' if raw_name.ends_with(b"/") => Kind::Directory { opaque: false },
            0 | b'0' | b'7' | b'S' => file,
            b'1' => {
                link = Link::Target(self.path(&raw_link)?);
                file
            }
            b'2' => Kind::Symlink(symlink_target(raw_link, &raw_name)?),
            b'3' => numbers(header.device()?).map(|(major, minor)| Kind::CharDevice { major, minor })?,
            b'4' => numbers(header.device()?).map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            b'5' | b'D' => Kind::Directory { opaque: false },
            b'6' => Kind::Fifo,
            b'M' => return Err(TarError::invalid(&raw_name, "it goes on from another volume: join the volumes first").into()),
            _ => {
                let reason = format!("its type `{}` is not known", header.kind().escape_ascii());
                self.stream.skip(padded(bounded(size, &raw_name)?))?;
                return feed.skipped(Skipped { path, reason });
            }
        };
        if path.is_root() && !matches!(kind, Kind::Directory { .. }) {
            return Err(TarError::invalid(&raw_name, "the root is a directory").into());
        }
        let is_file = matches!(kind, Kind::File(_));
        let has_content = is_file && link == Link::None;
        let mut begin = Begin::new(Entry { path, meta, kind }, link);
        if self.options.oci_whiteouts && !apply_oci_name(&mut begin)? {
            return self.stream.skip(if has_content { padded(bounded(size, &raw_name)?) } else { 0 }).map_err(ImportError::Tar);
        }
        if matches!(begin.entry.kind, Kind::Whiteout) || begin.link == Link::OpaqueMarker {
            self.stream.skip(if has_content { padded(bounded(size, &raw_name)?) } else { 0 })?;
            return feed.begin(begin);
        }
        feed.begin(begin)?;
        if has_content {
            self.content(header, &pax, bounded(size, &raw_name)?, &raw_name, feed)?;
        }
        if is_file { feed.end() } else { Ok(()) }
    }

    /// Passes on the content of a regular file, which takes `size` bytes in the archive.
    fn content(&mut self, header: &Header<'_>, pax: &Pax, size: u64, name: &[u8], feed: &mut Feed) -> Result<(), ImportError> {
        let map = if header.kind() == b'S' {
            let (mut entries, mut more) = header.sparse()?;
            while more {
                let block = self.stream.needed_block()?;
                entries.extend(sparse_entries(&block[..504], name)?);
                more = block[504] != 0;
                check_map_len(entries.len() as u64, name)?;
            }
            SparseMap::new(&entries, header.real_size()?, size, name)?
        } else if pax.sparse.is_sparse() {
            let (entries, map_len) = match pax.sparse.map_in_data {
                true => self.map_in_data(size, name)?,
                false => (pax.sparse.map.clone(), 0),
            };
            let len = pax.sparse.real_size.ok_or_else(|| TarError::invalid(name, "its PAX header does not say how long the sparse file is"))?;
            SparseMap::new(&entries, len, size - map_len, name)?
        } else {
            SparseMap::whole(size, name)?
        };
        let mut at = 0;
        let mut stored = 0;
        for (start, len) in &map.runs {
            feed.hole(start - at)?;
            let came = feed.data(&mut self.stream, *len).map_err(|error| match error {
                DataError::Read(error) => ImportError::Tar(self.stream.read_error(error)),
                DataError::Import(error) => error,
            })?;
            if came < *len {
                return Err(self.stream.truncated().into());
            }
            at = start + len;
            stored += len;
        }
        feed.hole(map.len - at)?;
        let padding = padded(stored) - stored;
        let skipped = io::copy(&mut self.stream.by_ref().take(padding), &mut io::sink()).map_err(|error| self.stream.read_error(error))?;
        match skipped < padding && !self.options.oci_whiteouts {
            true => Err(self.stream.truncated().into()),
            false => Ok(()),
        }
    }

    /// The map at the start of the data of a GNU sparse file of version 1.0: decimal numbers, one a line, padded to a
    /// block. Returns it and how many bytes it took.
    fn map_in_data(&mut self, size: u64, name: &[u8]) -> Result<(Vec<(u64, u64)>, u64), TarError> {
        let mut numbers = Vec::new();
        let mut expected = None;
        let mut line = Vec::new();
        let mut len = 0;
        let bad = || TarError::invalid(name, "its sparse map is not made of numbers");
        while expected.is_none_or(|expected| numbers.len() < expected) {
            len += BLOCK_LEN as u64;
            if len > size {
                return Err(TarError::invalid(name, "its sparse map is longer than its data"));
            }
            for byte in self.stream.needed_block()? {
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(bad());
                    }
                    continue;
                }
                let number = decimal(&line).ok_or_else(bad)?;
                line.clear();
                match expected {
                    None => {
                        check_map_len(number, name)?;
                        expected = Some(2 * number as usize);
                    }
                    Some(_) => numbers.push(number),
                }
                if expected.is_some_and(|expected| numbers.len() >= expected) {
                    break;
                }
            }
        }
        Ok((numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect(), len))
    }

    /// Where an entry lies in the layer.
    fn path(&self, raw: &[u8]) -> Result<LayerPath, TarError> {
        if raw.split(|byte| *byte == b'/').any(|part| part == b"..") {
            return Err(TarError::escape(raw, "its name contains `..`"));
        }
        if raw.is_empty() {
            return Err(TarError::invalid(raw, "its name is empty"));
        }
        let path = LayerPath::from_absolute(raw).and_then(|path| path.below(&self.options.at));
        path.map_err(|_| TarError::invalid(raw, "its name is too long or contains a NUL"))
    }

    fn meta(&self, header: &Header<'_>, pax: &mut Pax, name: &[u8]) -> Result<Meta, TarError> {
        let uid = pax.uid.map_or_else(|| header.uid(), Ok)?;
        let gid = pax.gid.map_or_else(|| header.gid(), Ok)?;
        let (uid, gid) = match self.options.owner {
            Some(owner) => owner,
            None => (small(uid, "its owner", name)?, small(gid, "its group", name)?),
        };
        let (mtime_s, mtime_ns) = match pax.mtime {
            Some(time) => time,
            None => (header.mtime()?, 0),
        };
        let xattrs: xattr::Xattrs = std::mem::take(&mut pax.xattrs).into_iter().collect();
        xattr::check(&xattrs).map_err(|rule| TarError::invalid(name, rule))?;
        // A symbolic link's own mode means nothing on Linux, where it always is 0777.
        let mode = if header.kind() == b'2' { 0o777 } else { (header.mode()? & 0o7777) as u16 };
        Ok(Meta { mode, uid, gid, mtime_s, mtime_ns, xattrs, hard_link: None })
    }
}

/// Turns a name of the form `.wh.NAME` into what it means; `false` if the entry is to be left out.
fn apply_oci_name(begin: &mut Begin) -> Result<bool, TarError> {
    let Some((parent, name)) = begin.entry.path.split() else { return Ok(true) };
    let Some(hidden) = name.strip_prefix(b".wh.") else { return Ok(true) };
    let bad = || TarError::invalid(begin.entry.path.as_bytes(), "its whiteout names nothing");
    let directory = LayerPath::new(parent).map_err(|_| bad())?;
    match hidden {
        b".wh..opq" => {
            begin.entry.path = directory;
            begin.entry.kind = Kind::Directory { opaque: true };
            begin.link = Link::OpaqueMarker;
        }
        // Bookkeeping of aufs.
        hidden if hidden.starts_with(b".wh.") => return Ok(false),
        hidden => {
            begin.entry.path = directory.join(hidden).map_err(|_| bad())?;
            begin.entry.kind = Kind::Whiteout;
            begin.entry.meta = Meta::default();
            begin.link = Link::None;
        }
    }
    Ok(true)
}

fn symlink_target(target: Vec<u8>, name: &[u8]) -> Result<Vec<u8>, TarError> {
    match target.len() {
        0 => Err(TarError::invalid(name, "it is a symbolic link to nothing")),
        1..=MAX_TARGET_LEN if target.contains(&0) => Err(TarError::invalid(name, "its target contains a NUL")),
        1..=MAX_TARGET_LEN => Ok(target),
        len => Err(TarError::too_large(name, "the length of its target", len as u64, MAX_TARGET_LEN as u64)),
    }
}

fn check_map_len(count: u64, name: &[u8]) -> Result<(), TarError> {
    let max = MAX_MAP_ENTRIES as u64;
    if count > max { Err(TarError::too_large(name, "the number of its sparse pieces", count, max)) } else { Ok(()) }
}

fn small(value: u64, what: &'static str, name: &[u8]) -> Result<u32, TarError> {
    u32::try_from(value).map_err(|_| TarError::too_large(name, what, value, u32::MAX.into()))
}

fn bounded(size: u64, name: &[u8]) -> Result<u64, TarError> {
    if size > MAX_FILE_LEN { Err(TarError::too_large(name, "its size", size, MAX_FILE_LEN)) } else { Ok(size) }
}

/// A length with the padding to a whole block.
fn padded(len: u64) -> u64 {
    len.next_multiple_of(BLOCK_LEN as u64)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    bytes
}
