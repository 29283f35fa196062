//! Names that go.

use std::sync::Arc;

use client_store::view::Caller;
use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use super::super::merge::Verdict;
use super::node::{Key, Node, Place};
use super::view::Found;
use super::{Spot, UnionFs};

impl UnionFs {
    /// Removes a name of what is no directory. Who has it open goes on using it.
    ///
    /// # Errors
    /// `EISDIR`; `EACCES` if it is read-only; what the host answers.
    pub fn unlink(&self, parent: u64, name: &[u8], caller: Caller) -> Result<(), Errno> {
        self.settle(parent);
        self.change_name(parent, name, caller, |spot| {
            let found = self.find_spot(spot)?.ok_or(Errno::NOENT)?;
            spot.policy.may_write()?;
            if found.is_dir() {
                return Err(Errno::ISDIR);
            }
            let known = self.table.read().child(spot.dir.ino, spot.name());
            if let Some(node) = &known {
                self.remember_last(node);
            }
            self.take_away(spot, &found)?;
            self.name_is_gone(spot, &found, known.as_ref());
            Ok(())
        })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOTDIR`; `ENOTEMPTY`; `EBUSY` if a mount point is there or below; as [`UnionFs::unlink`].
    pub fn remove_dir(&self, parent: u64, name: &[u8], caller: Caller) -> Result<(), Errno> {
        self.settle(parent);
        self.remove_empty(parent, name, caller)
    }

    pub(super) fn remove_empty(&self, parent: u64, name: &[u8], caller: Caller) -> Result<(), Errno> {
        let below = self.names_below(parent, name, caller)?;
        self.change_name(parent, name, caller, |spot| {
            let found = self.find_spot(spot)?.ok_or(Errno::NOENT)?;
            spot.policy.may_write()?;
            if !found.is_dir() {
                return Err(Errno::NOTDIR);
            }
            self.check_empty(spot, &found, &below)?;
            let known = self.table.read().child(spot.dir.ino, spot.name());
            self.take_away(spot, &found)?;
            self.name_is_gone(spot, &found, known.as_ref());
            Ok(())
        })
    }

    /// What the layers have in the directory of this name. May wait for the network.
    pub(super) fn names_below(&self, parent: u64, name: &[u8], caller: Caller) -> Result<Vec<Arc<Verdict>>, Errno> {
        let view = self.view(&*self.directory(parent)?)?;
        match self.find(&view, name, caller)? {
            Some(found) if found.is_dir() => self.list_layers(&found.view(view.closed), caller),
            _ => Ok(Vec::new()),
        }
    }

    /// # Errors
    /// `ENOTEMPTY`, also if listings leave out all that there is; `EBUSY`.
    pub(super) fn check_empty(&self, spot: &Spot, found: &Found, below: &[Arc<Verdict>]) -> Result<(), Errno> {
        if self.is_pinned(&spot.path) {
            return Err(Errno::BUSY);
        }
        let view = found.view(spot.view.closed);
        // The layers may have been cut off since they were asked.
        let below = if view.layers.is_empty() { &[] } else { below };
        if self.list_names(&view, below, true)?.is_empty() { Ok(()) } else { Err(Errno::NOTEMPTY) }
    }

    /// Takes away what is at a spot, in the way of its mode.
    pub(super) fn take_away(&self, spot: &Spot, found: &Found) -> Result<(), Errno> {
        if found.place == Place::Host && found.merged {
            let (dir, name) = self.host.parent(&spot.path)?;
            unlinkat(&dir, name, if found.is_dir() { AtFlags::REMOVEDIR } else { AtFlags::empty() })?;
            self.touch(&spot.dir);
            if spot.policy.is_defaulted() {
                self.settled.lock().insert(spot.path.clone());
            }
            return Ok(());
        }
        if self.leaves_tombstone(spot)? {
            self.ensure_upper(&spot.dir)?;
            return self.upper.whiteout(&spot.path);
        }
        self.upper.remove(&spot.path)
    }

    /// Whether a name would show something else if the sandbox just lacked it.
    pub(super) fn leaves_tombstone(&self, spot: &Spot) -> Result<bool, Errno> {
        Ok(Self::is_held(spot) || self.behind(spot)?.is_some())
    }

    /// Brings the table up to date after a name was taken away or replaced.
    pub(super) fn name_is_gone(&self, spot: &Spot, found: &Found, known: Option<&Arc<Node>>) {
        let single = found.is_dir() || found.stat.as_ref().is_none_or(|stat| stat.st_nlink <= 1);
        let mut table = self.table.write();
        table.remove_name(spot.dir.ino, spot.name());
        self.lose(&mut table, found, single, known.map(|node| node.ino));
        drop(table);
        if let Some(node) = known
            && node.state().last.is_none()
            && found.is_dir()
        {
            let attr = found.attr(node.ino);
            node.change(|state| state.last = Some(attr));
        }
    }

    /// A name of what was found is gone.
    pub(super) fn lose(&self, table: &mut super::nodes::Table, found: &Found, single: bool, ino: Option<u64>) {
        if let Some((key, count)) = found.group() {
            let group = table.group_mut(&key, count);
            group.left = group.left.saturating_sub(1);
        }
        let on_disk = found.id().filter(|_| found.place == Place::Upper || found.merged);
        if let Some(id) = on_disk.filter(|_| single) {
            table.bury(&if found.place == Place::Upper { Key::Upper(id) } else { Key::Host(id) }, ino);
        }
    }
}
