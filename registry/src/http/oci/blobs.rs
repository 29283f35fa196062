//! Blobs out, and away.

use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use layer_format::oci::OciDigest;
use tokio_stream::wrappers::ReceiverStream;

use super::error::OciError;
use super::routes::Call;
use super::uploads::content_digest;
use crate::app::Shared;
use crate::http::objects::{Range, parse_range};

/// A blob's bytes, or a part of them. They never change.
pub(super) async fn get(app: &Shared, call: Call, digest: OciDigest) -> Result<Response, OciError> {
    let blob = app.oci.blob_find(&call.repository, &digest).await?.ok_or_else(|| OciError::blob_unknown(&digest))?;
    let len = blob.row.size_bytes;
    let etag = format!("\"{digest}\"");
    let unchanged = is_unchanged(&call, &etag);
    let range = match call.headers.get(header::RANGE).and_then(|value| value.to_str().ok()) {
        Some(text) if call.method == Method::GET && !unchanged => parse_range(text, len),
        _ => Range::Whole,
    };
    let (status, part) = match range {
        _ if unchanged => (StatusCode::NOT_MODIFIED, 0..0),
        Range::Whole => (StatusCode::OK, 0..len),
        Range::Part(start, end) => (StatusCode::PARTIAL_CONTENT, start..end),
        Range::Outside => return Err(OciError::range_invalid(len)),
    };
    let body = match unchanged || call.method == Method::HEAD || part.is_empty() {
        true => Body::empty(),
        false => {
            let turn = app.oci.download_turn().await?;
            let bytes = ReceiverStream::new(app.oci.blob_stream(blob, part.clone()));
            // The place is free when the answer was taken, or the client is gone.
            Body::from_stream(bytes.map(move |bytes| {
                let _held = &turn;
                bytes
            }))
        }
    };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.extend(HeaderValue::try_from(etag).ok().map(|value| (header::ETAG, value)));
    headers.extend(content_digest(&digest));
    if !unchanged {
        headers.insert(header::CONTENT_LENGTH, (part.end - part.start).into());
    }
    if status == StatusCode::PARTIAL_CONTENT {
        let value = HeaderValue::try_from(format!("bytes {}-{}/{len}", part.start, part.end - 1));
        headers.extend(value.ok().map(|value| (header::CONTENT_RANGE, value)));
    }
    Ok(response)
}

/// Whether the client has the content with this tag.
pub(super) fn is_unchanged(call: &Call, etag: &str) -> bool {
    let stated = call.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    stated.is_some_and(|tags| tags.trim() == "*" || tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag))
}

/// Forgets a blob.
pub(super) async fn delete(app: &Shared, call: Call, digest: OciDigest) -> Result<Response, OciError> {
    match app.oci.blob_delete(&call.repository, &digest, &call.visit.told()).await? {
        true => Ok(StatusCode::ACCEPTED.into_response()),
        false => Err(OciError::blob_unknown(&digest)),
    }
}
