//! A Debian package as a file: an `ar` archive of `debian-binary`, `control.tar*` and `data.tar*`, in this order.
//!
//! Format: deb(5). Plain, gzip, xz and zstd members are read, each with bounded memory.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::control::Control;
use super::tar_entries::{Entries, Entry};

const MAGIC: &[u8; 8] = b"!<arch>\n";
/// Bytes of an ar header.
const HEADER_LEN: usize = 60;
/// Most members that are looked at.
const MAX_MEMBERS: usize = 64;
/// Most uncompressed bytes of the control member, and of a file in it.
const MAX_CONTROL_LEN: u64 = 64 << 20;
const MAX_CONTROL_FILE_LEN: u64 = 8 << 20;
/// Most memory of an xz decoder, in KiB: enough for `xz -9`.
const MAX_XZ_KIB: u32 = 128 << 10;
/// Longest way back of a zstd stream, as a power of two: `zstd --ultra -22`.
const MAX_ZSTD_WINDOW_LOG: u32 = 27;

/// A package file, opened.
#[derive(Debug)]
pub(in crate::commands::import) struct Package {
    /// The file.
    pub(in crate::commands::import) path: PathBuf,
    /// What it says of itself.
    pub(in crate::commands::import) control: Control,
    data: Member,
}

#[derive(Clone, Debug)]
struct Member {
    name: String,
    offset: u64,
    len: u64,
}

impl Package {
    /// Opens a package and reads its control member.
    pub(in crate::commands::import) fn open(path: &Path) -> Result<Self> {
        Self::read(path).with_context(|| format!("{} cannot be imported", path.display()))
    }

    fn read(path: &Path) -> Result<Self> {
        let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let members = members(&mut file)?;
        let [binary, rest @ ..] = &members[..] else { bail!("it is not a Debian package: it has no members") };
        if binary.name != "debian-binary" {
            bail!("it is not a Debian package: its first member is `{}`, not `debian-binary`", binary.name);
        }
        let mut version = String::new();
        binary.open(path)?.take(16).read_to_string(&mut version).context("reading `debian-binary`")?;
        if !version.starts_with("2.") {
            bail!("its format is `{}`, not 2.0", version.trim().escape_default());
        }
        let find = |name: &str| {
            let found = rest.iter().find(|member| member.name == name || member.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')));
            found.with_context(|| format!("it has no member {name}: it is cut short or damaged"))
        };
        let control = find("control.tar")?;
        let control = read_control(control.decompress(path)?.take(MAX_CONTROL_LEN)).with_context(|| format!("its member {} is damaged", control.name))?;
        Ok(Self { path: path.to_owned(), control, data: find("data.tar")?.clone() })
    }

    /// The uncompressed archive of its files.
    pub(in crate::commands::import) fn data(&self) -> Result<Box<dyn Read + Send>> {
        self.data.decompress(&self.path)
    }
}

impl Member {
    fn open(&self, path: &Path) -> Result<impl Read + Send + use<>> {
        let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        file.seek(SeekFrom::Start(self.offset)).with_context(|| format!("reading {}", path.display()))?;
        Ok(file.take(self.len))
    }

    fn decompress(&self, path: &Path) -> Result<Box<dyn Read + Send>> {
        let raw = BufReader::with_capacity(128 << 10, self.open(path)?);
        Ok(match self.name.rsplit_once(".tar").map_or("", |(_, kind)| kind) {
            "" => Box::new(raw),
            ".gz" => Box::new(flate2::bufread::MultiGzDecoder::new(raw)),
            ".xz" => Box::new(lzma_rust2::XzReader::new_mem_limit(raw, true, MAX_XZ_KIB)),
            ".zst" => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(raw)?;
                decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
                Box::new(decoder)
            }
            other => bail!("its member {} is compressed as `{other}`: gz, xz and zst are read; repack it with dpkg-deb", self.name),
        })
    }
}

/// The members of an ar archive, checked against the length of the file.
fn members(file: &mut File) -> Result<Vec<Member>> {
    let end = file.metadata().context("reading its length")?.len();
    let mut magic = [0; MAGIC.len()];
    if read_full(file, &mut magic)? < magic.len() || magic != *MAGIC {
        bail!("it is not a Debian package: it does not start as an ar archive does");
    }
    let mut offset = MAGIC.len() as u64;
    let mut members = Vec::new();
    while offset < end && members.len() < MAX_MEMBERS {
        let mut header = [0; HEADER_LEN];
        file.seek(SeekFrom::Start(offset)).context("reading it")?;
        if read_full(file, &mut header)? < HEADER_LEN {
            bail!("it is cut short at byte {offset}");
        }
        let text = |range: std::ops::Range<usize>| std::str::from_utf8(&header[range]).unwrap_or_default().trim_end();
        let len: Option<u64> = Some(text(48..58)).filter(|text| text.bytes().all(|b| b.is_ascii_digit())).and_then(|text| text.parse().ok());
        let (Some(len), b"`\n") = (len, &header[58..]) else { bail!("the header at byte {offset} is damaged") };
        let begin = offset + HEADER_LEN as u64;
        if len > end - begin {
            bail!("it is cut short: its member `{}` ends behind the end of the file; fetch it again", text(0..16).escape_default());
        }
        members.push(Member { name: text(0..16).trim_end_matches('/').to_owned(), offset: begin, len });
        offset = begin + len + len % 2;
    }
    Ok(members)
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read(&mut buffer[have..]) {
            Ok(0) => break,
            Ok(len) => have += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("reading it"),
        }
    }
    Ok(have)
}

fn read_control(tar: impl Read) -> Result<Control> {
    let mut entries = Entries::new(tar);
    let (mut control, mut conffiles, mut scripts) = (None, String::new(), Vec::new());
    while let Some(Entry { header, path, .. }) = entries.next_entry()? {
        let name = String::from_utf8_lossy(&path).trim_start_matches("./").to_owned();
        let mut text = Vec::new();
        if header.entry_type().is_file() {
            entries.body().take(MAX_CONTROL_FILE_LEN).read_to_end(&mut text)?;
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        match name.as_str() {
            "control" => control = Some(text),
            "conffiles" => conffiles = text,
            "preinst" | "postinst" | "prerm" | "postrm" | "config" => scripts.push(name),
            _ => {}
        }
    }
    let mut control = Control::parse(&control.context("it has no file `control`")?)?;
    control.conffiles = conffiles.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).map(Into::into).collect();
    control.scripts = scripts;
    Ok(control)
}
