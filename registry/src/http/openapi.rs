//! The OpenAPI document, from the handlers.

use axum::Json;
use utoipa::OpenApi;

use super::{admin, auth, deltas, launch, manifests, models, objects, packs, savings, site, states, traces};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Turbo registry",
        description = "Native API. A repository stands in the path as it is written, with its slashes. Errors have the body {errors: [{code, message, detail}]}."
    ),
    paths(
        site::capabilities,
        site::repositories,
        site::health,
        site::ready,
        site::metrics,
        auth::get_token,
        auth::post_token,
        auth::revoke,
        admin::whoami,
        admin::users,
        admin::user_put,
        admin::user_password,
        admin::user_delete,
        admin::keys,
        admin::key_create,
        admin::key_delete,
        admin::grants,
        admin::grant_put,
        admin::grant_delete,
        admin::audit,
        objects::missing,
        objects::stream,
        deltas::bases,
        deltas::stream,
        objects::get,
        packs::put,
        packs::head,
        manifests::put,
        manifests::get,
        manifests::delete,
        manifests::tags,
        savings::get,
        states::put,
        states::get,
        states::delete,
        states::list,
        launch::launch,
        launch::launch_cacheable,
        launch::lane,
        traces::post,
        models::get,
        models::delete,
        models::put,
        models::pin,
        models::unpin,
    )
)]
struct Document;

/// The document.
pub(crate) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
