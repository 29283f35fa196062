//! Traces: what runs touched first.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use layer_format::trace::{MAX_TRACE_LEN, Trace};

use super::body::PacedBody;
use super::error::ApiError;
use super::routes::Call;
use crate::app::Shared;
use crate::service::train::traced_image;

/// Takes a trace; it is merged in the background into the repository's model.
#[utoipa::path(post, path = "/v1/repositories/{repository}/-/traces", request_body(content_type = "application/vnd.turbo.trace"),
    responses((status = 202, description = "accepted"), (status = 403, description = "this server takes none"), (status = 404, description = "the image is unknown"), (status = 429, description = "too many are waiting")))]
pub(crate) async fn post(app: &Shared, call: Call) -> Result<Response, ApiError> {
    if !app.config.traces {
        return Err(ApiError::traces_disabled());
    }
    let trainer = app.trainer.lock().as_ref().map(Arc::clone).ok_or_else(|| ApiError::busy("work before it stops"))?;
    let bytes = PacedBody::new(app, &call.headers, call.body, MAX_TRACE_LEN).collect().await?;
    let decoded = tokio::task::spawn_blocking(move || Trace::decode(&bytes)).await.map_err(|error| ApiError::internal(&error))?;
    let mut trace = decoded?;
    let image = traced_image(&app.db, &call.repository, &trace).await?.ok_or_else(ApiError::manifest_unknown)?;
    let layers = layer_format::manifest::Manifest::decode(&image.bytes).map(|image: layer_format::manifest::ImageManifest| image.layers.len());
    trace.events.retain(|event| usize::from(event.layer) < *layers.as_ref().unwrap_or(&0));
    trainer.accept(call.repository, image, trace)?;
    Ok(StatusCode::ACCEPTED.into_response())
}
