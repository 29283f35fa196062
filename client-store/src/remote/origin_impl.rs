//! [`Origin`] over HTTP: streams of objects.

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use layer_format::Digest;
use layer_format::api::{DIGESTS_MEDIA_TYPE, LAUNCH_HEADER, LaunchRequest, STREAM_MEDIA_TYPE, TRACE_MEDIA_TYPE, encode_digests};
use layer_format::reference::{ImageReference, Repository};
use reqwest::{Method, Response};

use super::Registry;
use super::stream::StreamDecoder;
use crate::origin::{ObjectStream, Origin, OriginError, Received};

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
            this.records(response)
        }
        .boxed()
    }

    fn launch(&self, image: &ImageReference, launch: &str, body: LaunchRequest) -> BoxFuture<'static, Result<ObjectStream, OriginError>> {
        let (this, image, launch) = (self.clone(), image.clone(), launch.to_owned());
        async move {
            let path = format!("launch/{}", this.revision(&image).await?);
            let request = this.request(Method::POST, &image.repository, &path).header(LAUNCH_HEADER, launch).header("accept", STREAM_MEDIA_TYPE).json(&body);
            let response = this.send(request, || image.to_string()).await?;
            this.records(response)
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
}

/// A stream being received. Dropping it ends the request.
struct Receiving {
    registry: Registry,
    response: Response,
    decoder: StreamDecoder,
    failed: bool,
}

impl Registry {
    fn records(&self, response: Response) -> Result<ObjectStream, OriginError> {
        let media_type = response.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or("no content-type");
        if media_type != STREAM_MEDIA_TYPE {
            return Err(self.protocol(format!("it sends {media_type} where an object stream is due; is this a Turbo registry?")));
        }
        let decoder = StreamDecoder::new().map_err(|error| self.protocol(error.to_string()))?;
        let receiving = Receiving { registry: self.clone(), response, decoder, failed: false };
        Ok(stream::unfold(receiving, |mut receiving| async move { receiving.next().await.map(|item| (item, receiving)) }).boxed())
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
                return Ok(Some(received));
            }
            let piece = match self.decoder.ended() {
                // Reads to the end of the body, or the connection could not be used again; whatever it says.
                true => match registry.in_time(self.response.chunk()).await {
                    Ok(Ok(Some(_))) => continue,
                    _ => return Ok(None),
                },
                false => registry.in_time(self.response.chunk()).await?.map_err(|error| registry.network(&error))?,
            };
            match piece {
                Some(piece) => self.decoder.feed(&piece).map_err(|error| registry.protocol(error.to_string()))?,
                None => return Err(OriginError::Network { url: registry.url().to_owned(), reason: "the answer was cut short".into() }),
            }
        }
    }
}
