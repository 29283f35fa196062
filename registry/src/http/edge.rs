//! Around every request: how many at a time, what is counted and logged, and one form for every error, also for those
//! that the framework makes and for panics.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::body::HttpBody;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;

use super::error::ApiError;
use crate::app::Shared;

/// Which route answered: for metrics.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteLabel(pub(crate) &'static str);

/// A request's id: in its answer, in logs and in the audit log.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The middleware.
pub(crate) async fn edge(State(app): State<Shared>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = format!("{:016x}", rand::random::<u64>());
    request.extensions_mut().insert(RequestId(id.clone()));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = match app.requests.clone().try_acquire_owned() {
        Err(_) => ApiError::busy("requests").into_response(),
        Ok(_permit) => match AssertUnwindSafe(next.run(request)).catch_unwind().await {
            Ok(response) => response,
            Err(_) => {
                tracing::error!(%method, path, "a request made the server panic");
                ApiError::panicked().into_response()
            }
        },
    };
    let status = response.status();
    if (status.is_client_error() || status.is_server_error()) && !is_json(&response) {
        let allow = response.headers_mut().remove(header::ALLOW);
        response = ApiError::from_status(status).into_response();
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response.headers_mut().extend(HeaderValue::try_from(&id).ok().map(|value| (REQUEST_ID, value)));
    let route = response.extensions().get::<RouteLabel>().map_or_else(|| site_label(&path), |label| label.0);
    app.metrics.request(route, status.as_u16());
    if let Some(len) = response.body().size_hint().exact()
        && method != Method::HEAD
    {
        app.metrics.sent_bytes.fetch_add(len, Ordering::Relaxed);
    }
    let milliseconds = began.elapsed().as_millis() as u64;
    tracing::debug!(%method, path, request.id = id, status = status.as_u16(), milliseconds, "answered {method} {path} with {}", status.as_u16());
    response
}

fn is_json(response: &Response) -> bool {
    response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/json"))
}

fn site_label(path: &str) -> &'static str {
    match path {
        "/healthz" => "healthz",
        "/readyz" => "readyz",
        "/metrics" => "metrics",
        "/openapi.json" => "openapi",
        "/v1/capabilities" => "capabilities",
        "/v1/repositories" => "repositories",
        "/auth/token" => "token",
        "/auth/revoke" => "revoke",
        "/v1/whoami" => "whoami",
        "/v1/users" | "/v1/keys" | "/v1/grants" | "/v1/audit" => "manage",
        _ if path.starts_with("/v1/users/") || path.starts_with("/v1/keys/") => "manage",
        _ => "none",
    }
}
