//! Bringing things to where they are changed: to the sandbox, or onto the host.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use client_store::view::Caller;
use layer_format::LayerPath;
use layer_format::entry::Kind;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, chmod, fstat, linkat, mkdirat, mknodat, openat, readlinkat, renameat, renameat_with, symlinkat,
    unlinkat,
};
use rustix::io::Errno;

use super::super::{NodeKind, ROOT};
use super::UnionFs;
use super::base::{id, magic};
use super::copy::{self, Meta, Source};
use super::node::{Key, Node, Place, State};
use super::upper::{New, Temp};
use super::view::{DirView, Found};

/// Something that is not complete yet, in the directory on the host where it will be. Removed when dropped.
#[derive(Debug)]
pub(super) struct Draft {
    dir: OwnedFd,
    file: Option<OwnedFd>,
    /// `None` while it has no name.
    name: Option<String>,
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = unlinkat(&self.dir, name.as_str(), AtFlags::empty());
        }
    }
}

impl Draft {
    fn new(dir: OwnedFd, new: New<'_>) -> Result<Self, Errno> {
        if let New::File = new {
            // Without a name nothing is left behind by a crash. Not every filesystem can do it.
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            if let Ok(file) = openat(&dir, ".", flags, Mode::RUSR | Mode::WUSR) {
                return Ok(Self { dir, file: Some(file), name: None });
            }
        }
        let name = Self::free_name();
        let file = match new {
            New::File => Some(openat(&dir, &name, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?),
            New::Symlink(target) => symlinkat(target, &dir, &name).map(|()| None)?,
            New::Special(kind) => mknodat(&dir, &name, kind, Mode::RUSR | Mode::WUSR, 0).map(|()| None)?,
            New::Directory { .. } => return Err(Errno::ISDIR),
        };
        Ok(Self { dir, file, name: Some(name) })
    }

    fn free_name() -> String {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        format!(".turbo-{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }

    fn target(&self) -> Result<OwnedFd, Errno> {
        match (&self.file, &self.name) {
            (Some(file), _) => openat(CWD, magic(file), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()),
            (None, Some(name)) => openat(&self.dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()),
            (None, None) => Err(Errno::IO),
        }
    }

    /// Gives it its name; with `replace`, in place of what has it.
    pub(super) fn publish(mut self, name: &[u8], replace: bool) -> Result<(Stat, Option<OwnedFd>), Errno> {
        let stat = fstat(self.target()?)?;
        match (&self.name, &self.file) {
            (None, Some(file)) if !replace => linkat(CWD, magic(file), &self.dir, name, AtFlags::SYMLINK_FOLLOW)?,
            (None, Some(file)) => {
                let temporary = Self::free_name();
                linkat(CWD, magic(file), &self.dir, &temporary, AtFlags::SYMLINK_FOLLOW)?;
                self.name = Some(temporary.clone());
                renameat(&self.dir, temporary, &self.dir, name)?;
            }
            (Some(temporary), _) if replace => renameat(&self.dir, temporary, &self.dir, name)?,
            (Some(temporary), _) => renameat_with(&self.dir, temporary, &self.dir, name, RenameFlags::NOREPLACE)?,
            (None, None) => return Err(Errno::IO),
        }
        self.name = None;
        Ok((stat, self.file.take()))
    }
}

impl UnionFs {
    /// Makes a directory exist in the sandbox, with its parents. With the gate held.
    pub(super) fn ensure_upper(&self, dir: &Arc<Node>) -> Result<(), Errno> {
        if dir.place() == Place::Upper {
            return Ok(());
        }
        let parent = self.parent_of(dir)?;
        self.ensure_upper(&parent)?;
        let _copying = dir.copying.lock();
        let state = dir.state();
        let path = self.path(dir)?;
        let meta = match (state.place, &state.entry) {
            (Place::Upper, _) => return Ok(()),
            (Place::Layer, Some(entry)) => Meta::of_entry(entry),
            (Place::Host, _) => Meta::of_file(&*self.reach(dir)?)?,
            // A mount point is not made; what leads to one may be.
            (Place::Stub, _) if self.passages.contains(&path) => return Err(Errno::ROFS),
            _ => Meta::with_mode(0o755),
        };
        let made = self.upper.make_dir(&path, &meta)?;
        dir.change(|state| (state.place, state.id) = (Place::Upper, Some(id(&made))));
        let mut table = self.table.write();
        match state.layers.is_empty() {
            true => table.rekey(dir.ino, Key::Upper(id(&made))),
            // It is found by its path as long as layers take part, and keeps its number when they no longer do.
            false => table.alias(Key::Upper(id(&made)), dir.ino),
        }
        table.changed(parent.ino);
        Ok(())
    }

    pub(super) fn parent_of(&self, node: &Node) -> Result<Arc<Node>, Errno> {
        let table = self.table.read();
        let (parent, _) = table.names(node.ino).into_iter().next().ok_or(if node.ino == ROOT { Errno::BUSY } else { Errno::STALE })?;
        table.node(parent).ok_or(Errno::STALE)
    }

    /// Makes a directory exist on the host, with its parents and with the permissions that it has in the VM.
    pub(super) fn host_dir(&self, dir: &Arc<Node>) -> Result<OwnedFd, Errno> {
        let path = self.path(dir)?;
        match self.host.dir(&path) {
            Err(Errno::NOENT) if !path.is_root() => {}
            other => return other,
        }
        let parent = self.host_dir(&*self.parent_of(dir).map(Box::new)?)?;
        let perm = u32::from(self.shown_now(dir)?.attr.perm);
        match mkdirat(&parent, path.name(), Mode::from_raw_mode(perm | 0o700)) {
            Ok(()) => chmod(magic(&self.host.at(&path)?), Mode::from_raw_mode(perm))?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        self.host.dir(&path)
    }

    /// Copies a file to the sandbox, unless it is there. Only the first `most` bytes are needed.
    pub(super) fn copy_up(&self, node: &Arc<Node>, most: Option<u64>, caller: Caller) -> Result<(), Errno> {
        let _copying = node.copying.lock();
        let state = node.state();
        if state.place == Place::Upper {
            return Ok(());
        }
        let paths = self.paths(node);
        if !self.bare && paths.iter().any(|path| self.rules.may_not_be_copied(path)) {
            return Err(Errno::ACCESS);
        }
        let (temp, mut file) = self.copy_to_work(node, &state, most, caller)?;
        let copied = id(&fstat(temp.open()?)?);
        let mut temp = Some(temp);
        let mut done: Vec<(u64, Vec<u8>)> = Vec::new();
        loop {
            let next = self.table.read().names(node.ino).into_iter().find(|name| !done.contains(name));
            let Some((parent, name)) = next else { break };
            let parent = self.node(parent)?;
            let _gate = self.gate.read();
            let _entries = parent.entries.lock();
            if !self.table.read().names(node.ino).contains(&(parent.ino, name.clone())) {
                continue;
            }
            let path = self.table.read().place_of(parent.ino, &name)?.0;
            self.ensure_upper(&parent)?;
            match temp.take() {
                Some(temp) => {
                    self.upper.place_quietly(temp, &path)?;
                    self.join_copy(node, &state, copied, &path);
                    self.settle_at(node, Place::Upper, copied, file.take());
                }
                None => {
                    let target = self.reach(node)?;
                    if self.upper.stat(&path)?.is_none() {
                        self.upper.quietly(&path, || self.upper.link(&target, &path))?;
                        self.one_less(&state);
                    }
                }
            }
            done.push((parent.ino, name));
        }
        if done.is_empty() {
            // It is open and has no name any more: neither has the copy.
            self.settle_at(node, Place::Upper, copied, file);
        }
        Ok(())
    }

    /// The names of a group of hard links that stay where they are, after the first has been copied.
    fn join_copy(&self, node: &Node, state: &State, copied: (u64, u64), path: &LayerPath) {
        let Some(key) = &state.group else { return };
        let count = self.shown_now(node).map_or(1, |shown| shown.attr.nlink);
        let mut table = self.table.write();
        let group = table.group_mut(key, count);
        group.left = group.left.saturating_sub(1);
        group.copied = Some((copied, path.clone()));
    }

    fn one_less(&self, state: &State) {
        if let Some(key) = &state.group {
            let mut table = self.table.write();
            let group = table.group_mut(key, 1);
            group.left = group.left.saturating_sub(1);
        }
    }

    /// The content of an inode is in another place now. `file` replaces what it is open by.
    pub(super) fn settle_at(&self, node: &Node, place: Place, at: (u64, u64), file: Option<OwnedFd>) {
        let mut opened = node.opened.lock();
        node.change(|state| {
            (state.place, state.id) = (place, Some(at));
            state.entry = None;
            state.layers.clear();
        });
        if let Some(file) = file {
            opened.epoch += 1;
            opened.file = (opened.count > 0).then(|| Arc::new(file));
        }
        drop(opened);
        let key = if place == Place::Upper { Key::Upper(at) } else { Key::Host(at) };
        self.table.write().rekey(node.ino, key);
    }

    /// A complete copy of what is no directory, in the working directory.
    pub(super) fn copy_to_work(&self, node: &Node, state: &State, most: Option<u64>, caller: Caller) -> Result<(Temp<'_>, Option<OwnedFd>), Errno> {
        let link = self.link_target(node, state)?;
        let (temp, file) = self.upper.make(new_like(node.kind, &link)?)?;
        self.fill(node, state, file.as_ref(), &temp.open()?, most, caller)?;
        Ok((temp, file))
    }

    /// A complete copy of what is no directory, in a directory of the host.
    pub(super) fn copy_to_host(&self, node: &Node, state: &State, dir: OwnedFd, caller: Caller) -> Result<Draft, Errno> {
        let link = self.link_target(node, state)?;
        let draft = Draft::new(dir, new_like(node.kind, &link)?)?;
        self.fill(node, state, draft.file.as_ref(), &draft.target()?, None, caller)?;
        Ok(draft)
    }

    fn link_target(&self, node: &Node, state: &State) -> Result<Vec<u8>, Errno> {
        match (node.kind, state.entry.as_deref().map(|entry| &entry.kind)) {
            (NodeKind::Symlink, Some(Kind::Symlink(target))) if state.place == Place::Layer => Ok(target.clone()),
            (NodeKind::Symlink, _) => readlinkat(&*self.reach(node)?, "", Vec::new()).map(|target| target.into_bytes()),
            _ => Ok(Vec::new()),
        }
    }

    fn fill(&self, node: &Node, state: &State, file: Option<&OwnedFd>, target: &OwnedFd, most: Option<u64>, caller: Caller) -> Result<(), Errno> {
        let path = self.path(node).unwrap_or_default();
        let failed = |error: &client_store::FetchError| self.failed(&path, error);
        let meta = match (state.place, &state.entry) {
            (Place::Layer, Some(entry)) => {
                let layer = state.layers.first().and_then(|layer| self.layer(*layer)).ok_or(Errno::IO)?;
                if let Some(file) = file {
                    copy::copy(&Source::Layer(&*layer, entry, caller), file, most, &failed)?;
                }
                Meta::of_entry(entry)
            }
            _ => {
                if let Some(file) = file {
                    let (from, _) = self.open_node(node, OFlags::RDONLY)?;
                    copy::copy(&Source::File(&from), file, most, &failed)?;
                }
                Meta::of_file(&*self.reach(node)?)?
            }
        };
        meta.apply(target, meta.mode)
    }

    /// Places what a layer has of a defaulted file on the host, once in a run.
    pub(super) fn seed(&self, dir: &Arc<Node>, found: &Found, caller: Caller) -> Result<(), Errno> {
        let Some(entry) = &found.entry else { return Err(Errno::IO) };
        let verdict = self.in_layers(&self.view(dir)?, &found.path, caller)?;
        let layer = verdict.layers.first().and_then(|layer| self.layer(*layer)).ok_or(Errno::IO)?;
        let host_dir = {
            let _gate = self.gate.read();
            self.host_dir(dir).inspect_err(|errno| {
                tracing::warn!(path = %found.path, "the layer's copy of {} could not be placed on the host: {errno}; make its directory writable", found.path);
            })?
        };
        let link = if let Kind::Symlink(target) = &entry.kind { target.clone() } else { Vec::new() };
        let draft = Draft::new(host_dir, new_like(found.kind, &link)?)?;
        if let Some(file) = &draft.file {
            copy::copy(&Source::Layer(&*layer, entry, caller), file, None, &|error| self.failed(&found.path, error))?;
        }
        let meta = Meta::of_entry(entry);
        meta.apply(&draft.target()?, meta.mode)?;
        let _entries = dir.entries.lock();
        match draft.publish(found.path.name(), false) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        self.settled.lock().insert(found.path.clone());
        self.touch(dir);
        Ok(())
    }

    /// Makes a name a link to the copy that another name of its file has in the sandbox. `false` if it cannot be.
    pub(super) fn join_group(&self, dir: &Arc<Node>, view: &DirView, found: &Found, key: &Key) -> Result<bool, Errno> {
        let Some((copied, hint)) = self.table.read().group(key).and_then(|group| group.copied.clone()) else { return Ok(false) };
        if !self.bare && self.rules.may_not_be_copied(&found.path) {
            return Ok(false);
        }
        let known = self.table.read().number(&Key::Upper(copied));
        let target = match self.node(known).and_then(|node| self.reach(&node)) {
            Ok(target) => target,
            Err(_) => match self.upper.base().at(&hint) {
                Ok(target) => Arc::new(target),
                Err(_) => return Ok(false),
            },
        };
        if id(&fstat(&*target)?) != copied {
            return Ok(false);
        }
        let _gate = self.gate.read();
        let _entries = dir.entries.lock();
        if self.view(dir)?.path != view.path {
            return Ok(true);
        }
        let linked = self.ensure_upper(dir).and_then(|()| self.upper.quietly(&found.path, || self.upper.link(&target, &found.path)));
        let mut table = self.table.write();
        table.changed(dir.ino);
        if linked.is_ok() {
            let group = table.group_mut(key, 1);
            group.left = group.left.saturating_sub(1);
        }
        Ok(linked.is_ok())
    }
}

/// What to make in order to copy something.
fn new_like(kind: NodeKind, link: &[u8]) -> Result<New<'_>, Errno> {
    match kind {
        NodeKind::File => Ok(New::File),
        NodeKind::Symlink => Ok(New::Symlink(link)),
        NodeKind::Fifo => Ok(New::Special(FileType::Fifo)),
        NodeKind::Socket => Ok(New::Special(FileType::Socket)),
        NodeKind::Directory => Err(Errno::ISDIR),
        NodeKind::CharDevice | NodeKind::BlockDevice => Err(Errno::PERM),
    }
}
