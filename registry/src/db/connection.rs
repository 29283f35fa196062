//! A connection to either database, and a transaction on one.

use std::ops::{Deref, DerefMut};

use futures::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::{Postgres, Sqlite, SqliteConnection};

use super::{DbError, failed};

/// Which database it is, where a statement needs two texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection(pub(super) Inner);

#[derive(Debug)]
pub(super) enum Inner {
    Sqlite(PoolConnection<Sqlite>),
    SqliteTransaction(sqlx::Transaction<'static, Sqlite>),
    Postgres(PoolConnection<Postgres>),
    PostgresTransaction(sqlx::Transaction<'static, Postgres>),
}

/// The connection under whatever holds it.
pub(super) enum Raw<'a> {
    Sqlite(&'a mut SqliteConnection),
    Postgres(&'a mut sqlx::PgConnection),
}

impl Connection {
    pub(super) fn raw(&mut self) -> Raw<'_> {
        match &mut self.0 {
            Inner::Sqlite(connection) => Raw::Sqlite(connection),
            Inner::SqliteTransaction(transaction) => Raw::Sqlite(transaction),
            Inner::Postgres(connection) => Raw::Postgres(connection),
            Inner::PostgresTransaction(transaction) => Raw::Postgres(transaction),
        }
    }

    /// Which database it is.
    pub(crate) fn dialect(&self) -> Dialect {
        match self.0 {
            Inner::Sqlite(_) | Inner::SqliteTransaction(_) => Dialect::Sqlite,
            Inner::Postgres(_) | Inner::PostgresTransaction(_) => Dialect::Postgres,
        }
    }

    /// Whether what is read must be locked to stay as it is until the commit: in a transaction on PostgreSQL. On SQLite
    /// nobody else writes meanwhile.
    pub(super) fn needs_locks(&self) -> bool {
        matches!(self.0, Inner::PostgresTransaction(_))
    }
}

/// A transaction that writes. Dropped without [`commit`], it has no effect.
#[derive(Debug)]
pub(crate) struct Transaction(pub(super) Connection);

impl Deref for Transaction {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0
    }
}

/// Makes the transaction's effect durable and visible.
pub(crate) fn commit(transaction: Transaction) -> BoxFuture<'static, Result<(), DbError>> {
    Box::pin(async move {
        let done = match transaction.0.0 {
            Inner::SqliteTransaction(transaction) => transaction.commit().await,
            Inner::PostgresTransaction(transaction) => transaction.commit().await,
            Inner::Sqlite(_) | Inner::Postgres(_) => Ok(()),
        };
        done.map_err(failed("commit"))
    })
}
