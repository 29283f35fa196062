//! Manifests, tags, referrers, and the list of repositories.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use layer_format::oci::{OciDigest, media};
use layer_format::reference::is_release;
use serde_json::json;

use super::blobs::is_unchanged;
use super::error::OciError;
use super::routes::{Call, Query};
use super::uploads::{content_digest, location};
use crate::app::Shared;
use crate::http::access::Visit;
use crate::http::body::{BodyError, PacedBody};
use crate::service::oci::manifest::OciReference;

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Names of one page.
const MAX_PAGE: u64 = 1000;
/// Tags that one request may set.
const MAX_TAGS: usize = 64;

/// A manifest as it was pushed.
pub(super) async fn get(app: &Shared, call: Call, reference: OciReference) -> Result<Response, OciError> {
    let manifest = app.oci.manifest_get(&call.repository, &reference).await?.ok_or_else(OciError::manifest_unknown)?;
    let etag = format!("\"{}\"", manifest.digest);
    let unchanged = is_unchanged(&call, &etag);
    let len = manifest.bytes.len();
    let mut response = match call.method {
        _ if unchanged => StatusCode::NOT_MODIFIED.into_response(),
        Method::HEAD => StatusCode::OK.into_response(),
        _ => manifest.bytes.into_response(),
    };
    let headers = response.headers_mut();
    if !unchanged {
        headers.insert(header::CONTENT_LENGTH, len.into());
    }
    // Instead of the type that bytes have by default.
    if let Ok(media_type) = HeaderValue::try_from(manifest.media_type) {
        headers.insert(header::CONTENT_TYPE, media_type);
    }
    headers.extend(HeaderValue::try_from(etag).ok().map(|value| (header::ETAG, value)));
    headers.extend(content_digest(&manifest.digest));
    Ok(response)
}

/// Keeps a manifest, and moves tags.
pub(super) async fn put(app: &Shared, call: Call, reference: OciReference) -> Result<Response, OciError> {
    let tags = call.query.all("tag");
    if tags.len() > MAX_TAGS || !tags.iter().all(|tag| is_release(tag)) {
        return Err(OciError::tag_invalid());
    }
    let max_len = app.config.limits.oci.max_manifest_bytes;
    let mut body = PacedBody::new(app, &call.headers, call.body, max_len);
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(BodyError::TooLarge { .. }) => {
                body.drain().await;
                return Err(OciError::manifest_too_large(max_len));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let stated = call.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let stated = stated.map(|text| text.split(';').next().unwrap_or(text).trim()).filter(|text| !text.is_empty());
    let put = app.oci.manifest_put(&call.repository, &reference, stated, &bytes, &tags).await?;
    tracing::info!(repository = call.repository.as_str(), manifest.digest = %put.digest, "put manifest {} of {}", put.digest, call.repository);
    let named = if let OciReference::Tag(tag) = &reference { Some(tag) } else { None };
    if let Some(tag) = named.or(tags.first()).filter(|_| put.is_runnable) {
        app.oci.unpack_later(call.repository.clone(), tag.clone(), put.digest.clone());
    }
    let mut response = StatusCode::CREATED.into_response();
    let headers = response.headers_mut();
    headers.extend(location(format!("/v2/{}/manifests/{}", call.name, put.digest)));
    headers.extend(content_digest(&put.digest));
    if let Some(subject) = put.subject {
        headers.extend(HeaderValue::try_from(subject.as_str()).ok().map(|value| (SUBJECT, value)));
    }
    for tag in tags {
        if let Ok(value) = HeaderValue::try_from(tag) {
            headers.append(TAG, value);
        }
    }
    Ok(response)
}

/// Forgets a tag, or a manifest with its tags.
pub(super) async fn delete(app: &Shared, call: Call, reference: OciReference) -> Result<Response, OciError> {
    match app.oci.manifest_delete(&call.repository, &reference, &call.visit.told()).await? {
        true => Ok(StatusCode::ACCEPTED.into_response()),
        false => Err(OciError::manifest_unknown()),
    }
}

/// How many names a page has, and after which it begins.
fn page(query: &Query) -> Result<(u32, String), OciError> {
    let limit = match query.get("n") {
        Some(text) => text.parse::<u64>().map_err(|_| OciError::request_invalid("`n` is a number"))?,
        None => MAX_PAGE,
    };
    Ok((limit.min(MAX_PAGE) as u32, query.get("last").unwrap_or_default()))
}

/// A page, and a link to the next one if there may be one. One more name than the page has was asked for.
fn with_link(mut names: Vec<String>, limit: u32, path: &str, body: impl FnOnce(Vec<String>) -> serde_json::Value) -> Response {
    let more = names.len() > limit as usize;
    names.truncate(limit as usize);
    let link = names.last().filter(|_| more).map(|last| {
        let query: String = url::form_urlencoded::Serializer::new(String::new()).append_pair("n", &limit.to_string()).append_pair("last", last).finish();
        format!("<{path}?{query}>; rel=\"next\"")
    });
    let mut response = Json(body(names)).into_response();
    response.headers_mut().extend(link.and_then(|link| HeaderValue::try_from(link).ok()).map(|value| (header::LINK, value)));
    response
}

/// Names of tags, in order.
pub(super) async fn tags(app: &Shared, call: Call) -> Result<Response, OciError> {
    let (limit, after) = page(&call.query)?;
    let tags = app.oci.tags(&call.repository, &after, limit + 1).await?.ok_or_else(OciError::name_unknown)?;
    Ok(with_link(tags, limit, &format!("/v2/{}/tags/list", call.name), |tags| json!({ "name": call.name, "tags": tags })))
}

/// Names of repositories, in order.
pub(super) async fn catalog(app: &Shared, visit: &Visit, query: &Query) -> Result<Response, OciError> {
    let (limit, mut after) = page(query)?;
    // Names that the caller may not read are passed over: there may be pages of them, so pages are read whatever the limit is.
    let rows = MAX_PAGE as u32 + 1;
    let mut names = Vec::new();
    while names.len() <= limit as usize {
        let found = app.oci.catalog(&after, rows).await?;
        let Some(last) = found.last().cloned() else { break };
        after = last;
        let is_end = found.len() < rows as usize;
        names.extend(found.into_iter().filter(|name| visit.lists(name)));
        if is_end {
            break;
        }
    }
    Ok(with_link(names, limit, "/v2/_catalog", |names| json!({ "repositories": names })))
}

/// What is about a manifest: signatures, bills of materials and the like.
pub(super) async fn referrers(app: &Shared, call: Call, subject: OciDigest) -> Result<Response, OciError> {
    let filter = call.query.get("artifactType").filter(|kind| !kind.is_empty());
    let list = app.oci.referrers(&call.repository, &subject, filter.as_deref()).await?;
    let mut response = Json(list).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media::INDEX));
    if filter.is_some() {
        response.headers_mut().insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}
