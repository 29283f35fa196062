//! The inodes that the kernel knows, each with its names.
//!
//! A name points to its parent, so that a directory is renamed without touching what is below it. An inode stays as long as the
//! kernel or a child refers to it. Its number is made by hashing what it is, so that it is the same after the kernel
//! has forgotten it; what changed its place meanwhile (a copy in the sandbox, a move) keeps its number by an alias.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use layer_format::LayerPath;
use rustix::io::Errno;

use super::super::{NodeKind, ROOT};
use super::node::{Group, Key, Node, State};

const BITS: u32 = 53;

#[derive(Debug)]
struct Slot {
    node: Arc<Node>,
    references: u64,
    key: Key,
    names: Vec<(u64, Vec<u8>)>,
    children: HashMap<Vec<u8>, u64>,
    /// Counts copies and removals in this directory.
    changes: u64,
}

/// All inodes.
#[derive(Debug)]
pub(super) struct Table {
    slots: HashMap<u64, Slot>,
    keys: HashMap<Key, u64>,
    aliases: HashMap<Key, u64>,
    groups: HashMap<Key, Group>,
}

impl Table {
    pub(super) fn new(root: State) -> Self {
        let mut table = Self { slots: HashMap::new(), keys: HashMap::new(), aliases: HashMap::new(), groups: HashMap::new() };
        table.insert(ROOT, NodeKind::Directory, Key::Path(LayerPath::root()), root);
        table
    }

    fn insert(&mut self, ino: u64, kind: NodeKind, key: Key, state: State) -> Arc<Node> {
        let node = Arc::new(Node::new(ino, kind, state));
        self.keys.insert(key.clone(), ino);
        self.slots.insert(ino, Slot { node: Arc::clone(&node), references: 1, key, names: Vec::new(), children: HashMap::new(), changes: 0 });
        node
    }

    pub(super) fn node(&self, ino: u64) -> Option<Arc<Node>> {
        self.slots.get(&ino).map(|slot| Arc::clone(&slot.node))
    }

    pub(super) fn child(&self, parent: u64, name: &[u8]) -> Option<Arc<Node>> {
        let ino = self.slots.get(&parent)?.children.get(name)?;
        self.node(*ino)
    }

    /// All children that are known.
    pub(super) fn children(&self, parent: u64) -> Vec<Arc<Node>> {
        self.slots.get(&parent).map(|slot| slot.children.values().filter_map(|ino| self.node(*ino)).collect()).unwrap_or_default()
    }

    pub(super) fn names(&self, ino: u64) -> Vec<(u64, Vec<u8>)> {
        self.slots.get(&ino).map(|slot| slot.names.clone()).unwrap_or_default()
    }

    pub(super) fn changes(&self, ino: u64) -> u64 {
        self.slots.get(&ino).map_or(0, |slot| slot.changes)
    }

    pub(super) fn changed(&mut self, ino: u64) {
        if let Some(slot) = self.slots.get_mut(&ino) {
            slot.changes += 1;
        }
    }

    /// The path of an inode by the first of its names, and whether a directory on the way, or itself, is closed to the host.
    pub(super) fn place(&self, ino: u64) -> Result<(LayerPath, bool), Errno> {
        let name = self.slots.get(&ino).and_then(|slot| slot.names.first());
        match name {
            Some((parent, name)) => {
                let (path, closed) = self.place_of(*parent, name)?;
                Ok((path, closed || self.is_closed(ino)))
            }
            None if ino == ROOT => Ok((LayerPath::root(), self.is_closed(ROOT))),
            None => Err(Errno::STALE),
        }
    }

    /// The path of a name, and whether a directory on the way is closed to the host.
    pub(super) fn place_of(&self, parent: u64, name: &[u8]) -> Result<(LayerPath, bool), Errno> {
        let mut names = vec![name];
        let (mut at, mut closed) = (parent, false);
        while at != ROOT {
            closed |= self.is_closed(at);
            let slot = self.slots.get(&at).ok_or(Errno::STALE)?;
            let (up, name) = slot.names.first().ok_or(Errno::STALE)?;
            names.push(name);
            at = *up;
        }
        names.reverse();
        let path = LayerPath::new(names.join(&b'/')).map_err(|_| Errno::NAMETOOLONG)?;
        Ok((path, closed || self.is_closed(ROOT)))
    }

    fn is_closed(&self, ino: u64) -> bool {
        self.slots.get(&ino).is_some_and(|slot| slot.node.state.read().closed)
    }

    /// Whether `ino` is `ancestor` or below it.
    pub(super) fn is_below(&self, ino: u64, ancestor: u64) -> bool {
        let up = |ino: &u64| self.slots.get(ino).and_then(|slot| slot.names.first()).map(|(parent, _)| *parent);
        std::iter::successors(Some(ino), up).any(|at| at == ancestor)
    }

    /// The number that something has, if no other took it.
    pub(super) fn number(&self, key: &Key) -> u64 {
        if let Some(ino) = self.keys.get(key).or_else(|| self.aliases.get(key)) {
            return *ino;
        }
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        (hasher.finish() >> (64 - BITS)).max(ROOT + 1)
    }

    /// Counts a reference to what is found under a name, newly made or known.
    pub(super) fn enter(&mut self, parent: u64, name: &[u8], kind: NodeKind, key: Key, state: impl FnOnce() -> State) -> Arc<Node> {
        let mut ino = self.number(&key);
        let node = loop {
            match self.slots.get_mut(&ino) {
                None => break self.insert(ino, kind, key, state()),
                Some(slot) if slot.node.kind == kind && (slot.key == key || self.aliases.get(&key) == Some(&ino)) => {
                    slot.references += 1;
                    break Arc::clone(&slot.node);
                }
                Some(slot) => {
                    // Another inode with this hash, or something else that the host has now under the number of a deleted file.
                    if slot.key == key {
                        self.keys.remove(&key);
                        slot.key = Key::Path(LayerPath::root());
                    }
                    ino = (ino + 1).max(ROOT + 1) & ((1 << BITS) - 1);
                }
            }
        };
        self.add_name(parent, name, node.ino);
        node
    }

    pub(super) fn add_name(&mut self, parent: u64, name: &[u8], ino: u64) {
        match self.slots.get_mut(&parent).and_then(|slot| slot.children.insert(name.to_vec(), ino)) {
            Some(before) if before == ino => return,
            Some(before) => self.lose_name(before, parent, name),
            None => {}
        }
        if let Some(slot) = self.slots.get_mut(&ino) {
            slot.names.push((parent, name.to_vec()));
        }
    }

    fn lose_name(&mut self, ino: u64, parent: u64, name: &[u8]) {
        if let Some(slot) = self.slots.get_mut(&ino) {
            slot.names.retain(|(at, known)| (*at, known.as_slice()) != (parent, name));
        }
        self.sweep(ino);
    }

    /// A name is gone. Returns how many its inode still has.
    pub(super) fn remove_name(&mut self, parent: u64, name: &[u8]) -> usize {
        let Some(slot) = self.slots.get_mut(&parent) else { return 0 };
        slot.changes += 1;
        let Some(ino) = slot.children.remove(name) else { return 0 };
        let left = self.slots.get(&ino).map_or(0, |slot| slot.names.len().saturating_sub(1));
        self.lose_name(ino, parent, name);
        left
    }

    /// A name has become another, in place of what had that.
    pub(super) fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8])) {
        self.changed(from.0);
        self.changed(to.0);
        let ino = self.slots.get_mut(&from.0).and_then(|slot| slot.children.remove(from.1));
        let Some(ino) = ino else {
            self.remove_name(to.0, to.1);
            return;
        };
        // First the new name: an inode without any could be dropped.
        self.add_name(to.0, to.1, ino);
        self.lose_name(ino, from.0, from.1);
    }

    /// Two names have changed places.
    pub(super) fn exchange(&mut self, one: (u64, &[u8]), other: (u64, &[u8])) {
        self.changed(one.0);
        self.changed(other.0);
        let mut take = |(parent, name): (u64, &[u8])| {
            let ino = self.slots.get_mut(&parent).and_then(|slot| slot.children.remove(name))?;
            if let Some(slot) = self.slots.get_mut(&ino) {
                slot.names.retain(|(at, known)| (*at, known.as_slice()) != (parent, name));
            }
            Some(ino)
        };
        let (first, second) = (take(one), take(other));
        if let Some(ino) = first {
            self.add_name(other.0, other.1, ino);
        }
        if let Some(ino) = second {
            self.add_name(one.0, one.1, ino);
        }
    }

    /// An inode has become something else and keeps its number.
    pub(super) fn rekey(&mut self, ino: u64, key: Key) {
        let Some(slot) = self.slots.get_mut(&ino) else { return };
        let before = std::mem::replace(&mut slot.key, key.clone());
        let parents: Vec<u64> = slot.names.iter().map(|(parent, _)| *parent).collect();
        if self.keys.get(&before) == Some(&ino) {
            self.keys.remove(&before);
        }
        self.keys.insert(key.clone(), ino);
        self.aliases.insert(key, ino);
        parents.into_iter().for_each(|parent| self.changed(parent));
    }

    /// What `key` stood for, the inode `ino` if that is known, no longer exists. Its place on disk may have been used anew
    /// already, by what is then another inode's.
    pub(super) fn bury(&mut self, key: &Key, ino: Option<u64>) {
        match self.keys.get(key) {
            Some(current) if Some(*current) != ino => return,
            Some(_) => _ = self.keys.remove(key),
            None => {}
        }
        self.aliases.remove(key);
        if let Some(slot) = ino.and_then(|ino| self.slots.get_mut(&ino)) {
            slot.key = Key::Path(LayerPath::root());
        }
    }

    /// Something has just been made: whatever `key` stood for before is gone.
    pub(super) fn is_new(&mut self, key: &Key) {
        let before = self.keys.get(key).copied();
        self.bury(key, before);
    }

    pub(super) fn alias(&mut self, key: Key, ino: u64) {
        self.aliases.insert(key, ino);
    }

    /// `ino` takes the place, the names and the children of `other`, which is no more.
    pub(super) fn assume(&mut self, ino: u64, other: u64) {
        let Some(gone) = self.slots.remove(&other) else { return };
        if self.keys.get(&gone.key) == Some(&other) {
            self.keys.remove(&gone.key);
        }
        for (parent, name) in &gone.names {
            if let Some(slot) = self.slots.get_mut(parent) {
                slot.children.insert(name.clone(), ino);
            }
        }
        for (name, child) in &gone.children {
            for known in self.slots.get_mut(child).into_iter().flat_map(|slot| &mut slot.names) {
                if (known.0, &known.1) == (other, name) {
                    known.0 = ino;
                }
            }
        }
        let state = gone.node.state();
        if let Some(slot) = self.slots.get_mut(&ino) {
            slot.names = gone.names;
            slot.children = gone.children;
            slot.changes += 1;
            slot.node.change(|mine| *mine = state);
        }
        self.rekey(ino, gone.key);
    }

    pub(super) fn hold(&mut self, ino: u64) {
        if let Some(slot) = self.slots.get_mut(&ino) {
            slot.references += 1;
        }
    }

    pub(super) fn forget(&mut self, ino: u64, count: u64) {
        if let Some(slot) = self.slots.get_mut(&ino)
            && ino != ROOT
        {
            slot.references = slot.references.saturating_sub(count);
            self.sweep(ino);
        }
    }

    /// Drops an inode that nobody refers to, and then perhaps its parents.
    fn sweep(&mut self, ino: u64) {
        let mut suspects = vec![ino];
        while let Some(ino) = suspects.pop() {
            if ino == ROOT || !self.slots.get(&ino).is_some_and(|slot| slot.references == 0 && slot.children.is_empty()) {
                continue;
            }
            let Some(slot) = self.slots.remove(&ino) else { continue };
            if self.keys.get(&slot.key) == Some(&ino) {
                self.keys.remove(&slot.key);
            }
            for (parent, name) in slot.names {
                if let Some(parent_slot) = self.slots.get_mut(&parent) {
                    parent_slot.children.remove(&name);
                    suspects.push(parent);
                }
            }
        }
    }

    pub(super) fn group(&self, key: &Key) -> Option<&Group> {
        self.groups.get(key)
    }

    /// The group of a file with `count` names; made if needed.
    pub(super) fn group_mut(&mut self, key: &Key, count: u32) -> &mut Group {
        self.groups.entry(key.clone()).or_insert(Group { left: count, copied: None })
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}
