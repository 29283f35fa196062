//! Requests, bounded bodies, and what a failure means.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use layer_format::api::ErrorBody;
use layer_format::reference::Repository;
use reqwest::{Certificate, Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;

use super::{Registry, RegistryOptions};
use crate::origin::OriginError;

/// Most bytes of an answer in JSON.
const MAX_JSON_LEN: usize = 16 << 20;
/// Most bytes of an error's body that are looked at.
const MAX_ERROR_LEN: usize = 256 << 10;
/// Most bytes of a file of certificates.
const MAX_CA_LEN: u64 = 4 << 20;

/// HTTP/1.1, also over TLS: each stream has a connection of its own, so that one that waits for a lost packet, or begins
/// slowly, holds up no other.
pub(super) fn client(options: &RegistryOptions, certificates: Vec<Certificate>) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .user_agent(concat!("turbo/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(30))
        .http1_only()
        .tls_certs_merge(certificates)
        // A token must not follow a redirect to another host, and the API has none.
        .redirect(reqwest::redirect::Policy::none())
        .build()
}

/// The certificates in a file.
pub(super) fn certificates(file: Option<&Path>) -> Result<Vec<Certificate>, String> {
    let Some(path) = file else { return Ok(Vec::new()) };
    let wrong = |reason: String| format!("the file of trusted certificates {} cannot be used: {reason}", path.display());
    let len = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if len > MAX_CA_LEN {
        return Err(wrong("it is too long".into()));
    }
    let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    match Certificate::from_pem_bundle(&text) {
        Ok(certificates) if certificates.is_empty() => Err(wrong("there is none in it; expected PEM".into())),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(wrong(reason(&error))),
    }
}

/// The innermost reason of an error: what a user can act on.
pub(super) fn reason(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut inner = error.source();
    while let Some(error) = inner {
        text = error.to_string();
        inner = error.source();
    }
    match () {
        () if error.is_timeout() && error.is_connect() => format!("no connection in time ({text})"),
        () if error.is_connect() => format!("no connection ({text})"),
        () => text,
    }
}

impl Registry {
    /// A request for what follows `/-/` in a repository.
    pub(super) fn request(&self, method: Method, repository: &Repository, path: &str) -> RequestBuilder {
        let url = format!("{}/v1/repositories/{}/-/{path}", self.inner.url, repository.as_str());
        self.inner.client.request(method, url)
    }

    /// Sends a request and waits for the head of its answer. One that is not authorised any more is sent once again if there
    /// is another token by now. Other answers than success are errors; `what` names what was asked for.
    pub(super) async fn send(&self, request: RequestBuilder, what: impl FnOnce() -> String) -> Result<Response, OriginError> {
        let (again, token) = (request.try_clone(), self.token().await?);
        let mut answer = self.exchange(request, token.as_deref()).await?;
        if is_unauthorised(answer.status())
            && let Some(again) = again
            && let Some(renewed) = self.renewed(answer.status(), token.as_deref()).await?
        {
            tracing::debug!("the registry did not accept the token; there is another by now");
            answer = self.exchange(again, Some(&renewed)).await?;
        }
        self.check(answer, what).await
    }

    async fn exchange(&self, request: RequestBuilder, token: Option<&str>) -> Result<Response, OriginError> {
        let begun = Instant::now();
        let answer = self.in_time(authorised(request, token).send()).await?.map_err(|error| self.network(&error))?;
        self.inner.link.answered(begun.elapsed());
        Ok(answer)
    }

    /// The next bytes of a body, counted.
    pub(super) async fn piece(&self, answer: &mut Response) -> Result<Option<Bytes>, OriginError> {
        let piece = self.in_time(answer.chunk()).await?.map_err(|error| self.network(&error))?;
        let len = piece.as_ref().map_or(0, Bytes::len) as u64;
        self.received.fetch_add(len, Ordering::Relaxed);
        self.inner.link.delivered(len, Instant::now());
        Ok(piece)
    }

    /// Turns an answer that is not a success into the error that it means.
    pub(super) async fn check(&self, answer: Response, what: impl FnOnce() -> String) -> Result<Response, OriginError> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let retry_after = header("retry-after").and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
        let body = self.read_body(answer, MAX_ERROR_LEN).await.unwrap_or_default();
        let (code, mut message) = describe(status, &body);
        if is_unauthorised(status) && (status == StatusCode::UNAUTHORIZED || code.starts_with("HTTP_")) {
            message.push_str(&format!("; run `turbo login {}`, or renew the token in TURBO_TOKEN or in the file of TURBO_TOKEN_FILE", self.inner.url));
        }
        Err(match status {
            StatusCode::NOT_FOUND => OriginError::NotFound { what: what(), url: self.inner.url.clone() },
            StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => OriginError::Busy { message, retry_after },
            _ => OriginError::Refused { status: status.as_u16(), code, message },
        })
    }

    /// The whole body, of at most `max` bytes.
    pub(super) async fn body(&self, answer: Response, max: usize) -> Result<Bytes, OriginError> {
        self.read_body(answer, max).await
    }

    async fn read_body(&self, mut answer: Response, max: usize) -> Result<Bytes, OriginError> {
        let too_long = || self.protocol(format!("its answer is longer than {max} bytes"));
        let announced = answer.content_length().unwrap_or(0);
        if announced > max as u64 {
            return Err(too_long());
        }
        let mut body = BytesMut::with_capacity(announced as usize);
        while let Some(piece) = self.piece(&mut answer).await? {
            if body.len() + piece.len() > max {
                return Err(too_long());
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.freeze())
    }

    pub(super) async fn json<T: DeserializeOwned>(&self, answer: Response) -> Result<T, OriginError> {
        let body = self.body(answer, MAX_JSON_LEN).await?;
        serde_json::from_slice(&body).map_err(|error| self.protocol(format!("{error}; is this a Turbo registry?")))
    }

    /// Waits for `future` as long as nothing may arrive.
    pub(super) async fn in_time<T>(&self, future: impl Future<Output = T>) -> Result<T, OriginError> {
        let limit = self.inner.options.idle_timeout;
        tokio::time::timeout(limit, future).await.map_err(|_| self.idle(limit))
    }

    pub(super) fn idle(&self, limit: Duration) -> OriginError {
        OriginError::Network { url: self.inner.url.clone(), reason: format!("nothing arrived for {} s", limit.as_secs()) }
    }

    pub(super) fn network(&self, error: &reqwest::Error) -> OriginError {
        OriginError::Network { url: self.inner.url.clone(), reason: reason(error) }
    }

    pub(super) fn protocol(&self, reason: String) -> OriginError {
        OriginError::Protocol { url: self.inner.url.clone(), reason }
    }
}

pub(super) fn authorised(request: RequestBuilder, token: Option<&str>) -> RequestBuilder {
    match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    }
}

/// Whether another token may help.
pub(super) fn is_unauthorised(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// Code and message of an error: ours if the body is ours, else what can be said of a proxy's answer.
fn describe(status: StatusCode, body: &[u8]) -> (String, String) {
    if let Some(error) = serde_json::from_slice::<ErrorBody>(body).ok().and_then(|body| body.errors.into_iter().next()) {
        let some: Vec<_> = error.detail.as_array().into_iter().flatten().filter_map(|item| item.as_str()).take(3).collect();
        return match some.is_empty() {
            true => (error.code, error.message),
            false => (error.code, format!("{}: {}, …", error.message, some.join(", "))),
        };
    }
    let text: String = String::from_utf8_lossy(body).chars().take(200).filter(|c| !c.is_control()).collect();
    let name = status.canonical_reason().unwrap_or("no reason given");
    (format!("HTTP_{}", status.as_u16()), if text.is_empty() { name.to_owned() } else { format!("{name}: {text}") })
}
