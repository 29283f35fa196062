//! Models: what was learned, what is brought from elsewhere, and which one launches get.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use layer_format::api::{DIGEST_HEADER, MODEL_MEDIA_TYPE, ModelPin, ModelPut};
use layer_format::model::{MAX_MODEL_LEN, Model};

use super::body::PacedBody;
use super::error::ApiError;
use super::routes::{self, Call};
use crate::app::Shared;
use crate::service::image::Reference;
use crate::service::models::{Wanted, image_of, model_find, model_forget, model_pin, model_unpin};

/// Longest body that names a model.
const MAX_PIN_LEN: usize = 1 << 10;

/// The model of the newest image; with `?image=` what launches of an image get, with `?digest=` a certain one.
#[utoipa::path(get, path = "/v1/repositories/{repository}/-/model", params(("digest" = Option<String>, Query), ("image" = Option<String>, Query)), responses((status = 200, content_type = "application/vnd.turbo.model"), (status = 304, description = "not modified"), (status = 404, description = "none")))]
pub(crate) async fn get(app: &Shared, call: Call) -> Result<Response, ApiError> {
    let wanted = match (call.query("digest"), call.query("image")) {
        (Some(digest), _) => Wanted::Digest(routes::digest(&digest)?),
        (None, Some(image)) => Wanted::Of(routes::reference(&image)?),
        (None, None) => Wanted::Newest,
    };
    let (digest, bytes) = model_find(&app.db, &call.repository, &wanted).await?.ok_or_else(ApiError::model_unknown)?;
    let etag = format!("\"{digest}\"");
    let unchanged =
        call.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == etag));
    let len = bytes.len();
    let mut response = match (unchanged, &call.method) {
        (true, _) => StatusCode::NOT_MODIFIED.into_response(),
        (_, &Method::HEAD) => StatusCode::OK.into_response(),
        _ => bytes.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MODEL_MEDIA_TYPE));
    let caching = if matches!(wanted, Wanted::Digest(_)) { "public, max-age=31536000, immutable" } else { "no-cache" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    if !unchanged {
        headers.insert(header::CONTENT_LENGTH, len.into());
    }
    for (name, value) in [(header::ETAG.as_str(), etag), (DIGEST_HEADER, digest.to_string())] {
        if let (Ok(name), Ok(value)) = (header::HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
    Ok(response)
}

/// Forgets what was learned.
#[utoipa::path(delete, path = "/v1/repositories/{repository}/-/model", responses((status = 202, description = "forgotten"), (status = 404, description = "there was none")))]
pub(crate) async fn delete(app: &Shared, call: Call) -> Result<Response, ApiError> {
    match model_forget(&app.db, &call.repository).await? {
        true => Ok(StatusCode::ACCEPTED.into_response()),
        false => Err(ApiError::model_unknown()),
    }
}

/// Brings a model from elsewhere: launches of the image named by `?image=` (`head` if none is) get it, or what of it is in the image.
#[utoipa::path(put, path = "/v1/repositories/{repository}/-/model", params(("image" = Option<String>, Query)), request_body(content_type = "application/vnd.turbo.model"),
    responses((status = 201, content_type = "application/json"), (status = 404, description = "the image is unknown"), (status = 422, description = "it names nothing that is in the image")))]
pub(crate) async fn put(app: &Shared, call: Call) -> Result<Response, ApiError> {
    let reference = match call.query("image") {
        Some(image) => routes::reference(&image)?,
        None => Reference::Release(layer_format::reference::HEAD.into()),
    };
    let bytes = PacedBody::new(app, &call.headers, call.body, MAX_MODEL_LEN).collect().await?;
    let decoded = tokio::task::spawn_blocking(move || Model::decode(&bytes)).await.map_err(|error| ApiError::internal(&error))?;
    let image = image_of(&app.db, &call.repository, &reference).await?;
    let digest = app.learner.import(&image, decoded?).await?;
    Ok((StatusCode::CREATED, Json(ModelPut { digest, image: image.digest })).into_response())
}

/// Pins a model: launches get it whatever is learned.
#[utoipa::path(put, path = "/v1/repositories/{repository}/-/pins/{reference}", request_body(content_type = "application/json"),
    responses((status = 200, content_type = "application/json"), (status = 404, description = "image or model is unknown"), (status = 409, description = "too many pins")))]
pub(crate) async fn pin(app: &Shared, call: Call, reference: Reference) -> Result<Response, ApiError> {
    let body = PacedBody::new(app, &call.headers, call.body, MAX_PIN_LEN).collect().await?;
    let asked: ModelPin = match body.is_empty() {
        true => ModelPin::default(),
        false => serde_json::from_slice(&body).map_err(ApiError::body_invalid)?,
    };
    let digest = model_pin(&app.db, &call.repository, &reference, asked.model).await?;
    Ok(Json(ModelPin { model: Some(digest) }).into_response())
}

/// Takes a pin away.
#[utoipa::path(delete, path = "/v1/repositories/{repository}/-/pins/{reference}", responses((status = 202, description = "unpinned"), (status = 404, description = "nothing is pinned there")))]
pub(crate) async fn unpin(app: &Shared, call: Call, reference: Reference) -> Result<Response, ApiError> {
    model_unpin(&app.db, &call.repository, &reference).await?;
    Ok(StatusCode::ACCEPTED.into_response())
}
