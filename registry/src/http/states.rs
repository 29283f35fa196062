//! States of a repository.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use layer_format::Digest;
use layer_format::api::{CONTAINER_HEADER, DIGEST_HEADER, MAX_STATES, STATE_MEDIA_TYPE, StateInfo, StatePut, States};
use layer_format::manifest::MAX_MANIFEST_LEN;
use layer_format::reference::{Repository, is_release};

use super::body::PacedBody;
use super::error::ApiError;
use super::routes::Call;
use crate::app::Shared;
use crate::service::state::{self, Resolved, StatePrefix};

/// Keeps a state, if all that its sandbox needs is there.
#[utoipa::path(put, path = "/v1/repositories/{repository}/-/states/{state}", request_body(content_type = "application/vnd.turbo.state+json"),
    responses((status = 201, description = "visible and complete"), (status = 422, description = "objects are missing: detail lists up to 1000")))]
pub(crate) async fn put(app: &Shared, call: Call, digest: Digest) -> Result<Response, ApiError> {
    let container = match call.headers.get(CONTAINER_HEADER).map(|value| value.to_str()) {
        None => None,
        Some(Ok(name)) if is_release(name) => Some(name.to_owned()),
        Some(_) => return Err(ApiError::request_invalid(format!("{CONTAINER_HEADER} has 1 to 128 letters, digits, `_`, `.` and `-`"))),
    };
    let bytes = PacedBody::new(app, &call.headers, call.body, MAX_MANIFEST_LEN).collect().await?;
    let existed = state::put(&app.objects, &app.nodes, &call.repository, &digest, container.as_deref(), &bytes).await?;
    // Whose states these are is not for the log.
    tracing::info!(state.digest = %digest, existed, "put state {digest}");
    Ok((StatusCode::CREATED, Json(StatePut { digest, existed })).into_response())
}

/// A state's bytes, by its id or at least eight hex digits that it starts with.
#[utoipa::path(get, path = "/v1/repositories/{repository}/-/states/{state}", responses((status = 200, content_type = "application/vnd.turbo.state+json"),
    (status = 404, description = "unknown"), (status = 409, description = "several start with these digits: detail lists some")))]
pub(crate) async fn get(app: &Shared, call: Call, prefix: StatePrefix) -> Result<Response, ApiError> {
    let digest = resolve(app, &call.repository, &prefix).await?;
    let state = state::get(&app.db, &call.repository, &digest).await?.ok_or_else(ApiError::state_unknown)?;
    let len = state.bytes.len();
    let mut response = match call.method {
        Method::HEAD => StatusCode::OK.into_response(),
        _ => state.bytes.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, len.into());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(STATE_MEDIA_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private"));
    for (name, value) in [(DIGEST_HEADER, Some(digest.to_string())), (CONTAINER_HEADER, state.container)] {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
    Ok(response)
}

/// Forgets a state.
#[utoipa::path(delete, path = "/v1/repositories/{repository}/-/states/{state}", responses((status = 202, description = "forgotten"), (status = 404, description = "unknown"),
    (status = 409, description = "several start with these digits: detail lists some")))]
pub(crate) async fn delete(app: &Shared, call: Call, prefix: StatePrefix) -> Result<Response, ApiError> {
    let digest = resolve(app, &call.repository, &prefix).await?;
    match state::delete(&app.db, &call.repository, &digest, &call.visit.told()).await? {
        true => Ok(StatusCode::ACCEPTED.into_response()),
        false => Err(ApiError::state_unknown()),
    }
}

/// The repository's states, newest first, at most 1000; `?limit=` asks for fewer.
#[utoipa::path(get, path = "/v1/repositories/{repository}/-/states", responses((status = 200, content_type = "application/json"), (status = 404, description = "unknown")))]
pub(crate) async fn list(app: &Shared, call: Call) -> Result<Response, ApiError> {
    let limit = match call.query("limit").map(|text| text.parse::<usize>()) {
        None => MAX_STATES,
        Some(Ok(limit)) if (1..=MAX_STATES).contains(&limit) => limit,
        Some(_) => return Err(ApiError::request_invalid(format!("`limit` is a number from 1 to {MAX_STATES}"))),
    };
    let rows = state::list(&app.db, &call.repository, limit as u32).await?.ok_or_else(ApiError::repository_unknown)?;
    let states = rows.into_iter().map(|row| StateInfo {
        digest: row.digest,
        container: row.container,
        bytes: row.sandbox_bytes,
        pushed_at: (row.pushed_at / 1000).max(0).cast_unsigned(),
    });
    Ok(Json(States { repository: call.repository.as_str().to_owned(), states: states.collect() }).into_response())
}

async fn resolve(app: &Shared, repository: &Repository, prefix: &StatePrefix) -> Result<Digest, ApiError> {
    match state::resolve(&app.db, repository, prefix).await? {
        Resolved::One(digest) => Ok(digest),
        Resolved::Unknown => Err(ApiError::state_unknown()),
        Resolved::Ambiguous(found) => Err(ApiError::state_ambiguous(&found)),
    }
}
