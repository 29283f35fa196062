//! What container tools can do: one table from method and path to a repository and an action, and one from an action to the right
//! that it needs. Nothing else is reachable: [`dispatch`] asks for the right before any handler runs.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use layer_format::oci::OciDigest;
use layer_format::reference::{Repository, is_release};

use super::error::OciError;
use super::{blobs, manifests, uploads};
use crate::app::Shared;
use crate::http::access::{Refusal, Visit};
use crate::http::body::PacedBody;
use crate::http::edge::RouteLabel;
use crate::http::routes::{Note, visit};
use crate::service::access::audit::{Outcome, entry};
use crate::service::access::policy::Who;
use crate::service::access::rights::{Right, Target as On};
use crate::service::oci::manifest::OciReference;

/// What a request wants to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    BlobGet(OciDigest),
    BlobDelete(OciDigest),
    UploadStart,
    UploadStatus(String),
    UploadAppend(String),
    UploadFinish(String),
    UploadCancel(String),
    ManifestGet(OciReference),
    ManifestPut(OciReference),
    ManifestDelete(OciReference),
    Tags,
    Referrers(OciDigest),
}

impl Action {
    /// The right that it needs, and whether it is noted in the audit log. No wildcard: who adds an action decides.
    fn needs(&self) -> (Right, Note) {
        match self {
            Self::BlobGet(_) | Self::ManifestGet(_) | Self::Tags | Self::Referrers(_) => (Right::Pull, Note::Nothing),
            Self::UploadStatus(_) | Self::UploadAppend(_) | Self::UploadCancel(_) => (Right::Push, Note::Nothing),
            Self::UploadStart | Self::UploadFinish(_) | Self::ManifestPut(_) => (Right::Push, Note::Change),
            Self::BlobDelete(_) | Self::ManifestDelete(_) => (Right::Delete, Note::Change),
        }
    }

    /// The answer to who may not read here: the one for what is not there.
    fn absent(&self) -> OciError {
        match self {
            Self::BlobGet(digest) | Self::BlobDelete(digest) => OciError::blob_unknown(digest),
            Self::ManifestGet(_) | Self::ManifestPut(_) | Self::ManifestDelete(_) => OciError::manifest_unknown(),
            Self::UploadStatus(_) | Self::UploadAppend(_) | Self::UploadFinish(_) | Self::UploadCancel(_) => OciError::upload_unknown(),
            Self::UploadStart | Self::Tags | Self::Referrers(_) => OciError::name_unknown(),
        }
    }
}

/// A request that was routed, and whose caller may do what it asks for.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) repository: Repository,
    /// The repository as the client wrote it: answers name it so.
    pub(super) name: String,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) query: Query,
    /// Who asks.
    pub(super) visit: Arc<Visit>,
    pub(super) body: Body,
}

/// The query of a request.
#[derive(Debug, Default)]
pub(super) struct Query(String);

impl Query {
    /// The value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        self.all(name).into_iter().next()
    }

    /// All values of a parameter.
    pub(super) fn all(&self, name: &str) -> Vec<String> {
        url::form_urlencoded::parse(self.0.as_bytes()).filter(|(key, _)| key == name).map(|(_, value)| value.into_owned()).collect()
    }
}

/// What a path is about.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// `/v2/`: whether this is such an API.
    Base,
    Catalog,
    Repository {
        name: String,
        action: Action,
    },
}

const HEADER_VERSION: &str = "docker-distribution-api-version";

/// The table: what follows `/v2/`.
fn route(method: &Method, path: &str) -> Result<(Target, &'static str), OciError> {
    let path = path.replace("%3A", ":").replace("%3a", ":");
    let rest = path.strip_prefix("/v2").map(|rest| rest.strip_prefix('/').unwrap_or(rest)).ok_or_else(OciError::route_unknown)?;
    let get = *method == Method::GET || *method == Method::HEAD;
    match rest {
        "" if get => return Ok((Target::Base, "oci_base")),
        "_catalog" if get => return Ok((Target::Catalog, "oci_catalog")),
        "" | "_catalog" => return Err(OciError::method_not_allowed("GET, HEAD")),
        _ => {}
    }
    // From the right, since a name may have any of these words in it.
    let parts: Vec<&str> = rest.split('/').collect();
    let (name, noun, argument) = match &parts[..] {
        [name @ .., "blobs", "uploads", id] if !name.is_empty() => (name, "uploads", *id),
        [name @ .., "blobs", "uploads"] if !name.is_empty() => (name, "uploads", ""),
        [name @ .., "tags", "list"] if !name.is_empty() => (name, "tags", ""),
        [name @ .., noun @ ("blobs" | "manifests" | "referrers"), argument] if !name.is_empty() => (name, *noun, *argument),
        _ => return Err(OciError::route_unknown()),
    };
    let (action, label) = match noun {
        "blobs" if get => (Action::BlobGet(digest(argument)?), "oci_blob_get"),
        "blobs" if *method == Method::DELETE => (Action::BlobDelete(digest(argument)?), "oci_blob_delete"),
        "blobs" => return Err(OciError::method_not_allowed("GET, HEAD, DELETE")),
        "uploads" if argument.is_empty() && *method == Method::POST => (Action::UploadStart, "oci_upload_start"),
        "uploads" if argument.is_empty() => return Err(OciError::method_not_allowed("POST")),
        "uploads" if *method == Method::GET => (Action::UploadStatus(upload(argument)?), "oci_upload_status"),
        "uploads" if *method == Method::PATCH => (Action::UploadAppend(upload(argument)?), "oci_upload_append"),
        "uploads" if *method == Method::PUT => (Action::UploadFinish(upload(argument)?), "oci_upload_finish"),
        "uploads" if *method == Method::DELETE => (Action::UploadCancel(upload(argument)?), "oci_upload_cancel"),
        "uploads" => return Err(OciError::method_not_allowed("GET, PATCH, PUT, DELETE")),
        "manifests" if get => (Action::ManifestGet(reference(argument)?), "oci_manifest_get"),
        "manifests" if *method == Method::PUT => (Action::ManifestPut(reference(argument)?), "oci_manifest_put"),
        "manifests" if *method == Method::DELETE => (Action::ManifestDelete(reference(argument)?), "oci_manifest_delete"),
        "manifests" => return Err(OciError::method_not_allowed("GET, HEAD, PUT, DELETE")),
        "tags" if get => (Action::Tags, "oci_tags"),
        "referrers" if get => (Action::Referrers(digest(argument)?), "oci_referrers"),
        _ => return Err(OciError::method_not_allowed("GET, HEAD")),
    };
    Ok((Target::Repository { name: name.join("/"), action }, label))
}

fn digest(text: &str) -> Result<OciDigest, OciError> {
    text.parse().map_err(OciError::digest_invalid)
}

fn upload(id: &str) -> Result<String, OciError> {
    let is_id = id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_id { Ok(id.to_owned()) } else { Err(OciError::upload_unknown()) }
}

fn reference(text: &str) -> Result<OciReference, OciError> {
    if text.contains(':') {
        return digest(text).map(OciReference::Digest);
    }
    match is_release(text) {
        true => Ok(OciReference::Tag(text.to_owned())),
        false => Err(OciError::tag_invalid()),
    }
}

/// The repository with this name. A name of one component is in the default namespace, as on the docker hub.
pub(super) fn repository(name: &str) -> Result<Repository, OciError> {
    name.parse().map_err(OciError::name_invalid)
}

/// Routes a request and answers it.
pub(crate) async fn dispatch(State(app): State<Shared>, request: Request) -> Response {
    let (mut response, label) = match answer(&app, request).await {
        Ok(answered) => answered,
        Err(error) => (error.into_response(), "oci_none"),
    };
    response.headers_mut().insert(HEADER_VERSION, HeaderValue::from_static("registry/2.0"));
    response.extensions_mut().insert(RouteLabel(label));
    response
}

async fn answer(app: &Shared, request: Request) -> Result<(Response, &'static str), OciError> {
    let (parts, body) = request.into_parts();
    let (target, label) = route(&parts.method, parts.uri.path())?;
    let query = Query(parts.uri.query().unwrap_or_default().to_owned());
    let visit = visit(&parts.extensions).map_err(|_| OciError::route_unknown())?;
    let (name, action) = match target {
        // Clients learn here that they can log in, also where everyone may read.
        Target::Base if visit.caller.who == Who::Anonymous && visit.caller.token.is_none() => {
            return Err(Refusal::Challenge(visit.challenge(None, None)).into());
        }
        Target::Base => return Ok((axum::Json(serde_json::json!({})).into_response(), label)),
        Target::Catalog => {
            visit.decide(&On::Catalog, Right::Pull)?;
            return Ok((manifests::catalog(app, &visit, &query).await?, label));
        }
        Target::Repository { name, action } => (name, action),
    };
    let repository = repository(&name)?;
    let (right, note) = action.needs();
    let path = parts.uri.path();
    if let Err(refused) = visit.may(app, &repository, right, label, path) {
        // Someone who still sends would not see the answer; who is nobody yet is not waited for.
        if visit.caller.who != Who::Anonymous {
            PacedBody::new(app, &parts.headers, body, 0).drain().await;
        }
        return Err(if let Refusal::Unknown = refused { action.absent() } else { refused.into() });
    }
    let noted = (note == Note::Change).then(|| entry(&visit.actor(), label, path, Outcome::Done, None));
    let is_start = action == Action::UploadStart;
    let call = Call { repository, name, method: parts.method, headers: parts.headers, query, visit, body };
    let answer = match action {
        Action::BlobGet(digest) => Box::pin(blobs::get(app, call, digest)).await,
        Action::BlobDelete(digest) => Box::pin(blobs::delete(app, call, digest)).await,
        Action::UploadStart => Box::pin(uploads::start(app, call)).await,
        Action::UploadStatus(id) => Box::pin(uploads::status(app, call, id)).await,
        Action::UploadAppend(id) => Box::pin(uploads::append(app, call, id)).await,
        Action::UploadFinish(id) => Box::pin(uploads::finish(app, call, id)).await,
        Action::UploadCancel(id) => Box::pin(uploads::cancel(app, call, id)).await,
        Action::ManifestGet(reference) => Box::pin(manifests::get(app, call, reference)).await,
        Action::ManifestPut(reference) => Box::pin(manifests::put(app, call, reference)).await,
        Action::ManifestDelete(reference) => Box::pin(manifests::delete(app, call, reference)).await,
        Action::Tags => Box::pin(manifests::tags(app, call)).await,
        Action::Referrers(digest) => Box::pin(manifests::referrers(app, call, digest)).await,
    };
    let response = answer.unwrap_or_else(IntoResponse::into_response);
    // A session that was begun changes nothing yet; a blob that was mounted or sent at once does.
    if let Some(entry) = noted
        && response.status().is_success()
        && !(is_start && response.status() == StatusCode::ACCEPTED)
    {
        app.access.audit.change(entry).await;
    }
    Ok((response, label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let hex = format!("sha256:{}", "ab".repeat(32));
        let id = "0123456789abcdef".repeat(2);
        let parse = |method: &str, path: &str| route(&method.parse().unwrap(), path);
        for (method, path, name, label) in [
            ("GET", format!("/v2/alpine/blobs/{hex}"), "alpine", "oci_blob_get"),
            ("HEAD", format!("/v2/a/b/c/blobs/{}", hex.replace(':', "%3A")), "a/b/c", "oci_blob_get"),
            ("POST", "/v2/a/b/blobs/uploads/".into(), "a/b", "oci_upload_start"),
            ("POST", "/v2/a/b/blobs/uploads".into(), "a/b", "oci_upload_start"),
            ("PATCH", format!("/v2/a/blobs/uploads/{id}"), "a", "oci_upload_append"),
            ("PUT", "/v2/manifests/manifests/manifests/manifests".into(), "manifests/manifests", "oci_manifest_put"),
            ("GET", "/v2/tags/list/tags/list".into(), "tags/list", "oci_tags"),
            ("GET", "/v2/blobs/uploads/manifests/1.0".into(), "blobs/uploads", "oci_manifest_get"),
            ("GET", format!("/v2/a/referrers/{hex}"), "a", "oci_referrers"),
        ] {
            match parse(method, &path).unwrap() {
                (Target::Repository { name: found, .. }, found_label) => assert_eq!((found.as_str(), found_label), (name, label), "{method} {path}"),
                other => panic!("{method} {path}: {other:?}"),
            }
        }
        assert_eq!(parse("GET", "/v2/").unwrap().0, Target::Base);
        assert_eq!(parse("GET", "/v2").unwrap().0, Target::Base);
        assert_eq!(parse("GET", "/v2/_catalog").unwrap().0, Target::Catalog);
        for (method, path) in [
            ("POST", "/v2/"),
            ("GET", "/v2/blobs/uploads/"),
            ("GET", "/v2/a/b"),
            ("GET", "/v2//manifests/"),
            ("GET", "/v2/a/manifests/.x"),
            ("GET", "/v2/a/manifests/sha256:baddigeststring"),
            ("GET", "/v2/a/blobs/latest"),
            ("GET", "/v2/a/blobs/uploads/../x"),
            ("PUT", "/v2/a/tags/list"),
            ("POST", "/v2/a/referrers/x"),
            ("TRACE", "/v2/a/manifests/x"),
        ] {
            assert!(parse(method, path).is_err(), "{method} {path}");
        }
        for name in ["A/b", "a/../b", "a//b", "", "a%2Fb", "a/b/", "-a"] {
            assert!(repository(name).is_err(), "{name}");
        }
    }
}
