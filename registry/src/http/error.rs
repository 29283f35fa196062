//! The one place that chooses status codes and client text. `docs/errors.md` lists the codes.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use layer_format::api::{ApiError as Entry, ErrorBody};
use layer_format::{Digest, FormatError};
use serde_json::Value;

use super::access::Refusal;
use super::body::BodyError;
use crate::blob_storage::StorageError;
use crate::chain;
use crate::db::DbError;
use crate::service::access::login::LoginError;
use crate::service::access::manage::ManageError;
use crate::service::closure::ClosureError;
use crate::service::frames::ReadError;
use crate::service::image::PutError;
use crate::service::models::ModelError;
use crate::service::oci::unpack::UnpackError;
use crate::service::pack_upload::PackError;
use crate::service::pack_verifier::InvalidPack;
use crate::service::state::StatePutError;
use crate::service::train::NotTaken;

/// An answer that is an error.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    detail: Value,
    header: Option<Box<(header::HeaderName, HeaderValue)>>,
}

/// Whether an error, or what caused it, is that database or storage do not answer for now.
pub(super) fn is_outage(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| {
        error.downcast_ref::<DbError>().is_some_and(DbError::is_outage) || error.downcast_ref::<StorageError>().is_some_and(StorageError::is_outage)
    })
}

/// After how many seconds a client that was turned away may come again.
const RETRY_AFTER_S: u32 = 2;

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        Self { status, code, message: message.to_string(), detail: Value::Null, header: None }
    }

    /// Something failed here: the chain goes to the log, and no detail to the client.
    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = chain(error), "request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", "the registry has a problem; its log says which")
    }

    /// A handler panicked.
    pub(crate) fn panicked() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", "the registry has a problem; its log says which")
    }

    /// An error that the framework made: gets the same form.
    pub(crate) fn from_status(status: StatusCode) -> Self {
        let code = match status {
            StatusCode::NOT_FOUND => "ROUTE_UNKNOWN",
            StatusCode::METHOD_NOT_ALLOWED => "METHOD_NOT_ALLOWED",
            StatusCode::PAYLOAD_TOO_LARGE => "BODY_TOO_LARGE",
            status if status.is_server_error() => "INTERNAL",
            _ => "BAD_REQUEST",
        };
        Self::new(status, code, status.canonical_reason().unwrap_or("error"))
    }

    pub(crate) fn route_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "ROUTE_UNKNOWN", "there is nothing here; see /openapi.json for what there is")
    }

    pub(crate) fn method_not_allowed(allowed: &'static str) -> Self {
        let error = Self::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", format!("here only {allowed} is possible"));
        Self { header: Some(Box::new((header::ALLOW, HeaderValue::from_static(allowed)))), ..error }
    }

    pub(crate) fn name_invalid(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", error)
    }

    pub(crate) fn digest_invalid(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", error)
    }

    pub(crate) fn release_invalid(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "RELEASE_INVALID", message)
    }

    pub(crate) fn body_invalid(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BODY_INVALID", error)
    }

    pub(crate) fn request_invalid(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", error)
    }

    pub(crate) fn repository_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "REPOSITORY_UNKNOWN", "the registry has no such repository")
    }

    pub(crate) fn manifest_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "the repository has no such image")
    }

    pub(crate) fn launch_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "LAUNCH_UNKNOWN", "no such launch of yours is being answered, or it has all its lanes")
    }

    pub(crate) fn state_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "STATE_UNKNOWN", "the repository has no such state")
    }

    pub(crate) fn state_ambiguous(found: &[Digest]) -> Self {
        let error = Self::new(StatusCode::CONFLICT, "STATE_AMBIGUOUS", "several states start with these digits: give more of them");
        Self { detail: found.iter().map(|digest| Value::String(digest.to_string())).collect(), ..error }
    }

    pub(crate) fn pack_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "PACK_UNKNOWN", "the registry has no such pack")
    }

    pub(crate) fn object_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "OBJECT_UNKNOWN", "the registry has no such object")
    }

    pub(crate) fn model_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "MODEL_UNKNOWN", "the repository has no such model")
    }

    pub(crate) fn traces_disabled() -> Self {
        Self::new(StatusCode::FORBIDDEN, "TRACES_DISABLED", "this registry takes no traces")
    }

    pub(crate) fn profiling_disabled() -> Self {
        Self::new(StatusCode::FORBIDDEN, "PROFILING_DISABLED", "the image's manifest says that runs of it are not learned from")
    }

    pub(crate) fn range_invalid(len: u64) -> Self {
        let error = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", format!("the object has {len} bytes"));
        Self { header: HeaderValue::try_from(format!("bytes */{len}")).ok().map(|value| Box::new((header::CONTENT_RANGE, value))), ..error }
    }

    /// More of something than the server does at a time.
    pub(crate) fn busy(what: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "BUSY", format!("the registry is busy with other {what}; try again")).retry()
    }

    fn retry(self) -> Self {
        Self { header: Some(Box::new((header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S)))), ..self }
    }

    fn unavailable(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = chain(error), "storage or database does not answer");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "the registry's storage does not answer; try again").retry()
    }

    /// `/readyz`: why requests should not come here.
    pub(crate) fn not_ready(reason: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", reason).retry()
    }

    /// The same, with a cause for the log.
    pub(crate) fn not_ready_since(reason: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::warn!(error = chain(error), "not ready: {reason}");
        Self::not_ready(reason)
    }

    fn missing(digests: &[Digest]) -> Self {
        let error = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "OBJECTS_MISSING",
            format!("{} objects that it needs are not in this namespace; push them first", digests.len()),
        );
        Self { detail: digests.iter().map(|digest| Value::String(digest.to_string())).collect(), ..error }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody { errors: vec![Entry { code: self.code.to_owned(), message: self.message, detail: self.detail }] };
        let mut response = (self.status, axum::Json(body)).into_response();
        if let Some(header) = self.header {
            let (name, value) = *header;
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        match error {
            error if error.is_outage() => Self::unavailable(&error),
            error if error.is_text_with_nul() => Self::body_invalid("a text in it has a NUL character"),
            error => Self::internal(&error),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let challenge = |challenge: &str| HeaderValue::try_from(challenge).ok().map(|value| Box::new((header::WWW_AUTHENTICATE, value)));
        match refusal {
            Refusal::Challenge(value) => {
                let error = Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "credentials are needed: `turbo login URL`, or a key in TURBO_TOKEN");
                Self { header: challenge(&value), ..error }
            }
            Refusal::Login(error @ (LoginError::Invalid | LoginError::Expired), value) => {
                Self { header: challenge(&value), ..Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", error) }
            }
            Refusal::Login(LoginError::Limited(wait), _) => {
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", LoginError::Limited(wait));
                Self { header: Some(Box::new((header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1))))), ..error }
            }
            Refusal::Login(LoginError::Busy(error), _) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "BUSY", error).retry(),
            Refusal::Login(LoginError::Database(error), _) => error.into(),
            Refusal::Denied => Self::new(StatusCode::FORBIDDEN, "DENIED", "this is not among your rights"),
            Refusal::Unknown => Self::repository_unknown(),
            Refusal::DeletesOff => Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "nothing can be deleted on this registry"),
        }
    }
}

impl From<ManageError> for ApiError {
    fn from(error: ManageError) -> Self {
        match error {
            ManageError::UserUnknown(_) => Self::new(StatusCode::NOT_FOUND, "USER_UNKNOWN", error),
            ManageError::KeyUnknown(_) => Self::new(StatusCode::NOT_FOUND, "KEY_UNKNOWN", error),
            ManageError::GrantUnknown => Self::new(StatusCode::NOT_FOUND, "GRANT_UNKNOWN", error),
            ManageError::UserExists(_) => Self::new(StatusCode::CONFLICT, "USER_EXISTS", error),
            ManageError::KeyExists(_) => Self::new(StatusCode::CONFLICT, "KEY_EXISTS", error),
            ManageError::NamespaceTaken(_) => Self::new(StatusCode::CONFLICT, "NAMESPACE_TAKEN", error),
            ManageError::LastAdministrator(_) => Self::new(StatusCode::CONFLICT, "LAST_ADMINISTRATOR", error),
            ManageError::NameInvalid(_) => Self::name_invalid(error),
            ManageError::NoScope | ManageError::NoRights | ManageError::Word(_) => Self::body_invalid(error),
            ManageError::Password(_) => Self::new(StatusCode::BAD_REQUEST, "PASSWORD_UNSUITABLE", error),
            ManageError::Database(error) => error.into(),
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        match error {
            // Logged where it was found.
            ReadError::Gone(_) | ReadError::Damaged(_) => Self::object_unknown(),
            ReadError::Database(error) => error.into(),
            ReadError::Storage(_) | ReadError::Cancelled => Self::unavailable(&error),
        }
    }
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", error),
            BodyError::Slow => Self::new(StatusCode::REQUEST_TIMEOUT, "BODY_TOO_SLOW", error),
            BodyError::Broken(_) => Self::new(StatusCode::BAD_REQUEST, "BODY_INCOMPLETE", "the body ended early"),
        }
    }
}

impl From<PackError<BodyError>> for ApiError {
    fn from(error: PackError<BodyError>) -> Self {
        match error {
            PackError::Body(error) => error.into(),
            PackError::Invalid(InvalidPack::Digest { .. }) => Self::digest_invalid(error),
            PackError::Invalid(InvalidPack::TooLong) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", error),
            PackError::Invalid(InvalidPack::Bases) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "BASES_MISSING", error),
            PackError::Invalid(InvalidPack::Read(error)) => error.into(),
            PackError::Invalid(_) => Self::new(StatusCode::BAD_REQUEST, "PACK_INVALID", error),
            PackError::Database(error) => error.into(),
            PackError::Storage(ref cause) if cause.is_outage() => Self::unavailable(&error),
            PackError::Storage(_) => Self::internal(&error),
            PackError::Cancelled => Self::unavailable(&error),
        }
    }
}

impl From<PutError> for ApiError {
    fn from(error: PutError) -> Self {
        match error {
            PutError::Invalid(error) => Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", error),
            PutError::Digest { .. } => Self::digest_invalid(error),
            PutError::Closure(ClosureError::Missing(digests)) => Self::missing(&digests),
            PutError::Closure(ClosureError::Invalid { .. }) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "IMAGE_INVALID", error),
            PutError::Closure(ClosureError::Read(error)) => error.into(),
            PutError::Database(error) => error.into(),
        }
    }
}

impl From<StatePutError> for ApiError {
    fn from(error: StatePutError) -> Self {
        match error {
            StatePutError::Invalid(error) => Self::new(StatusCode::BAD_REQUEST, "STATE_INVALID", error),
            StatePutError::Digest { .. } => Self::digest_invalid(error),
            StatePutError::Closure(ClosureError::Missing(digests)) => Self::missing(&digests),
            StatePutError::Closure(ClosureError::Invalid { .. }) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "IMAGE_INVALID", error),
            StatePutError::Closure(ClosureError::Read(error)) => error.into(),
            StatePutError::Database(error) => error.into(),
        }
    }
}

impl From<UnpackError> for ApiError {
    fn from(error: UnpackError) -> Self {
        let refused = |error: &UnpackError| Self::new(StatusCode::UNPROCESSABLE_ENTITY, "IMAGE_INVALID", chain(error));
        match error {
            UnpackError::NotAnImage | UnpackError::Missing(_) | UnpackError::TooManyLayers(_) | UnpackError::Invalid(_) => refused(&error),
            UnpackError::Layer { source: chunker::ImportError::Sink(_), .. } | UnpackError::Store(_) => match is_outage(&error) {
                true => Self::unavailable(&error),
                false => Self::internal(&error),
            },
            UnpackError::Layer { .. } => refused(&error),
            UnpackError::Put(error) => error.into(),
            UnpackError::Read(error) => error.into(),
            UnpackError::Database(error) => error.into(),
            UnpackError::Cancelled => Self::unavailable(&error),
        }
    }
}

impl From<FormatError> for ApiError {
    fn from(error: FormatError) -> Self {
        Self::body_invalid(error)
    }
}

impl From<NotTaken> for ApiError {
    fn from(error: NotTaken) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_TRACES", error).retry()
    }
}

impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::ImageUnknown => Self::manifest_unknown(),
            ModelError::ModelUnknown => Self::model_unknown(),
            ModelError::PinUnknown => Self::new(StatusCode::NOT_FOUND, "PIN_UNKNOWN", error),
            ModelError::TooManyPins => Self::new(StatusCode::CONFLICT, "TOO_MANY_PINS", error),
            ModelError::Unsuitable => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "MODEL_UNSUITABLE", error),
            ModelError::Read(error) => error.into(),
            ModelError::Database(error) => error.into(),
        }
    }
}
