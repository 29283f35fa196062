//! The OCI distribution API 1.1, with that specification's words and error codes, over the same services as our own. What is
//! supported: `docs/oci.md`.

mod blobs;
mod error;
mod manifests;
mod routes;
mod uploads;

pub(super) use routes::dispatch;
