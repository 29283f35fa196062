//! A naive model of a union: three maps of paths, and the rules read literally. Directories move file by file.

use std::collections::{BTreeMap, BTreeSet};

use layer_format::LayerPath;
use layer_format::manifest::{FileMode, Mode};
use rustix::io::Errno;

use crate::rules::Rules;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    File(String),
    Link(String),
    Dir,
}

/// What a layer or the sandbox has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Virtual {
    Item(Item),
    OpaqueDir,
    Tomb,
}

pub(super) type Tree<T> = BTreeMap<String, T>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Sandbox,
    Layer,
    Host,
}

/// A directory's merged layers, highest first, and whether the host does not show through.
#[derive(Clone, Debug, Default)]
struct Dir {
    layers: Vec<usize>,
    closed: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) item: Item,
    pub(super) from: From,
    merged: bool,
    dir: Dir,
}

impl Found {
    fn is_dir(&self) -> bool {
        self.item == Item::Dir
    }
}

#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) layers: Vec<Tree<Virtual>>,
    pub(super) host: Tree<Item>,
    pub(super) sandbox: Tree<Virtual>,
    pub(super) rules: Rules,
    pub(super) settled: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Create(String, String),
    Write(String, String),
    Mkdir(String),
    Symlink(String, String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String),
    RenameNew(String, String),
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn below(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'))
}

fn to_layer(path: &str) -> LayerPath {
    LayerPath::new(path).unwrap()
}

impl Model {
    pub(super) fn new(layers: Vec<Tree<Virtual>>, host: Tree<Item>, rules: Rules) -> Self {
        Self { layers, host, sandbox: Tree::new(), rules, settled: BTreeSet::new() }
    }

    fn file_mode(&self, path: &str) -> Option<FileMode> {
        self.rules.file_mode(&to_layer(path))
    }

    fn mode(&self, path: &str) -> Mode {
        self.rules.mode(&to_layer(path))
    }

    fn writes_host(&self, path: &str) -> bool {
        match self.file_mode(path) {
            Some(mode) => mode == FileMode::Defaulted,
            None => self.mode(path) == Mode::Merge,
        }
    }

    fn may_write(&self, path: &str) -> Result<(), Errno> {
        if self.rules.is_read_only(&to_layer(path)) { Err(Errno::ACCESS) } else { Ok(()) }
    }

    fn hides(&self, path: &str) -> bool {
        self.file_mode(path).is_none() && self.mode(path) == Mode::Hide
    }

    /// What some layers have: what is seen, and the directory that it is.
    fn in_layers(&self, layers: &[usize], path: &str) -> (Option<Virtual>, Dir) {
        let mut found = None;
        let mut dir = Dir::default();
        for &number in layers {
            let Some(item) = self.layers[number].get(path) else { continue };
            let is_dir = matches!(item, Virtual::OpaqueDir | Virtual::Item(Item::Dir));
            if found.is_none() {
                found = Some(item.clone());
            }
            if is_dir {
                dir.layers.push(number);
            }
            if !matches!(item, Virtual::Item(Item::Dir)) {
                dir.closed = true;
                break;
            }
        }
        (found, dir)
    }

    /// A directory by its path; the errors are those of looking up each name from the root.
    fn directory(&mut self, path: &str) -> Result<Dir, Errno> {
        if path.is_empty() {
            return Ok(Dir { layers: (0..self.layers.len()).rev().collect(), closed: false });
        }
        match self.look(path)? {
            None => Err(Errno::NOENT),
            Some(found) if found.is_dir() => Ok(found.dir),
            Some(_) => Err(Errno::NOTDIR),
        }
    }

    fn host_seen(&self, path: &str, closed: bool) -> Option<Item> {
        let at = to_layer(path);
        let item = self.host.get(path).filter(|_| !closed)?;
        (self.rules.shows_host(&at) || self.rules.leads_to_host(&at) && *item == Item::Dir).then(|| item.clone())
    }

    pub(super) fn look(&mut self, path: &str) -> Result<Option<Found>, Errno> {
        let up = self.directory(parent(path))?;
        let (held, mut dir) = self.in_layers(&up.layers, path);
        dir.closed |= up.closed;
        if self.file_mode(path) == Some(FileMode::Defaulted) {
            let file = |item: Option<&Item>| item.filter(|item| **item != Item::Dir).cloned();
            if !self.host.contains_key(path)
                && let Some(Virtual::Item(item)) = &held
                && *item != Item::Dir
                && !self.settled.contains(path)
            {
                self.ensure_host(parent(path))?;
                self.host.insert(path.to_owned(), item.clone());
                self.settled.insert(path.to_owned());
            }
            if let Some(item) = file(self.host.get(path)) {
                return Ok(Some(Found { item, from: From::Host, merged: true, dir: Dir::default() }));
            }
            let held = held.filter(|held| matches!(held, Virtual::OpaqueDir | Virtual::Item(Item::Dir)));
            let dir = if held.is_some() { dir } else { Dir { layers: Vec::new(), closed: up.closed } };
            return Ok(self.look_plainly(path, &up, held, dir)?.filter(Found::is_dir));
        }
        self.look_plainly(path, &up, held, dir)
    }

    fn look_plainly(&self, path: &str, up: &Dir, held: Option<Virtual>, dir: Dir) -> Result<Option<Found>, Errno> {
        if self.mode(path) == Mode::Hide && !matches!(self.file_mode(path), Some(FileMode::Full | FileMode::Hide)) {
            return Ok(None);
        }
        let found = |item, from, dir, merged| Ok(Some(Found { item, from, merged, dir }));
        match self.sandbox.get(path) {
            Some(Virtual::Tomb) => return Ok(None),
            Some(Virtual::OpaqueDir) => return found(Item::Dir, From::Sandbox, Dir { layers: Vec::new(), closed: true }, false),
            Some(Virtual::Item(item)) => return found(item.clone(), From::Sandbox, dir, false),
            None => {}
        }
        match held {
            Some(Virtual::Tomb) => Ok(None),
            Some(Virtual::OpaqueDir) => found(Item::Dir, From::Layer, dir, false),
            Some(Virtual::Item(item)) => found(item, From::Layer, dir, false),
            None => match self.host_seen(path, up.closed) {
                Some(item) => {
                    let merged = match self.file_mode(path) {
                        Some(FileMode::Defaulted) | None => self.mode(path) == Mode::Merge,
                        Some(_) => false,
                    };
                    found(item, From::Host, Dir { layers: Vec::new(), closed: up.closed }, merged)
                }
                None => Ok(None),
            },
        }
    }

    fn is_held(&mut self, path: &str) -> Result<bool, Errno> {
        let up = self.directory(parent(path))?;
        Ok(self.in_layers(&up.layers, path).0.is_some())
    }

    fn behind(&mut self, path: &str) -> Result<bool, Errno> {
        let up = self.directory(parent(path))?;
        Ok(self.host_seen(path, up.closed).is_some())
    }

    fn ensure_host(&mut self, path: &str) -> Result<(), Errno> {
        if path.is_empty() {
            return Ok(());
        }
        self.ensure_host(parent(path))?;
        match self.host.get(path) {
            None => _ = self.host.insert(path.to_owned(), Item::Dir),
            Some(Item::Dir) => {}
            Some(Item::Link(_)) => return Err(Errno::LOOP),
            Some(Item::File(_)) => return Err(Errno::NOTDIR),
        }
        Ok(())
    }

    fn ensure_sandbox(&mut self, path: &str) {
        if !path.is_empty() && !self.sandbox.contains_key(path) {
            self.ensure_sandbox(parent(path));
            self.sandbox.insert(path.to_owned(), Virtual::Item(Item::Dir));
        }
    }

    /// Whether something new at a path is the host's.
    fn lands_on_host(&mut self, path: &str) -> Result<bool, Errno> {
        self.may_write(path)?;
        if self.hides(path) {
            return Err(Errno::NOENT);
        }
        if self.file_mode(path) == Some(FileMode::Defaulted) {
            return Ok(true);
        }
        let closed = self.directory(parent(path))?.closed;
        let blocked = std::iter::successors(Some(parent(path)), |path| Some(parent(path)).filter(|up| !up.is_empty()));
        let blocked = blocked.into_iter().any(|up| self.host.get(up).is_some_and(|item| *item != Item::Dir));
        Ok(self.writes_host(path) && !closed && !blocked && !self.is_held(path)? && !self.sandbox.contains_key(path))
    }

    fn put(&mut self, path: &str, item: Item, host: bool, opaque: bool) -> Result<(), Errno> {
        if host {
            let made = self.ensure_host(parent(path));
            if self.file_mode(path) == Some(FileMode::Defaulted) {
                made?;
                self.settled.insert(path.to_owned());
                self.host.insert(path.to_owned(), item);
                return Ok(());
            }
            if made.is_ok() {
                self.host.insert(path.to_owned(), item);
                return Ok(());
            }
        }
        let opaque = item == Item::Dir && (opaque || self.is_held(path)? || self.behind(path)? || self.sandbox.contains_key(path));
        self.ensure_sandbox(parent(path));
        self.sandbox.insert(path.to_owned(), if opaque { Virtual::OpaqueDir } else { Virtual::Item(item) });
        Ok(())
    }

    fn make(&mut self, path: &str, item: Item) -> Result<(), Errno> {
        if self.look(path)?.is_some() {
            return Err(Errno::EXIST);
        }
        let host = self.lands_on_host(path)?;
        if item == Item::Dir && self.file_mode(path).is_some() {
            return Err(Errno::PERM);
        }
        self.put(path, item, host, false)
    }

    fn write(&mut self, path: &str, content: &str) -> Result<(), Errno> {
        let found = self.look(path)?.ok_or(Errno::NOENT)?;
        match found.item {
            Item::Dir => return Err(Errno::ISDIR),
            Item::Link(_) => return Err(Errno::NXIO),
            Item::File(_) => {}
        }
        self.may_write(path)?;
        let item = Item::File(content.to_owned());
        if found.merged {
            self.host.insert(path.to_owned(), item);
            return Ok(());
        }
        self.may_copy(path, &found)?;
        self.ensure_sandbox(parent(path));
        self.sandbox.insert(path.to_owned(), Virtual::Item(item));
        Ok(())
    }

    fn may_copy(&self, path: &str, found: &Found) -> Result<(), Errno> {
        let refused = found.from != From::Sandbox && self.rules.may_not_be_copied(&to_layer(path));
        if refused { Err(Errno::ACCESS) } else { Ok(()) }
    }

    /// All names in a directory, whether listings show them or not.
    pub(super) fn children(&mut self, path: &str) -> Result<Vec<String>, Errno> {
        let mut names: BTreeSet<String> = BTreeSet::new();
        let keys = self.layers.iter().flat_map(Tree::keys).chain(self.host.keys()).chain(self.sandbox.keys());
        names.extend(keys.filter(|key| parent(key) == path && !key.is_empty()).cloned());
        let mut found = Vec::new();
        for name in names {
            if self.look(&name)?.is_some() {
                found.push(name);
            }
        }
        Ok(found)
    }

    fn take_away(&mut self, path: &str, found: &Found) -> Result<(), Errno> {
        if found.merged {
            if found.is_dir() && self.host.keys().any(|key| below(key, path)) {
                return Err(Errno::NOTEMPTY);
            }
            self.host.remove(path);
            if self.file_mode(path) == Some(FileMode::Defaulted) {
                self.settled.insert(path.to_owned());
            }
            return Ok(());
        }
        let tomb = self.is_held(path)? || self.behind(path)?;
        self.sandbox.retain(|key, _| key != path && !below(key, path));
        if tomb {
            self.ensure_sandbox(parent(path));
            self.sandbox.insert(path.to_owned(), Virtual::Tomb);
        }
        Ok(())
    }

    fn unlink(&mut self, path: &str) -> Result<(), Errno> {
        let found = self.look(path)?.ok_or(Errno::NOENT)?;
        self.may_write(path)?;
        if found.is_dir() { Err(Errno::ISDIR) } else { self.take_away(path, &found) }
    }

    fn rmdir(&mut self, path: &str) -> Result<(), Errno> {
        let found = self.look(path)?.ok_or(Errno::NOENT)?;
        self.may_write(path)?;
        if !found.is_dir() {
            return Err(Errno::NOTDIR);
        }
        if !self.children(path)?.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.take_away(path, &found)
    }

    fn read_only_below(&self, path: &str) -> bool {
        let stated = |(at, attributes): (&LayerPath, layer_format::manifest::Attributes)| {
            attributes.read_only && at.as_bytes() != path.as_bytes() && at.starts_with(&to_layer(path))
        };
        self.rules.stated_attributes().any(stated)
    }

    fn rename(&mut self, from: &str, to: &str, keep: bool) -> Result<(), Errno> {
        self.directory(parent(from))?;
        self.directory(parent(to))?;
        let source = self.look(from)?.ok_or(Errno::NOENT)?;
        let target = self.look(to)?;
        self.may_write(from)?;
        if source.is_dir() && self.read_only_below(from) {
            return Err(Errno::ACCESS);
        }
        self.may_write(to)?;
        if self.hides(to) {
            return Err(Errno::NOENT);
        }
        if source.is_dir() && self.read_only_below(to) {
            return Err(Errno::ACCESS);
        }
        if let Some(target) = &target {
            match (source.is_dir(), target.is_dir()) {
                _ if keep => return Err(Errno::EXIST),
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                _ => {}
            }
        }
        if source.is_dir() && self.file_mode(to).is_some() {
            return Err(Errno::PERM);
        }
        if target.as_ref().is_some_and(Found::is_dir) && !self.children(to)?.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        // What is virtual in merge stays so there; else the destination decides.
        let ground = self.lands_on_host(to)?;
        let stays = !source.merged && self.writes_host(from) && self.file_mode(to) != Some(FileMode::Defaulted);
        let host = ground && !stays;
        if source.is_dir() {
            return self.rename_dir(from, to, &source, target, host);
        }
        if !source.merged {
            self.may_copy(from, &source)?;
        }
        if target.is_some() && host {
            // The host's own, or the name would be virtual.
            self.host.remove(to);
        }
        self.put(to, source.item.clone(), host, false)?;
        self.take_away(from, &source)
    }

    fn rename_dir(&mut self, from: &str, to: &str, source: &Found, target: Option<Found>, host: bool) -> Result<(), Errno> {
        if let Some(target) = target {
            self.take_away(to, &target)?;
        }
        let opaque = self.sandbox.get(from) == Some(&Virtual::OpaqueDir);
        let host = host && self.lands_on_host(to)?;
        self.put(to, Item::Dir, host, opaque)?;
        for child in self.children(from)? {
            let name = child.rsplit('/').next().unwrap().to_owned();
            self.rename(&child, &format!("{to}/{name}"), true)?;
        }
        if !source.merged
            && !source.dir.closed
            && self.writes_host(from)
            && !self.host.keys().any(|key| below(key, from))
            && self.host.get(from) == Some(&Item::Dir)
        {
            self.host.remove(from);
        }
        let source = self.look(from)?.ok_or(Errno::NOENT)?;
        self.take_away(from, &source)
    }

    /// Does an operation, all or nothing.
    pub(super) fn run(&mut self, op: &Op) -> Result<(), Errno> {
        let before = self.clone();
        let done = match op {
            Op::Create(path, content) => self.make(path, Item::File(content.clone())),
            Op::Write(path, content) => self.write(path, content),
            Op::Mkdir(path) => self.make(path, Item::Dir),
            Op::Symlink(path, target) => self.make(path, Item::Link(target.clone())),
            Op::Unlink(path) => self.unlink(path),
            Op::Rmdir(path) => self.rmdir(path),
            Op::Rename(from, to) => self.rename(from, to, false),
            Op::RenameNew(from, to) => self.rename(from, to, true),
        };
        if done.is_err() {
            // Only what a look alone does stays: placing a defaulted file on the host.
            let now = std::mem::replace(self, before);
            for path in now.settled {
                if self.file_mode(&path) == Some(FileMode::Defaulted) {
                    let _ = self.look(&path);
                }
            }
        }
        done
    }

    /// All that is to be seen below a path.
    pub(super) fn view(&mut self, path: &str, out: &mut Tree<Item>) {
        for child in self.children(path).unwrap() {
            let found = self.look(&child).unwrap().unwrap();
            if found.is_dir() {
                self.view(&child, out);
            }
            out.insert(child, found.item);
        }
    }
}
