//! What a repository's pushed blobs save by being stored by what is in them, and why others do not.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::error::ApiError;
use super::routes::Call;
use crate::app::Shared;
use crate::db::oci_rebuild::SavingSum;

/// Some blobs together.
#[derive(Debug, Default, Serialize)]
struct Sum {
    blobs: u64,
    /// As they were pushed.
    pushed_bytes: u64,
    /// What was written for them, beyond what the namespace had.
    stored_bytes: u64,
}

impl Sum {
    fn add(&mut self, sum: &SavingSum) {
        self.blobs += sum.blobs;
        self.pushed_bytes += sum.pushed_bytes;
        self.stored_bytes += sum.stored_bytes;
    }
}

#[derive(Debug, Serialize)]
struct Group {
    /// Who compressed them: they are made again.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoder: Option<String>,
    /// Why they are kept as they were pushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Decompressed, as far as they were.
    plain_bytes: u64,
    #[serde(flatten)]
    sum: Sum,
}

#[derive(Debug, Serialize)]
struct Savings {
    total: Sum,
    /// Not looked at yet, or being looked at.
    pending: Sum,
    groups: Vec<Group>,
}

/// What the repository's blobs save.
#[utoipa::path(get, path = "/v1/repositories/{repository}/-/savings", responses((status = 200, content_type = "application/json"), (status = 404, description = "unknown")))]
pub(crate) async fn get(app: &Shared, call: Call) -> Result<Response, ApiError> {
    let sums = app.oci.savings(&call.repository).await?.ok_or_else(ApiError::repository_unknown)?;
    let mut savings = Savings { total: Sum::default(), pending: Sum::default(), groups: Vec::new() };
    for sum in sums {
        savings.total.add(&sum);
        if sum.pending {
            savings.pending.add(&sum);
            continue;
        }
        let mut group = Group { encoder: sum.encoder.clone(), reason: sum.reason.clone(), plain_bytes: sum.plain_bytes, sum: Sum::default() };
        if group.encoder.is_none() && group.reason.is_none() {
            group.reason = Some("it is short, or was not looked at".to_owned());
        }
        group.sum.add(&sum);
        savings.groups.push(group);
    }
    Ok(Json(savings).into_response())
}
