//! Sending a pack.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use layer_format::Digest;
use layer_format::api::PACK_MEDIA_TYPE;
use layer_format::reference::Repository;
use reqwest::{Method, Response, StatusCode};
use tokio_util::io::ReaderStream;

use super::Registry;
use super::http::{authorised, is_unauthorised};
use crate::origin::OriginError;

/// Bytes read from the file at a time.
const PIECE_LEN: usize = 256 << 10;
/// How long a registry may take to verify and store a pack once it has all of it.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(300);

impl Registry {
    /// Sends the pack in `file`, whose BLAKE3 is `digest`, reading it piece by piece. `sent` is told the bytes of each
    /// piece. Returns whether the registry did not have it yet.
    ///
    /// # Errors
    /// [`OriginError::Refused`] if the pack is not valid; [`OriginError::Network`] also if the file cannot be read.
    pub async fn put_pack(
        &self,
        repository: &Repository,
        digest: &Digest,
        file: &Path,
        sent: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<bool, OriginError> {
        let (sent, mut token) = (Arc::new(sent), self.token().await?);
        let mut answer = self.send_pack(repository, digest, file, &sent, token.as_deref()).await?;
        if is_unauthorised(answer.status())
            && let Some(renewed) = self.renewed(answer.status(), token.as_deref()).await?
        {
            token = Some(renewed);
            answer = self.send_pack(repository, digest, file, &sent, token.as_deref()).await?;
        }
        let answer = self.check(answer, || repository.to_string()).await?;
        Ok(answer.status() == StatusCode::CREATED)
    }

    async fn send_pack(
        &self,
        repository: &Repository,
        digest: &Digest,
        file: &Path,
        sent: &Arc<impl Fn(u64) + Send + Sync + 'static>,
        token: Option<&str>,
    ) -> Result<Response, OriginError> {
        let unreadable =
            |error: std::io::Error| OriginError::Network { url: self.url().to_owned(), reason: format!("{} cannot be read: {error}", file.display()) };
        let opened = tokio::fs::File::open(file).await.map_err(unreadable)?;
        let len = opened.metadata().await.map_err(unreadable)?.len();
        let (taken, sent) = (Arc::new(AtomicU64::new(0)), Arc::clone(sent));
        let body = counted(ReaderStream::with_capacity(opened, PIECE_LEN), Arc::clone(&taken), move |bytes| sent(bytes));
        let request = self.request(Method::PUT, repository, &format!("packs/{digest}")).header("content-type", PACK_MEDIA_TYPE).header("content-length", len);
        let sending = authorised(request, token).body(reqwest::Body::wrap_stream(body)).send();
        self.while_taken(sending, &taken, len).await?.map_err(|error| self.network(&error))
    }

    /// Waits for an answer as long as the body is being taken, and then as long as verifying may take.
    async fn while_taken<T>(&self, answer: impl Future<Output = T>, taken: &AtomicU64, len: u64) -> Result<T, OriginError> {
        let limit = self.inner.options.idle_timeout;
        let mut answer = std::pin::pin!(answer);
        let (mut last, mut waited) = (0, Duration::ZERO);
        loop {
            let step = limit / 10;
            if let Ok(answer) = tokio::time::timeout(step, &mut answer).await {
                return Ok(answer);
            }
            let now = taken.load(Ordering::Relaxed);
            waited = if now == last { waited + step } else { Duration::ZERO };
            last = now;
            if waited >= if now >= len { limit.max(VERIFY_TIMEOUT) } else { limit } {
                return Err(self.idle(waited));
            }
        }
    }
}

fn counted<E>(pieces: impl Stream<Item = Result<Bytes, E>>, taken: Arc<AtomicU64>, sent: impl Fn(u64)) -> impl Stream<Item = Result<Bytes, E>> {
    pieces.inspect(move |piece| {
        if let Ok(piece) = piece {
            taken.fetch_add(piece.len() as u64, Ordering::Relaxed);
            sent(piece.len() as u64);
        }
    })
}
