//! The practical oracle: someone who knows which files a launch reads, packs exactly those into one
//! tarball (zstd -3), downloads it over plain HTTP, unpacks it while it arrives, and runs natively.
//!
//! Which files those are is found out with access times: every entry's is set to the epoch, the
//! application runs once, and what it read has another time after. That sees files, mapped or read,
//! and the links on the way to them, needs no privilege and no tracer, but a filesystem that keeps
//! access times. Two kinds of entry are needed without being read. Folders above what was read come along. And Python
//! asks for size and time of the source of each module whose bytecode it loads: such a source travels
//! as zeros of its length, which compress to nothing. Both choices favour the oracle.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT};

use crate::place::Place;
use crate::rootfs::run_once;

const ZSTD_LEVEL: i32 = 3;

/// How an entry of the tarball is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Content {
    Whole,
    Zeros,
}

/// What a launch needs of a root filesystem, packed.
#[derive(Debug)]
pub struct Oracle {
    tarball: PathBuf,
    command: Vec<String>,
}

impl Oracle {
    /// Runs the application once in its root filesystem, packs what it read, and proves that this is enough.
    /// `scratch` is a folder that may be emptied.
    ///
    /// # Errors
    /// If the filesystem keeps no access times, or the application does not run with what it read before.
    pub fn prepare(root: &Path, command: &[String], scratch: &Path) -> Result<Self> {
        let entries = touched(root, command)?;
        fs::create_dir_all(scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
        let oracle = Self { tarball: scratch.join("oracle.tar.zst"), command: command.to_vec() };
        pack(root, &entries, &oracle.tarball)?;
        let tarball = File::open(&oracle.tarball).with_context(|| format!("cannot open {}", oracle.tarball.display()))?;
        oracle.unpack_and_run(tarball, &scratch.join("proof")).context("what the application read is not enough to run it")?;
        Ok(oracle)
    }

    /// Downloads the tarball over the place's link, unpacks it into `folder` and runs the application there.
    ///
    /// # Errors
    /// If a step fails.
    pub fn launch(&self, place: &Place, folder: &Path) -> Result<()> {
        let listener = place.listen()?;
        let port = listener.local_addr().context("a socket has no address")?.port();
        // Connected before anybody accepts, so that the server never waits for a client that failed.
        let stream = place.connect(port)?;
        std::thread::scope(|scope| {
            let server = scope.spawn(|| serve_once(&listener, &self.tarball));
            let launched = download(stream).and_then(|body| self.unpack_and_run(body, folder));
            let served = server.join().map_err(|_| anyhow::anyhow!("the HTTP server panicked"))?;
            launched.and(served)
        })
    }

    fn unpack_and_run(&self, tarball: impl Read, folder: &Path) -> Result<()> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        for part in ["dev", "proc", "tmp"] {
            fs::create_dir_all(folder.join(part)).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let mut archive = tar::Archive::new(zstd::Decoder::new(tarball).context("cannot start zstd")?);
        archive.set_preserve_permissions(true);
        archive.set_overwrite(true);
        archive.unpack(folder).with_context(|| format!("cannot unpack into {}", folder.display()))?;
        run_once(folder, &self.command)
    }
}

/// What a launch reads, as paths below `root` in an order in which folders precede what is in them.
fn touched(root: &Path, command: &[String]) -> Result<Vec<(PathBuf, Content)>> {
    let mut all = Vec::new();
    walk(root, Path::new(""), &mut all)?;
    let epoch = Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: 0 }, last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ } };
    for path in &all {
        rustix::fs::utimensat(CWD, root.join(path), &epoch, AtFlags::SYMLINK_NOFOLLOW)
            .with_context(|| format!("cannot set the access time of {}", path.display()))?;
    }
    run_once(root, command)?;
    let mut needed = std::collections::BTreeMap::new();
    for path in &all {
        let metadata = match root.join(path).symlink_metadata() {
            // It was in the emptied /tmp.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata.with_context(|| format!("cannot look at {}", path.display()))?,
        };
        if metadata.is_dir() || metadata.atime() == 0 {
            continue;
        }
        needed.insert(path.clone(), Content::Whole);
        if let Some(source) = python_source(path).filter(|source| root.join(source).exists()) {
            needed.entry(source).or_insert(Content::Zeros);
        }
    }
    ensure!(!needed.is_empty(), "{} is on a filesystem without access times (mounted noatime?)", root.display());
    for path in needed.keys().cloned().collect::<Vec<_>>() {
        for folder in path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
            needed.insert(folder.to_owned(), Content::Whole);
        }
    }
    Ok(needed.into_iter().collect())
}

fn walk(root: &Path, folder: &Path, all: &mut Vec<PathBuf>) -> Result<()> {
    let full = root.join(folder);
    for entry in fs::read_dir(&full).with_context(|| format!("cannot list {}", full.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", full.display()))?;
        let path = folder.join(entry.file_name());
        if entry.file_type().with_context(|| format!("cannot look at {}", path.display()))?.is_dir() {
            walk(root, &path, all)?;
        }
        all.push(path);
    }
    Ok(())
}

/// The source of a file of Python bytecode: `a/b.py` of `a/__pycache__/b.cpython-311.pyc`.
fn python_source(bytecode: &Path) -> Option<PathBuf> {
    let name = bytecode.file_name()?.to_str()?.strip_suffix(".pyc")?;
    let folder = bytecode.parent().filter(|folder| folder.ends_with("__pycache__"))?;
    Some(folder.parent()?.join(format!("{}.py", name.split('.').next()?)))
}

fn pack(root: &Path, entries: &[(PathBuf, Content)], tarball: &Path) -> Result<()> {
    let file = File::create(tarball).with_context(|| format!("cannot write {}", tarball.display()))?;
    let compressed = zstd::Encoder::new(BufWriter::new(file), ZSTD_LEVEL).context("cannot start zstd")?;
    let mut archive = tar::Builder::new(compressed);
    archive.follow_symlinks(false);
    for (path, content) in entries {
        let full = root.join(path);
        let added = match content {
            Content::Whole => archive.append_path_with_name(&full, path),
            Content::Zeros => full.symlink_metadata().and_then(|metadata| {
                let mut header = tar::Header::new_gnu();
                header.set_metadata(&metadata);
                archive.append_data(&mut header, path, io::repeat(0).take(metadata.len()))
            }),
        };
        added.with_context(|| format!("cannot pack {}", path.display()))?;
    }
    let written = archive.into_inner().and_then(zstd::Encoder::finish).and_then(|mut file| file.flush());
    written.with_context(|| format!("cannot write {}", tarball.display()))
}

/// Answers one HTTP request with a file.
fn serve_once(listener: &TcpListener, path: &Path) -> Result<()> {
    let (stream, _) = listener.accept().context("nobody connected")?;
    let mut request = BufReader::new(&stream);
    skip_header(&mut request)?;
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let len = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?.len();
    let mut answer = &stream;
    write!(answer, "HTTP/1.1 200 OK\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n").context("cannot answer")?;
    io::copy(&mut file, &mut answer).context("cannot answer")?;
    Ok(())
}

/// Asks for the file of the server at the other end and returns the body.
fn download(stream: TcpStream) -> Result<impl Read> {
    let mut request = &stream;
    request.write_all(b"GET /oracle.tar.zst HTTP/1.1\r\nHost: oracle\r\n\r\n").context("cannot send a request")?;
    let mut answer = BufReader::with_capacity(256 * 1024, stream);
    skip_header(&mut answer)?;
    Ok(answer)
}

fn skip_header(stream: &mut impl BufRead) -> Result<()> {
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line).context("cannot read a header")? == 0 {
            bail!("the connection ended within a header");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytecode_leads_to_its_source() {
        assert_eq!(python_source(Path::new("usr/lib/a/__pycache__/b.cpython-311.pyc")), Some(PathBuf::from("usr/lib/a/b.py")));
        for other in ["usr/lib/a/b.pyc", "usr/lib/a/__pycache__/b.txt", "b.so"] {
            assert_eq!(python_source(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_download_is_what_was_served() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, vec![9; 300_000]).unwrap();
        let listener = Place::Loopback.listen().unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || serve_once(&listener, &path));
        let mut body = Vec::new();
        download(Place::Loopback.connect(port).unwrap()).unwrap().read_to_end(&mut body).unwrap();
        server.join().unwrap().unwrap();
        assert!(body == vec![9; 300_000]);
    }
}
