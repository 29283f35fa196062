//! The files of several packages as one archive, in the order of the packages: of a file that several have, the last one's.
//!
//! `/bin`, `/sbin` and `/lib*` of a package become `/usr/bin` and so on, as on every current distribution, where they are
//! links: a real folder of that name in the layer would hide the host's link.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use anyhow::{Context, Result, bail};
use layer_format::LayerPath;
use tar::{EntryType, Header};

use super::tar_entries::{Entries, Entry};

/// Folders of the root that are links into `/usr`.
const MERGED: [&[u8]; 6] = [b"bin", b"sbin", b"lib", b"lib32", b"lib64", b"libx32"];
/// Largest `.desktop` file that is looked at, and the most of them.
const MAX_DESKTOP_LEN: u64 = 256 << 10;
const MAX_DESKTOP_FILES: usize = 256;

/// What is known of a path that was written.
#[derive(Clone, Debug)]
struct Written {
    package: usize,
    kind: EntryType,
    executable: bool,
}

/// Writes packages into one archive, and remembers what matters of them.
pub(super) struct Merge<W: Write> {
    builder: tar::Builder<W>,
    written: BTreeMap<LayerPath, Written>,
    /// Paths that several packages have, and which.
    conflicts: BTreeMap<LayerPath, Vec<usize>>,
    /// Package, name and content of the files in `/usr/share/applications`.
    desktop: Vec<(usize, String, String)>,
}

/// What was merged.
#[derive(Debug, Default)]
pub(super) struct Merged {
    /// Paths that several packages have, and which, in their order.
    pub(super) conflicts: Vec<(String, Vec<usize>)>,
    /// Package, name and content of the files in `/usr/share/applications`.
    pub(super) desktop: Vec<(usize, String, String)>,
    /// Programs in the usual places: package and absolute path.
    pub(super) programs: Vec<(usize, String)>,
}

impl<W: Write> Merge<W> {
    /// Writes the archive to `out`.
    pub(super) fn new(out: W) -> Self {
        Self { builder: tar::Builder::new(out), written: BTreeMap::new(), conflicts: BTreeMap::new(), desktop: Vec::new() }
    }

    /// Adds the files of the package with this number.
    pub(super) fn add(&mut self, package: usize, data: impl Read) -> Result<()> {
        let mut entries = Entries::new(data);
        while let Some(entry) = entries.next_entry()? {
            let name = String::from_utf8_lossy(&entry.path).into_owned();
            self.entry(package, entry, &mut entries).with_context(|| format!("its file {name:?}"))?;
        }
        entries.finish()
    }

    fn entry<R: Read>(&mut self, package: usize, entry: Entry, entries: &mut Entries<R>) -> Result<()> {
        let Entry { mut header, path, link, len } = entry;
        let kind = header.entry_type();
        let Some(path) = place(&path, kind)? else { return Ok(()) };
        let executable = header.mode().is_ok_and(|mode| mode & 0o111 != 0);
        self.note(&path, Written { package, kind, executable })?;
        let link = match (link, kind) {
            // A hard link names another file of the archive.
            (Some(target), EntryType::Link) => Some(place(&target, EntryType::Regular)?.context("it is a link to a folder of the root")?.as_bytes().to_vec()),
            (link, _) => link,
        };
        if let Some(target) = link {
            self.link_name(&mut header, &target)?;
        }
        header.set_size(len);
        if kind.is_file() && is_desktop_file(&path) && len <= MAX_DESKTOP_LEN && self.desktop.len() < MAX_DESKTOP_FILES {
            let mut content = Vec::new();
            entries.body().read_to_end(&mut content)?;
            let name = String::from_utf8_lossy(path.name()).into_owned();
            self.desktop.push((package, name, String::from_utf8_lossy(&content).into_owned()));
            return self.append(&mut header, &path, &content[..]);
        }
        self.append(&mut header, &path, entries.body())
    }

    fn append(&mut self, header: &mut Header, path: &LayerPath, content: impl Read) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::OsStr::from_bytes(path.as_bytes());
        self.builder.append_data(header, path, content).context("it could not be passed on")
    }

    /// Sets what a link points to, byte for byte; a long one takes an entry of its own in front.
    fn link_name(&mut self, header: &mut Header, target: &[u8]) -> Result<()> {
        if target.is_empty() || target.contains(&0) {
            bail!("it is a link to nothing");
        }
        let field = header.as_old().linkname.len();
        if target.len() > field {
            let mut long = Header::new_gnu();
            long.set_entry_type(EntryType::GNULongLink);
            long.set_path("././@LongLink")?;
            long.set_mode(0o644);
            long.set_size(target.len() as u64 + 1);
            long.set_cksum();
            self.builder.append(&long, target.chain(io::repeat(0).take(1)))?;
        }
        let old = header.as_old_mut();
        old.linkname.fill(0);
        let len = target.len().min(field);
        old.linkname[..len].copy_from_slice(&target[..len]);
        Ok(())
    }

    /// Notes whose path this is, and who else has it.
    fn note(&mut self, path: &LayerPath, new: Written) -> Result<()> {
        let package = new.package;
        let Some(old) = self.written.insert(path.clone(), new.clone()) else { return Ok(()) };
        if old.package != package && !(old.kind.is_dir() && new.kind.is_dir()) {
            let packages = self.conflicts.entry(path.clone()).or_insert_with(|| vec![old.package]);
            packages.push(package);
        }
        Ok(())
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Result<Merged> {
        self.builder.finish().context("the archive could not be passed on")?;
        let shown = |path: &LayerPath| format!("/{}", String::from_utf8_lossy(path.as_bytes()));
        let is_program = |path: &LayerPath| matches!(path.split(), Some((b"usr/bin" | b"usr/games", _)));
        let runs = |written: &Written| written.kind.is_symlink() || (written.executable && !written.kind.is_dir());
        let programs = self.written.iter().filter(|(path, written)| is_program(path) && runs(written));
        Ok(Merged {
            programs: programs.map(|(path, written)| (written.package, shown(path))).collect(),
            conflicts: self.conflicts.iter().map(|(path, packages)| (shown(path), packages.clone())).collect(),
            desktop: self.desktop,
        })
    }
}

fn is_desktop_file(path: &LayerPath) -> bool {
    matches!(path.split(), Some((b"usr/share/applications", name)) if name.ends_with(b".desktop"))
}

/// Where a path of a package lies in the layer; `None` for the root and for a folder that is a link there.
fn place(path: &[u8], kind: EntryType) -> Result<Option<LayerPath>> {
    let path = LayerPath::from_absolute(path).context("its name is not one that a package has; the package is hostile or broken")?;
    if path.is_root() {
        return Ok(None);
    }
    let bytes = path.as_bytes();
    let first = bytes.split(|byte| *byte == b'/').next().unwrap_or_default();
    if !MERGED.contains(&first) {
        return Ok(Some(path));
    }
    if first.len() == bytes.len() {
        return Ok(if kind.is_dir() { None } else { Some(path) });
    }
    Ok(Some(LayerPath::new([b"usr/", bytes].concat())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_are_links_on_every_system_move_below_usr() {
        for (name, kind, expected) in [
            ("./bin/sh", EntryType::Regular, Some("usr/bin/sh")),
            ("./lib/x86_64-linux-gnu/libc.so.6", EntryType::Regular, Some("usr/lib/x86_64-linux-gnu/libc.so.6")),
            ("./lib/", EntryType::Directory, None),
            ("./lib64", EntryType::Symlink, Some("lib64")),
            ("./", EntryType::Directory, None),
            ("usr/bin/x", EntryType::Regular, Some("usr/bin/x")),
            ("/etc//x/./y", EntryType::Regular, Some("etc/x/y")),
            ("./library/x", EntryType::Regular, Some("library/x")),
        ] {
            let placed = place(name.as_bytes(), kind).unwrap();
            assert_eq!(placed.map(|path| String::from_utf8_lossy(path.as_bytes()).into_owned()).as_deref(), expected, "{name}");
        }
        assert!(place(b"../etc/passwd", EntryType::Regular).is_err() && place(b"./a/../../b", EntryType::Regular).is_err());
    }
}
