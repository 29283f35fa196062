//! States of a repository.

use bytes::Bytes;
use layer_format::Digest;
use layer_format::api::{CONTAINER_HEADER, STATE_MEDIA_TYPE, StatePut, States};
use layer_format::manifest::MAX_MANIFEST_LEN;
use layer_format::reference::{Repository, is_release};
use reqwest::Method;

use super::{Registry, digest_header};
use crate::origin::OriginError;

/// The manifest of a state as the registry has it; its bytes match its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteState {
    /// The state's id.
    pub digest: Digest,
    /// The manifest's bytes.
    pub bytes: Bytes,
    /// What the container was called.
    pub container: Option<String>,
}

impl Registry {
    /// Stores a state; `container` is a name for people, and left out if it has other characters than a release may have. The
    /// registry takes it only if all that its sandbox needs is there.
    ///
    /// # Errors
    /// [`OriginError::Refused`] with `OBJECTS_MISSING` if something is not there.
    pub async fn put_state(&self, repository: &Repository, digest: &Digest, manifest: Bytes, container: Option<&str>) -> Result<StatePut, OriginError> {
        let mut request = self.request(Method::PUT, repository, &format!("states/{digest}")).header("content-type", STATE_MEDIA_TYPE);
        if let Some(container) = container.filter(|name| is_release(name)) {
            request = request.header(CONTAINER_HEADER, container);
        }
        let response = self.send(request.body(manifest), || format!("state {digest}")).await?;
        self.json(response).await
    }

    /// The state whose id starts with `prefix`: hex digits, at least [`layer_format::api::MIN_STATE_PREFIX_LEN`] of them.
    ///
    /// # Errors
    /// [`OriginError::NotFound`] if the repository has none, [`OriginError::Refused`] with `STATE_AMBIGUOUS` if it has several.
    pub async fn get_state(&self, repository: &Repository, prefix: &str) -> Result<RemoteState, OriginError> {
        let request = self.request(Method::GET, repository, &format!("states/{prefix}")).header("accept", STATE_MEDIA_TYPE);
        let response = self.send(request, || format!("state {prefix}")).await?;
        let container = response.headers().get(CONTAINER_HEADER).and_then(|value| value.to_str().ok()).filter(|name| is_release(name)).map(str::to_owned);
        let said = digest_header(&response);
        let bytes = self.body(response, MAX_MANIFEST_LEN).await?;
        let digest = Digest::of(&bytes);
        match said.is_none_or(|said| said == digest) && digest.to_hex().starts_with(prefix) {
            true => Ok(RemoteState { digest, bytes, container }),
            false => Err(self.protocol(format!("the manifest of state {prefix} does not match its digest"))),
        }
    }

    /// Whether the repository has this state: one small request.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn has_state(&self, repository: &Repository, digest: &Digest) -> Result<bool, OriginError> {
        let request = self.request(Method::HEAD, repository, &format!("states/{}", digest.to_hex()));
        super::found(self.send(request, || format!("state {digest}")).await)
    }

    /// The states of a repository, newest first; none of one that does not exist.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn states(&self, repository: &Repository) -> Result<States, OriginError> {
        match self.send(self.request(Method::GET, repository, "states"), || repository.to_string()).await {
            Err(OriginError::NotFound { .. }) => Ok(States { repository: repository.as_str().to_owned(), states: Vec::new() }),
            Err(error) => Err(error),
            Ok(response) => self.json(response).await,
        }
    }

    /// Makes the registry forget a state.
    ///
    /// # Errors
    /// [`OriginError::NotFound`] if it has no such state.
    pub async fn delete_state(&self, repository: &Repository, digest: &Digest) -> Result<(), OriginError> {
        self.send(self.request(Method::DELETE, repository, &format!("states/{}", digest.to_hex())), || format!("state {digest}")).await.map(drop)
    }
}
