//! The one place that chooses status codes and client text for container tools, with the codes of the specification.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use layer_format::api::{ApiError as Entry, ErrorBody};
use layer_format::oci::{OciDigest, OciManifest};
use serde_json::{Value, json};

use crate::chain;
use crate::db::DbError;
use crate::http::access::Refusal;
use crate::http::body::BodyError;
use crate::http::error::is_outage;
use crate::service::frames::ReadError;
use crate::service::oci::Crowded;
use crate::service::oci::manifest::ManifestError;
use crate::service::oci::render::RenderError;
use crate::service::oci::upload::UploadError;

/// After how many seconds a client that was turned away may come again.
const RETRY_AFTER_S: u32 = 5;

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct OciError {
    status: StatusCode,
    entries: Vec<Entry>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl OciError {
    fn new(status: StatusCode, code: &str, message: impl ToString) -> Self {
        Self::with_detail(status, code, message, Value::Null)
    }

    fn with_detail(status: StatusCode, code: &str, message: impl ToString, detail: Value) -> Self {
        Self { status, entries: vec![Entry { code: code.to_owned(), message: message.to_string(), detail }], headers: Vec::new() }
    }

    /// With another header.
    pub(super) fn header(mut self, name: HeaderName, value: impl AsRef<str>) -> Self {
        self.headers.extend(HeaderValue::try_from(value.as_ref()).ok().map(|value| (name, value)));
        self
    }

    fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = chain(error), "request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", "the registry has a problem; its log says which")
    }

    fn unavailable(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = chain(error), "storage or database does not answer");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "the registry's storage does not answer; try again").retry()
    }

    fn retry(self) -> Self {
        self.header(header::RETRY_AFTER, RETRY_AFTER_S.to_string())
    }

    pub(super) fn route_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "there is nothing here")
    }

    pub(super) fn method_not_allowed(allowed: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", format!("here only {allowed} is possible")).header(header::ALLOW, allowed)
    }

    pub(super) fn name_invalid(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", error)
    }

    pub(super) fn digest_invalid(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", error)
    }

    pub(super) fn tag_invalid() -> Self {
        let message = "a tag has 1 to 128 letters, digits, `_`, `.` and `-`, and does not begin with the last two";
        Self::new(StatusCode::BAD_REQUEST, "TAG_INVALID", message)
    }

    pub(super) fn name_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "the registry has no such repository")
    }

    pub(super) fn blob_unknown(digest: &OciDigest) -> Self {
        Self::with_detail(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "the repository has no such blob", json!({ "digest": digest }))
    }

    pub(super) fn manifest_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "the repository has no such manifest")
    }

    pub(super) fn upload_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "the repository has no such upload, or it has ended")
    }

    pub(super) fn upload_invalid(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
    }

    pub(super) fn request_invalid(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", message)
    }

    pub(super) fn range_invalid(len: u64) -> Self {
        let error = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", format!("the blob has {len} bytes"));
        error.header(header::CONTENT_RANGE, format!("bytes */{len}"))
    }

    /// A part of a blob that is not the next one.
    pub(super) fn out_of_order(received: u64) -> Self {
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", format!("the next byte of this upload is byte {received}"))
    }

    fn manifest_invalid(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", error)
    }
}

impl IntoResponse for OciError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(ErrorBody { errors: self.entries })).into_response();
        response.headers_mut().extend(self.headers);
        response
    }
}

impl From<DbError> for OciError {
    fn from(error: DbError) -> Self {
        match error {
            error if error.is_outage() => Self::unavailable(&error),
            error if error.is_text_with_nul() => Self::manifest_invalid("a text in it has a NUL character"),
            error => Self::internal(&error),
        }
    }
}

impl From<Refusal> for OciError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Challenge(challenge) => {
                Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "credentials are needed: log in first").header(header::WWW_AUTHENTICATE, challenge)
            }
            Refusal::Login(error, challenge) => Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", error).header(header::WWW_AUTHENTICATE, challenge),
            Refusal::Denied => Self::new(StatusCode::FORBIDDEN, "DENIED", "this is not among your rights"),
            Refusal::Unknown => Self::name_unknown(),
            Refusal::DeletesOff => Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "nothing can be deleted on this registry"),
        }
    }
}

impl From<Crowded> for OciError {
    fn from(error: Crowded) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", error).retry()
    }
}

impl From<BodyError> for OciError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", error),
            BodyError::Slow => Self::new(StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID", error),
            BodyError::Broken(_) => Self::upload_invalid("the body ended early"),
        }
    }
}

impl From<ReadError> for OciError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Database(error) => error.into(),
            ReadError::Storage(_) | ReadError::Cancelled => Self::unavailable(&error),
            ReadError::Gone(_) | ReadError::Damaged(_) => Self::internal(&error),
        }
    }
}

impl<E: Into<OciError>> From<UploadError<E>> for OciError {
    fn from(error: UploadError<E>) -> Self {
        match error {
            UploadError::Unknown => Self::upload_unknown(),
            UploadError::OutOfOrder { received } => Self::out_of_order(received),
            UploadError::Length { wanted, got } => {
                Self::new(StatusCode::BAD_REQUEST, "SIZE_INVALID", format!("the body has {got} bytes, and its range {wanted}"))
            }
            UploadError::Digest { wanted, got } => Self::digest_invalid(format!("the blob's digest is {got}, and the request names {wanted}")),
            UploadError::Body(error) => error.into(),
            UploadError::TooLong(most) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", format!("a blob has at most {most} bytes here")),
            UploadError::TooMany(_) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "the repository has too many open uploads: end or cancel some").retry()
            }
            UploadError::Crowded(error) => error.into(),
            UploadError::Hash(error) => Self::internal(&error),
            UploadError::Store(error) if is_outage(&error) => Self::unavailable(&error),
            UploadError::Store(error) => Self::internal(&error),
            UploadError::Read(error) => error.into(),
            UploadError::Database(error) => error.into(),
            UploadError::Cancelled => Self::unavailable(&Crowded),
        }
    }
}

impl From<ManifestError> for OciError {
    fn from(error: ManifestError) -> Self {
        match error {
            ManifestError::Invalid(layer_format::FormatError::TooLarge { what: "bytes of a manifest", .. }) => Self::manifest_too_large(OciManifest::MAX_LEN),
            ManifestError::Invalid(error) => Self::manifest_invalid(error),
            ManifestError::Digest { .. } => Self::digest_invalid(error),
            ManifestError::Size { ref digest, .. } => {
                let detail = json!({ "digest": digest });
                Self::with_detail(StatusCode::BAD_REQUEST, "SIZE_INVALID", &error, detail)
            }
            ManifestError::Missing(digests) => {
                let entry = |digest: OciDigest| Entry {
                    code: "MANIFEST_BLOB_UNKNOWN".into(),
                    message: "the manifest refers to what is not in this repository; push it first".into(),
                    detail: json!({ "digest": digest }),
                };
                Self { status: StatusCode::BAD_REQUEST, entries: digests.into_iter().map(entry).collect(), headers: Vec::new() }
            }
            ManifestError::Database(error) => error.into(),
        }
    }
}

impl OciError {
    /// A manifest longer than is taken.
    pub(super) fn manifest_too_large(max_len: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", format!("a manifest has at most {max_len} bytes"))
    }
}

impl From<RenderError> for OciError {
    fn from(error: RenderError) -> Self {
        match error {
            RenderError::Database(error) => error.into(),
            RenderError::Read(error) => error.into(),
            RenderError::Cancelled => Self::unavailable(&error),
            RenderError::Gone | RenderError::Invalid(_) | RenderError::Tar(_) => Self::internal(&error),
        }
    }
}
