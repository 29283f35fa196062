//! Image manifests and releases.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use layer_format::api::{DIGEST_HEADER, IMAGE_MEDIA_TYPE, ManifestPut, Tags};
use layer_format::manifest::MAX_MANIFEST_LEN;
use layer_format::reference::HEAD;

use super::body::PacedBody;
use super::error::ApiError;
use super::routes::Call;
use crate::app::Shared;
use crate::service::image::{Reference, image_delete, image_get, image_put, image_tags};

/// Makes an image visible, if all that it needs is there.
#[utoipa::path(put, path = "/v1/repositories/{repository}/-/manifests/{reference}", request_body(content_type = "application/vnd.turbo.image+json"),
    responses((status = 201, description = "visible and complete"), (status = 422, description = "objects are missing: detail lists up to 1000")))]
pub(crate) async fn put(app: &Shared, call: Call, reference: Reference) -> Result<Response, ApiError> {
    let bytes = PacedBody::new(app, &call.headers, call.body, MAX_MANIFEST_LEN).collect().await?;
    let put = image_put(&app.objects, &app.nodes, &call.repository, &reference, &bytes).await?;
    tracing::info!(repository = call.repository.as_str(), image.digest = %put.digest, existed = put.existed, "put image {} of {}", put.digest, call.repository);
    if let Some(trainer) = app.trainer.lock().as_ref() {
        trainer.carry(call.repository, put.digest);
    }
    Ok((StatusCode::CREATED, Json(ManifestPut { digest: put.digest, existed: put.existed })).into_response())
}

/// An image's bytes.
#[utoipa::path(get, path = "/v1/repositories/{repository}/-/manifests/{reference}", responses((status = 200, content_type = "application/vnd.turbo.image+json"), (status = 404, description = "unknown")))]
pub(crate) async fn get(app: &Shared, call: Call, reference: Reference) -> Result<Response, ApiError> {
    let image = image_get(&app.db, &call.repository, &reference).await?.ok_or_else(ApiError::manifest_unknown)?;
    let len = image.bytes.len();
    let mut response = match call.method {
        Method::HEAD => StatusCode::OK.into_response(),
        _ => image.bytes.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, len.into());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(IMAGE_MEDIA_TYPE));
    if let Ok(value) = HeaderValue::try_from(image.digest.to_string()) {
        headers.insert(DIGEST_HEADER, value);
    }
    Ok(response)
}

/// Forgets a release, or an image with its releases.
#[utoipa::path(delete, path = "/v1/repositories/{repository}/-/manifests/{reference}", responses((status = 202, description = "forgotten"), (status = 404, description = "unknown")))]
pub(crate) async fn delete(app: &Shared, call: Call, reference: Reference) -> Result<Response, ApiError> {
    if reference == Reference::Release(HEAD.into()) {
        return Err(ApiError::release_invalid("`head` follows every push and cannot be deleted; delete an image by its digest"));
    }
    match image_delete(&app.db, &call.repository, &reference, &call.visit.told()).await? {
        true => Ok(StatusCode::ACCEPTED.into_response()),
        false => Err(ApiError::manifest_unknown()),
    }
}

/// The repository's releases.
#[utoipa::path(get, path = "/v1/repositories/{repository}/-/tags", responses((status = 200, content_type = "application/json"), (status = 404, description = "unknown")))]
pub(crate) async fn tags(app: &Shared, call: Call) -> Result<Response, ApiError> {
    let tags = image_tags(&app.db, &call.repository).await?.ok_or_else(ApiError::repository_unknown)?;
    Ok(Json(Tags { repository: call.repository.as_str().to_owned(), tags }).into_response())
}
