//! Launches whose answer is being sent, by repository and the id that the client chose: so that what the client turns
//! out to need at once, and asks for in a request of its own, is not sent a second time and does not wait behind the
//! stream; and so that lanes find the answer that they carry a part of.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use layer_format::Digest;
use layer_format::reference::Repository;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::outlet::{Outlet, Taker};
use crate::db::object::Location;

/// Most objects that are remembered as asked for otherwise, a launch.
const MAX_TAKEN: usize = 1 << 18;
/// Longest id, in bytes.
pub(crate) const MAX_ID_LEN: usize = 64;
/// How long a launch's stream makes way at most: long enough for a demand's answer to be looked up and handed to its socket
/// first. More would idle the link: a connection that has carried little begins slowly, and its answer takes round trips.
const MAX_PAUSE: Duration = Duration::from_millis(20);
/// How long a lane waits for the launch request, which is sent at the same time over another connection.
const LANE_WAIT: Duration = Duration::from_secs(5);

/// Demands that are being answered.
#[derive(Debug, Default)]
struct Demands {
    count: usize,
    /// When the first of them came.
    since: Option<Instant>,
}

/// A launch.
#[derive(Debug, Default)]
pub(crate) struct Launch {
    taken: Mutex<HashSet<Digest>>,
    demands: Mutex<Demands>,
    /// No demand is being answered any more.
    quiet: Notify,
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

    /// Makes the stream wait until this is dropped, or for [`MAX_PAUSE`].
    fn demand(self: &Arc<Self>) -> Demand {
        let mut demands = self.demands.lock();
        demands.count += 1;
        demands.since.get_or_insert_with(Instant::now);
        Demand { launch: Arc::clone(self) }
    }

    /// Waits while a demand is being answered, but not beyond [`MAX_PAUSE`] after the first of several that overlap.
    pub(crate) async fn quiet(&self) {
        loop {
            let mut quiet = std::pin::pin!(self.quiet.notified());
            quiet.as_mut().enable();
            let Some(since) = self.demands.lock().since else { return };
            let Some(left) = MAX_PAUSE.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) else { return };
            let _ = tokio::time::timeout(left, quiet).await;
        }
    }
}

/// A demand that is being answered.
#[derive(Debug)]
pub(crate) struct Demand {
    launch: Arc<Launch>,
}

impl Drop for Demand {
    fn drop(&mut self) {
        let mut demands = self.launch.demands.lock();
        demands.count -= 1;
        if demands.count == 0 {
            demands.since = None;
            drop(demands);
            self.launch.quiet.notify_waiters();
        }
    }
}

type Key = (Repository, String);

/// Who sent a request: a hash of what it was authorised with.
pub(crate) type Credential = [u8; 32];

/// How lanes get at an answer.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Where the pieces are.
    pub(crate) outlet: Arc<Outlet>,
    /// Who may take them.
    pub(crate) credential: Credential,
    /// How many more may come.
    pub(crate) free: u8,
}

#[derive(Debug)]
struct Active {
    launch: Arc<Launch>,
    lanes: Option<Lanes>,
}

/// All active launches.
#[derive(Debug, Default)]
pub(crate) struct Launches {
    /// All, also those without an id.
    running: AtomicUsize,
    active: Mutex<HashMap<Key, Active>>,
    /// A launch with lanes began.
    begun: Notify,
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
        self.launches.running.fetch_sub(1, Ordering::Relaxed);
        if let Some(key) = &self.key {
            let mut active = self.launches.active.lock();
            // A newer launch may have taken the id.
            if active.get(key).is_some_and(|active| Arc::ptr_eq(&active.launch, &self.launch)) {
                active.remove(key);
            }
        }
    }
}

impl Launches {
    /// Registers a launch; without an id nothing can be taken out of it.
    pub(crate) fn start(self: &Arc<Self>, repository: &Repository, id: Option<String>) -> ActiveLaunch {
        self.running.fetch_add(1, Ordering::Relaxed);
        let launch = Arc::new(Launch::default());
        let key = id.map(|id| (repository.clone(), id));
        if let Some(key) = &key {
            self.active.lock().insert(key.clone(), Active { launch: Arc::clone(&launch), lanes: None });
        }
        ActiveLaunch { launches: Arc::clone(self), key, launch }
    }

    /// Lets lanes take of a launch's answer.
    pub(crate) fn open_lanes(&self, launch: &ActiveLaunch, lanes: Lanes) {
        let Some(key) = &launch.key else { return };
        if let Some(active) = self.active.lock().get_mut(key).filter(|active| Arc::ptr_eq(&active.launch, &launch.launch)) {
            active.lanes = Some(lanes);
        }
        self.begun.notify_waiters();
    }

    /// A lane of a launch, which may be asked for a moment sooner than the launch itself. `None` if there is no such
    /// launch of this caller, or it has all its lanes.
    pub(crate) async fn lane(&self, repository: &Repository, id: String, credential: Credential) -> Option<Taker> {
        let key = (repository.clone(), id);
        let begun = Instant::now();
        loop {
            let mut started = std::pin::pin!(self.begun.notified());
            started.as_mut().enable();
            if let Some(lanes) = self.active.lock().get_mut(&key).and_then(|active| active.lanes.as_mut()) {
                if lanes.credential != credential || lanes.free == 0 {
                    return None;
                }
                lanes.free -= 1;
                return Some(lanes.outlet.taker(true, None));
            }
            let left = LANE_WAIT.checked_sub(begun.elapsed())?;
            tokio::time::timeout(left, started).await.ok()?;
        }
    }

    /// Takes objects out of a launch's stream, if it is still being sent, and makes it wait until the demand is dropped.
    pub(crate) fn take(&self, repository: &Repository, id: String, digests: &[Digest]) -> Option<Demand> {
        let launch = self.active.lock().get(&(repository.clone(), id)).map(|active| Arc::clone(&active.launch))?;
        let mut taken = launch.taken.lock();
        let room = MAX_TAKEN.saturating_sub(taken.len());
        taken.extend(digests.iter().take(room));
        drop(taken);
        Some(launch.demand())
    }

    /// How many with an id are active.
    pub(crate) fn count(&self) -> usize {
        self.active.lock().len()
    }

    /// How many are active for each core of this machine.
    pub(crate) fn per_core(&self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.running.load(Ordering::Relaxed) as f64 / cores as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    fn repository(name: &str) -> Repository {
        name.parse().unwrap()
    }

    #[tokio::test]
    async fn lanes_belong_to_whoever_launched() {
        let launches = Arc::new(Launches::default());
        let early = tokio::spawn({
            let launches = Arc::clone(&launches);
            async move { launches.lane(&repository("a/b"), ID.into(), [1; 32]).await.is_some() }
        });
        tokio::task::yield_now().await;
        let launch = launches.start(&repository("a/b"), Some(ID.into()));
        let outlet = Outlet::new(None, Arc::default());
        launches.open_lanes(&launch, Lanes { outlet, credential: [1; 32], free: 2 });
        assert!(early.await.unwrap(), "a lane may come first");
        for (name, id, credential, found) in [
            ("a/c", ID, [1; 32], false),
            ("a/b", "1123456789abcdef0123456789abcdef", [1; 32], false),
            ("a/b", ID, [2; 32], false),
            ("a/b", ID, [1; 32], true),
            ("a/b", ID, [1; 32], false),
        ] {
            let lane = tokio::time::timeout(Duration::from_millis(50), launches.lane(&repository(name), id.into(), credential)).await;
            assert_eq!(lane.ok().flatten().is_some(), found, "{name} {id} {credential:?}");
        }
        drop(launch);
        assert_eq!(launches.count(), 0);
    }

    #[tokio::test]
    async fn a_stream_makes_way_for_what_someone_waits_for_but_not_for_ever() {
        let launches = Arc::new(Launches::default());
        let launch = launches.start(&repository("a/b"), Some(ID.into()));
        let outlet = Outlet::new(Some(Arc::clone(&launch)), Arc::default());
        let mut taker = outlet.taker(false, None);
        outlet.push(Bytes::from_static(b"ahead")).await.unwrap();
        let demand = launches.take(&repository("a/b"), ID.into(), &[Digest::of(b"x")]).unwrap();
        assert!(launch.is_taken(&Digest::of(b"x")));
        {
            let mut next = std::pin::pin!(taker.next());
            assert!(futures::poll!(next.as_mut()).is_pending(), "something is being answered");
            drop(demand);
            assert_eq!(next.await.unwrap().unwrap().bytes, "ahead");
        }
        outlet.push(Bytes::from_static(b"more")).await.unwrap();
        let _never_ends = launches.take(&repository("a/b"), ID.into(), &[]).unwrap();
        assert_eq!(taker.next().await.unwrap().unwrap().bytes, "more", "after the longest pause");
    }
}
