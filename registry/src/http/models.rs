//! Models: what was learned.

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use layer_format::api::{DIGEST_HEADER, MODEL_MEDIA_TYPE};

use super::error::ApiError;
use super::routes::{self, Call};
use crate::app::Shared;
use crate::service::train::{model_find, model_forget};

/// The repository's model; with `?digest=` an earlier one.
#[utoipa::path(get, path = "/v1/repositories/{repository}/-/model", params(("digest" = Option<String>, Query)), responses((status = 200, content_type = "application/vnd.turbo.model"), (status = 304, description = "not modified"), (status = 404, description = "none")))]
pub(crate) async fn get(app: &Shared, call: Call) -> Result<Response, ApiError> {
    let wanted = call.query("digest").map(|text| routes::digest(&text)).transpose()?;
    let (digest, bytes) = model_find(&app.db, &call.repository, wanted).await?.ok_or_else(ApiError::model_unknown)?;
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
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
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
