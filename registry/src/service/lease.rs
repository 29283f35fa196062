//! Who relies on objects that nothing visible leads to yet.
//!
//! The rule that costs nothing: an object that a push was told to be present, or that it brought, stays for at least [`LEASE`],
//! since a candidate for removal waits longer than that and is taken out of the queue by whoever is told that it is present.
//! What takes longer than a lease has a row: *pushes*, one row a repository, renewed by their requests; and long *work* of the
//! server, such as one blob that arrives over hours. Candidates that were recorded after the oldest of them began are not
//! removed. A dead holder frees itself by time; a push that never ends counts for [`MAX_AGE`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use layer_format::reference::Repository;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::db::lease::{PushLease, lease_push_renew};
use crate::db::namespace::{NamespaceId, namespace_find};
use crate::db::{Db, DbError, commit};

/// How long an object stays that was said to be present.
pub(crate) const LEASE: Duration = Duration::from_secs(60 * 60);
/// What clocks of different servers may differ by, and a transaction may take.
pub(crate) const MARGIN: Duration = Duration::from_secs(5 * 60);
/// How old a push counts at most.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// How often a lease is renewed; work that is shorter needs no row.
const RENEWAL: Duration = Duration::from_secs(10 * 60);
/// Repositories whose last renewal is remembered.
const MAX_REMEMBERED: usize = 4096;

/// A duration in milliseconds.
pub(crate) fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Renews the leases of pushes.
#[derive(Debug)]
pub(crate) struct Leases {
    db: Db,
    renewed: Mutex<HashMap<String, Instant>>,
}

impl Leases {
    pub(crate) fn new(db: Db) -> Self {
        Self { db, renewed: Mutex::default() }
    }

    /// A request of a push to this repository came. Writes at most every ten minutes.
    pub(crate) async fn renew(&self, repository: &Repository) -> Result<(), DbError> {
        {
            let mut renewed = self.renewed.lock();
            if renewed.get(repository.as_str()).is_some_and(|at| at.elapsed() < RENEWAL) {
                return Ok(());
            }
            if renewed.len() >= MAX_REMEMBERED {
                renewed.clear();
            }
            renewed.insert(repository.as_str().to_owned(), Instant::now());
        }
        let namespace = {
            let mut db = self.db.read().await?;
            namespace_find(&mut db, repository.namespace()).await?
        };
        match namespace {
            Some(namespace) => renew(&self.db, namespace, repository.as_str(), self.db.now()).await,
            // There is nothing yet that could be removed; the next request counts.
            None => {
                self.renewed.lock().remove(repository.as_str());
                Ok(())
            }
        }
    }
}

async fn renew(db: &Db, namespace: NamespaceId, holder: &str, since: i64) -> Result<(), DbError> {
    let now = db.now();
    let mut transaction = db.begin().await?;
    let lease = PushLease { holder, since, now, expires_at: now + ms(LEASE), max_age: ms(MAX_AGE) };
    lease_push_renew(&mut transaction, namespace, lease).await?;
    commit(transaction).await
}

/// Work of the server that may take longer than a lease. Dropped when it has made visible what it made, or has given up.
#[derive(Debug)]
pub(crate) struct LongWork {
    renewing: JoinHandle<()>,
}

impl LongWork {
    /// Begins now.
    pub(crate) fn begin(db: Db, namespace: NamespaceId) -> Self {
        let since = db.now();
        let holder = format!("work {:032x}", rand::random::<u128>());
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEWAL).await;
                if let Err(error) = renew(&db, namespace, &holder, since).await {
                    tracing::warn!(error = crate::chain(&error), "could not renew the lease of a push");
                }
            }
        });
        Self { renewing }
    }
}

impl Drop for LongWork {
    fn drop(&mut self) {
        // Its row, if there is one, expires: what was made visible in the last moment needs no lease, and a lease too many
        // only delays removals.
        self.renewing.abort();
    }
}
