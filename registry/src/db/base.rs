//! Table `base`: what the delta frames of a pack need. Whoever removes objects keeps those that a pack needs of which
//! something is needed, and forgets a pack's rows with the pack.

use std::collections::HashSet;

use layer_format::Digest;

use super::namespace::NamespaceId;
use super::pack::PackId;
use super::{Connection, DbError, batches, digest_at, failed, query};

/// Records what a pack needs. Idempotent.
pub(crate) async fn base_insert(db: &mut Connection, namespace: NamespaceId, pack: PackId, digests: &[Digest]) -> Result<(), DbError> {
    // In one order by all, so that nobody waits in a circle.
    let mut digests = digests.to_vec();
    digests.sort_unstable();
    digests.dedup();
    for digest in &digests {
        let query = query("INSERT INTO base (namespace_id, digest, pack_id) VALUES (?, ?, ?) ON CONFLICT DO NOTHING");
        query.bind(namespace.0).bind(digest).bind(pack.0).execute(&mut *db).await.map_err(failed("record what a pack needs"))?;
    }
    Ok(())
}

/// Those of the objects that any pack of the namespace needs.
pub(crate) async fn base_find(db: &mut Connection, namespace: NamespaceId, digests: &[Digest]) -> Result<HashSet<Digest>, DbError> {
    let doing = "find what packs need";
    let mut found = HashSet::new();
    for batch in batches(digests) {
        let query = query("SELECT DISTINCT digest FROM base WHERE namespace_id = ? AND digest IN (?*)");
        for row in query.bind(namespace.0).bind(&batch).fetch_all(&mut *db).await.map_err(failed(doing))? {
            found.insert(digest_at(&row, 0).map_err(failed(doing))?);
        }
    }
    Ok(found)
}

/// Forgets what a pack needs, before the pack. Idempotent.
pub(crate) async fn base_delete_pack(db: &mut Connection, pack: PackId) -> Result<(), DbError> {
    query("DELETE FROM base WHERE pack_id = ?").bind(pack.0).execute(db).await.map_err(failed("forget what a pack needs"))?;
    Ok(())
}
