//! Renames: the mode of the destination decides where things land, that of the source how their removal is recorded.
//!
//! | from \ to   | sandbox                              | host                                  |
//! |-------------|--------------------------------------|---------------------------------------|
//! | virtual     | copied up, then renamed there         | copied to the host, then taken away   |
//! | host        | copied to the sandbox, then removed   | renamed there                         |
//!
//! In merge, what is virtual stays so, and a name that is virtual stays so. Directories: see [`super::moves`].

use std::sync::Arc;

use client_store::view::Caller;
use rustix::fs::{AtFlags, RenameFlags, fstat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;

use super::base::id;
use super::node::{Node, Place};
use super::view::Found;
use super::{Ground, Spot, UnionFs};

/// What may be at the new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rename {
    /// Anything: it is replaced.
    Replace,
    /// Nothing.
    NoReplace,
    /// Something, which gets the old name.
    Exchange,
}

/// Both ends of a rename, and what is there.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) from: Spot,
    pub(super) to: Spot,
    pub(super) source: Found,
    pub(super) target: Option<Found>,
}

impl UnionFs {
    /// Renames.
    ///
    /// # Errors
    /// `EACCES` if one of the names is read-only; `ENOENT` where nothing may be seen; `EBUSY` for a mount point, or what leads
    /// to one; `EXDEV` for hard links that would have to part, and to exchange something virtual with something on the host; `ENOTEMPTY`
    /// and the like; what the host answers.
    pub fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), how: Rename, caller: Caller) -> Result<(), Errno> {
        self.settle(from.0);
        self.settle(to.0);
        match how {
            Rename::Exchange => self.exchange(from, to, caller),
            _ => self.rename_inner(from, to, how == Rename::NoReplace, caller),
        }
    }

    pub(super) fn rename_inner(&self, from: (u64, &[u8]), to: (u64, &[u8]), keep: bool, caller: Caller) -> Result<(), Errno> {
        loop {
            let Some(ends) = self.ends(from, to, keep, caller)? else { return Ok(()) };
            let (node, _) = self.look(from.0, from.1, caller)?.ok_or(Errno::NOENT)?;
            let done = if ends.source.is_dir() { self.rename_dir(ends, &node, caller) } else { self.rename_file(ends, &node, caller) };
            self.forget(node.ino, 1);
            if done? {
                return Ok(());
            }
        }
    }

    /// Looks at both ends; `None` if there is nothing to do, since both are one file.
    fn ends(&self, from: (u64, &[u8]), to: (u64, &[u8]), keep: bool, caller: Caller) -> Result<Option<Ends>, Errno> {
        let (from, to) = (self.survey(from.0, from.1, caller)?, self.survey(to.0, to.1, caller)?);
        let source = self.find_spot(&from)?.ok_or(Errno::NOENT)?;
        let target = self.find_spot(&to)?;
        self.may_move(&from, &source)?;
        to.policy.may_write()?;
        if to.policy.hides() {
            return Err(Errno::NOENT);
        }
        if source.is_dir() && self.has_below(&to.path, |attributes| attributes.read_only) {
            return Err(Errno::ACCESS);
        }
        if let Some(target) = &target {
            match (source.is_dir(), target.is_dir()) {
                _ if keep => return Err(Errno::EXIST),
                _ if self.is_passage(&to.path) => return Err(Errno::BUSY),
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (false, false) if source.key() == target.key() => return Ok(None),
                _ => {}
            }
        }
        Ok(Some(Ends { from, to, source, target }))
    }

    pub(super) fn may_move(&self, spot: &Spot, found: &Found) -> Result<(), Errno> {
        spot.policy.may_write()?;
        if self.is_pinned(&spot.path) {
            return Err(Errno::BUSY);
        }
        if found.is_dir() && self.has_below(&spot.path, |attributes| attributes.read_only) {
            return Err(Errno::ACCESS);
        }
        Ok(())
    }

    /// Where something lands at its new name.
    pub(super) fn landing(&self, ends: &Ends) -> Result<Ground, Errno> {
        let ground = self.ground(&ends.to)?;
        let stays = !ends.source.merged && ends.from.policy.writes_host() && !ends.to.policy.is_defaulted();
        Ok(if stays { Ground::Sandbox } else { ground })
    }

    fn rename_file(&self, mut ends: Ends, node: &Arc<Node>, caller: Caller) -> Result<bool, Errno> {
        let ground = self.landing(&ends)?;
        match (ends.source.merged, ground) {
            (false, Ground::Sandbox) => {
                self.copy_up(node, None, caller)?;
                self.at_both(&mut ends, false, |fs, ends| fs.rename_in_upper(ends, node))
            }
            (true, Ground::Host) => self.at_both(&mut ends, false, |fs, ends| fs.rename_on_host(ends)),
            (true, Ground::Sandbox) => self.import(&mut ends, node, caller),
            (false, Ground::Host) => self.export(&mut ends, node, caller),
        }
    }

    /// Does something with both directories locked; with `alone`, while nobody else uses any path. `false` if things have changed
    /// since they were looked at.
    pub(super) fn at_both(&self, ends: &mut Ends, alone: bool, act: impl FnOnce(&Self, &Ends) -> Result<bool, Errno>) -> Result<bool, Errno> {
        let _shared = (!alone).then(|| self.gate.read());
        let _exclusive = alone.then(|| self.gate.write());
        let (from, to) = (Arc::clone(&ends.from.dir), Arc::clone(&ends.to.dir));
        let (first, second) = if from.ino <= to.ino { (&from, &to) } else { (&to, &from) };
        let _first = first.entries.lock();
        let _second = (first.ino != second.ino).then(|| second.entries.lock());
        if !self.confirm(&mut ends.from)? || !self.confirm(&mut ends.to)? {
            return Ok(false);
        }
        let (source, target) = (self.find_spot(&ends.from)?, self.find_spot(&ends.to)?);
        match source {
            Some(source) if source.kind == ends.source.kind && source.merged == ends.source.merged => ends.source = source,
            _ => return Ok(false),
        }
        if target.as_ref().map(|target| (target.kind, target.merged)) != ends.target.as_ref().map(|target| (target.kind, target.merged)) {
            return Ok(false);
        }
        ends.target = target;
        act(self, ends)
    }

    fn rename_in_upper(&self, ends: &Ends, node: &Arc<Node>) -> Result<bool, Errno> {
        if ends.source.place != Place::Upper || ends.source.id() != node.state().id {
            return Ok(false);
        }
        self.ensure_upper(&ends.to.dir)?;
        let leave = self.leaves_tombstone(&ends.from)?;
        self.before_replacing(ends);
        self.upper.rename(&ends.from.path, &ends.to.path, leave)?;
        self.renamed(ends);
        Ok(true)
    }

    pub(super) fn rename_on_host(&self, ends: &Ends) -> Result<bool, Errno> {
        let Some(to) = self.ground_on_host(&ends.to)? else { return Err(Errno::XDEV) };
        let (from, name) = self.host.parent(&ends.from.path)?;
        self.before_replacing(ends);
        match ends.target {
            None => match renameat_with(&from, name, &to, ends.to.name(), RenameFlags::NOREPLACE) {
                // A filesystem without this.
                Err(Errno::INVAL | Errno::NOSYS) => renameat(&from, name, &to, ends.to.name())?,
                other => other?,
            },
            Some(_) => renameat(&from, name, &to, ends.to.name())?,
        }
        self.on_host_changed(ends);
        self.renamed(ends);
        Ok(true)
    }

    /// Notes what changed on the host at the ends of a rename.
    fn on_host_changed(&self, ends: &Ends) {
        self.touch(&ends.from.dir);
        self.touch(&ends.to.dir);
        for spot in [&ends.from, &ends.to] {
            if spot.policy.is_defaulted() {
                self.settled.lock().insert(spot.path.clone());
            }
        }
    }

    /// From the host to the sandbox.
    fn import(&self, ends: &mut Ends, node: &Arc<Node>, caller: Caller) -> Result<bool, Errno> {
        self.parts_no_links(ends, node)?;
        let _content = node.content.write();
        let (temp, file) = self.copy_to_work(node, &node.state(), None, caller)?;
        let at = id(&fstat(temp.open()?)?);
        self.at_both(ends, false, |fs, ends| {
            fs.ensure_upper(&ends.to.dir)?;
            fs.before_replacing(ends);
            fs.upper.place(temp, &ends.to.path)?;
            let (dir, name) = fs.host.parent(&ends.from.path)?;
            unlinkat(&dir, name, AtFlags::empty())?;
            fs.settle_at(node, Place::Upper, at, file);
            fs.on_host_changed(ends);
            fs.renamed(ends);
            fs.lose(&mut fs.table.write(), &ends.source, true, None);
            Ok(true)
        })
    }

    /// From the sandbox, a layer or the host below write-copy to where the host is written.
    fn export(&self, ends: &mut Ends, node: &Arc<Node>, caller: Caller) -> Result<bool, Errno> {
        self.parts_no_links(ends, node)?;
        if ends.source.place != Place::Upper && !self.bare && self.rules.may_not_be_copied(&ends.from.path) {
            return Err(Errno::ACCESS);
        }
        let dir = {
            let _gate = self.gate.read();
            self.host_dir(&ends.to.dir)?
        };
        let _copying = node.copying.lock();
        let _content = node.content.write();
        let draft = self.copy_to_host(node, &node.state(), dir, caller)?;
        self.at_both(ends, false, |fs, ends| {
            fs.before_replacing(ends);
            let (stat, file) = draft.publish(ends.to.name(), ends.target.is_some())?;
            fs.take_away(&ends.from, &ends.source)?;
            fs.settle_at(node, Place::Host, id(&stat), file);
            fs.on_host_changed(ends);
            fs.renamed(ends);
            fs.lose(&mut fs.table.write(), &ends.source, true, None);
            Ok(true)
        })
    }

    /// # Errors
    /// `EXDEV` if a file has other names, which would stay where they are.
    fn parts_no_links(&self, ends: &Ends, node: &Node) -> Result<(), Errno> {
        if ends.source.attr(node.ino).nlink > 1 || self.table.read().names(node.ino).len() > 1 { Err(Errno::XDEV) } else { Ok(()) }
    }

    /// Remembers what is needed of the file that a rename replaces.
    fn before_replacing(&self, ends: &Ends) {
        let known = self.table.read().child(ends.to.dir.ino, ends.to.name());
        if let Some(node) = known {
            self.remember_last(&node);
        }
    }

    /// Brings the table up to date after a rename.
    pub(super) fn renamed(&self, ends: &Ends) {
        let mut table = self.table.write();
        if let Some(target) = &ends.target {
            let replaced = target.place == Place::Upper || target.merged && ends.target.is_some();
            let single = target.is_dir() || target.stat.as_ref().is_none_or(|stat| stat.st_nlink <= 1);
            let known = table.child(ends.to.dir.ino, ends.to.name()).map(|node| node.ino);
            self.lose(&mut table, target, single && replaced, known);
        }
        table.rename(ends.from.at(), ends.to.at());
    }
}
