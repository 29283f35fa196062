//! Table `verified`: objects whose whole closure was seen in the namespace.

use std::collections::HashSet;

use layer_format::Digest;
use sqlx::AssertSqlSafe;

use super::namespace::NamespaceId;
use super::{Connection, DbError, batches, digest_at, failed, query};

/// What an object was verified as; the same bytes mean nothing as another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum NodeKind {
    /// A layer manifest.
    Layer,
    /// A tree object of this level; the root of a tree, which may have any, has none.
    Tree(Option<u8>),
    /// A recipe node of this level that describes this many bytes.
    Recipe {
        /// Its level.
        level: u8,
        /// Bytes of the file.
        len: u64,
    },
}

impl NodeKind {
    fn columns(self) -> (i64, i64) {
        match self {
            Self::Layer => (0, 0),
            Self::Tree(None) => (1, 0),
            Self::Tree(Some(level)) => (16 + i64::from(level), 0),
            Self::Recipe { level, len } => (32 + i64::from(level), len as i64),
        }
    }
}

/// A reference to an object that refers to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NodeKey {
    pub(crate) digest: Digest,
    pub(crate) kind: NodeKind,
}

/// Those of the nodes that are verified.
pub(crate) async fn verified_find(db: &mut Connection, namespace: NamespaceId, nodes: &[NodeKey]) -> Result<HashSet<NodeKey>, DbError> {
    let doing = "look for verified nodes";
    let digests: Vec<Digest> = nodes.iter().map(|node| node.digest).collect();
    let mut rows_found = HashSet::new();
    for batch in batches(&digests) {
        let query = query("SELECT digest, kind, len FROM verified WHERE namespace_id = ? AND digest IN (?*)");
        for row in query.bind(namespace.0).bind(&batch).fetch_all(&mut *db).await.map_err(failed(doing))? {
            let number = |at: usize| row.try_get::<i64>(at).map_err(failed(doing));
            rows_found.insert((digest_at(&row, 0).map_err(failed(doing))?, number(1)?, number(2)?));
        }
    }
    let known = |node: &&NodeKey| {
        let (kind, len) = node.kind.columns();
        rows_found.contains(&(node.digest, kind, len))
    };
    Ok(nodes.iter().filter(known).copied().collect())
}

/// Records that everything below these nodes is there. Idempotent.
pub(crate) async fn verified_insert(db: &mut Connection, namespace: NamespaceId, nodes: &[NodeKey]) -> Result<(), DbError> {
    // In one order by all, so that two images with the same nodes do not wait in a circle.
    let mut nodes = nodes.to_vec();
    nodes.sort_by_key(|node| (node.digest, node.kind.columns()));
    for batch in batches(&nodes) {
        let rows = vec!["(?, ?, ?, ?)"; batch.len()].join(",");
        let sql = format!("INSERT INTO verified (namespace_id, digest, kind, len) VALUES {rows} ON CONFLICT DO NOTHING");
        let mut query = query(AssertSqlSafe(sql));
        for node in &batch {
            let (kind, len) = node.kind.columns();
            query = query.bind(namespace.0).bind(&node.digest).bind(kind).bind(len);
        }
        query.execute(&mut *db).await.map_err(failed("record verified nodes"))?;
    }
    Ok(())
}
