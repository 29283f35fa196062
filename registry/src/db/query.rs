//! Statements, their values, and the rows that they give, for either database. Like sqlx's own, so that code reads the
//! same; text and rewriting: [`super::statement`].

use futures::future::BoxFuture;
use layer_format::Digest;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, Error, Postgres, Row as _, SqlSafeStr, SqlStr, Sqlite, ValueRef};

use super::connection::{Connection, Raw};
use super::statement::{for_postgres, for_sqlite};

/// A value of a statement.
#[derive(Clone, Debug)]
pub(crate) enum Value<'q> {
    Integer(Option<i64>),
    Text(Option<&'q str>),
    Bytes(Option<&'q [u8]>),
    OwnedText(String),
    OwnedBytes(Vec<u8>),
    /// Lists: for `(?*)`, and on PostgreSQL for `unnest`.
    Integers(Vec<i64>),
    Texts(Vec<&'q str>),
    BytesList(Vec<&'q [u8]>),
}

impl Value<'_> {
    /// The length of a list.
    fn list_len(&self) -> Option<usize> {
        match self {
            Self::Integers(list) => Some(list.len()),
            Self::Texts(list) => Some(list.len()),
            Self::BytesList(list) => Some(list.len()),
            _ => None,
        }
    }

    fn add_to_sqlite(self, to: &mut SqliteArguments) -> Result<(), Error> {
        let added = match self {
            Self::Integer(value) => to.add(value),
            Self::Text(value) => to.add(value),
            Self::Bytes(value) => to.add(value),
            Self::OwnedText(value) => to.add(value),
            Self::OwnedBytes(value) => to.add(value),
            Self::Integers(list) => list.into_iter().try_for_each(|value| to.add(value)),
            Self::Texts(list) => list.into_iter().try_for_each(|value| to.add(value)),
            Self::BytesList(list) => list.into_iter().try_for_each(|value| to.add(value)),
        };
        added.map_err(Error::Encode)
    }

    fn add_to_postgres(self, to: &mut PgArguments) -> Result<(), Error> {
        let added = match self {
            Self::Integer(value) => to.add(value),
            Self::Text(value) => to.add(value),
            Self::Bytes(value) => to.add(value),
            Self::OwnedText(value) => to.add(value),
            Self::OwnedBytes(value) => to.add(value),
            Self::Integers(list) => to.add(list),
            Self::Texts(list) => to.add(list),
            Self::BytesList(list) => to.add(list),
        };
        added.map_err(Error::Encode)
    }
}

/// Values from what code has.
macro_rules! value_from {
    ($($from:ty: $name:ident => $value:expr;)*) => {
        $(impl<'q> From<$from> for Value<'q> {
            fn from($name: $from) -> Self {
                $value
            }
        })*
    };
}

value_from! {
    i64: value => Self::Integer(Some(value));
    i32: value => Self::Integer(Some(value.into()));
    u32: value => Self::Integer(Some(value.into()));
    u16: value => Self::Integer(Some(value.into()));
    bool: value => Self::Integer(Some(value.into()));
    Option<i64>: value => Self::Integer(value);
    &'q str: value => Self::Text(Some(value));
    Option<&'q str>: value => Self::Text(value);
    String: value => Self::OwnedText(value);
    &'q String: value => Self::Text(Some(value));
    &'q [u8]: value => Self::Bytes(Some(value));
    Option<&'q [u8]>: value => Self::Bytes(value);
    Vec<u8>: value => Self::OwnedBytes(value);
    &'q Vec<u8>: value => Self::Bytes(Some(value));
    Option<Vec<u8>>: value => value.map_or(Self::Bytes(None), Self::OwnedBytes);
    Option<String>: value => value.map_or(Self::Text(None), Self::OwnedText);
    Vec<i64>: value => Self::Integers(value);
    Vec<&'q str>: value => Self::Texts(value);
    Vec<&'q [u8]>: value => Self::BytesList(value);
    &'q Digest: value => Self::Bytes(Some(&value.0));
    Option<&'q Digest>: value => Self::Bytes(value.map(|digest| &digest.0[..]));
    &'q [Digest]: value => Self::BytesList(value.iter().map(|digest| &digest.0[..]).collect());
    &'q Vec<Digest>: value => Self::from(value.as_slice());
}

/// A statement with its values.
#[derive(Debug)]
pub(crate) struct Query<'q> {
    sql: SqlStr,
    values: Vec<Value<'q>>,
    is_persistent: bool,
}

/// A statement: see [`super::statement`] for its marks.
pub(crate) fn query<'q>(sql: impl SqlSafeStr) -> Query<'q> {
    Query { sql: sql.into_sql_str(), values: Vec::new(), is_persistent: true }
}

/// What a statement did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done(u64);

impl Done {
    /// Rows that were inserted, changed or deleted.
    pub(crate) fn rows_affected(self) -> u64 {
        self.0
    }
}

type Ready<'a, DB, A> = sqlx::query::Query<'a, DB, A>;

impl<'q> Query<'q> {
    /// The next value.
    pub(crate) fn bind(mut self, value: impl Into<Value<'q>>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Whether the prepared statement is worth keeping: not if its text will not come again.
    pub(crate) fn persistent(mut self, is_persistent: bool) -> Self {
        self.is_persistent = is_persistent;
        self
    }

    fn sqlite<'a>(self) -> Result<Ready<'a, Sqlite, SqliteArguments>, Error> {
        let lens: Vec<usize> = self.values.iter().filter_map(Value::list_len).collect();
        let sql = match for_sqlite(self.sql.as_str(), &lens) {
            Some(sql) => AssertSqlSafe(sql).into_sql_str(),
            None => self.sql,
        };
        let mut arguments = SqliteArguments::default();
        arguments.reserve(self.values.len(), 0);
        for value in self.values {
            value.add_to_sqlite(&mut arguments)?;
        }
        Ok(sqlx::query_with(sql, arguments).persistent(self.is_persistent))
    }

    fn postgres<'a>(self) -> Result<Ready<'a, Postgres, PgArguments>, Error> {
        // Rewriting takes less than a hundredth of the round trip, so no one remembers the result.
        let sql = AssertSqlSafe(for_postgres(self.sql.as_str()));
        let mut arguments = PgArguments::default();
        for value in self.values {
            value.add_to_postgres(&mut arguments)?;
        }
        Ok(sqlx::query_with(sql, arguments).persistent(self.is_persistent))
    }

    // Boxed: futures of two drivers side by side are large, and callers hold many of these.

    /// Runs a statement that gives no rows.
    pub(crate) fn execute<'e>(self, db: &'e mut Connection) -> BoxFuture<'e, Result<Done, Error>>
    where
        'q: 'e,
    {
        Box::pin(async move {
            match db.raw() {
                Raw::Sqlite(db) => self.sqlite()?.execute(db).await.map(|done| Done(done.rows_affected())),
                Raw::Postgres(db) => self.postgres()?.execute(db).await.map(|done| Done(done.rows_affected())),
            }
        })
    }

    /// All rows.
    pub(crate) fn fetch_all<'e>(self, db: &'e mut Connection) -> BoxFuture<'e, Result<Vec<Row>, Error>>
    where
        'q: 'e,
    {
        Box::pin(async move {
            match db.raw() {
                Raw::Sqlite(db) => Ok(self.sqlite()?.fetch_all(db).await?.into_iter().map(Row::Sqlite).collect()),
                Raw::Postgres(db) => Ok(self.postgres()?.fetch_all(db).await?.into_iter().map(Row::Postgres).collect()),
            }
        })
    }

    /// The first row, if there is one.
    pub(crate) fn fetch_optional<'e>(self, db: &'e mut Connection) -> BoxFuture<'e, Result<Option<Row>, Error>>
    where
        'q: 'e,
    {
        Box::pin(async move {
            match db.raw() {
                Raw::Sqlite(db) => Ok(self.sqlite()?.fetch_optional(db).await?.map(Row::Sqlite)),
                Raw::Postgres(db) => Ok(self.postgres()?.fetch_optional(db).await?.map(Row::Postgres)),
            }
        })
    }

    /// The first row; [`Error::RowNotFound`] if there is none.
    pub(crate) async fn fetch_one(self, db: &mut Connection) -> Result<Row, Error> {
        self.fetch_optional(db).await?.ok_or(Error::RowNotFound)
    }
}

/// A row.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    /// A column, by its number.
    pub(crate) fn try_get<'r, T: Column<'r>>(&'r self, column: usize) -> Result<T, Error> {
        T::get(self, column)
    }

    fn is_null(&self, column: usize) -> Result<bool, Error> {
        match self {
            Self::Sqlite(row) => Ok(row.try_get_raw(column)?.is_null()),
            Self::Postgres(row) => Ok(row.try_get_raw(column)?.is_null()),
        }
    }
}

/// What a column can be read as. Numbers are `i64`, whatever the database keeps them in.
pub(crate) trait Column<'r>: Sized {
    /// Reads it.
    fn get(row: &'r Row, column: usize) -> Result<Self, Error>;
}

impl<'r> Column<'r> for i64 {
    fn get(row: &'r Row, column: usize) -> Result<Self, Error> {
        match row {
            Row::Sqlite(row) => row.try_get(column),
            // `length()` is an INT4 there, and so is `1`.
            Row::Postgres(row) => row.try_get::<i64, _>(column).or_else(|error| match error {
                Error::ColumnDecode { .. } => row.try_get::<i32, _>(column).map(i64::from),
                error => Err(error),
            }),
        }
    }
}

impl<'r> Column<'r> for bool {
    fn get(row: &'r Row, column: usize) -> Result<Self, Error> {
        i64::get(row, column).map(|number| number != 0)
    }
}

/// What both databases give as it is.
macro_rules! column {
    ($($as:ty),*) => {
        $(impl<'r> Column<'r> for $as {
            fn get(row: &'r Row, column: usize) -> Result<Self, Error> {
                match row {
                    Row::Sqlite(row) => row.try_get(column),
                    Row::Postgres(row) => row.try_get(column),
                }
            }
        })*
    };
}

column!(&'r str, String, &'r [u8], Vec<u8>);

impl<'r> Column<'r> for Digest {
    fn get(row: &'r Row, column: usize) -> Result<Self, Error> {
        let bytes: &[u8] = Column::get(row, column)?;
        let bytes = bytes.try_into().map_err(|_| Error::Decode("a digest has 32 bytes".into()))?;
        Ok(Self(bytes))
    }
}

impl<'r, T: Column<'r>> Column<'r> for Option<T> {
    fn get(row: &'r Row, column: usize) -> Result<Self, Error> {
        match row.is_null(column)? {
            true => Ok(None),
            false => T::get(row, column).map(Some),
        }
    }
}
