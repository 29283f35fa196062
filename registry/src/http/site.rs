//! Routes without a repository.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use layer_format::api::{Capabilities, MAX_DIGESTS};
use layer_format::manifest::MAX_MANIFEST_LEN;
use layer_format::pack::MAX_PACK_LEN;
use layer_format::trace::MAX_TRACE_LEN;
use serde::{Deserialize, Serialize};

use super::access::Visit;
use super::error::ApiError;
use crate::app::Shared;
use crate::db::pack::pack_totals;
use crate::db::repository::repository_list;
use crate::metrics::Gauges;
use crate::service::access::rights::{Right, Target};

/// Newest version of the native API.
const API_VERSION: u32 = 1;
/// Repositories of one page.
const MAX_PAGE: u32 = 1000;

/// What the server can do.
#[utoipa::path(get, path = "/v1/capabilities", responses((status = 200, content_type = "application/json")))]
pub(crate) async fn capabilities(State(app): State<Shared>) -> Json<Capabilities> {
    Json(Capabilities {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: API_VERSION,
        max_pack_bytes: MAX_PACK_LEN,
        max_digests: MAX_DIGESTS as u64,
        max_manifest_bytes: MAX_MANIFEST_LEN as u64,
        max_trace_bytes: if app.config.traces { MAX_TRACE_LEN as u64 } else { 0 },
    })
}

/// A page of names.
#[derive(Debug, Deserialize)]
pub(crate) struct Page {
    #[serde(default)]
    after: String,
    #[serde(default)]
    limit: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Repositories {
    repositories: Vec<String>,
}

/// Names of repositories.
#[utoipa::path(get, path = "/v1/repositories", params(("after" = Option<String>, Query), ("limit" = Option<u64>, Query)), responses((status = 200, content_type = "application/json")))]
pub(crate) async fn repositories(
    State(app): State<Shared>,
    Extension(visit): Extension<Arc<Visit>>,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    visit.decide(&Target::Catalog, Right::Pull)?;
    let Query(page) = page.map_err(|error| ApiError::request_invalid(error.body_text()))?;
    let limit = page.limit.unwrap_or(MAX_PAGE.into()).clamp(1, MAX_PAGE.into()) as u32;
    // Names that the caller may not read are passed over: there may be pages of them, so pages are read whatever the limit is.
    let (mut repositories, mut after) = (Vec::new(), page.after);
    while repositories.len() < limit as usize {
        let names = repository_list(&mut app.db.read().await?, &after, MAX_PAGE).await?;
        let Some(last) = names.last().cloned() else { break };
        after = last;
        let is_end = names.len() < MAX_PAGE as usize;
        repositories.extend(names.into_iter().filter(|name| visit.lists(name)));
        if is_end {
            break;
        }
    }
    repositories.truncate(limit as usize);
    Ok(Json(Repositories { repositories }).into_response())
}

/// Whether database and server answer.
#[utoipa::path(get, path = "/healthz", responses((status = 200, description = "healthy"), (status = 503, description = "not")))]
pub(crate) async fn health(State(app): State<Shared>) -> Result<&'static str, ApiError> {
    let mut db = app.db.read().await?;
    repository_list(&mut db, "", 1).await?;
    Ok("ok\n")
}

/// How long database and storage may take to answer before the server counts as not ready.
const READY_TIMEOUT: Duration = Duration::from_secs(3);

/// Whether requests should be sent here: database and storage answer, and the server is not about to stop.
#[utoipa::path(get, path = "/readyz", responses((status = 200, description = "ready"), (status = 503, description = "not, and why")))]
pub(crate) async fn ready(State(app): State<Shared>) -> Result<&'static str, ApiError> {
    if app.is_draining.load(Ordering::Relaxed) {
        return Err(ApiError::not_ready("the server is stopping"));
    }
    // Migrations were applied before the server began to listen.
    let database = async {
        let mut db = app.db.read().await?;
        repository_list(&mut db, "", 1).await
    };
    match tokio::time::timeout(READY_TIMEOUT, database).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(ApiError::not_ready_since("the database does not answer", &error)),
        Err(_) => return Err(ApiError::not_ready("the database does not answer in time")),
    }
    match tokio::time::timeout(READY_TIMEOUT, app.storage.check()).await {
        Ok(Ok(())) => Ok("ready\n"),
        Ok(Err(error)) => Err(ApiError::not_ready_since("the storage does not answer", &error)),
        Err(_) => Err(ApiError::not_ready("the storage does not answer in time")),
    }
}

/// Metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = 200, content_type = "text/plain")))]
pub(crate) async fn metrics(State(app): State<Shared>) -> Result<Response, ApiError> {
    let totals = {
        let mut db = app.db.read().await?;
        pack_totals(&mut db).await?
    };
    let (database_connections, idle_database_connections) = app.db.connections();
    let gauges = Gauges {
        database_connections: database_connections.into(),
        idle_database_connections: idle_database_connections.into(),
        packs: totals.packs,
        pack_bytes: totals.bytes,
        objects: totals.objects,
        active_launches: app.launches.count() as u64,
        active_requests: app.config.limits.max_requests.saturating_sub(app.requests.available_permits()) as u64,
        waiting_traces: app.trainer.lock().as_ref().map_or(0, |trainer| trainer.waiting()) as u64,
        frame_cache_bytes: app.objects.frames.cached_bytes(),
        node_cache_bytes: app.nodes.cached_bytes(),
        storage_copies_bytes: app.storage.copies_bytes().unwrap_or(0),
        password_hashes: app.access.passwords.runs(),
    };
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render(&gauges)).into_response())
}
