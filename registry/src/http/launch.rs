//! Launches.

use axum::response::Response;
use layer_format::api::{HaveFilter, LaunchRequest};

use super::body::PacedBody;
use super::error::ApiError;
use super::routes::Call;
use super::streams;
use crate::app::Shared;
use crate::service::encode::Encoder;
use crate::service::image::{Reference, image_get};
use crate::service::launch::LaunchOrder;

/// Longest request: a filter as hex, and some names.
const MAX_REQUEST_LEN: usize = 2 * HaveFilter::MAX_LEN + (16 << 10);

/// All that a first start needs, in the order in which it is needed.
#[utoipa::path(post, path = "/v1/repositories/{repository}/-/launch/{reference}", request_body(content_type = "application/json"), responses((status = 200, content_type = "application/vnd.turbo.stream+zstd"), (status = 404, description = "unknown")))]
pub(crate) async fn launch(app: &Shared, call: Call, reference: Reference) -> Result<Response, ApiError> {
    let id = streams::launch_id(&call.headers)?;
    let body = PacedBody::new(app, &call.headers, call.body, MAX_REQUEST_LEN).collect().await?;
    let request: LaunchRequest = serde_json::from_slice(&body).map_err(ApiError::body_invalid)?;
    let permit = app.streams.clone().try_acquire_owned().map_err(|_| ApiError::busy("streams"))?;
    let have = request.have.as_deref().map(HaveFilter::from_hex).transpose()?;
    let image = image_get(&app.db, &call.repository, &reference).await?.ok_or_else(ApiError::manifest_unknown)?;
    let manifest = LaunchOrder::parse_manifest(&image).map_err(|error| ApiError::internal(&error))?;
    let order = LaunchOrder {
        image,
        manifest,
        entry_point: request.entry_point,
        architecture: request.architecture,
        predict: request.predict,
        budget_bytes: request.budget_bytes,
        have,
        model: request.model,
    };
    let encoder = Encoder::zstd(app.config.compression_level, None).map_err(|error| ApiError::internal(&error))?;
    let (mut writer, response) = streams::open(app, encoder);
    let active = app.launches.start(&call.repository, id);
    let launcher = app.launcher.clone();
    tokio::spawn(async move {
        let _permit = permit;
        let result = launcher.run(&mut writer, order, &active).await;
        drop(active);
        streams::close(writer, result).await;
    });
    Ok(response)
}
