//! The entries of a package's archives: what dpkg itself unpacks, which is old tar, ustar and GNU's long names, and no more.
//!
//! Every length is bounded before anything is allocated, and a stream that ends early is an error.

use std::io::{self, Read};

use anyhow::{Context, Result, bail};
use tar::{EntryType, Header};

/// Bytes of a block.
const BLOCK_LEN: usize = 512;
/// Longest name, in bytes: more than any system takes.
const MAX_NAME_LEN: u64 = 16 << 10;
/// Most bytes behind the end of an archive: tar fills its last record.
const MAX_TRAILER_LEN: u64 = 16 << 20;
/// Most entries of one archive.
const MAX_ENTRIES: usize = 2_000_000;

/// An entry, without its content.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its header, as found; the names in it may be cut.
    pub(super) header: Header,
    /// Its whole name.
    pub(super) path: Vec<u8>,
    /// What a link points to, whole.
    pub(super) link: Option<Vec<u8>>,
    /// Bytes of content.
    pub(super) len: u64,
}

/// Entries one after another. The content of one is read before the next is asked for, or passed over.
#[derive(Debug)]
pub(super) struct Entries<R> {
    reader: R,
    /// Content of the current entry that was not read yet, and what fills its last block.
    left: u64,
    padding: u64,
    count: usize,
}

impl<R: Read> Entries<R> {
    /// Reads a plain tar.
    pub(super) fn new(reader: R) -> Self {
        Self { reader, left: 0, padding: 0, count: 0 }
    }

    /// The next entry; `None` at the end of the archive.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>> {
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            self.count += 1;
            if self.count > MAX_ENTRIES {
                bail!("the archive has more than {MAX_ENTRIES} entries");
            }
            let len = header.entry_size().context("an entry's length is damaged")?;
            let kind = header.entry_type();
            let has_content = matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNULongName | EntryType::GNULongLink);
            self.left = if has_content { len } else { 0 };
            self.padding = self.left.wrapping_neg() % BLOCK_LEN as u64;
            match kind {
                EntryType::GNULongName => long_name = Some(self.long_name(len)?),
                EntryType::GNULongLink => long_link = Some(self.long_name(len)?),
                EntryType::Regular | EntryType::Continuous | EntryType::Directory => {
                    let path = long_name.unwrap_or_else(|| header.path_bytes().into_owned());
                    return Ok(Some(Entry { header, path, link: None, len: self.left }));
                }
                EntryType::Symlink | EntryType::Link | EntryType::Char | EntryType::Block | EntryType::Fifo => {
                    let path = long_name.unwrap_or_else(|| header.path_bytes().into_owned());
                    let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
                    let link = is_link.then(|| long_link.or_else(|| header.link_name_bytes().map(|name| name.into_owned())).unwrap_or_default());
                    return Ok(Some(Entry { header, path, link, len: 0 }));
                }
                other => bail!("the archive has an entry of type {:?}, which no package has", char::from(other.as_byte())),
            }
        }
    }

    /// The content of the current entry.
    pub(super) fn body(&mut self) -> Body<'_, R> {
        Body(self)
    }

    /// Reads what follows the end of the archive, so that a checksum at the end of the stream is looked at.
    pub(super) fn finish(mut self) -> Result<()> {
        let rest = io::copy(&mut self.reader.by_ref().take(MAX_TRAILER_LEN + 1), &mut io::sink()).context("the archive is damaged")?;
        if rest > MAX_TRAILER_LEN {
            bail!("more than {MAX_TRAILER_LEN} bytes follow the end of the archive");
        }
        Ok(())
    }

    /// Passes over what is left of the current entry.
    fn skip_rest(&mut self) -> Result<()> {
        let rest = self.left + self.padding;
        let skipped = io::copy(&mut self.reader.by_ref().take(rest), &mut io::sink()).context("the archive cannot be read")?;
        if skipped < rest {
            bail!("the archive is cut short");
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// A header, or `None` for the block of zeros that ends an archive. The end of the stream in its place is damage.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        self.reader.read_exact(block).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => anyhow::anyhow!("the archive is cut short"),
            _ => anyhow::Error::new(error).context("the archive cannot be read"),
        })?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
        if header.cksum().ok() != Some(sum) {
            bail!("a header of the archive is damaged");
        }
        Ok(Some(header))
    }

    fn long_name(&mut self, len: u64) -> Result<Vec<u8>> {
        if len > MAX_NAME_LEN {
            bail!("the archive has a name of {len} bytes");
        }
        let mut name = Vec::new();
        self.body().read_to_end(&mut name).context("the archive cannot be read")?;
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }
}

/// See [`Entries::body`]. Ends with an error if the stream ends before the content does.
#[derive(Debug)]
pub(super) struct Body<'a, R>(&'a mut Entries<R>);

impl<R: Read> Read for Body<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.0.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let len = self.0.reader.read(&mut buffer[..most])?;
        if len == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut short"));
        }
        self.0.left -= len as u64;
        Ok(len)
    }
}
