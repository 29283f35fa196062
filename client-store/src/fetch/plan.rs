//! What the launch stream announced, and how far it is.
//!
//! The registry tells the first eight bytes of the digest of each object that will follow, in order. A plan is a hint:
//! what it announces may never come, and what comes is checked by its digest like everything else.

use std::collections::{HashMap, HashSet};

use layer_format::Digest;

/// Most objects of a plan.
const MAX_PLAN: usize = 1 << 18;

#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Position of each announced object that has not arrived and was not asked for otherwise.
    positions: HashMap<u64, u32>,
    announced: u32,
    /// Everything before this position has arrived, or was left out.
    reached: u32,
    /// Objects that may come without being announced: layer manifests, roots, children of known nodes.
    known: HashSet<u64>,
    /// Asked for otherwise: the stream may still bring them, if they were on the way already.
    taken: HashSet<u64>,
    /// Whether the stream is open.
    pub(crate) open: bool,
    /// Whether it broke its promise, and nothing came since.
    stalled: bool,
    bytes: u64,
    objects: u64,
    /// Whether the stream is not wanted any more.
    left: bool,
}

impl Plan {
    pub(crate) fn announce(&mut self, prefixes: &[u64]) {
        for prefix in prefixes {
            if self.positions.len() >= MAX_PLAN {
                return;
            }
            self.positions.entry(*prefix).or_insert(self.announced);
            self.announced += 1;
        }
    }

    /// The stream may carry these.
    pub(crate) fn expect<'a>(&mut self, digests: impl IntoIterator<Item = &'a Digest>) {
        for digest in digests {
            if self.known.len() < MAX_PLAN {
                self.known.insert(digest.prefix64());
            }
        }
    }

    /// Whether this object is one that the stream should bring.
    pub(crate) fn is_expected(&self, digest: &Digest) -> bool {
        self.positions.contains_key(&digest.prefix64()) || self.known.contains(&digest.prefix64())
    }

    /// An object came out of the stream.
    pub(crate) fn arrived(&mut self, digest: &Digest, len: usize) {
        self.stalled = false;
        self.bytes += len as u64;
        self.objects += 1;
        self.known.remove(&digest.prefix64());
        if let Some(position) = self.positions.remove(&digest.prefix64()) {
            self.reached = self.reached.max(position + 1);
        }
    }

    /// It will be asked for in another request: the stream leaves it out.
    pub(crate) fn taken_out(&mut self, digest: &Digest) {
        let prefix = digest.prefix64();
        if self.positions.remove(&prefix).is_some() | self.known.remove(&prefix) {
            self.taken.insert(prefix);
        }
    }

    /// Whether the object was taken out of the stream.
    pub(crate) fn was_taken_out(&self, digest: &Digest) -> bool {
        self.taken.contains(&digest.prefix64())
    }

    /// About how many bytes the stream carries until the end of this object; `None` if it will not bring it.
    pub(crate) fn bytes_until(&self, digest: &Digest) -> Option<u64> {
        if !self.open || self.stalled {
            return None;
        }
        if self.known.contains(&digest.prefix64()) && self.announced == 0 {
            return Some(0);
        }
        let position = *self.positions.get(&digest.prefix64())?;
        let ahead = (position + 1).checked_sub(self.reached)?;
        let average = match self.objects {
            0..8 => super::queue::UNKNOWN_LEN.into(),
            objects => self.bytes / objects,
        };
        Some(u64::from(ahead) * average)
    }

    /// Whether the stream has passed the place where the object should have been.
    pub(crate) fn has_passed(&self, digest: &Digest) -> bool {
        match self.positions.get(&digest.prefix64()) {
            Some(position) => *position < self.reached,
            None => !self.known.contains(&digest.prefix64()) || self.announced > 0,
        }
    }

    /// What was announced and has not come, in no order.
    pub(crate) fn outstanding(&self) -> Vec<u64> {
        self.positions.iter().filter(|(_, position)| **position >= self.reached).map(|(prefix, _)| *prefix).collect()
    }

    /// The stream is not wanted any more: nobody waits for it, and its reader ends it.
    pub(crate) fn leave(&mut self) {
        if self.open {
            self.left = true;
            self.stalled = true;
            self.positions.clear();
        }
    }

    /// Whether the stream is to be ended.
    pub(crate) fn is_left(&self) -> bool {
        self.left
    }

    /// Something did not come when it should have: nobody waits for the stream until it goes on.
    pub(crate) fn stall(&mut self) {
        self.stalled = true;
    }

    /// The stream ended.
    pub(crate) fn close(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_how_far_the_stream_is() {
        let digests: Vec<Digest> = (0..10u8).map(|n| Digest::of(&[n])).collect();
        let mut plan = Plan { open: true, ..Plan::default() };
        plan.announce(&digests.iter().map(Digest::prefix64).collect::<Vec<_>>());
        assert_eq!(plan.bytes_until(&digests[0]), Some(u64::from(super::super::queue::UNKNOWN_LEN)));
        assert_eq!(plan.bytes_until(&Digest::of(b"other")), None);
        plan.taken_out(&digests[1]);
        plan.arrived(&digests[2], 1000);
        assert!(plan.has_passed(&digests[0]) && !plan.has_passed(&digests[3]));
        assert_eq!(plan.bytes_until(&digests[1]), None);
        assert!(plan.bytes_until(&digests[0]).is_none());
        plan.close();
        assert!(!plan.open && !plan.is_expected(&digests[5]));
    }
}
