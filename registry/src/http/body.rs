//! Request bodies: bounded in length and in patience.
//!
//! Only the time that is spent waiting for the client counts, so that a slow disk here cuts no one off.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;

use crate::app::Shared;
use crate::service::pack_upload::Pieces;

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// Longer than the route takes.
    #[error("the body is longer than {limit} bytes")]
    TooLarge {
        /// Most bytes of the route.
        limit: u64,
    },
    /// Slower than the server waits.
    #[error("the body arrives too slowly")]
    Slow,
    /// The connection broke.
    #[error("the body ended early")]
    Broken(#[source] axum::Error),
}

/// How long a refused body is read on, so that the client gets to read the answer.
const DRAIN_TIME: Duration = Duration::from_secs(3);

/// A request body.
#[derive(Debug)]
pub(crate) struct PacedBody {
    app: Shared,
    inner: BodyDataStream,
    limit: u64,
    received: u64,
    waited: Duration,
    /// The length that the client states, if it is too much.
    stated: Option<u64>,
}

impl PacedBody {
    /// A body of at most `limit` bytes.
    pub(crate) fn new(app: &Shared, headers: &HeaderMap, body: Body, limit: usize) -> Self {
        let stated = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Self { app: app.clone(), inner: body.into_data_stream(), limit: limit as u64, received: 0, waited: Duration::ZERO, stated }
    }

    /// The next bytes.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        if self.stated.is_some_and(|len| len > self.limit) {
            return Some(Err(BodyError::TooLarge { limit: self.limit }));
        }
        let limits = &self.app.config.limits;
        let due = match limits.min_body_rate {
            0 => Duration::MAX,
            rate => Duration::from_secs_f64(self.received as f64 / rate as f64).max(limits.body_grace),
        };
        let patience = due.saturating_sub(self.waited).min(limits.body_idle_timeout);
        let began = Instant::now();
        let next = tokio::time::timeout(patience, self.inner.next()).await;
        self.waited += began.elapsed();
        match next {
            Err(_) => Some(Err(BodyError::Slow)),
            Ok(None) => None,
            Ok(Some(Err(error))) => Some(Err(BodyError::Broken(error))),
            Ok(Some(Ok(bytes))) => {
                self.received += bytes.len() as u64;
                self.app.metrics.received_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                match self.received > self.limit {
                    true => Some(Err(BodyError::TooLarge { limit: self.limit })),
                    false => Some(Ok(bytes)),
                }
            }
        }
    }

    /// The whole body.
    pub(crate) async fn collect(mut self) -> Result<Bytes, BodyError> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = self.next().await {
            whole.extend_from_slice(&bytes?);
        }
        Ok(whole.freeze())
    }

    /// Reads on and forgets: a client that still sends would not see the answer otherwise.
    pub(crate) async fn drain(&mut self) {
        let _ = tokio::time::timeout(DRAIN_TIME, async { while let Some(Ok(_)) = self.inner.next().await {} }).await;
    }
}

impl Pieces for PacedBody {
    type Error = BodyError;

    fn next(&mut self) -> impl Future<Output = Option<Result<Bytes, BodyError>>> + Send {
        Self::next(self)
    }
}
