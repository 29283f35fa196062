//! All SQL of the registry, one file a table. Functions are named resource first, and take the connection, so that
//! steps can share a transaction. They run on SQLite and on PostgreSQL, mostly from one text: see [`statement`].
//!
//! **SQLite**, in a file: WAL mode, many readers, and one connection that writes (`BEGIN IMMEDIATE`), so transactions that
//! write follow each other. A commit is on stable storage when it returns (`synchronous=FULL`), since a 201 promises that.
//!
//! **PostgreSQL**, for replicas: transactions run beside each other, at READ COMMITTED: each statement sees what was
//! committed before it began. What a transaction reads and then relies on stays as it is for one of these reasons, of
//! which whoever writes one names which:
//! * *The repository is locked.* In a transaction, [`repository::repository_find`] and [`repository::repository_ensure`]
//!   lock the repository's row, and [`repository::repository_lock`] does it where the row is known. So within a repository
//!   transactions follow each other, as on SQLite: tags, manifests, blobs, states, models, counts of uploads.
//! * *The version of rights is locked.* Whoever changes accounts, keys or grants begins with
//!   [`access_version::access_version_grow`], so that these transactions follow each other, too.
//! * *It is compared as it is written.* `UPDATE … WHERE received = ?` (uploads), `WHERE revision = ?` (models of images):
//!   the row is locked and looked at again if somebody else changed it, and the number of rows says who won.
//! * *A key is unique.* `ON CONFLICT DO NOTHING` waits for the other transaction and then says whether it was first:
//!   namespaces, packs, objects, verified nodes, layers, tars.
//!
//! Locks are taken in the same order by all, so that nobody waits in a circle: one repository or the version of rights, then
//! rows of packs, then objects and nodes sorted by digest. What is left (a deadlock, a lock that is not had in time) ends as an error that
//! [`DbError::is_outage`] tells apart, and the client comes again. Nothing that is held in the memory of a process decides
//! about what is right: locks of keys and caches there only spare work.

pub(crate) mod access_grant;
pub(crate) mod access_version;
pub(crate) mod account;
pub(crate) mod audit_entry;
pub(crate) mod base;
mod clock;
mod connection;
pub(crate) mod gc;
pub(crate) mod held_trace;
pub(crate) mod image_model;
pub(crate) mod lease;
pub(crate) mod manifest;
pub(crate) mod model;
pub(crate) mod model_pin;
pub(crate) mod namespace;
pub(crate) mod object;
pub(crate) mod oci_blob;
pub(crate) mod oci_image;
pub(crate) mod oci_manifest;
pub(crate) mod oci_rebuild;
pub(crate) mod oci_unused;
pub(crate) mod oci_upload;
mod open;
pub(crate) mod pack;
pub(crate) mod pack_life;
mod query;
pub(crate) mod repository;
pub(crate) mod robot_key;
pub(crate) mod root;
pub(crate) mod signing_key;
pub(crate) mod state;
mod statement;
pub(crate) mod tag;
pub(crate) mod trace_statistics;
pub(crate) mod trash;
pub(crate) mod verified;

use std::time::{SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use layer_format::Digest;
use sqlx::{PgPool, SqlitePool};

pub(crate) use self::clock::Clock;
use self::connection::Inner;
pub(crate) use self::connection::{Connection, Dialect, Transaction, commit};
pub(crate) use self::open::DEFAULT_CONNECTIONS;
use self::query::{Row, query};

/// Why the database did not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// The URL names no database that this server knows.
    #[error("`{scheme}` databases are not supported: use sqlite:PATH or postgres://USER@HOST/DATABASE")]
    Unsupported {
        /// The URL's scheme.
        scheme: String,
    },
    /// The URL is not understood. It may hold a password, and is not shown.
    #[error("the database URL is not valid")]
    Url {
        /// Why.
        source: sqlx::Error,
    },
    /// A statement failed.
    #[error("could not {doing}")]
    Failed {
        /// What was tried.
        doing: &'static str,
        /// Why.
        source: sqlx::Error,
    },
    /// The server's SQL is not what this program needs.
    #[error("PostgreSQL {version} is too old: 15 or newer is needed")]
    TooOld {
        /// As it says.
        version: String,
    },
    /// A migration failed.
    #[error("could not bring the database up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
}

impl DbError {
    /// Whether the same may well work a little later: the database is out of reach or busy, or others were in the way.
    pub(crate) fn is_outage(&self) -> bool {
        let Self::Failed { source, .. } = self else { return false };
        if matches!(source, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed) {
            return true;
        }
        // Connections, resources, the operator; serialization failure and deadlock; a lock that is not available; a server
        // that only reads for now; a session that was idle for too long.
        let Some(code) = self.postgres_code() else { return false };
        matches!(code.get(..2), Some("08" | "53" | "57" | "58")) || matches!(code, "40001" | "40P01" | "55P03" | "25006" | "25P03")
    }

    /// Whether a text has a NUL character, which PostgreSQL does not take.
    pub(crate) fn is_text_with_nul(&self) -> bool {
        self.postgres_code() == Some("22021")
    }

    /// See <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
    fn postgres_code(&self) -> Option<&str> {
        let Self::Failed { source: sqlx::Error::Database(error), .. } = self else { return None };
        error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().map(|error| error.code())
    }
}

/// Names what was tried when a statement failed.
pub(crate) fn failed(doing: &'static str) -> impl FnOnce(sqlx::Error) -> DbError {
    move |source| DbError::Failed { doing, source }
}

/// The database. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Db {
    pools: Pools,
    clock: Clock,
}

#[derive(Clone, Debug)]
enum Pools {
    Sqlite { read: SqlitePool, write: SqlitePool },
    Postgres { read: PgPool, write: PgPool },
}

impl Db {
    fn new(pools: Pools) -> Self {
        Self { pools, clock: Clock::default() }
    }

    /// Milliseconds since 1970, as leases and windows count them.
    pub(crate) fn now(&self) -> i64 {
        self.clock.now()
    }

    /// The clock.
    #[cfg(test)]
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    // Boxed, as in `query`.

    /// A transaction that reads, and sees the same all the time.
    pub(crate) fn snapshot(&self) -> BoxFuture<'_, Result<Transaction, DbError>> {
        Box::pin(async move {
            let transaction = match &self.pools {
                Pools::Sqlite { read, .. } => read.begin().await.map(Inner::SqliteTransaction),
                Pools::Postgres { read, .. } => read.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map(Inner::PostgresTransaction),
            };
            transaction.map(|inner| Transaction(Connection(inner))).map_err(failed("begin a snapshot"))
        })
    }

    /// A connection that reads.
    pub(crate) fn read(&self) -> BoxFuture<'_, Result<Connection, DbError>> {
        Box::pin(async move {
            let connection = match &self.pools {
                Pools::Sqlite { read, .. } => read.acquire().await.map(Inner::Sqlite),
                Pools::Postgres { read, .. } => read.acquire().await.map(Inner::Postgres),
            };
            connection.map(Connection).map_err(failed("get a database connection"))
        })
    }

    /// Begins a transaction that writes. Dropped without [`commit`], it has no effect. What it may rely on: see the module.
    pub(crate) fn begin(&self) -> BoxFuture<'_, Result<Transaction, DbError>> {
        Box::pin(async move {
            self.clock.step().map_err(failed("begin a transaction"))?;
            let transaction = match &self.pools {
                Pools::Sqlite { write, .. } => write.begin_with("BEGIN IMMEDIATE").await.map(Inner::SqliteTransaction),
                Pools::Postgres { write, .. } => write.begin().await.map(Inner::PostgresTransaction),
            };
            transaction.map(|inner| Transaction(Connection(inner))).map_err(failed("begin a transaction"))
        })
    }

    /// Connections that are open, and how many of them do nothing.
    pub(crate) fn connections(&self) -> (u32, u32) {
        let (size, idle) = match &self.pools {
            Pools::Sqlite { read, write } => (read.size() + write.size(), read.num_idle() + write.num_idle()),
            Pools::Postgres { read, write } => (read.size() + write.size(), read.num_idle() + write.num_idle()),
        };
        (size, u32::try_from(idle).unwrap_or(u32::MAX))
    }

    /// Closes all connections.
    pub(crate) async fn close(&self) {
        match &self.pools {
            Pools::Sqlite { read, write } => {
                read.close().await;
                write.close().await;
            }
            Pools::Postgres { read, write } => {
                read.close().await;
                write.close().await;
            }
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Reads a digest from a column.
fn digest_at(row: &Row, column: usize) -> Result<Digest, sqlx::Error> {
    row.try_get(column)
}

/// How many values a statement over many takes: few different sizes, so that prepared statements are used again.
const BATCHES: [usize; 4] = [1, 16, 128, 1024];

/// Splits values into batches of the sizes of [`BATCHES`], the last one padded by its last value.
fn batches<T: Copy>(values: &[T]) -> impl Iterator<Item = Vec<T>> {
    values.chunks(BATCHES[BATCHES.len() - 1]).map(|chunk| {
        let size = BATCHES.iter().copied().find(|size| *size >= chunk.len()).unwrap_or(chunk.len());
        let mut batch = chunk.to_vec();
        if let Some(last) = chunk.last() {
            batch.resize(size, *last);
        }
        batch
    })
}
