//! Objects compressed against others that one side has. A registry that does not know of them answers that there is nothing
//! there: it is not asked again.

use std::sync::atomic::Ordering;

use layer_format::Digest;
use layer_format::api::{BASES_MEDIA_TYPE, BITMAP_MEDIA_TYPE, STREAM_MEDIA_TYPE, WANTED_MEDIA_TYPE, WantedGroup, decode_bitmap, encode_bases, encode_wanted};
use layer_format::reference::Repository;
use reqwest::Method;

use super::Registry;
use super::origin_impl::MORE_RECORDS;
use crate::origin::{ObjectStream, OriginError};

impl Registry {
    /// Whether this registry may know of deltas.
    pub fn may_know_deltas(&self) -> bool {
        !self.inner.no_deltas.load(Ordering::Relaxed)
    }

    /// For each of these groups, whether the registry takes a delta frame with these bases: it has all of them, in this
    /// repository's namespace, where one read gets them. `None` if it knows no deltas.
    ///
    /// # Errors
    /// [`OriginError`]; bounds as of [`encode_bases`].
    pub async fn takes_bases(&self, repository: &Repository, groups: &[Vec<Digest>]) -> Result<Option<Vec<bool>>, OriginError> {
        let request = self.request(Method::POST, repository, "bases").header("content-type", BASES_MEDIA_TYPE).header("accept", BITMAP_MEDIA_TYPE);
        let Some(response) = self.known(self.send(request.body(encode_bases(groups)), || repository.to_string()).await)? else { return Ok(None) };
        let body = self.body(response, groups.len().div_ceil(8)).await?;
        decode_bitmap(&body, groups.len()).map(Some).map_err(|error| self.protocol(error.to_string()))
    }

    /// These objects as frames, those of a group compressed against its bases where that is worth it. `None` if the registry
    /// knows no deltas.
    ///
    /// # Errors
    /// [`OriginError`]; bounds as of [`encode_wanted`].
    pub async fn objects_like(&self, repository: &Repository, wanted: &[Digest], groups: &[WantedGroup]) -> Result<Option<ObjectStream>, OriginError> {
        let request = self.request(Method::POST, repository, "deltas").header("content-type", WANTED_MEDIA_TYPE).header("accept", STREAM_MEDIA_TYPE);
        match self.known(self.send(request.body(encode_wanted(wanted, groups)), || repository.to_string()).await)? {
            Some(response) => self.records(response, Vec::new(), wanted.len() + MORE_RECORDS).map(Some),
            None => Ok(None),
        }
    }

    fn known<T>(&self, answer: Result<T, OriginError>) -> Result<Option<T>, OriginError> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(OriginError::NotFound { .. } | OriginError::Refused { status: 405, .. }) => {
                self.inner.no_deltas.store(true, Ordering::Relaxed);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
