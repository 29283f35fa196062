//! Launches whose answer is being sent, by repository and the id that the client chose: so that what the client turns
//! out to need at once, and asks for in a request of its own, is not sent a second time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use layer_format::Digest;
use layer_format::reference::Repository;
use parking_lot::Mutex;

use crate::db::object::Location;

/// Most objects that are remembered as asked for otherwise, a launch.
const MAX_TAKEN: usize = 1 << 18;
/// Longest id, in bytes.
pub(crate) const MAX_ID_LEN: usize = 64;

/// A launch.
#[derive(Debug, Default)]
pub(crate) struct Launch {
    taken: Mutex<HashSet<Digest>>,
}

impl Launch {
    /// Whether the object was asked for otherwise.
    pub(crate) fn is_taken(&self, digest: &Digest) -> bool {
        self.taken.lock().contains(digest)
    }

    /// Those of the slots that are still wanted.
    pub(crate) fn still_wanted(&self, mut slots: Vec<(Digest, Location)>) -> Vec<(Digest, Location)> {
        let taken = self.taken.lock();
        if !taken.is_empty() {
            slots.retain(|(digest, _)| !taken.contains(digest));
        }
        slots
    }
}

type Key = (Repository, String);

/// All active launches.
#[derive(Debug, Default)]
pub(crate) struct Launches {
    active: Mutex<HashMap<Key, Arc<Launch>>>,
}

/// An active launch, until it is dropped.
#[derive(Debug)]
pub(crate) struct ActiveLaunch {
    launches: Arc<Launches>,
    key: Option<Key>,
    launch: Arc<Launch>,
}

impl std::ops::Deref for ActiveLaunch {
    type Target = Arc<Launch>;

    fn deref(&self) -> &Arc<Launch> {
        &self.launch
    }
}

impl Drop for ActiveLaunch {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            let mut active = self.launches.active.lock();
            // A newer launch may have taken the id.
            if active.get(key).is_some_and(|launch| Arc::ptr_eq(launch, &self.launch)) {
                active.remove(key);
            }
        }
    }
}

impl Launches {
    /// Registers a launch; without an id nothing can be taken out of it.
    pub(crate) fn start(self: &Arc<Self>, repository: &Repository, id: Option<String>) -> ActiveLaunch {
        let launch = Arc::new(Launch::default());
        let key = id.map(|id| (repository.clone(), id));
        if let Some(key) = &key {
            self.active.lock().insert(key.clone(), Arc::clone(&launch));
        }
        ActiveLaunch { launches: Arc::clone(self), key, launch }
    }

    /// Takes objects out of a launch's stream, if it is still being sent.
    pub(crate) fn take(&self, repository: &Repository, id: String, digests: &[Digest]) {
        let launch = self.active.lock().get(&(repository.clone(), id)).cloned();
        if let Some(launch) = launch {
            let mut taken = launch.taken.lock();
            let room = MAX_TAKEN.saturating_sub(taken.len());
            taken.extend(digests.iter().take(room));
        }
    }

    /// How many are active.
    pub(crate) fn count(&self) -> usize {
        self.active.lock().len()
    }
}
