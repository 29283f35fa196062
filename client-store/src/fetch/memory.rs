//! Objects in memory: the recently used ones, and what became of every object of the run.
//!
//! Holds no bytes that were not verified. What is here counts as present even if the disk refuses it, so that a run
//! goes on when the disk is full.

use std::collections::HashMap;

use bytes::Bytes;
use layer_format::Digest;
use layer_format::trace::Source;
use lru::LruCache;

/// What became of an object in this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Was local before the run, and was used.
    Local,
    /// Fetched, not used yet. Whether ahead of use, and its length.
    Fetched { ahead: bool, len: u32 },
    /// Fetched and used.
    Used,
}

/// Sums over the objects of a run, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Used, each object counted once.
    pub(crate) needed: u64,
    /// Of those, local before the run.
    pub(crate) local: u64,
    /// Fetched ahead and used.
    pub(crate) ahead_used: u64,
    /// Fetched ahead and not used so far.
    pub(crate) ahead_unused: u64,
}

#[derive(Debug)]
pub(crate) struct Memory {
    recent: LruCache<Digest, Bytes>,
    recent_bytes: usize,
    max_bytes: usize,
    /// By [`Digest::prefix64`]: statistics only, a collision miscounts one object.
    fates: HashMap<u64, Fate>,
    usage: Usage,
}

impl Memory {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { recent: LruCache::unbounded(), recent_bytes: 0, max_bytes, fates: HashMap::new(), usage: Usage::default() }
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    pub(crate) fn get(&mut self, digest: &Digest) -> Option<Bytes> {
        self.recent.get(digest).cloned()
    }

    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        self.recent.contains(digest)
    }

    /// Keeps an object, at the cost of the least recently used ones.
    pub(crate) fn keep(&mut self, digest: Digest, bytes: Bytes) {
        self.recent_bytes += bytes.len();
        if let Some(old) = self.recent.put(digest, bytes) {
            self.recent_bytes -= old.len();
        }
        while self.recent_bytes > self.max_bytes && self.recent.len() > 1 {
            let Some((_, old)) = self.recent.pop_lru() else { return };
            self.recent_bytes -= old.len();
        }
    }

    /// An object arrived over the network. Says whether it is the first time.
    pub(crate) fn arrived(&mut self, digest: &Digest, len: usize, ahead: bool) -> bool {
        let len = len as u32;
        match self.fates.entry(digest.prefix64()) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Fate::Fetched { ahead, len });
                if ahead {
                    self.usage.ahead_unused += u64::from(len);
                }
                true
            }
        }
    }

    /// An object is used, after its user `waited` for the network or not. Says where it came from.
    pub(crate) fn used(&mut self, digest: &Digest, len: usize, waited: bool) -> Source {
        let len = len as u64;
        let fate = self.fates.get(&digest.prefix64()).copied();
        match fate {
            None => {
                self.usage.needed += len;
                self.usage.local += len;
                self.fates.insert(digest.prefix64(), Fate::Local);
            }
            Some(Fate::Fetched { ahead, len }) => {
                let len = u64::from(len);
                self.usage.needed += len;
                if ahead {
                    self.usage.ahead_unused -= len;
                    self.usage.ahead_used += len;
                }
                self.fates.insert(digest.prefix64(), Fate::Used);
            }
            Some(Fate::Local | Fate::Used) => {}
        }
        match fate {
            _ if waited => Source::Missed,
            None | Some(Fate::Local) => Source::Local,
            Some(Fate::Fetched { .. } | Fate::Used) => Source::Prefetched,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_sums_add_up() {
        let mut memory = Memory::new(1000);
        let objects: Vec<(Digest, Bytes)> = (0..50u8).map(|n| Bytes::from(vec![n; 100])).map(|bytes| (Digest::of(&bytes), bytes)).collect();
        for (digest, bytes) in &objects {
            assert!(memory.arrived(digest, bytes.len(), true));
            assert!(!memory.arrived(digest, bytes.len(), true));
            memory.keep(*digest, bytes.clone());
            memory.keep(*digest, bytes.clone());
        }
        assert_eq!(memory.recent_bytes, 1000);
        assert!(!memory.holds(&objects[0].0) && memory.holds(&objects[49].0));
        assert_eq!(memory.usage().ahead_unused, 5000);
        assert_eq!(memory.used(&objects[3].0, 100, false), Source::Prefetched);
        assert_eq!(memory.used(&objects[3].0, 100, false), Source::Prefetched);
        assert_eq!(memory.used(&objects[4].0, 100, true), Source::Missed);
        assert_eq!(memory.used(&Digest::of(b"local"), 7, false), Source::Local);
        let usage = memory.usage();
        assert_eq!((usage.needed, usage.local, usage.ahead_used, usage.ahead_unused), (207, 7, 200, 4800));
    }
}
