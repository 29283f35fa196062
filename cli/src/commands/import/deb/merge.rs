//! The files of several packages as one archive, in the order of the packages: of a file that several have, the last one's.
//!
//! `/bin`, `/sbin` and `/lib*` of a package become `/usr/bin` and so on, `/var/run` becomes `/run`, as on every current
//! distribution, where they are links: a real folder of that name in the layer would hide the host's link. Of a folder and a
//! link of one name the first stays, as in dpkg; what lies below a link goes to where it leads.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use anyhow::{Context, Result, bail};
use layer_format::LayerPath;
use tar::{EntryType, Header};

use super::tar_entries::{Entries, Entry};

/// Folders that are links on every system, and where they lead.
const MERGED: [(&[u8], &[u8]); 8] = [
    (b"bin", b"usr/bin"),
    (b"sbin", b"usr/sbin"),
    (b"lib", b"usr/lib"),
    (b"lib32", b"usr/lib32"),
    (b"lib64", b"usr/lib64"),
    (b"libx32", b"usr/libx32"),
    (b"var/run", b"run"),
    (b"var/lock", b"run/lock"),
];
/// How many links a path may lead through.
const MAX_LINKS: usize = 40;
/// Largest `.desktop` file that is looked at, and the most of them.
const MAX_DESKTOP_LEN: u64 = 256 << 10;
const MAX_DESKTOP_FILES: usize = 256;

/// What is known of a path that was written.
#[derive(Clone, Debug)]
struct Written {
    package: usize,
    kind: EntryType,
    executable: bool,
    /// Where a symbolic link leads.
    target: Option<Vec<u8>>,
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
        let path = self.through_links(path)?;
        let old = self.written.get(&path).filter(|old| old.package != package).map(|old| old.kind);
        if old.is_some_and(|old| (old.is_dir() && kind.is_symlink()) || (old.is_symlink() && kind.is_dir())) {
            return Ok(());
        }
        let executable = header.mode().is_ok_and(|mode| mode & 0o111 != 0);
        self.note(&path, Written { package, kind, executable, target: link.clone().filter(|_| kind.is_symlink()) });
        let link = match (link, kind) {
            // A hard link names another file of the archive.
            (Some(target), EntryType::Link) => {
                let target = place(&target, EntryType::Regular)?.context("it is a link to the root")?;
                Some(self.through_links(target)?.as_bytes().to_vec())
            }
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

    /// Where a path lies if the links above it that were written are followed.
    fn through_links(&self, path: LayerPath) -> Result<LayerPath> {
        let mut path = path;
        for _ in 0..MAX_LINKS {
            let Some((link, target)) = self.first_link_above(&path) else { return Ok(path) };
            let rest = &path.as_bytes()[link.as_bytes().len()..];
            let parent = link.split().map_or(&b""[..], |(parent, _)| parent);
            let joined = if target.starts_with(b"/") { [target, rest].concat() } else { [parent, b"/", target, rest].concat() };
            let mut parts: Vec<&[u8]> = Vec::new();
            for part in joined.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
                if part != b".." {
                    parts.push(part);
                } else {
                    // Above the root there is nothing but the root.
                    let _ = parts.pop();
                }
            }
            path = place(&parts.join(&b'/'), EntryType::Regular)?.context("a link above it leads to the root")?;
        }
        bail!("it lies below links that lead to each other")
    }

    fn first_link_above(&self, path: &LayerPath) -> Option<(LayerPath, &[u8])> {
        let above: Vec<LayerPath> = std::iter::successors(path.parent(), LayerPath::parent).collect();
        above.into_iter().rev().find_map(|path| {
            let target = self.written.get(&path)?.target.as_deref()?;
            Some((path, target))
        })
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
    fn note(&mut self, path: &LayerPath, new: Written) {
        let (package, is_dir) = (new.package, new.kind.is_dir());
        let Some(old) = self.written.insert(path.clone(), new) else { return };
        if old.package != package && !(old.kind.is_dir() && is_dir) {
            self.conflicts.entry(path.clone()).or_insert_with(|| vec![old.package]).push(package);
        }
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
    for (folder, leads_to) in MERGED {
        match path.as_bytes().strip_prefix(folder) {
            // The link itself, as a package of the base system has it.
            Some([]) => return Ok(if kind.is_dir() { None } else { Some(path) }),
            Some(rest @ [b'/', ..]) => return Ok(Some(LayerPath::new([leads_to, rest].concat())?)),
            _ => {}
        }
    }
    Ok(Some(path))
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
            ("./var/run/x/pid", EntryType::Regular, Some("run/x/pid")),
            ("./var/runner", EntryType::Regular, Some("var/runner")),
            ("./library/x", EntryType::Regular, Some("library/x")),
        ] {
            let placed = place(name.as_bytes(), kind).unwrap();
            assert_eq!(placed.map(|path| String::from_utf8_lossy(path.as_bytes()).into_owned()).as_deref(), expected, "{name}");
        }
        assert!(place(b"../etc/passwd", EntryType::Regular).is_err() && place(b"./a/../../b", EntryType::Regular).is_err());
    }
}
