//! States of a repository: put, get, list, delete.
//!
//! A state is visible in its own repository and nowhere else, by its id or the start of it. Who may see the repository is for
//! access control to say; a client's own states are in a repository that is named from its credential.

use std::sync::Arc;

use layer_format::api::MIN_STATE_PREFIX_LEN;
use layer_format::manifest::{Manifest, StateManifest};
use layer_format::reference::Repository;
use layer_format::{Digest, FormatError};

use super::closure::{ClosureError, closure_check};
use super::nodes::{NodeError, Nodes};
use super::objects::Objects;
use super::trash;
use crate::db::namespace::namespace_find;
use crate::db::repository::{repository_ensure, repository_find};
use crate::db::state::{NewState, StateRow, state_get, state_list, state_put, state_range};
use crate::db::trash::Deletion;
use crate::db::{Db, DbError, commit};

/// States that an answer about an ambiguous prefix lists.
const MAX_MATCHES: u32 = 20;

/// Which state of a repository: hex digits that its id starts with, at least [`MIN_STATE_PREFIX_LEN`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StatePrefix {
    low: Digest,
    high: Digest,
}

impl StatePrefix {
    /// Parses hex digits, with or without `b3:`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("b3:").unwrap_or(text);
        let is_hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex || !(MIN_STATE_PREFIX_LEN..=2 * Digest::LEN).contains(&digits.len()) {
            return Err(format!("a state is named by {MIN_STATE_PREFIX_LEN} to 64 lower-case hex digits"));
        }
        let filled = |digit: &str| Digest::from_hex(&format!("{digits}{}", digit.repeat(2 * Digest::LEN - digits.len()))).map_err(|error| error.to_string());
        Ok(Self { low: filled("0")?, high: filled("f")? })
    }

    /// The whole id, if it is one.
    pub(crate) fn whole(&self) -> Option<Digest> {
        (self.low == self.high).then_some(self.low)
    }
}

/// Why a state was not put.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatePutError {
    /// The bytes are no manifest of a state.
    #[error(transparent)]
    Invalid(#[from] FormatError),
    /// The bytes are not those that the request names.
    #[error("the state's digest is {got}, and the request names {wanted}")]
    Digest {
        /// As in the request.
        wanted: Digest,
        /// Of the bytes.
        got: Digest,
    },
    /// Not all that its sandbox needs is there.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
}

/// What a prefix stands for.
#[derive(Clone, Debug)]
pub(crate) enum Resolved {
    /// One state.
    One(Digest),
    /// None.
    Unknown,
    /// Several; at most [`MAX_MATCHES`] are listed.
    Ambiguous(Vec<Digest>),
}

/// A state.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) bytes: Vec<u8>,
    pub(crate) container: Option<String>,
}

/// Makes a state visible: checks that all its sandbox needs is there, then keeps its bytes, in one transaction. Idempotent.
/// Whether its images are on this registry is not looked at: they may be in namespaces that the caller sees and this one does not.
pub(crate) async fn put(
    objects: &Objects,
    nodes: &Arc<Nodes>,
    repository: &Repository,
    digest: &Digest,
    container: Option<&str>,
    bytes: &[u8],
) -> Result<bool, StatePutError> {
    let state = StateManifest::decode(bytes)?;
    let got = Digest::of(bytes);
    if got != *digest {
        return Err(StatePutError::Digest { wanted: *digest, got });
    }
    let db = &objects.db;
    // A namespace without packs has no row, and gets none from a state that is refused.
    let found = {
        let mut db = db.read().await?;
        namespace_find(&mut db, repository.namespace()).await?
    };
    let Some(namespace) = found else { return Err(ClosureError::Missing(vec![state.sandbox]).into()) };
    let walked = closure_check(objects, nodes, namespace, &[state.sandbox]).await?;
    let layer = nodes.layer(namespace, state.sandbox, None).await.map_err(|error| match error {
        NodeError::Invalid { digest, source } => ClosureError::Invalid { digest, source },
        error => error.into_outage().map_or(ClosureError::Missing(vec![state.sandbox]), ClosureError::Read),
    })?;
    let mut transaction = db.begin().await?;
    let row = repository_ensure(&mut transaction, repository).await?;
    walked.remember(&mut transaction, row.namespace).await?;
    let new = NewState { digest: got, bytes, sandbox: state.sandbox, sandbox_bytes: layer.bytes, container };
    let existed = state_put(&mut transaction, row.id, &new).await?;
    commit(transaction).await?;
    Ok(existed)
}

/// Which state of the repository a prefix stands for.
pub(crate) async fn resolve(db: &Db, repository: &Repository, prefix: &StatePrefix) -> Result<Resolved, DbError> {
    let mut db = db.read().await?;
    let Some(row) = repository_find(&mut db, repository).await? else { return Ok(Resolved::Unknown) };
    let found = state_range(&mut db, row.id, &prefix.low, &prefix.high, MAX_MATCHES).await?;
    Ok(match found[..] {
        [] => Resolved::Unknown,
        [one] => Resolved::One(one),
        _ => Resolved::Ambiguous(found),
    })
}

/// The state, if the repository has it.
pub(crate) async fn get(db: &Db, repository: &Repository, digest: &Digest) -> Result<Option<State>, DbError> {
    let mut db = db.read().await?;
    let Some(row) = repository_find(&mut db, repository).await? else { return Ok(None) };
    Ok(state_get(&mut db, row.id, digest).await?.map(|(bytes, container)| State { bytes, container }))
}

/// The repository's newest states, if it exists.
pub(crate) async fn list(db: &Db, repository: &Repository, limit: u32) -> Result<Option<Vec<StateRow>>, DbError> {
    let mut db = db.read().await?;
    match repository_find(&mut db, repository).await? {
        Some(row) => state_list(&mut db, row.id, limit).await.map(Some),
        None => Ok(None),
    }
}

/// Deletes a state; it can be brought back for a while. Says whether there was one.
pub(crate) async fn delete(db: &Db, repository: &Repository, digest: &Digest, by: &str) -> Result<bool, DbError> {
    let deletion = Deletion { at: db.now(), by };
    let mut transaction = db.begin().await?;
    let Some(row) = repository_find(&mut transaction, repository).await? else { return Ok(false) };
    let deleted = trash::delete_state(&mut transaction, row.id, digest, deletion).await?;
    commit(transaction).await?;
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_range_of_ids() {
        let digest = Digest::of(b"x");
        let hex = digest.to_hex();
        for len in MIN_STATE_PREFIX_LEN..=64 {
            let prefix = StatePrefix::parse(&hex[..len]).unwrap();
            assert!(prefix.low <= digest && digest <= prefix.high);
            assert_eq!(prefix.whole(), (len == 64).then_some(digest));
            let other = Digest::of(b"y");
            assert!(other < prefix.low || other > prefix.high);
        }
        assert_eq!(StatePrefix::parse(&digest.to_string()), StatePrefix::parse(&hex));
        for bad in ["", "1234567", "ABCDEF01", "../../etc", "0123456g", "b3:", "%00000000", &format!("{hex}0")] {
            assert!(StatePrefix::parse(bad).is_err(), "{bad}");
        }
    }
}
