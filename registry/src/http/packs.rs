//! Packs: how objects come in.

use std::sync::atomic::Ordering;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use layer_format::Digest;
use layer_format::pack::MAX_PACK_LEN;

use super::body::PacedBody;
use super::error::ApiError;
use super::routes::Call;
use crate::app::Shared;
use crate::service::pack_upload::{PackError, pack_promise, pack_store};

/// Takes a pack: streamed, every object verified before the answer.
#[utoipa::path(put, path = "/v1/repositories/{repository}/-/packs/{digest}", request_body(content_type = "application/vnd.turbo.pack"),
    responses((status = 201, description = "stored, durable"), (status = 200, description = "was stored"), (status = 400, description = "damaged, cut short, or another pack")))]
pub(crate) async fn put(app: &Shared, call: Call, digest: Digest) -> Result<Response, ApiError> {
    let _permit = app.uploads.clone().try_acquire_owned().map_err(|_| ApiError::busy("uploads"))?;
    let mut body = PacedBody::new(app, &call.headers, call.body, MAX_PACK_LEN as usize);
    if pack_promise(&app.objects, &app.storage, call.repository.namespace(), &digest).await? {
        // Read it, or the client would see a broken connection instead of the answer.
        while body.next().await.transpose()?.is_some() {}
        return Ok(StatusCode::OK.into_response());
    }
    app.leases.renew(&call.repository).await?;
    match pack_store(&app.objects, &app.storage, call.repository.namespace(), digest, &mut body).await {
        Ok(true) => {
            app.metrics.packs_stored.fetch_add(1, Ordering::Relaxed);
            Ok(StatusCode::CREATED.into_response())
        }
        Ok(false) => Ok(StatusCode::OK.into_response()),
        Err(error) => {
            if let PackError::Invalid(_) = error {
                body.drain().await;
            }
            Err(error.into())
        }
    }
}

/// Whether a pack is stored.
#[utoipa::path(head, path = "/v1/repositories/{repository}/-/packs/{digest}", responses((status = 200, description = "stored"), (status = 404, description = "not stored")))]
pub(crate) async fn head(app: &Shared, call: Call, digest: Digest) -> Result<Response, ApiError> {
    match pack_promise(&app.objects, &app.storage, call.repository.namespace(), &digest).await? {
        true => Ok(StatusCode::OK.into_response()),
        false => Err(ApiError::pack_unknown()),
    }
}
