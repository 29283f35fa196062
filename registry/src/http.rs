//! The HTTP side: routes, bodies, limits, status codes. `docs/http-api.md` is the contract.

mod access;
mod admin;
mod auth;
mod body;
mod deltas;
mod edge;
mod error;
mod launch;
mod manifests;
mod models;
mod objects;
mod oci;
mod openapi;
mod packs;
mod per_address;
mod routes;
mod savings;
pub(crate) mod server;
mod site;
mod stall;
mod states;
mod streams;
pub(crate) mod tls;
mod traces;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use axum::routing::{any, delete, get, post, put};

use crate::app::{App, Shared};
use error::ApiError;

/// The whole service, without its sockets.
pub fn router(app: App) -> Router {
    let app = app.0;
    Router::new()
        .route("/healthz", get(site::health))
        .route("/readyz", get(site::ready))
        .route("/metrics", get(site::metrics))
        .route("/openapi.json", get(openapi::document))
        .route("/v1/capabilities", get(site::capabilities))
        .route("/v1/repositories", get(site::repositories))
        .route("/auth/token", get(auth::get_token).post(auth::post_token))
        .route("/auth/revoke", post(auth::revoke))
        .route("/v1/whoami", get(admin::whoami))
        .route("/v1/users", get(admin::users))
        .route("/v1/users/{name}", put(admin::user_put).delete(admin::user_delete))
        .route("/v1/users/{name}/password", put(admin::user_password))
        .route("/v1/keys", get(admin::keys).post(admin::key_create))
        .route("/v1/keys/{name}", delete(admin::key_delete))
        .route("/v1/grants", get(admin::grants).put(admin::grant_put).delete(admin::grant_delete))
        .route("/v1/audit", get(admin::audit))
        // What follows a repository's name is routed in `routes`.
        .route("/v1/repositories/{*rest}", any(in_repository))
        // The OCI distribution API: routed in `oci::routes`.
        .route("/v2", any(oci::dispatch))
        .route("/v2/", any(oci::dispatch))
        .route("/v2/{*rest}", any(oci::dispatch))
        .fallback(unknown)
        // Each path has to be in its table, too.
        .layer(from_fn_with_state(app.clone(), access::guard))
        .layer(from_fn_with_state(app.clone(), edge::edge))
        .with_state(app)
}

async fn in_repository(State(app): State<Shared>, request: Request) -> Result<Response, ApiError> {
    routes::dispatch(&app, request).await
}

async fn unknown() -> ApiError {
    ApiError::route_unknown()
}
