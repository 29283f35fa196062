//! All SQL of the registry, one file a table. Functions are named resource first, and take the connection, so that
//! steps can share a transaction.
//!
//! SQLite in WAL mode: many readers, and one connection that writes. A commit is on stable storage when it returns
//! (`synchronous=FULL`), since a 201 promises that.

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
pub(crate) mod oci_unused;
pub(crate) mod oci_upload;
pub(crate) mod pack;
pub(crate) mod pack_life;
pub(crate) mod repository;
pub(crate) mod root;
pub(crate) mod state;
pub(crate) mod tag;
pub(crate) mod trace_statistics;
pub(crate) mod trash;
pub(crate) mod verified;

mod clock;

use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use layer_format::Digest;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Row, Sqlite, Transaction};

pub(crate) use clock::Clock;

/// Connections that read.
const READERS: u32 = 8;
/// How long a statement waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection.
pub(crate) type Connection = SqliteConnection;

/// Why the database did not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// The URL names no database that this server knows.
    #[error("`{scheme}` databases are not supported: use sqlite:PATH")]
    Unsupported {
        /// The URL's scheme.
        scheme: String,
    },
    /// A statement failed.
    #[error("could not {doing}")]
    Failed {
        /// What was tried.
        doing: &'static str,
        /// Why.
        source: sqlx::Error,
    },
    /// A migration failed.
    #[error("could not bring the database up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
}

/// Names what was tried when a statement failed.
pub(crate) fn failed(doing: &'static str) -> impl FnOnce(sqlx::Error) -> DbError {
    move |source| DbError::Failed { doing, source }
}

/// The database.
#[derive(Clone, Debug)]
pub(crate) struct Db {
    read: SqlitePool,
    write: SqlitePool,
    clock: Clock,
}

impl Db {
    /// Opens or creates the database at `url`, or else in the file `default`, and applies migrations.
    pub(crate) async fn open(url: Option<&str>, default: &Path) -> Result<Self, DbError> {
        let options = match url {
            None => SqliteConnectOptions::new().filename(default),
            Some(url) if url.starts_with("sqlite:") => SqliteConnectOptions::from_str(url).map_err(failed("understand the database URL"))?,
            Some(url) => return Err(DbError::Unsupported { scheme: url.split(':').next().unwrap_or_default().to_owned() }),
        };
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .statement_cache_capacity(64)
            .row_buffer_size(1024)
            .pragma("cache_size", "-16384");
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(BUSY_TIMEOUT)
            .connect_with(options.clone())
            .await
            .map_err(failed("open the database"))?;
        // A newer replica may have added migrations: this binary runs against them.
        let mut migrations = sqlx::migrate!("../migrations");
        migrations.set_ignore_missing(true);
        migrations.run(&write).await.map_err(DbError::Migrate)?;
        let readers = options.pragma("query_only", "ON");
        let read =
            SqlitePoolOptions::new().max_connections(READERS).acquire_timeout(BUSY_TIMEOUT).connect_with(readers).await.map_err(failed("open the database"))?;
        Ok(Self { read, write, clock: Clock::default() })
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

    /// A transaction that reads, and sees the same all the time.
    pub(crate) async fn snapshot(&self) -> Result<Transaction<'static, Sqlite>, DbError> {
        self.read.begin().await.map_err(failed("begin a snapshot"))
    }

    /// A connection that reads.
    pub(crate) async fn read(&self) -> Result<sqlx::pool::PoolConnection<Sqlite>, DbError> {
        self.read.acquire().await.map_err(failed("get a database connection"))
    }

    /// Begins a transaction that writes. Dropped without [`commit`], it has no effect.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, DbError> {
        self.clock.step().map_err(failed("begin a transaction"))?;
        self.write.begin_with("BEGIN IMMEDIATE").await.map_err(failed("begin a transaction"))
    }

    /// Closes all connections.
    pub(crate) async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }
}

/// Makes the transaction's effect durable and visible.
pub(crate) async fn commit(transaction: Transaction<'static, Sqlite>) -> Result<(), DbError> {
    transaction.commit().await.map_err(failed("commit"))
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Reads a digest from a column.
fn digest_at(row: &SqliteRow, column: usize) -> Result<Digest, sqlx::Error> {
    let bytes: &[u8] = row.try_get(column)?;
    let bytes = bytes.try_into().map_err(|_| sqlx::Error::Decode("a digest has 32 bytes".into()))?;
    Ok(Digest(bytes))
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

/// `(?,?,…)` with `count` marks.
fn marks(count: usize) -> String {
    let mut text = String::with_capacity(2 * count + 2);
    text.push('(');
    for at in 0..count {
        text.push_str(if at == 0 { "?" } else { ",?" });
    }
    text.push(')');
    text
}
