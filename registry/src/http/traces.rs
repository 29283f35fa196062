//! Traces: what runs touched first.

use std::net::IpAddr;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use layer_format::FormatError;
use layer_format::manifest::{ImageManifest, Manifest};
use layer_format::trace::{MAX_TRACE_LEN, Trace};

use super::body::PacedBody;
use super::error::ApiError;
use super::routes::Call;
use crate::app::Shared;
use crate::service::image::{Reference, image_get};
use crate::service::train::refused;

/// The address at the other end of a connection: part of each of its requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Takes a trace; it is learned in the background.
#[utoipa::path(post, path = "/v1/repositories/{repository}/-/traces", request_body(content_type = "application/vnd.turbo.trace"),
    responses((status = 202, description = "accepted"), (status = 403, description = "this server, or the image, takes none"), (status = 404, description = "the image is unknown"), (status = 429, description = "too many are waiting, or came from this address")))]
pub(crate) async fn post(app: &Shared, call: Call) -> Result<Response, ApiError> {
    let metrics = &app.metrics;
    if !app.config.traces {
        metrics.trace_refused("disabled");
        return Err(ApiError::traces_disabled());
    }
    let trainer = app.trainer.lock().clone().ok_or_else(|| ApiError::busy("work before it stops"))?;
    let source = trainer.source(call.visit.address);
    let bytes = PacedBody::new(app, &call.headers, call.body, MAX_TRACE_LEN).collect().await?;
    let decoded = tokio::task::spawn_blocking(move || decode(&bytes)).await.map_err(|error| ApiError::internal(&error))?;
    let trace = decoded.inspect_err(|_| metrics.trace_refused("malformed"))?;
    let found = image_get(&app.db, &call.repository, &Reference::Digest(trace.image)).await?;
    let image = found.ok_or_else(ApiError::manifest_unknown).inspect_err(|_| metrics.trace_refused("unknown_image"))?;
    if ImageManifest::decode(&image.bytes).is_ok_and(|manifest| manifest.no_profiling) {
        metrics.trace_refused("image");
        return Err(ApiError::profiling_disabled());
    }
    trainer.accept(call.repository, image, trace, source).inspect_err(|error| refused(metrics, *error))?;
    metrics.traces_accepted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Ok(StatusCode::ACCEPTED.into_response())
}

/// The trace, if its architecture is a name as `uname -m` gives it.
fn decode(bytes: &[u8]) -> Result<Trace, FormatError> {
    let trace = Trace::decode(bytes)?;
    match trace.architecture.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')) {
        true => Ok(trace),
        false => Err(FormatError::Invalid { what: "trace", rule: "an architecture has letters, digits, `_`, `-` and `.`" }),
    }
}
