//! Opens the database: settings of each kind of connection, and migrations.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, PgConnection, SqliteConnection};

use super::{Db, DbError, Pools, failed};

/// SQLite connections that read.
const SQLITE_READERS: u32 = 8;
/// How long a statement waits for another process's lock on an SQLite file, and a request for a connection to it.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a request waits for a connection to PostgreSQL: one that is down is answered with 503 then.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server that starts waits for PostgreSQL, which may be starting, too.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Settings of a PostgreSQL session. A replica that hangs loses its locks, and one that waits for a lock gives up before
/// its client does.
const SESSION: [(&str, &str); 3] = [("idle_in_transaction_session_timeout", "60s"), ("lock_timeout", "20s"), ("statement_timeout", "120s")];
/// Prepared statements that a connection keeps.
const STATEMENTS: usize = 128;

/// Oldest PostgreSQL that will do.
const MIN_POSTGRES: u32 = 15;

/// Connections to PostgreSQL if nothing is said.
pub(crate) const DEFAULT_CONNECTIONS: u32 = 16;

impl Db {
    /// Opens the database at `url`, or else the SQLite file `default`, and applies migrations. An SQLite file is created if
    /// it is missing; a PostgreSQL database is not. `connections`: most to PostgreSQL.
    pub(crate) async fn open(url: Option<&str>, default: &Path, connections: u32) -> Result<Self, DbError> {
        let invalid = |source| DbError::Url { source };
        match url {
            None => open_sqlite(SqliteConnectOptions::new().filename(default)).await,
            Some(url) if url.starts_with("sqlite:") => open_sqlite(SqliteConnectOptions::from_str(url).map_err(invalid)?).await,
            Some(url) if url.starts_with("postgres:") || url.starts_with("postgresql:") => {
                open_postgres(PgConnectOptions::from_str(url).map_err(invalid)?, connections).await
            }
            Some(url) => Err(DbError::Unsupported { scheme: url.split(':').next().unwrap_or_default().to_owned() }),
        }
    }
}

impl Db {
    /// Looks whether [`Db::open`] would find a database, and changes nothing.
    pub(crate) async fn probe(url: Option<&str>, default: &Path) -> Result<String, DbError> {
        let invalid = |source| DbError::Url { source };
        let doing = "connect to the database";
        let sqlite = match url {
            None => SqliteConnectOptions::new().filename(default),
            Some(url) if url.starts_with("sqlite:") => SqliteConnectOptions::from_str(url).map_err(invalid)?,
            Some(url) if url.starts_with("postgres:") || url.starts_with("postgresql:") => {
                let options = PgConnectOptions::from_str(url).map_err(invalid)?;
                let mut connection = PgConnection::connect_with(&options).await.map_err(failed(doing))?;
                let version = check_version(&mut connection).await?;
                return Ok(format!("PostgreSQL {version} answers"));
            }
            Some(url) => return Err(DbError::Unsupported { scheme: url.split(':').next().unwrap_or_default().to_owned() }),
        };
        if !sqlite.get_filename().exists() {
            return Ok("will be created".to_owned());
        }
        let mut connection = SqliteConnection::connect_with(&sqlite.read_only(true)).await.map_err(failed(doing))?;
        sqlx::query("SELECT count(*) FROM sqlite_schema").execute(&mut connection).await.map_err(failed(doing))?;
        Ok("opens".to_owned())
    }
}

/// The version of a PostgreSQL server, if it is one that the registry's SQL is tested with.
async fn check_version(connection: &mut PgConnection) -> Result<String, DbError> {
    let version: String = sqlx::query_scalar("SHOW server_version").fetch_one(connection).await.map_err(failed("ask the database for its version"))?;
    let major = version.split(|at: char| !at.is_ascii_digit()).next().and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(major) if major < MIN_POSTGRES => Err(DbError::TooOld { version }),
        _ => Ok(version),
    }
}

async fn open_sqlite(options: SqliteConnectOptions) -> Result<Db, DbError> {
    let options = options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .statement_cache_capacity(STATEMENTS)
        .row_buffer_size(1024)
        .pragma("cache_size", "-16384");
    let opening = "open the database";
    let write = SqlitePoolOptions::new().max_connections(1).acquire_timeout(BUSY_TIMEOUT).connect_with(options.clone()).await.map_err(failed(opening))?;
    // A newer replica may have added migrations: this binary runs against them.
    let mut migrations = sqlx::migrate!("../migrations/sqlite");
    migrations.set_ignore_missing(true);
    migrations.run(&write).await.map_err(DbError::Migrate)?;
    let readers = options.pragma("query_only", "ON");
    let read = SqlitePoolOptions::new().max_connections(SQLITE_READERS).acquire_timeout(BUSY_TIMEOUT).connect_with(readers).await.map_err(failed(opening))?;
    Ok(Db::new(Pools::Sqlite { read, write }))
}

async fn open_postgres(options: PgConnectOptions, connections: u32) -> Result<Db, DbError> {
    let options = options.application_name("turbo-registry").statement_cache_capacity(STATEMENTS).options(SESSION);
    // One connection, outside the pools: whoever waits for the migrations of another replica must not be cut off.
    let starting = PgPoolOptions::new().max_connections(1).acquire_timeout(START_TIMEOUT);
    let first = starting.connect_with(options.clone().options([("lock_timeout", "0"), ("statement_timeout", "0")])).await;
    let first = first.map_err(failed("connect to the database"))?;
    check_version(&mut *first.acquire().await.map_err(failed("connect to the database"))?).await?;
    // A lock in the database lets one replica at a time apply them.
    let mut migrations = sqlx::migrate!("../migrations/postgres");
    migrations.set_ignore_missing(true);
    migrations.run(&first).await.map_err(DbError::Migrate)?;
    first.close().await;
    // Apart, so that those who hold a transaction and read beside it cannot wait for each other.
    let writers = (connections / 2).max(1);
    let pool = |count| PgPoolOptions::new().max_connections(count).acquire_timeout(ACQUIRE_TIMEOUT).connect_lazy_with(options.clone());
    Ok(Db::new(Pools::Postgres { read: pool(connections.saturating_sub(writers).max(1)), write: pool(writers) }))
}
