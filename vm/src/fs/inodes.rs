//! The inodes that the kernel knows.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use parking_lot::RwLock;

use super::ROOT;

const BITS: u32 = 53;

/// What an inode stands for.
pub(super) trait Identity: Send + Sync {
    /// Equal for two nodes that are the same inode.
    type Key<'a>: PartialEq + Hash
    where
        Self: 'a;

    fn key(&self) -> Self::Key<'_>;
}

#[derive(Debug)]
struct Slot<N> {
    node: Arc<N>,
    references: u64,
}

/// Counts references as the kernel does, and drops what it forgets.
#[derive(Debug)]
pub(super) struct Inodes<N> {
    slots: RwLock<HashMap<u64, Slot<N>>>,
}

impl<N: Identity> Inodes<N> {
    /// With a root that is never forgotten.
    pub(super) fn new(root: N) -> Self {
        let slots = HashMap::from([(ROOT, Slot { node: Arc::new(root), references: 1 })]);
        Self { slots: RwLock::new(slots) }
    }

    pub(super) fn get(&self, ino: u64) -> Option<Arc<N>> {
        self.slots.read().get(&ino).map(|slot| Arc::clone(&slot.node))
    }

    /// The number that a node has, if no other took it.
    pub(super) fn number(node: &N) -> u64 {
        let mut hasher = DefaultHasher::new();
        node.key().hash(&mut hasher);
        (hasher.finish() >> (64 - BITS)).max(ROOT + 1)
    }

    /// Counts a reference to a node, newly made or known. `refresh` decides whether a known one is replaced by `node`.
    pub(super) fn insert(&self, node: N, refresh: impl Fn(&N, &N) -> bool) -> (u64, Arc<N>) {
        let mut ino = Self::number(&node);
        let mut slots = self.slots.write();
        loop {
            match slots.get_mut(&ino) {
                None => {
                    let node = Arc::new(node);
                    slots.insert(ino, Slot { node: Arc::clone(&node), references: 1 });
                    return (ino, node);
                }
                Some(slot) if slot.node.key() == node.key() => {
                    slot.references += 1;
                    if refresh(&slot.node, &node) {
                        slot.node = Arc::new(node);
                    }
                    return (ino, Arc::clone(&slot.node));
                }
                // Two inodes with one hash: about one chance in 18 000 for a million inodes. The later one moves on.
                Some(_) => ino = (ino + 1).max(ROOT + 1) & ((1 << BITS) - 1),
            }
        }
    }

    pub(super) fn forget(&self, ino: u64, count: u64) {
        if ino == ROOT {
            return;
        }
        let mut slots = self.slots.write();
        if let Some(slot) = slots.get_mut(&ino) {
            slot.references = slot.references.saturating_sub(count);
            if slot.references == 0 {
                slots.remove(&ino);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.slots.read().len()
    }
}
