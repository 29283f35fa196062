//! Renames of directories, and exchanges.
//!
//! A directory that is the host's alone, or the sandbox's alone, moves at once. One that a layer has a part in, or that the host
//! shows through without being written, is first copied to the sandbox in place, which changes nothing that can be seen, and
//! then moves at once. Only where parts are written on the host and others are not, or the move leads from one to the other, is it
//! moved file by file: each is at all times at its old or its new place, and whoever looks into the directory
//! waits until it is done. Files that are open stay so.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use client_store::view::Caller;
use layer_format::LayerPath;
use layer_format::manifest::Mode;
use rustix::fs::{AtFlags, RenameFlags, renameat_with, unlinkat};
use rustix::io::Errno;

use super::super::NodeKind;
use super::base::is_dir;
use super::copy::Meta;
use super::node::{Key, Node, Place};
use super::rename::Ends;
use super::upper::New;
use super::view::{DirView, Found};
use super::{Ground, Spot, UnionFs};

impl UnionFs {
    pub(super) fn rename_dir(&self, mut ends: Ends, node: &Arc<Node>, caller: Caller) -> Result<bool, Errno> {
        if self.table.read().is_below(ends.to.dir.ino, node.ino) {
            return Err(Errno::INVAL);
        }
        if ends.to.policy.file.is_some() {
            return Err(Errno::PERM);
        }
        let below = if ends.target.is_some() { self.names_below(ends.to.dir.ino, ends.to.name(), caller)? } else { Vec::new() };
        if let Some(target) = &ends.target {
            self.check_empty(&ends.to, target, &below)?;
        }
        let ground = self.landing(&ends)?;
        let uniform = self.is_uniform_below(&ends.to.path);
        match ground {
            Ground::Host if ends.source.merged && uniform && self.is_the_hosts(&ends.from) && ends.to.policy.mode == Mode::Merge => {
                self.at_both(&mut ends, true, |fs, ends| fs.rename_on_host(ends))
            }
            Ground::Sandbox if uniform && self.moves_whole(&ends.from, &ends.source)? => {
                self.complete(node, caller)?;
                self.at_both(&mut ends, true, |fs, ends| {
                    if let Some(target) = &ends.target {
                        fs.check_empty(&ends.to, target, &below)?;
                    }
                    fs.move_in_upper(ends, node)
                })
            }
            _ => self.move_in_pieces(&ends, node, caller).map(|()| true),
        }
    }

    /// Whether a directory can be made the sandbox's alone: nothing below it is written on the host.
    fn moves_whole(&self, spot: &Spot, found: &Found) -> Result<bool, Errno> {
        if found.merged || spot.policy.file.is_some() || !self.is_uniform_below(&spot.path) {
            return Ok(false);
        }
        let closed = spot.view.closed || found.closed;
        Ok(closed || spot.policy.mode != Mode::Merge || !self.host.stat(&spot.path)?.as_ref().is_some_and(is_dir))
    }

    /// Whether all that is below a directory is written on the host.
    fn is_the_hosts(&self, spot: &Spot) -> bool {
        spot.policy.mode == Mode::Merge && spot.policy.file.is_none() && self.is_uniform_below(&spot.path)
    }

    /// Copies all that is below a directory to the sandbox.
    fn complete(&self, dir: &Arc<Node>, caller: Caller) -> Result<(), Errno> {
        let view = self.view(dir)?;
        {
            let _gate = self.gate.read();
            self.ensure_upper(dir)?;
        }
        if view.layers.is_empty() && !self.shows_through(&view) {
            return Ok(());
        }
        let view = DirView { upper: true, ..view };
        for name in self.list_names(&view, &self.list_layers(&view, caller)?, true)?.into_keys() {
            let Some((child, _)) = self.look(dir.ino, &name, caller)? else { continue };
            let copied = if child.kind == NodeKind::Directory { self.complete(&child, caller) } else { self.copy_up(&child, None, caller) };
            self.forget(child.ino, 1);
            copied?;
        }
        Ok(())
    }

    fn shows_through(&self, view: &DirView) -> bool {
        !view.closed && self.policy_below(&view.path).shows_host() && self.host.dir(&view.path).is_ok()
    }

    fn move_in_upper(&self, ends: &Ends, node: &Arc<Node>) -> Result<bool, Errno> {
        if ends.source.place != Place::Upper || ends.source.id() != node.state().id {
            return Ok(false);
        }
        self.ensure_upper(&ends.to.dir)?;
        let leave = self.leaves_tombstone(&ends.from)?;
        if let Some(target) = ends.target.as_ref().filter(|target| target.merged) {
            self.take_away(&ends.to, target)?;
        }
        self.seal(&ends.from, &ends.to)?;
        let swept = leave || !ends.source.layers.is_empty();
        self.upper.rename(&ends.from.path, &ends.to.path, leave)?;
        self.renamed(ends);
        self.cut_off(node, &ends.to.path);
        if swept {
            // They hid what was below the old place.
            let _ = self.upper.sweep(&ends.to.path);
        }
        Ok(true)
    }

    /// Makes a complete directory hide what is behind the name that it is about to get.
    fn seal(&self, from: &Spot, to: &Spot) -> Result<(), Errno> {
        let tombstone = to.view.upper && self.upper.stat(&to.path)?.is_some();
        if tombstone || Self::is_held(to) || self.behind(to)?.is_some() { self.upper.set_opaque(&from.path) } else { Ok(()) }
    }

    /// After a move, the layers have no part any more in a directory and those below it.
    fn cut_off(&self, node: &Arc<Node>, path: &LayerPath) {
        let opaque = self.upper.is_opaque(path).unwrap_or(false);
        let mut id = None;
        let mut had_layers = false;
        node.change(|state| {
            had_layers = !state.layers.is_empty();
            state.layers.clear();
            state.closed = opaque;
            id = state.id;
        });
        if !had_layers {
            return;
        }
        if let Some(id) = id {
            self.table.write().rekey(node.ino, Key::Upper(id));
        }
        let children = self.table.read().children(node.ino);
        for child in children.iter().filter(|child| child.kind == NodeKind::Directory && child.place() == Place::Upper) {
            if let Ok(path) = self.path(child) {
                self.cut_off(child, &path);
            }
        }
    }

    /// Moves a directory file by file.
    fn move_in_pieces(&self, ends: &Ends, node: &Arc<Node>, caller: Caller) -> Result<(), Errno> {
        {
            let _gate = self.gate.write();
            self.moving.lock().insert(node.ino);
            self.moving_count.fetch_add(1, Ordering::Release);
            self.table.write().changed(node.ino);
        }
        let moved = self.move_pieces(ends, node, caller);
        let mut moving = self.moving.lock();
        moving.remove(&node.ino);
        self.moving_count.fetch_sub(1, Ordering::Release);
        self.moved.notify_all();
        moved
    }

    fn move_pieces(&self, ends: &Ends, node: &Arc<Node>, caller: Caller) -> Result<(), Errno> {
        let to = ends.to.at();
        let ground = self.landing(ends)?;
        if ends.target.is_some() {
            self.remove_empty(to.0, to.1, caller)?;
        }
        // One that hides what is below goes on hiding.
        let opaque = ends.source.place == Place::Upper && self.upper.is_opaque(&ends.from.path)?;
        let mode = u32::from(self.shown_now(node)?.attr.perm);
        let meta = match node.state() {
            state if state.place == Place::Layer => state.entry.as_deref().map(Meta::of_entry),
            _ => self.reach(node).and_then(|target| Meta::of_file(&target)).ok(),
        };
        let made = self.change_name(to.0, to.1, caller, |spot| {
            if self.find_spot(spot)?.is_some() {
                return Err(Errno::EXIST);
            }
            let host = if ground == Ground::Host { self.ground_on_host(spot)? } else { None };
            self.make_on(spot, host, New::Directory { opaque }, mode | 0o700).map(|(made, _, _)| made)
        })?;
        let moved = self
            .move_children(node, &made, caller)
            .and_then(|names| self.remove_emptied(ends, caller).inspect_err(|_| self.move_back(&made, node, &names, caller)));
        if let Err(errno) = moved {
            let _ = self.remove_empty(to.0, to.1, caller);
            self.forget(made.ino, 1);
            if let Some(target) = &ends.target {
                let mode = target.attr(0).perm;
                let _ = self.make_new(to.0, to.1, New::Directory { opaque: false }, mode.into(), caller).map(|shown| self.forget(shown.attr.ino, 1));
            }
            return Err(errno);
        }
        self.table.write().assume(node.ino, made.ino);
        if let (Some(meta), Ok(target)) = (meta, self.reach(node)) {
            let _ = meta.apply(&target, mode);
        }
        Ok(())
    }

    fn move_children(&self, from: &Arc<Node>, to: &Arc<Node>, caller: Caller) -> Result<Vec<Vec<u8>>, Errno> {
        let view = self.view(from)?;
        let names = self.list_names(&view, &self.list_layers(&view, caller)?, true)?;
        let mut done = Vec::new();
        for name in names.into_keys() {
            match self.rename_inner((from.ino, &name), (to.ino, &name), true, caller) {
                Ok(()) => done.push(name),
                Err(errno) => {
                    self.move_back(to, from, &done, caller);
                    return Err(errno);
                }
            }
        }
        Ok(done)
    }

    /// Undoes a move that could not be finished, as far as possible.
    fn move_back(&self, from: &Arc<Node>, to: &Arc<Node>, names: &[Vec<u8>], caller: Caller) {
        for name in names {
            if let Err(errno) = self.rename_inner((from.ino, name), (to.ino, name), true, caller) {
                tracing::warn!("{} stays at its new place though the rename of its directory failed: {errno}", String::from_utf8_lossy(name));
            }
        }
    }

    fn remove_emptied(&self, ends: &Ends, caller: Caller) -> Result<(), Errno> {
        let closed = ends.from.view.closed || ends.source.closed;
        if !ends.source.merged && ends.from.policy.writes_host() && !closed {
            // The host's part of it, if that is empty now.
            if let Ok((dir, name)) = self.host.parent(&ends.from.path) {
                let _ = unlinkat(&dir, name, AtFlags::REMOVEDIR);
            }
        }
        self.remove_empty(ends.from.dir.ino, ends.from.name(), caller)
    }

    /// Two names change places.
    pub(super) fn exchange(&self, one: (u64, &[u8]), other: (u64, &[u8]), caller: Caller) -> Result<(), Errno> {
        loop {
            let (from, to) = (self.survey(one.0, one.1, caller)?, self.survey(other.0, other.1, caller)?);
            let source = self.find_spot(&from)?.ok_or(Errno::NOENT)?;
            let target = self.find_spot(&to)?.ok_or(Errno::NOENT)?;
            self.may_move(&from, &source)?;
            self.may_move(&to, &target)?;
            if source.key() == target.key() {
                return Ok(());
            }
            if source.is_dir() && to.policy.file.is_some() || target.is_dir() && from.policy.file.is_some() {
                return Err(Errno::PERM);
            }
            let dirs = source.is_dir() || target.is_dir();
            let uniform = !dirs || self.is_uniform_below(&from.path) && self.is_uniform_below(&to.path);
            let merged = (source.merged, target.merged);
            let mut ends = Ends { from, to, source, target: Some(target) };
            let done = match merged {
                (true, true) if !dirs || self.is_the_hosts(&ends.from) && self.is_the_hosts(&ends.to) => {
                    self.at_both(&mut ends, true, |fs, ends| fs.exchange_on_host(ends))?
                }
                (false, false) if uniform => self.exchange_virtual(&mut ends, caller)?,
                _ => return Err(Errno::XDEV),
            };
            if done {
                return Ok(());
            }
        }
    }

    fn exchange_on_host(&self, ends: &Ends) -> Result<bool, Errno> {
        let ((a, x), (b, y)) = (self.host.parent(&ends.from.path)?, self.host.parent(&ends.to.path)?);
        renameat_with(&a, x, &b, y, RenameFlags::EXCHANGE)?;
        self.touch(&ends.from.dir);
        self.touch(&ends.to.dir);
        self.table.write().exchange(ends.from.at(), ends.to.at());
        Ok(true)
    }

    fn exchange_virtual(&self, ends: &mut Ends, caller: Caller) -> Result<bool, Errno> {
        let mut nodes = Vec::new();
        let prepared = [(&ends.from, Some(&ends.source)), (&ends.to, ends.target.as_ref())].into_iter().try_for_each(|(spot, found)| {
            let (node, _) = self.look(spot.dir.ino, spot.name(), caller)?.ok_or(Errno::NOENT)?;
            nodes.push(Arc::clone(&node));
            match found {
                Some(found) if found.is_dir() && !self.moves_whole(spot, found)? => Err(Errno::XDEV),
                Some(found) if found.is_dir() => self.complete(&node, caller),
                _ => self.copy_up(&node, None, caller),
            }
        });
        let done = prepared.and_then(|()| {
            self.at_both(ends, true, |fs, ends| {
                let Some(target) = &ends.target else { return Ok(false) };
                if [&ends.source, target].iter().zip(&nodes).any(|(found, node)| found.place != Place::Upper || found.id() != node.state().id) {
                    return Ok(false);
                }
                for (dir, at, other) in [(&ends.source, &ends.from, &ends.to), (target, &ends.to, &ends.from)] {
                    if dir.is_dir() {
                        fs.seal(at, other)?;
                    }
                }
                fs.upper.exchange(&ends.from.path, &ends.to.path)?;
                fs.table.write().exchange(ends.from.at(), ends.to.at());
                for (node, path) in nodes.iter().zip([&ends.to.path, &ends.from.path]) {
                    if node.kind == NodeKind::Directory {
                        fs.cut_off(node, path);
                        let _ = fs.upper.sweep(path);
                    }
                }
                Ok(true)
            })
        });
        nodes.iter().for_each(|node| self.forget(node.ino, 1));
        done
    }
}
