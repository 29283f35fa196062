//! Launches: the answer to one client, the lanes beside it, and the form that caches between may keep.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use layer_format::Digest;
use layer_format::api::{DIGEST_HEADER, HaveFilter, LaunchRequest, LinkHint, MAX_LANES, MIN_LANES_ID_LEN};
use layer_format::manifest::ImageManifest;
use layer_format::reference::Repository;

use super::body::PacedBody;
use super::error::ApiError;
use super::routes::{self, Call};
use super::streams;
use crate::app::Shared;
use crate::service::admission::Admission;
use crate::service::image::{Image, Reference, image_get};
use crate::service::launch::LaunchOrder;
use crate::service::launches::Lanes;
use crate::service::level::LevelControl;
use crate::service::models::{Wanted, model_digest, model_find};

/// Longest request: a filter as hex, and some names.
const MAX_REQUEST_LEN: usize = 2 * HaveFilter::MAX_LEN + (16 << 10);
/// Most uncompressed bytes of an answer that caches may keep, unless the client says less.
const CACHED_BUDGET: u64 = 1 << 30;
/// What of a launch may be kept, and for how long: for ever if image and model are named; else until a new model or a
/// moved release should be seen.
const IMMUTABLE: &str = "max-age=31536000, immutable";
const NEWEST_MODEL: &str = "max-age=60";
const NEWEST_IMAGE: &str = "max-age=5";

/// All that a first start needs, in the order in which it is needed.
#[utoipa::path(post, path = "/v1/repositories/{repository}/-/launch/{reference}", request_body(content_type = "application/json"), responses((status = 200, content_type = "application/vnd.turbo.stream+zstd"), (status = 404, description = "unknown")))]
pub(crate) async fn launch(app: &Shared, call: Call, reference: Reference) -> Result<Response, ApiError> {
    let id = streams::launch_id(&call.headers)?;
    let credential = call.visit.credential(&call.headers);
    let body = PacedBody::new(app, &call.headers, call.body, MAX_REQUEST_LEN).collect().await?;
    let request: LaunchRequest = serde_json::from_slice(&body).map_err(ApiError::body_invalid)?;
    if request.lanes > 0 && id.as_ref().is_none_or(|id| id.len() < MIN_LANES_ID_LEN) {
        return Err(ApiError::request_invalid("lanes need a header turbo-launch of at least 32 random hex digits"));
    }
    let permit = app.streams.clone().try_acquire_owned().map_err(|_| ApiError::busy("streams"))?;
    let have = request.have.as_deref().map(HaveFilter::from_hex).transpose()?;
    let (image, manifest) = image(app, &call.repository, &reference).await?;
    let order = LaunchOrder {
        image,
        manifest,
        entry_point: request.entry_point,
        architecture: request.architecture,
        predict: request.predict,
        budget_bytes: request.budget_bytes,
        have,
        model: request.model,
        admission: Admission::new(request.link, request.metered),
        with_model: None,
    };
    let active = app.launches.start(&call.repository, id);
    let (mut writer, outlet) = streams::open_launch(app, &active, level(app, request.link)).map_err(|error| ApiError::internal(&error))?;
    let taker = outlet.taker(false, None);
    let response = match request.lanes.min(MAX_LANES) {
        0 => streams::whole(taker),
        free => {
            app.launches.open_lanes(&active, Lanes { outlet, credential, free });
            streams::lane(taker, None)
        }
    };
    let launcher = app.launcher.clone();
    tokio::spawn(async move {
        let _permit = permit;
        let result = launcher.run(&mut writer, order, &active).await;
        streams::close(writer, result).await;
        // After the end, so that a lane that comes late still finds its launch.
        drop(active);
    });
    Ok(response)
}

/// Pieces of a launch's answer, over a connection beside that of the launch request.
#[utoipa::path(get, path = "/v1/repositories/{repository}/-/lanes/{id}", responses((status = 200, content_type = "application/vnd.turbo.lanes"), (status = 404, description = "no such launch of this caller, or it has all its lanes")))]
pub(crate) async fn lane(app: &Shared, call: Call, id: String) -> Result<Response, ApiError> {
    // Bounded by itself: one that waits for its launch holds no stream.
    let permit = app.lanes.clone().try_acquire_owned().map_err(|_| ApiError::busy("lanes"))?;
    let taker = app.launches.lane(&call.repository, id, call.visit.credential(&call.headers)).await;
    taker.map(|taker| streams::lane(taker, Some(permit))).ok_or_else(ApiError::launch_unknown)
}

/// The same as a launch request of a client that has nothing, in a form that HTTP caches between may keep and give to
/// others. Nothing can be taken out of it, and it has no lanes. `?model=` predicts with exactly that model.
#[utoipa::path(get, path = "/v1/repositories/{repository}/-/launch/{reference}", params(("entry_point" = Option<String>, Query), ("architecture" = Option<String>, Query), ("model" = Option<String>, Query), ("budget" = Option<u64>, Query)), responses((status = 200, content_type = "application/vnd.turbo.stream+zstd"), (status = 304, description = "not modified"), (status = 404, description = "unknown")))]
pub(crate) async fn launch_cacheable(app: &Shared, call: Call, reference: Reference) -> Result<Response, ApiError> {
    let text = |name: &str| url::form_urlencoded::parse(call.query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    let with_model = text("model").map(|text| routes::digest(&text)).transpose()?;
    let budget_bytes = match text("budget") {
        Some(text) => text.parse().map_err(|_| ApiError::request_invalid("budget is a number of bytes"))?,
        None => CACHED_BUDGET,
    };
    let (image, manifest) = image(app, &call.repository, &reference).await?;
    if let Some(model) = with_model {
        model_find(&app.db, &call.repository, &Wanted::Digest(model)).await?.ok_or_else(ApiError::model_unknown)?;
    }
    let model = model_digest(&app.db, &image, with_model.or(manifest.model)).await?;
    let is_named = matches!(reference, Reference::Digest(_));
    let lasting = match with_model.or(manifest.model) {
        Some(_) if is_named => IMMUTABLE,
        _ if is_named => NEWEST_MODEL,
        _ => NEWEST_IMAGE,
    };
    // Only one client's business where something protects it.
    let scope = if call.headers.contains_key(header::AUTHORIZATION) { "private" } else { "public" };
    let image_digest = Digest::of(&image.bytes);
    let etag = format!("\"{image_digest} {}\"", model.map(|digest| digest.to_string()).unwrap_or_default());
    let asked = call.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut response = match asked.is_some_and(|tags| tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag)) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => {
            let permit = app.streams.clone().try_acquire_owned().map_err(|_| ApiError::busy("streams"))?;
            let order = LaunchOrder {
                image,
                manifest,
                entry_point: text("entry_point"),
                architecture: text("architecture").unwrap_or_default(),
                predict: true,
                budget_bytes,
                have: None,
                model: None,
                admission: Admission::new(None, false),
                with_model,
            };
            let active = app.launches.start(&call.repository, None);
            let (mut writer, outlet) = streams::open_launch(app, &active, level(app, None)).map_err(|error| ApiError::internal(&error))?;
            let response = streams::whole(outlet.taker(false, None));
            let launcher = app.launcher.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let result = launcher.run(&mut writer, order, &active).await;
                streams::close_or_cut(writer, result).await;
            });
            response
        }
    };
    let values = [(header::CACHE_CONTROL.as_str(), format!("{scope}, {lasting}")), (header::ETAG.as_str(), etag), (DIGEST_HEADER, image_digest.to_string())];
    for (name, value) in values {
        if let (Ok(name), Ok(value)) = (header::HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

async fn image(app: &Shared, repository: &Repository, reference: &Reference) -> Result<(Image, ImageManifest), ApiError> {
    let image = image_get(&app.db, repository, reference).await?.ok_or_else(ApiError::manifest_unknown)?;
    let manifest = LaunchOrder::parse_manifest(&image).map_err(|error| ApiError::internal(&error))?;
    Ok((image, manifest))
}

/// The level of a launch's answer: the configured one, or by the link and by what else goes on here.
fn level(app: &Shared, link: Option<LinkHint>) -> LevelControl {
    match app.config.compression_level {
        Some(level) => LevelControl::fixed(level),
        None => LevelControl::adaptive(link, app.launches.per_core()),
    }
}
