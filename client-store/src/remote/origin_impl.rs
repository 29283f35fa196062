//! [`Origin`] over HTTP: streams of objects.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use layer_format::Digest;
use layer_format::api::{DIGESTS_MEDIA_TYPE, LANES_MEDIA_TYPE, LAUNCH_HEADER, LaunchRequest, MAX_LANES, STREAM_MEDIA_TYPE, TRACE_MEDIA_TYPE, encode_digests};
use layer_format::reference::{ImageReference, Repository};
use reqwest::{Method, Response};

use super::lanes::Pieces;
use super::stream::StreamDecoder;
use super::{Inner, Registry};
use crate::origin::{ObjectStream, Origin, OriginError, Received};

/// Lanes beside a launch's answer, over a link that is far, unless configured: the ramp of slow start is four times as
/// steep, and a lost packet slows only one of four. Over 100 Mbit/s and 100 ms launches of scipy took 2.5 to 2.7 s in place of
/// 2.8 to 3.4 s (three interleaved rounds on a quiet machine); more lanes gained nothing.
const LANES: u8 = 3;
/// A shorter round trip makes slow starts short: one connection does.
const NEAR_US: u64 = 5_000;
/// Records that an answer to a request for objects may have beyond one for each: the protocol may grow. More is not what
/// was asked for, and could go on for ever.
pub(super) const MORE_RECORDS: usize = 64;
/// Bytes that may follow the end of a stream before its connection is given up.
const MORE_BYTES: usize = 64 << 10;

impl Origin for Registry {
    fn objects(
        &self,
        repository: &Repository,
        digests: Vec<Digest>,
        launch: Option<&str>,
        frames: bool,
    ) -> BoxFuture<'static, Result<ObjectStream, OriginError>> {
        let path = if frames { "objects?frames=1" } else { "objects" };
        let mut request = self.request(Method::POST, repository, path).header("content-type", DIGESTS_MEDIA_TYPE).header("accept", STREAM_MEDIA_TYPE);
        if let Some(launch) = launch {
            request = request.header(LAUNCH_HEADER, launch);
        }
        let (this, repository) = (self.clone(), repository.clone());
        async move {
            let response = this.send(request.body(encode_digests(&digests)), || repository.to_string()).await?;
            this.records(response, Vec::new(), digests.len() + MORE_RECORDS)
        }
        .boxed()
    }

    fn launch(&self, image: &ImageReference, launch: &str, mut body: LaunchRequest) -> BoxFuture<'static, Result<ObjectStream, OriginError>> {
        let (this, image, launch) = (self.clone(), image.clone(), launch.to_owned());
        async move {
            let path = format!("launch/{}", this.revision(&image).await?);
            if this.inner.options.cached_launch && body.predict && body.have.is_none() && body.model.is_none() && !body.metered {
                let response = this.send(this.cached_launch(&image, &path, &body), || image.to_string()).await?;
                return this.records(response, Vec::new(), usize::MAX);
            }
            body.link = body.link.or(this.inner.options.link);
            body.lanes = if body.predict { this.inner.lanes() } else { 0 };
            let request = this.request(Method::POST, &image.repository, &path).header(LAUNCH_HEADER, &launch).header("accept", STREAM_MEDIA_TYPE);
            // Asked for at once, so that their handshakes cost no time of their own.
            let lanes: Vec<_> = (0..body.lanes).map(|_| Aborted(tokio::spawn(this.clone().lane(image.repository.clone(), launch.clone())))).collect();
            let response = this.send(request.json(&body), || image.to_string()).await?;
            this.records(response, lanes, usize::MAX)
        }
        .boxed()
    }

    fn warm_up(&self, connections: usize) -> BoxFuture<'static, ()> {
        let this = self.clone();
        async move {
            let url = format!("{}/healthz", this.inner.url);
            let knock = || async {
                // The body is read, so that the connection can be used again.
                if let Ok(Ok(answer)) = this.in_time(this.inner.client.get(&url).send()).await {
                    let _ = this.body(answer, 64 << 10).await;
                }
            };
            // All at once: one after the other would use one connection again and again.
            futures::future::join_all((0..connections).map(|_| knock())).await;
        }
        .boxed()
    }

    fn put_trace(&self, repository: &Repository, trace: Vec<u8>) -> BoxFuture<'static, Result<(), OriginError>> {
        let request = self.request(Method::POST, repository, "traces").header("content-type", TRACE_MEDIA_TYPE).body(trace);
        let (this, repository) = (self.clone(), repository.clone());
        async move { this.send(request, || repository.to_string()).await.map(drop) }.boxed()
    }

    fn received_bytes(&self) -> Option<u64> {
        Some(self.received.load(Ordering::Relaxed))
    }
}

/// A task that ends when this is dropped.
pub(super) struct Aborted<T>(pub(super) tokio::task::JoinHandle<T>);

impl<T> Drop for Aborted<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A lane that was asked for.
pub(super) type Lane = Aborted<Result<Response, OriginError>>;

/// Where a stream's bytes come from.
enum Source {
    Whole(Response),
    Lanes(Pieces),
}

/// A stream being received. Dropping it ends the request.
struct Receiving {
    registry: Registry,
    source: Source,
    decoder: StreamDecoder,
    /// Records that may still come.
    records_left: usize,
    /// Bytes that came after the end.
    after_end: usize,
    failed: bool,
}

impl Inner {
    /// How many lanes a launch opens: as configured, else none to a registry that is near.
    fn lanes(&self) -> u8 {
        let is_near = match self.options.link.or_else(|| self.link.hint()) {
            Some(link) => link.round_trip_us < NEAR_US,
            None => self.is_loopback,
        };
        self.options.lanes.unwrap_or(if is_near { 0 } else { LANES }).min(MAX_LANES)
    }
}

impl Registry {
    async fn lane(self, repository: Repository, launch: String) -> Result<Response, OriginError> {
        let request = self.request(Method::GET, &repository, &format!("lanes/{launch}")).header("accept", LANES_MEDIA_TYPE);
        let response = self.send(request, || "the launch".to_owned()).await?;
        match media_type(&response) {
            LANES_MEDIA_TYPE => Ok(response),
            other => Err(OriginError::NotFound { what: format!("a lane (it is {other})"), url: self.inner.url.clone() }),
        }
    }

    fn cached_launch(&self, image: &ImageReference, path: &str, body: &LaunchRequest) -> reqwest::RequestBuilder {
        let mut query = vec![("architecture", body.architecture.clone()), ("budget", body.budget_bytes.to_string())];
        query.extend(body.entry_point.clone().map(|entry_point| ("entry_point", entry_point)));
        let query: String = query.into_iter().map(|(name, value)| format!("&{name}={}", escape(&value))).collect();
        self.request(Method::GET, &image.repository, &format!("{path}?{}", &query[1..])).header("accept", STREAM_MEDIA_TYPE)
    }

    /// The records of an answer, of at most so many.
    pub(super) fn records(&self, response: Response, lanes: Vec<Lane>, most: usize) -> Result<ObjectStream, OriginError> {
        let source = match media_type(&response) {
            STREAM_MEDIA_TYPE => Source::Whole(response),
            LANES_MEDIA_TYPE if !lanes.is_empty() => Source::Lanes(Pieces::new(self, response, lanes)),
            other => return Err(self.protocol(format!("it sends {other} where an object stream is due; is this a Turbo registry?"))),
        };
        let decoder = StreamDecoder::new().map_err(|error| self.protocol(error.to_string()))?;
        let receiving = Receiving { registry: self.clone(), source, decoder, records_left: most, after_end: 0, failed: false };
        Ok(stream::unfold(receiving, |mut receiving| async move { receiving.next().await.map(|item| (item, receiving)) }).boxed())
    }
}

fn media_type(response: &Response) -> &str {
    response.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or("no content-type")
}

/// A value of a query: all but the safest characters as `%XX`.
fn escape(value: &str) -> String {
    let safe = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(byte);
    value.bytes().map(|byte| if safe(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

impl Source {
    async fn next(&mut self, registry: &Registry) -> Result<Option<Bytes>, OriginError> {
        match self {
            Self::Whole(response) => registry.piece(response).await,
            Self::Lanes(pieces) => pieces.next().await,
        }
    }
}

impl Receiving {
    /// The next record; an error is the last item.
    async fn next(&mut self) -> Option<Result<Received, OriginError>> {
        if self.failed {
            return None;
        }
        match self.receive().await {
            Ok(None) => None,
            Ok(Some(received)) => Some(Ok(received)),
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<Received>, OriginError> {
        let registry = &self.registry;
        loop {
            if let Some(received) = self.decoder.next() {
                let left = self.records_left.checked_sub(1);
                self.records_left = left.ok_or_else(|| registry.protocol("it sends more objects than it was asked for".into()))?;
                return Ok(Some(received));
            }
            if self.decoder.ended() {
                // Reads to the end of the body, or the connection could not be used again; whatever it says, if it is short.
                match self.source.next(registry).await {
                    Ok(Some(piece)) if self.after_end < MORE_BYTES => self.after_end += piece.len(),
                    _ => return Ok(None),
                }
                continue;
            }
            match self.source.next(registry).await? {
                Some(piece) => self.decoder.feed(&piece).map_err(|error| registry.protocol(error.to_string()))?,
                None => return Err(OriginError::Network { url: registry.url().to_owned(), reason: "the answer was cut short".into() }),
            }
        }
    }
}
