//! A collection in steps: between them it rests, so that pushes and pulls are not starved, and renews its lease. A collector
//! whose lease somebody else has taken stops: what it found out may not be true any more.

use std::time::{Duration, Instant};

use super::GcError;
use crate::db::lease::{lease_collector_end, lease_collector_renew, lease_collector_take};
use crate::db::namespace::NamespaceId;
use crate::db::{Connection, Db, commit};
use crate::service::lease::ms;

/// How long a collector is believed to live that does not say so. Three renewals may fail.
const LIFETIME: Duration = Duration::from_secs(4 * 60);
const RENEWAL: Duration = Duration::from_secs(60);
/// Longest rest.
const MAX_REST: Duration = Duration::from_secs(5);

/// The right to collect in a namespace, and how fast.
#[derive(Debug)]
pub(crate) struct Pace<'a> {
    db: &'a Db,
    namespace: NamespaceId,
    token: String,
    /// Rest, in parts of the time that work took.
    rest: f64,
    since: Instant,
    renewed: Instant,
}

impl<'a> Pace<'a> {
    /// Takes the namespace. `None` if somebody else collects there.
    pub(crate) async fn take(db: &'a Db, namespace: NamespaceId, rest: f64) -> Result<Option<Self>, GcError> {
        let token = format!("{:032x}", rand::random::<u128>());
        let now = db.now();
        let mut transaction = db.begin().await?;
        if !lease_collector_take(&mut transaction, namespace, &token, now, now + ms(LIFETIME)).await? {
            return Ok(None);
        }
        commit(transaction).await?;
        Ok(Some(Self { db, namespace, token, rest, since: Instant::now(), renewed: Instant::now() }))
    }

    /// Checks, in a transaction that is about to change something, that nobody else collects here.
    pub(crate) async fn check(&mut self, transaction: &mut Connection) -> Result<(), GcError> {
        match lease_collector_renew(transaction, self.namespace, &self.token, self.db.now() + ms(LIFETIME)).await? {
            true => Ok(()),
            false => Err(GcError::Overtaken),
        }
    }

    /// Rests in proportion to what was done since the last rest.
    pub(crate) async fn rest(&mut self) -> Result<(), GcError> {
        let rest = self.since.elapsed().mul_f64(self.rest).min(MAX_REST);
        if !rest.is_zero() {
            tokio::time::sleep(rest).await;
        }
        if self.renewed.elapsed() >= RENEWAL {
            let mut transaction = self.db.begin().await?;
            self.check(&mut transaction).await?;
            commit(transaction).await?;
            self.renewed = Instant::now();
        }
        self.since = Instant::now();
        Ok(())
    }

    /// Gives the namespace back.
    pub(crate) async fn end(self) -> Result<(), GcError> {
        let mut transaction = self.db.begin().await?;
        lease_collector_end(&mut transaction, self.namespace, &self.token).await?;
        Ok(commit(transaction).await?)
    }
}
