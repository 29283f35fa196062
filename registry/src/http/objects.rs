//! Objects: which are missing, many as a stream, one as a plain answer.

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use layer_format::Digest;
use layer_format::api::{BITMAP_MEDIA_TYPE, MAX_DIGESTS, decode_digests, encode_bitmap};
use layer_format::reference::Repository;

use super::access::Visit;
use super::body::PacedBody;
use super::error::ApiError;
use super::routes::Call;
use super::streams;
use crate::app::Shared;
use crate::db::namespace::{NamespaceId, namespace_find};
use crate::service::encode::{Encoder, Window};
use crate::service::objects::Objects;
use crate::service::stream::{send_frames, send_objects};

/// Longest list of digests, in bytes.
const MAX_LIST_LEN: usize = 4 + Digest::LEN * MAX_DIGESTS;
/// Uncompressed bytes that an object is expected to have, to choose a stream's window: those of a large chunk.
const EXPECTED_LEN: u64 = 64 << 10;

/// zstd level of answers that are too short to learn anything from.
pub(super) const DEFAULT_LEVEL: i32 = 3;

async fn digests(app: &Shared, call: Call) -> Result<(Call, Vec<Digest>), ApiError> {
    let (body, call) = (call.body, Call { body: axum::body::Body::empty(), ..call });
    let bytes = PacedBody::new(app, &call.headers, body, MAX_LIST_LEN).collect().await?;
    Ok((call, decode_digests(&bytes)?))
}

pub(super) async fn namespace(app: &Shared, repository: &Repository) -> Result<Option<NamespaceId>, ApiError> {
    let mut db = app.db.read().await?;
    Ok(namespace_find(&mut db, repository.namespace()).await?)
}

/// The objects of the namespace that the caller may read through this repository: all of them if it may read all of the
/// namespace; else, of these digests, those that the repository's images and states need.
pub(super) async fn readable(app: &Shared, visit: &Visit, repository: &Repository, digests: &[Digest]) -> Result<Objects, ApiError> {
    match visit.reads_namespace(repository) {
        true => Ok(app.objects.clone()),
        false => Ok(app.objects.only(app.reach.visible(repository, digests).await?)),
    }
}

/// Which of these objects the registry lacks, as far as this namespace may see. What is there stays for a lease from now.
#[utoipa::path(post, path = "/v1/repositories/{repository}/-/missing", request_body(content_type = "application/vnd.turbo.digests"), responses((status = 200, content_type = "application/vnd.turbo.bitmap")))]
pub(crate) async fn missing(app: &Shared, call: Call) -> Result<Response, ApiError> {
    let (call, digests) = digests(app, call).await?;
    let found = match namespace(app, &call.repository).await? {
        Some(namespace) => {
            app.leases.renew(&call.repository).await?;
            app.objects.promise(namespace, &digests).await?
        }
        None => Default::default(),
    };
    let bitmap = encode_bitmap(digests.iter().map(|digest| !found.contains_key(digest)));
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(BITMAP_MEDIA_TYPE))], bitmap).into_response())
}

/// Many objects in the order asked.
#[utoipa::path(post, path = "/v1/repositories/{repository}/-/objects", request_body(content_type = "application/vnd.turbo.digests"), responses((status = 200, content_type = "application/vnd.turbo.stream+zstd")))]
pub(crate) async fn stream(app: &Shared, call: Call) -> Result<Response, ApiError> {
    let (call, digests) = digests(app, call).await?;
    let launch = streams::launch_id(&call.headers)?;
    // After the body, so that a slow one holds nothing.
    let permit = app.streams.clone().try_acquire_owned().map_err(|_| ApiError::busy("streams"))?;
    let frames = call.query("frames").is_some_and(|value| value == "1");
    let namespace = namespace(app, &call.repository).await?;
    let objects = readable(app, &call.visit, &call.repository, &digests).await?;
    let demand = launch.and_then(|id| app.launches.take(&call.repository, id, &digests));
    let level = app.config.compression_level.unwrap_or(DEFAULT_LEVEL);
    let encoder = match frames {
        true => Encoder::stored(),
        false => Encoder::zstd(level, Window::For(digests.len() as u64 * EXPECTED_LEN)).map_err(|error| ApiError::internal(&error))?,
    };
    let (mut writer, response) = streams::open(app, encoder, demand);
    tokio::spawn(async move {
        let _permit = permit;
        let result = match frames {
            true => send_frames(&mut writer, &objects, namespace, &digests, level).await,
            false => send_objects(&mut writer, &objects, namespace, &digests).await,
        };
        streams::close(writer, result).await;
    });
    Ok(response)
}

/// One object's plain bytes, which never change.
#[utoipa::path(get, path = "/v1/repositories/{repository}/-/objects/{digest}", responses((status = 200, content_type = "application/octet-stream"), (status = 206, description = "a range"), (status = 304, description = "not modified"), (status = 404, description = "unknown"), (status = 416, description = "range outside the object")))]
pub(crate) async fn get(app: &Shared, call: Call, digest: Digest) -> Result<Response, ApiError> {
    let namespace = namespace(app, &call.repository).await?.ok_or_else(ApiError::object_unknown)?;
    let objects = readable(app, &call.visit, &call.repository, &[digest]).await?;
    let place = objects.locate(namespace, &[digest]).await?.remove(&digest).ok_or_else(ApiError::object_unknown)?;
    let etag = format!("\"{digest}\"");
    let unchanged = call
        .headers
        .get(header::IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|tags| tags.trim() == "*" || tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag));
    let len = u64::from(place.len);
    let range = match call.headers.get(header::RANGE).and_then(|value| value.to_str().ok()) {
        Some(text) if call.method == Method::GET && !unchanged => parse_range(text, len),
        _ => Range::Whole,
    };
    let (status, start, end) = match range {
        _ if unchanged => (StatusCode::NOT_MODIFIED, 0, 0),
        Range::Whole => (StatusCode::OK, 0, len),
        Range::Part(start, end) => (StatusCode::PARTIAL_CONTENT, start, end),
        Range::Outside => return Err(ApiError::range_invalid(len)),
    };
    let mut response = match unchanged || call.method == Method::HEAD {
        true => status.into_response(),
        false => {
            let bytes = app.objects.read(&digest, &place).await?;
            let part = bytes.get(start as usize..end as usize).unwrap_or_default().to_vec();
            (status, part).into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Ok(value) = HeaderValue::try_from(etag) {
        headers.insert(header::ETAG, value);
    }
    if !unchanged {
        headers.insert(header::CONTENT_LENGTH, (end - start).into());
    }
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(value) = HeaderValue::try_from(format!("bytes {start}-{}/{len}", end - 1))
    {
        headers.insert(header::CONTENT_RANGE, value);
    }
    Ok(response)
}

/// What a range request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Range {
    /// Several ranges, or none that is understood: the whole is a valid answer.
    Whole,
    /// From, up to but without.
    Part(u64, u64),
    /// There are no such bytes.
    Outside,
}

/// Reads the header `range` of a request for content of this length.
pub(super) fn parse_range(text: &str, len: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else { return Range::Whole };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), _) if first >= len && (last.trim().is_empty() || last.trim().parse::<u64>().is_ok()) => Range::Outside,
        (Ok(first), Ok(last)) if first <= last => Range::Part(first, last.saturating_add(1).min(len)),
        (Ok(first), Err(_)) if last.trim().is_empty() => Range::Part(first, len),
        (Err(_), Ok(count)) if first.trim().is_empty() => match count {
            0 => Range::Outside,
            _ if len == 0 => Range::Outside,
            count => Range::Part(len.saturating_sub(count), len),
        },
        (Ok(_), Ok(_)) => Range::Outside,
        _ => Range::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("bytes=0-3", Range::Part(0, 4)),
            ("bytes=5-", Range::Part(5, 10)),
            ("bytes=-3", Range::Part(7, 10)),
            ("bytes=-30", Range::Part(0, 10)),
            ("bytes=8-100", Range::Part(8, 10)),
            ("bytes=10-", Range::Outside),
            ("bytes=10-12", Range::Outside),
            ("bytes=5-2", Range::Outside),
            ("bytes=-0", Range::Outside),
            ("bytes=0-1,3-4", Range::Whole),
            ("lines=0-1", Range::Whole),
            ("bytes=x-y", Range::Whole),
        ] {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
    }
}
