//! Garbage collection, beside pushes and pulls. The invariant, why it holds, and the order of removal: docs/garbage-collection.md.
//!
//! | file | does |
//! |---|---|
//! | `pace` | the right to collect in a namespace, and how fast |
//! | `tidy` | ends undo windows, old uploads, blobs that no manifest refers to |
//! | `roots` | what keeps objects alive, one line a table |
//! | `mark` | what the roots lead to, in bounded memory |
//! | `runs` | sorted sets on disk |
//! | `sweep` | compares the index with what was reached: what is a candidate, what is due, what each pack still holds |
//! | `remove` | records candidates; removes what is due from the index |
//! | `compact` | rewrites packs that are partly dead or small; retires dead ones; removes their bytes |
//! | `order` | in which order the newest image is read |
//! | `scrub` | verifies every byte |
//! | `reconcile` | compares storage and database |
//! | `mend` | what becomes of objects that cannot be read any more |
//! | `needs` | which images need an object |
//!
//! A collection is a pure function of database and storage: it can be stopped at any point, and the next one goes on.

mod compact;
mod mark;
mod mend;
mod needs;
mod order;
mod pace;
mod reconcile;
mod remove;
mod roots;
mod runs;
mod scrub;
mod sweep;
#[cfg(test)]
mod tests;
mod tidy;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use self::mend::Mended;
pub use self::reconcile::{LostPack, Orphan, ReconcileOptions, ReconcileReport};
pub use self::roots::RootCounts;
pub use self::scrub::{DamagedPack, ScrubOptions, ScrubReport};

use self::pace::Pace;
use crate::blob_storage::{BlobStorage, StorageError};
use crate::db::gc::{gc_epoch_next, gc_finished};
use crate::db::namespace::NamespaceId;
use crate::db::root::namespace_list;
use crate::db::{Db, DbError, commit};
use crate::service::frames::{Frames, ReadError};
use crate::service::lease::{LEASE, MARGIN};
use crate::service::objects::Objects;

/// Memory for frames that a collection reads, in bytes: it does not disturb the cache of those that clients ask for.
const FRAME_CACHE_BYTES: u64 = 16 << 20;

/// How collections go about.
#[derive(Clone, Copy, Debug)]
pub struct GcSettings {
    /// Time between two collections of a server; zero: never by itself.
    pub interval: Duration,
    /// How long an object must have been unreachable before it is removed. At least a lease and what clocks may differ by.
    pub delay: Duration,
    /// How long what was deleted can be brought back.
    pub undo_window: Duration,
    /// How long the bytes of a pack stay in which no object is found any more: longer than any answer takes that began before.
    pub reader_grace: Duration,
    /// A pack is rewritten when more than this part of it is dead.
    pub dead_fraction: f64,
    /// Packs shorter than this are merged, in bytes.
    pub small_pack_bytes: u64,
    /// How many of them there must be.
    pub small_pack_count: usize,
    /// Rest after work, in parts of the time it took.
    pub rest: f64,
}

impl Default for GcSettings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(60 * 60),
            delay: Duration::from_secs(24 * 60 * 60),
            undo_window: Duration::from_secs(24 * 60 * 60),
            reader_grace: Duration::from_secs(60 * 60),
            dead_fraction: 0.3,
            small_pack_bytes: 16 << 20,
            small_pack_count: 16,
            rest: 1.0,
        }
    }
}

impl GcSettings {
    /// The delay, never shorter than what leases promise.
    pub(crate) fn safe_delay(&self) -> Duration {
        self.delay.max(LEASE + 2 * MARGIN)
    }
}

/// Why a collection stopped. Nothing is lost by that: the next one goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GcError {
    /// Another collector has the namespace now.
    #[error("another collector has taken over")]
    Overtaken,
    /// A root cannot be read, so what it needs is not known.
    #[error("{what} cannot be read, so what it needs is not known: nothing is removed")]
    Unreadable {
        /// What.
        what: String,
    },
    /// A file for intermediate results failed.
    #[error("could not keep intermediate results in the data folder")]
    Scratch(#[source] std::io::Error),
    /// A pack could not be written.
    #[error("could not build a pack")]
    Format(#[from] layer_format::FormatError),
    /// Something could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The process is stopping.
    #[error("a background task was cancelled")]
    Cancelled,
}

/// What a collection did in a namespace, or would do.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GcReport {
    /// The namespace.
    pub namespace: String,
    /// Why nothing was done or removed, if so.
    pub held_back: Option<String>,
    /// Roots.
    pub roots: RootCounts,
    /// Objects in the index.
    pub objects: u64,
    /// Of these, how many the roots lead to.
    pub reached: u64,
    /// Of these, how many came since too short a time to be looked at.
    pub recent: u64,
    /// How often an object was read to see what it refers to.
    pub nodes_read: u64,
    /// Things whose undo window is over.
    pub purged: u64,
    /// Blobs of container tools to which no manifest refers, that were removed.
    pub blobs_removed: u64,
    /// Objects that became candidates.
    pub candidates_new: u64,
    /// Candidates that are not due yet, or that a push in progress may rely on.
    pub candidates_waiting: u64,
    /// Candidates that something leads to again.
    pub candidates_back: u64,
    /// Objects removed from the index.
    pub objects_removed: u64,
    /// Their uncompressed bytes.
    pub object_bytes_removed: u64,
    /// Packs that were rewritten into others.
    pub packs_rewritten: u64,
    /// Packs that were made for that.
    pub packs_made: u64,
    /// Packs in which nothing is found any more, as of now: their bytes go after the grace for readers.
    pub packs_retired: u64,
    /// Packs whose bytes were removed.
    pub packs_removed: u64,
    /// Their bytes.
    pub bytes_freed: u64,
    /// Objects one by one, if asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<ObjectReason>,
    /// Packs, if asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub packs: Vec<PackReason>,
}

impl GcReport {
    /// Whether there was nothing to do, and nothing waits for its time.
    pub fn is_quiet(&self) -> bool {
        let done =
            self.purged + self.blobs_removed + self.candidates_new + self.objects_removed + self.packs_rewritten + self.packs_retired + self.packs_removed;
        done == 0
    }
}

/// Why an object is not kept, or not removed yet.
#[derive(Clone, Debug, Serialize)]
pub struct ObjectReason {
    /// The object.
    pub digest: String,
    /// `new`: nothing leads to it, and that was noticed now; `waiting`: it is a candidate, and its time is not over; `push`: a
    /// push in progress may rely on it; `due`: it is removed.
    pub reason: &'static str,
    /// Since when it is a candidate, in milliseconds since 1970.
    pub since: Option<i64>,
    /// Uncompressed bytes.
    pub bytes: u32,
}

/// What becomes of a pack.
#[derive(Clone, Debug, Serialize)]
pub struct PackReason {
    /// Its name in the storage.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Objects that it was stored with.
    pub objects: u64,
    /// Objects that are found in it.
    pub found: u64,
    /// Of these, how many are reached or too young to be looked at.
    pub live: u64,
    /// `kept`, `retire`, `rewrite`, `merge`, `readers` (retired, and readers may still need it), `remove`.
    pub fate: &'static str,
}

/// What to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct GcOptions {
    /// Change nothing.
    pub dry_run: bool,
    /// List objects one by one.
    pub list_objects: bool,
    /// List packs.
    pub list_packs: bool,
}

/// Collects.
#[derive(Clone, Debug)]
pub(crate) struct Collector {
    pub(crate) objects: Objects,
    pub(crate) storage: Arc<dyn BlobStorage>,
    /// For intermediate results.
    pub(crate) folder: PathBuf,
    pub(crate) settings: GcSettings,
}

impl Collector {
    pub(crate) fn new(db: Db, storage: Arc<dyn BlobStorage>, folder: PathBuf, settings: GcSettings) -> Self {
        let frames = Arc::new(Frames::new(db.clone(), Arc::clone(&storage), Arc::default(), FRAME_CACHE_BYTES));
        Self { objects: Objects { db, frames, only: None }, storage, folder, settings }
    }

    /// Collects in all namespaces, or in one.
    pub(crate) async fn run(&self, only: Option<&str>, options: GcOptions) -> Result<Vec<GcReport>, GcError> {
        let namespaces = {
            let mut db = self.objects.db.read().await?;
            namespace_list(&mut db).await?
        };
        let mut reports = Vec::new();
        for (namespace, name) in namespaces.into_iter().filter(|(_, name)| only.is_none_or(|only| only == name)) {
            reports.push(self.namespace(namespace, &name, options).await?);
        }
        Ok(reports)
    }

    /// Collects in a namespace, unless somebody else does.
    pub(crate) async fn namespace(&self, namespace: NamespaceId, name: &str, options: GcOptions) -> Result<GcReport, GcError> {
        let mut report = GcReport { namespace: name.to_owned(), ..GcReport::default() };
        let Some(mut pace) = Pace::take(&self.objects.db, namespace, self.settings.rest).await? else {
            report.held_back = Some("another collector is at work here".into());
            return Ok(report);
        };
        let done = self.steps(namespace, &mut pace, options, &mut report).await;
        match done {
            Ok(()) => {}
            Err(GcError::Unreadable { what }) => report.held_back = Some(what),
            Err(GcError::Overtaken) => report.held_back = Some("another collector has taken over".into()),
            Err(error) => {
                // If that fails, too, the lease ends by time.
                let _ = pace.end().await;
                return Err(error);
            }
        }
        pace.end().await?;
        Ok(report)
    }

    async fn steps(&self, namespace: NamespaceId, pace: &mut Pace<'_>, options: GcOptions, report: &mut GcReport) -> Result<(), GcError> {
        self.tidy(namespace, pace, options, report).await?;
        let swept = self.sweep(namespace, pace, options, report).await?;
        if !options.dry_run {
            self.queue(namespace, pace, swept.fresh, swept.back, report).await?;
            self.remove_due(namespace, pace, swept.due, swept.due_since, report).await?;
        }
        self.packs(namespace, pace, swept.packs, options, report).await?;
        if !options.dry_run {
            let mut transaction = self.objects.db.begin().await?;
            pace.check(&mut transaction).await?;
            gc_finished(&mut transaction, namespace, self.objects.db.now()).await?;
            commit(transaction).await?;
        }
        Ok(())
    }

    /// Makes puts in progress forget what they know of closures, and begins or ends the recording of candidates.
    async fn epoch(&self, namespace: NamespaceId, pace: &mut Pace<'_>, recording: bool) -> Result<(), GcError> {
        let mut transaction = self.objects.db.begin().await?;
        pace.check(&mut transaction).await?;
        gc_epoch_next(&mut transaction, namespace, recording).await?;
        Ok(commit(transaction).await?)
    }
}
