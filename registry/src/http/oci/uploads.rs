//! Blobs in: at once, in order piece by piece, or from another repository.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use layer_format::oci::{Algorithm, OciDigest};

use super::error::OciError;
use super::routes::{Call, repository};
use crate::app::Shared;
use crate::http::body::PacedBody;
use crate::service::access::rights::{Right, Target};
use crate::service::oci::upload::{ChunkRange, UploadError};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// The header that names what an answer is about.
pub(super) fn content_digest(digest: &OciDigest) -> Option<(HeaderName, HeaderValue)> {
    HeaderValue::try_from(digest.as_str()).ok().map(|value| (CONTENT_DIGEST, value))
}

/// A path as the value of `location`: relative, so that it is right behind any proxy.
pub(super) fn location(path: String) -> Option<(HeaderName, HeaderValue)> {
    HeaderValue::try_from(path).ok().map(|value| (header::LOCATION, value))
}

fn upload_path(name: &str, id: &str) -> String {
    format!("/v2/{name}/blobs/uploads/{id}")
}

/// The headers that say how an upload goes on.
fn progress(name: &str, id: &str, received: u64) -> Vec<(HeaderName, HeaderValue)> {
    // Of nothing the specification says `0-0`, too.
    let range = HeaderValue::try_from(format!("0-{}", received.saturating_sub(1)));
    let uuid = HeaderValue::try_from(id).ok().map(|value| (UPLOAD_UUID, value));
    location(upload_path(name, id)).into_iter().chain(range.ok().map(|value| (header::RANGE, value))).chain(uuid).collect()
}

fn answer(status: StatusCode, headers: Vec<(HeaderName, HeaderValue)>) -> Response {
    let mut response = status.into_response();
    response.headers_mut().extend(headers);
    response
}

fn created(name: &str, digest: &OciDigest) -> Response {
    let headers = location(format!("/v2/{name}/blobs/{digest}")).into_iter().chain(content_digest(digest)).collect();
    answer(StatusCode::CREATED, headers)
}

/// Begins an upload; or takes a whole blob; or mounts one that another repository has.
pub(super) async fn start(app: &Shared, call: Call) -> Result<Response, OciError> {
    let parse = |text: String| text.parse::<OciDigest>().map_err(OciError::digest_invalid);
    if let (Some(digest), Some(from)) = (call.query.get("mount"), call.query.get("from")) {
        let digest = parse(digest)?;
        // Whatever hinders it, the client can push the blob instead: absent and forbidden look alike.
        let mounted = match repository(&from) {
            Ok(from) if call.visit.allows(&Target::Repository(from.clone()), Right::Pull) => app.oci.blob_mount(&call.repository, &from, &digest).await,
            // Looked for all the same, so that the time does not tell the two apart.
            Ok(from) => app.oci.blob_find(&from, &digest).await.map(|_| false).map_err(UploadError::Database),
            Err(_) => Ok(false),
        };
        match mounted {
            Ok(true) => return Ok(created(&call.name, &digest)),
            Ok(false) => {}
            Err(error) => tracing::warn!(error = crate::chain(&error), "could not mount {digest} from {from}"),
        }
    }
    let whole = call.query.get("digest").map(parse).transpose()?;
    let algorithm = match (&whole, call.query.get("digest-algorithm")) {
        (Some(digest), _) => digest.algorithm(),
        (None, Some(name)) => Algorithm::from_name(&name).ok_or_else(|| OciError::digest_invalid("this registry knows sha256 and sha512"))?,
        (None, None) => Algorithm::Sha256,
    };
    let id = app.oci.upload_start::<std::convert::Infallible>(&call.repository, algorithm).await.map_err(start_error)?;
    let Some(digest) = whole else { return Ok(answer(StatusCode::ACCEPTED, progress(&call.name, &id, 0))) };
    let mut body = body(app, &call.headers, call.body);
    match app.oci.upload_finish(&call.repository, &id, None, &mut body, &digest).await {
        Ok(()) => Ok(created(&call.name, &digest)),
        Err(error) => {
            // No one was told its name, so no one can go on with it.
            let _ = app.oci.upload_cancel(&call.repository, &id).await;
            body.drain().await;
            Err(error.into())
        }
    }
}

fn start_error(error: UploadError<std::convert::Infallible>) -> OciError {
    match error {
        UploadError::Body(never) => match never {},
        UploadError::TooMany(most) => UploadError::<crate::http::body::BodyError>::TooMany(most).into(),
        UploadError::Database(error) => error.into(),
        _ => UploadError::<crate::http::body::BodyError>::Cancelled.into(),
    }
}

fn body(app: &Shared, headers: &axum::http::HeaderMap, body: axum::body::Body) -> PacedBody {
    PacedBody::new(app, headers, body, usize::try_from(app.config.limits.oci.max_blob_bytes).unwrap_or(usize::MAX))
}

/// How far an upload is.
pub(super) async fn status(app: &Shared, call: Call, id: String) -> Result<Response, OciError> {
    let received = app.oci.upload_status(&call.repository, &id).await?.ok_or_else(OciError::upload_unknown)?;
    Ok(answer(StatusCode::NO_CONTENT, progress(&call.name, &id, received)))
}

/// Takes the next part.
pub(super) async fn append(app: &Shared, call: Call, id: String) -> Result<Response, OciError> {
    let range = content_range(&call)?;
    let mut body = body(app, &call.headers, call.body);
    match app.oci.upload_append(&call.repository, &id, range, &mut body).await {
        Ok(received) => Ok(answer(StatusCode::ACCEPTED, progress(&call.name, &id, received))),
        Err(error) => Err(refuse(error, &mut body, &call.name, &id).await),
    }
}

/// Takes the last part, if there is one, and ends the upload.
pub(super) async fn finish(app: &Shared, call: Call, id: String) -> Result<Response, OciError> {
    let digest = call.query.get("digest").ok_or_else(|| OciError::digest_invalid("the parameter `digest` says what the blob is"))?;
    let digest: OciDigest = digest.parse().map_err(OciError::digest_invalid)?;
    let range = content_range(&call)?;
    let mut body = body(app, &call.headers, call.body);
    match app.oci.upload_finish(&call.repository, &id, range, &mut body, &digest).await {
        Ok(()) => Ok(created(&call.name, &digest)),
        Err(error) => Err(refuse(error, &mut body, &call.name, &id).await),
    }
}

/// An error, with what the client needs to go on. Reads the rest of the body, so that the client gets to read the answer.
async fn refuse(error: UploadError<crate::http::body::BodyError>, body: &mut PacedBody, name: &str, id: &str) -> OciError {
    if !matches!(error, UploadError::Body(_)) {
        body.drain().await;
    }
    let UploadError::OutOfOrder { received } = error else { return error.into() };
    let with = |answer: OciError, (header, value): (HeaderName, HeaderValue)| answer.header(header, value.to_str().unwrap_or_default());
    progress(name, id, received).into_iter().fold(OciError::out_of_order(received), with)
}

/// Forgets an upload.
pub(super) async fn cancel(app: &Shared, call: Call, id: String) -> Result<Response, OciError> {
    match app.oci.upload_cancel(&call.repository, &id).await? {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(OciError::upload_unknown()),
    }
}

/// `content-range` of a part: `FIRST-LAST`, without a unit.
fn content_range(call: &Call) -> Result<Option<ChunkRange>, OciError> {
    let Some(value) = call.headers.get(header::CONTENT_RANGE) else { return Ok(None) };
    let invalid = || OciError::upload_invalid("content-range of a part is FIRST-LAST, such as 0-1023");
    let text = value.to_str().map_err(|_| invalid())?.trim();
    // Some clients write it as HTTP does.
    let text = text.strip_prefix("bytes ").map_or(text, |rest| rest.split('/').next().unwrap_or(rest));
    let (first, last) = text.split_once('-').ok_or_else(invalid)?;
    let range = ChunkRange { first: first.trim().parse().map_err(|_| invalid())?, last: last.trim().parse().map_err(|_| invalid())? };
    if range.first > range.last {
        return Err(invalid());
    }
    let stated = call.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match stated {
        Some(len) if len != (range.last - range.first).saturating_add(1) => {
            Err(UploadError::<crate::http::body::BodyError>::Length { wanted: (range.last - range.first).saturating_add(1), got: len }.into())
        }
        _ => Ok(Some(range)),
    }
}
