//! Where an image of container tools lies: a folder, or an archive whose members are read where they are.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

/// Members of one archive.
const MAX_MEMBERS: usize = 100_000;
/// Links that lead to a member.
const MAX_LINKS: usize = 8;

/// See the module.
#[derive(Debug)]
pub(super) enum Source {
    Folder(PathBuf),
    Archive(Archive),
}

/// An archive and where its members are.
#[derive(Debug)]
pub(super) struct Archive {
    file: Arc<File>,
    members: HashMap<PathBuf, Member>,
}

#[derive(Debug)]
enum Member {
    File { offset: u64, len: u64 },
    Link(PathBuf),
}

impl Source {
    /// Opens a folder or archive; a compressed archive, and one that comes through a pipe, is copied to a temporary file first.
    pub(super) fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self::Folder(path.into()));
        }
        let mut file = match path.to_str() {
            Some("-") => spool(io::stdin().lock())?,
            _ => File::open(path)?,
        };
        let mut magic = [0; 4];
        let len = file.read_at(&mut magic, 0)?;
        file = match &magic[..len] {
            [0x1f, 0x8b, ..] => spool(flate2::read::MultiGzDecoder::new(BufReader::new(file)))?,
            [0x28, 0xb5, 0x2f, 0xfd] => spool(zstd::stream::read::Decoder::new(file)?)?,
            _ => file,
        };
        file.seek(SeekFrom::Start(0))?;
        Archive::read(file).map(Self::Archive)
    }

    /// A member as a stream.
    pub(super) fn stream(&self, name: &str) -> Result<Box<dyn Read + Send>> {
        let path = plain(Path::new(name)).with_context(|| format!("`{name}` leads out of the source"))?;
        match self {
            Self::Folder(folder) => Ok(Box::new(File::open(folder.join(path)).with_context(|| format!("opening {name}"))?)),
            Self::Archive(archive) => {
                let (offset, len) = archive.find(path).with_context(|| format!("the archive has no `{name}`"))?;
                Ok(Box::new(Part { file: Arc::clone(&archive.file), offset, left: len }))
            }
        }
    }

    /// The whole of a member, if it is there.
    pub(super) fn read(&self, name: &str, max_len: usize) -> Result<Option<Vec<u8>>> {
        let is_there = match self {
            Self::Folder(folder) => folder.join(name).exists(),
            Self::Archive(archive) => archive.find(PathBuf::from(name)).is_some(),
        };
        if !is_there {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        self.stream(name)?.take(max_len as u64 + 1).read_to_end(&mut bytes).with_context(|| format!("reading {name}"))?;
        if bytes.len() > max_len {
            bail!("{name} has more than {max_len} bytes");
        }
        Ok(Some(bytes))
    }
}

impl Archive {
    fn read(file: File) -> Result<Self> {
        let mut members = HashMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().context("reading the archive")? {
            let entry = entry.context("reading the archive: is it the output of `docker save`, or an OCI archive?")?;
            let Some(path) = plain(&entry.path()?) else { continue };
            let member = match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => Member::File { offset: entry.raw_file_position(), len: entry.size() },
                tar::EntryType::Symlink => match entry.link_name()?.and_then(|target| plain(&path.parent().unwrap_or(Path::new("")).join(target))) {
                    Some(target) => Member::Link(target),
                    None => continue,
                },
                tar::EntryType::Link => match entry.link_name()?.and_then(|target| plain(&target)) {
                    Some(target) => Member::Link(target),
                    None => continue,
                },
                _ => continue,
            };
            members.insert(path, member);
            if members.len() > MAX_MEMBERS {
                bail!("the archive has more than {MAX_MEMBERS} members: it is none of an image");
            }
        }
        Ok(Self { file: Arc::new(file), members })
    }

    fn find(&self, mut path: PathBuf) -> Option<(u64, u64)> {
        for _ in 0..MAX_LINKS {
            match self.members.get(&path)? {
                Member::File { offset, len } => return Some((*offset, *len)),
                Member::Link(target) => path = target.clone(),
            }
        }
        None
    }
}

/// The path without `.` and `..`; `None` if it leads out.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !out.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(out)
}

fn spool(mut reader: impl Read) -> Result<File> {
    let mut file = tempfile::tempfile().context("making a temporary file")?;
    io::copy(&mut reader, &mut file).context("copying the archive to a temporary file")?;
    Ok(file)
}

/// A part of a file.
struct Part {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let len = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += len as u64;
        self.left -= len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_through_links_and_none_leads_out() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |name: &str, kind: tar::EntryType, target: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
            header.set_cksum();
            builder.append(&header, content).unwrap();
        };
        add("a/layer.tar", tar::EntryType::Regular, "", b"content");
        add("b/layer.tar", tar::EntryType::Symlink, "../a/layer.tar", b"");
        add("round", tar::EntryType::Symlink, "round", b"");
        add("out", tar::EntryType::Symlink, "../../etc/passwd", b"");
        add("hard", tar::EntryType::Link, "a/layer.tar", b"");
        let bytes = builder.into_inner().unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut file, &bytes).unwrap();
        let source = Source::open(file.path()).unwrap();
        for name in ["a/layer.tar", "b/layer.tar", "./b/../a/layer.tar", "hard"] {
            let mut content = String::new();
            source.stream(name).unwrap().read_to_string(&mut content).unwrap();
            assert_eq!(content, "content", "{name}");
        }
        for name in ["round", "out", "../x", "/etc/passwd", "absent"] {
            assert!(source.stream(name).is_err(), "{name}");
        }
        let folder = Source::Folder("/usr".into());
        assert!(folder.stream("../etc/passwd").is_err() && folder.stream("/etc/passwd").is_err());
        assert!(source.read("a/layer.tar", 3).is_err());
        assert!(source.read("absent", 3).unwrap().is_none());
    }
}
