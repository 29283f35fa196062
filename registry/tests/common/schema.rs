//! What tables a database has, for comparison between the two kinds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sqlx::{Connection, PgConnection, Row, SqliteConnection};

/// A table: its columns, each with its kind, whether it can be NULL, and its place in the primary key; and the columns of each
/// index.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Table {
    columns: BTreeMap<String, (String, bool, i64)>,
    indexes: BTreeSet<Vec<String>>,
}

pub type Schema = BTreeMap<String, Table>;

/// Of an SQLite file.
pub async fn sqlite(file: &Path) -> Schema {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).read_only(true);
    let mut db = SqliteConnection::connect_with(&options).await.unwrap();
    let columns = sqlx::query(
        "SELECT m.name, c.name, c.type, c.\"notnull\" = 0 AND c.pk = 0, c.pk FROM sqlite_schema m, pragma_table_info(m.name) c
         WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' AND m.name NOT LIKE '_sqlx%'",
    );
    let mut schema = Schema::new();
    for row in columns.fetch_all(&mut db).await.unwrap() {
        let kind = match row.get::<String, _>(2).as_str() {
            "INTEGER" => "bigint",
            "BLOB" => "bytea",
            "TEXT" => "text",
            other => panic!("a column of type {other}"),
        };
        schema.entry(row.get(0)).or_default().columns.insert(row.get(1), (kind.to_owned(), row.get(3), row.get(4)));
    }
    let indexes = sqlx::query(
        "SELECT m.name, i.name, c.name FROM sqlite_schema m, pragma_index_list(m.name) i, pragma_index_info(i.name) c
         WHERE m.type = 'table' AND m.name NOT LIKE '_sqlx%' ORDER BY m.name, i.name, c.seqno",
    );
    let rows: Vec<(String, String, String)> = indexes.fetch_all(&mut db).await.unwrap().iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    add_indexes(&mut schema, rows);
    schema
}

/// Of a PostgreSQL database.
pub async fn postgres(url: &str) -> Schema {
    let mut db = PgConnection::connect(url).await.unwrap();
    let columns = sqlx::query(
        "SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
             coalesce(array_position(i.indkey::int2[], a.attnum), -1)::bigint + 1
         FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
         WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped AND c.relname NOT LIKE '\\_sqlx%'",
    );
    let mut schema = Schema::new();
    for row in columns.fetch_all(&mut db).await.unwrap() {
        schema.entry(row.get(0)).or_default().columns.insert(row.get(1), (row.get(2), row.get(3), row.get(4)));
    }
    let indexes = sqlx::query(
        "SELECT c.relname::text, x.relname::text, a.attname::text
         FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid
         CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (attnum, at) JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
         WHERE c.relnamespace = 'public'::regnamespace AND c.relname NOT LIKE '\\_sqlx%' ORDER BY 1, 2, k.at",
    );
    let rows: Vec<(String, String, String)> = indexes.fetch_all(&mut db).await.unwrap().iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    add_indexes(&mut schema, rows);
    schema
}

/// Rows of table, index, column. An index of the one column that is the primary key is none on SQLite, where it is the table.
fn add_indexes(schema: &mut Schema, rows: Vec<(String, String, String)>) {
    let mut indexes: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for (table, index, column) in rows {
        indexes.entry((table, index)).or_default().push(column);
    }
    for ((table, _), columns) in indexes {
        if columns != ["id"] {
            schema.entry(table).or_default().indexes.insert(columns);
        }
    }
}
