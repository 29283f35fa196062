//! What can be done in a repository: one table from method and path to an action, and one from an action to the right that it
//! needs. Nothing else is reachable: [`dispatch`] asks for the right before any handler runs.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use layer_format::Digest;
use layer_format::reference::{Repository, is_release};

use super::access::{Refusal, Visit};
use super::body::PacedBody;
use super::edge::RouteLabel;
use super::error::ApiError;
use super::{deltas, launch, manifests, models, objects, packs, savings, states, streams, traces};
use crate::app::Shared;
use crate::service::access::audit::{Outcome, entry};
use crate::service::access::policy::Who;
use crate::service::access::rights::Right;
use crate::service::image::Reference;
use crate::service::state::StatePrefix;

/// What a request wants to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Missing,
    Bases,
    Deltas,
    PackPut(Digest),
    PackHead(Digest),
    ManifestPut(Reference),
    ManifestGet(Reference),
    ManifestDelete(Reference),
    Tags,
    Savings,
    StatePut(Digest),
    StateGet(StatePrefix),
    StateDelete(StatePrefix),
    States,
    Objects,
    ObjectGet(Digest),
    Launch(Reference),
    LaunchCacheable(Reference),
    Lane(String),
    Traces,
    ModelGet,
    ModelPut,
    ModelDelete,
    PinPut(Reference),
    PinDelete(Reference),
}

/// Whether an action that was done is noted in the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// It changes something that others see.
    Change,
    /// It does not.
    Nothing,
}

impl Action {
    /// The right that it needs, and whether it is noted. No wildcard: who adds an action decides.
    fn needs(&self) -> (Right, Note) {
        match self {
            Self::ManifestGet(_) | Self::Tags | Self::StateGet(_) | Self::States => (Right::Pull, Note::Nothing),
            Self::Objects | Self::ObjectGet(_) | Self::Deltas | Self::Launch(_) | Self::LaunchCacheable(_) | Self::Lane(_) => (Right::Pull, Note::Nothing),
            // Whoever may run an image may tell what the run touched.
            Self::ModelGet | Self::Traces | Self::Savings => (Right::Pull, Note::Nothing),
            Self::Missing | Self::Bases | Self::PackHead(_) => (Right::Push, Note::Nothing),
            Self::PackPut(_) | Self::ManifestPut(_) | Self::StatePut(_) | Self::ModelPut => (Right::Push, Note::Change),
            Self::PinPut(_) | Self::PinDelete(_) => (Right::Push, Note::Change),
            Self::ManifestDelete(_) | Self::StateDelete(_) | Self::ModelDelete => (Right::Delete, Note::Change),
        }
    }

    /// The answer to who may not read here: the one for what is not there.
    fn absent(&self) -> ApiError {
        match self {
            Self::ManifestGet(_) | Self::ManifestPut(_) | Self::ManifestDelete(_) => ApiError::manifest_unknown(),
            Self::Launch(_) | Self::LaunchCacheable(_) | Self::Traces | Self::PinPut(_) | Self::PinDelete(_) => ApiError::manifest_unknown(),
            Self::Tags | Self::Savings | Self::States | Self::Missing | Self::Bases | Self::Objects | Self::Deltas => ApiError::repository_unknown(),
            Self::PackPut(_) | Self::StatePut(_) => ApiError::repository_unknown(),
            Self::StateGet(_) | Self::StateDelete(_) => ApiError::state_unknown(),
            Self::PackHead(_) => ApiError::pack_unknown(),
            Self::ObjectGet(_) => ApiError::object_unknown(),
            Self::Lane(_) => ApiError::launch_unknown(),
            Self::ModelGet | Self::ModelPut | Self::ModelDelete => ApiError::model_unknown(),
        }
    }
}

/// A request that was routed, and whose caller may do what it asks for.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) repository: Repository,
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    pub(crate) query: String,
    /// Who asks.
    pub(crate) visit: Arc<Visit>,
    pub(crate) body: Body,
}

impl Call {
    /// The value of a query parameter. None here needs escapes but `%3A`, the colon of a digest.
    pub(crate) fn query(&self, name: &str) -> Option<String> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| unescape(value)).next()
    }
}

fn unescape(text: &str) -> String {
    text.replace("%3A", ":").replace("%3a", ":")
}

const PREFIX: &str = "/v1/repositories/";

/// The table: what follows `/v1/repositories/{repository}/-/`.
fn route(method: &Method, path: &str) -> Result<(Repository, Action, &'static str), ApiError> {
    let path = unescape(path);
    let rest = path.strip_prefix(PREFIX).ok_or_else(ApiError::route_unknown)?;
    let (name, action) = rest.split_once("/-/").ok_or_else(ApiError::route_unknown)?;
    let repository: Repository = name.parse().map_err(ApiError::name_invalid)?;
    let (noun, argument) = match action.split_once('/') {
        Some((noun, argument)) => (noun, Some(argument)),
        None => (action, None),
    };
    let get = *method == Method::GET || *method == Method::HEAD;
    let (action, label) = match (noun, argument) {
        ("missing", None) if *method == Method::POST => (Action::Missing, "missing"),
        ("missing", None) => return Err(ApiError::method_not_allowed("POST")),
        ("bases", None) if *method == Method::POST => (Action::Bases, "bases"),
        ("bases", None) => return Err(ApiError::method_not_allowed("POST")),
        ("deltas", None) if *method == Method::POST => (Action::Deltas, "deltas"),
        ("deltas", None) => return Err(ApiError::method_not_allowed("POST")),
        ("packs", Some(pack)) if *method == Method::PUT => (Action::PackPut(digest(pack)?), "pack_put"),
        ("packs", Some(pack)) if *method == Method::HEAD => (Action::PackHead(digest(pack)?), "pack_head"),
        ("packs", Some(_)) => return Err(ApiError::method_not_allowed("PUT, HEAD")),
        ("manifests", Some(image)) if *method == Method::PUT => (Action::ManifestPut(reference(image)?), "manifest_put"),
        ("manifests", Some(image)) if *method == Method::DELETE => (Action::ManifestDelete(reference(image)?), "manifest_delete"),
        ("manifests", Some(image)) if get => (Action::ManifestGet(reference(image)?), "manifest_get"),
        ("manifests", Some(_)) => return Err(ApiError::method_not_allowed("GET, HEAD, PUT, DELETE")),
        ("tags", None) if get => (Action::Tags, "tags"),
        ("savings", None) if get => (Action::Savings, "savings"),
        ("savings", None) => return Err(ApiError::method_not_allowed("GET, HEAD")),
        ("tags", None) => return Err(ApiError::method_not_allowed("GET, HEAD")),
        ("states", Some(state)) if *method == Method::PUT => (Action::StatePut(whole_state(state)?), "state_put"),
        ("states", Some(state)) if *method == Method::DELETE => (Action::StateDelete(state_prefix(state)?), "state_delete"),
        ("states", Some(state)) if get => (Action::StateGet(state_prefix(state)?), "state_get"),
        ("states", Some(_)) => return Err(ApiError::method_not_allowed("GET, HEAD, PUT, DELETE")),
        ("states", None) if get => (Action::States, "states"),
        ("states", None) => return Err(ApiError::method_not_allowed("GET, HEAD")),
        ("objects", None) if *method == Method::POST => (Action::Objects, "objects"),
        ("objects", None) => return Err(ApiError::method_not_allowed("POST")),
        ("objects", Some(object)) if get => (Action::ObjectGet(digest(object)?), "object_get"),
        ("objects", Some(_)) => return Err(ApiError::method_not_allowed("GET, HEAD")),
        ("launch", Some(image)) if *method == Method::POST => (Action::Launch(reference(image)?), "launch"),
        ("launch", Some(image)) if *method == Method::GET => (Action::LaunchCacheable(reference(image)?), "launch_cacheable"),
        ("launch", Some(_)) => return Err(ApiError::method_not_allowed("GET, POST")),
        ("lanes", Some(id)) if *method == Method::GET => (Action::Lane(launch_id(id)?), "lane"),
        ("lanes", Some(_)) => return Err(ApiError::method_not_allowed("GET")),
        ("traces", None) if *method == Method::POST => (Action::Traces, "traces"),
        ("traces", None) => return Err(ApiError::method_not_allowed("POST")),
        ("model", None) if get => (Action::ModelGet, "model_get"),
        ("model", None) if *method == Method::PUT => (Action::ModelPut, "model_put"),
        ("model", None) if *method == Method::DELETE => (Action::ModelDelete, "model_delete"),
        ("model", None) => return Err(ApiError::method_not_allowed("GET, HEAD, PUT, DELETE")),
        ("pins", Some(image)) if *method == Method::PUT => (Action::PinPut(reference(image)?), "pin_put"),
        ("pins", Some(image)) if *method == Method::DELETE => (Action::PinDelete(reference(image)?), "pin_delete"),
        ("pins", Some(_)) => return Err(ApiError::method_not_allowed("PUT, DELETE")),
        _ => return Err(ApiError::route_unknown()),
    };
    Ok((repository, action, label))
}

/// Routes a request and answers it.
pub(crate) async fn dispatch(app: &Shared, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let (repository, action, label) = route(&parts.method, parts.uri.path())?;
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let visit = visit(&parts.extensions)?;
    let (right, note) = action.needs();
    let path = parts.uri.path();
    if let Err(refused) = visit.may(app, &repository, right, label, path) {
        // Someone who still sends would not see the answer; who is nobody yet is not waited for.
        if visit.caller.who != Who::Anonymous {
            PacedBody::new(app, &parts.headers, body, 0).drain().await;
        }
        let error = if let Refusal::Unknown = refused { action.absent() } else { refused.into() };
        return Err(error);
    }
    let noted = (note == Note::Change).then(|| entry(&visit.actor(), label, path, Outcome::Done, None));
    let call = Call { repository, method: parts.method, headers: parts.headers, query, visit, body };
    if let Action::ManifestGet(reference) | Action::Launch(reference) | Action::LaunchCacheable(reference) = &action {
        app.oci.image_ensure(&call.repository, reference).await?;
    }
    let pushed = if let Action::ManifestPut(reference) = &action { Some((call.repository.clone(), reference.clone())) } else { None };
    // Each on the heap: together they would make a future that no stack should hold.
    let answer = match action {
        Action::Missing => Box::pin(objects::missing(app, call)).await,
        Action::Bases => Box::pin(deltas::bases(app, call)).await,
        Action::Deltas => Box::pin(deltas::stream(app, call)).await,
        Action::PackPut(digest) => Box::pin(packs::put(app, call, digest)).await,
        Action::PackHead(digest) => Box::pin(packs::head(app, call, digest)).await,
        Action::ManifestPut(reference) => Box::pin(manifests::put(app, call, reference)).await,
        Action::ManifestGet(reference) => Box::pin(manifests::get(app, call, reference)).await,
        Action::ManifestDelete(reference) => Box::pin(manifests::delete(app, call, reference)).await,
        Action::Tags => Box::pin(manifests::tags(app, call)).await,
        Action::Savings => Box::pin(savings::get(app, call)).await,
        Action::StatePut(digest) => Box::pin(states::put(app, call, digest)).await,
        Action::StateGet(prefix) => Box::pin(states::get(app, call, prefix)).await,
        Action::StateDelete(prefix) => Box::pin(states::delete(app, call, prefix)).await,
        Action::States => Box::pin(states::list(app, call)).await,
        Action::Objects => Box::pin(objects::stream(app, call)).await,
        Action::ObjectGet(digest) => Box::pin(objects::get(app, call, digest)).await,
        Action::Launch(reference) => Box::pin(launch::launch(app, call, reference)).await,
        Action::LaunchCacheable(reference) => Box::pin(launch::launch_cacheable(app, call, reference)).await,
        Action::Lane(id) => Box::pin(launch::lane(app, call, id)).await,
        Action::Traces => Box::pin(traces::post(app, call)).await,
        Action::ModelGet => Box::pin(models::get(app, call)).await,
        Action::ModelPut => Box::pin(models::put(app, call)).await,
        Action::ModelDelete => Box::pin(models::delete(app, call)).await,
        Action::PinPut(reference) => Box::pin(models::pin(app, call, reference)).await,
        Action::PinDelete(reference) => Box::pin(models::unpin(app, call, reference)).await,
    };
    if let (Some((repository, reference)), Ok(_)) = (pushed, &answer) {
        app.oci.render_later(repository, reference);
    }
    if let Some(entry) = noted.filter(|_| answer.is_ok()) {
        app.access.audit.change(entry).await;
    }
    let mut response = answer.unwrap_or_else(axum::response::IntoResponse::into_response);
    response.extensions_mut().insert(RouteLabel(label));
    Ok(response)
}

/// Who asks. Without the layer that finds it out nothing is answered.
pub(crate) fn visit(extensions: &axum::http::Extensions) -> Result<Arc<Visit>, ApiError> {
    extensions.get::<Arc<Visit>>().cloned().ok_or_else(ApiError::route_unknown)
}

pub(crate) fn digest(text: &str) -> Result<Digest, ApiError> {
    text.parse().map_err(ApiError::digest_invalid)
}

fn launch_id(text: &str) -> Result<String, ApiError> {
    match streams::is_launch_id(text) {
        true => Ok(text.to_owned()),
        false => Err(ApiError::request_invalid("a launch's id has 1 to 64 hex digits")),
    }
}

fn state_prefix(text: &str) -> Result<StatePrefix, ApiError> {
    StatePrefix::parse(text).map_err(ApiError::digest_invalid)
}

fn whole_state(text: &str) -> Result<Digest, ApiError> {
    state_prefix(text)?.whole().ok_or_else(|| ApiError::digest_invalid("a state is put under its whole id: 64 hex digits"))
}

pub(crate) fn reference(text: &str) -> Result<Reference, ApiError> {
    if text.contains(':') {
        return digest(text).map(Reference::Digest);
    }
    match is_release(text) {
        true => Ok(Reference::Release(text.to_owned())),
        false => Err(ApiError::release_invalid("a release has 1 to 128 letters, digits, `_`, `.` and `-`, and does not begin with the last two")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let hex = Digest::of(b"x").to_string();
        let parse = |method: &str, path: &str| route(&method.parse().unwrap(), &format!("/v1/repositories/{path}"));
        for (method, path, label) in [
            ("POST", "tools/scipy/-/missing", "missing"),
            ("POST", "tools/scipy/-/bases", "bases"),
            ("POST", "tools/scipy/-/deltas", "deltas"),
            ("PUT", &format!("a/b/c/-/packs/{hex}"), "pack_put"),
            ("PUT", &format!("a/b/-/packs/{}", hex.replace(':', "%3A")), "pack_put"),
            ("HEAD", "a/b/-/manifests/1.0", "manifest_get"),
            ("GET", "scipy/-/tags", "tags"),
            ("GET", "scipy/-/savings", "savings"),
            ("DELETE", "a/b/-/model", "model_delete"),
            ("PUT", "a/b/-/model", "model_put"),
            ("PUT", "a/b/-/pins/1.0", "pin_put"),
            ("DELETE", &format!("a/b/-/pins/{hex}"), "pin_delete"),
            ("PUT", &format!("a/b/-/states/{hex}"), "state_put"),
            ("GET", "a/b/-/states/01234567", "state_get"),
            ("HEAD", &format!("a/b/-/states/{}", hex.replace(':', "%3A")), "state_get"),
            ("GET", "a/b/-/states", "states"),
            ("GET", "a/b/-/lanes/0123456789abcdef0123456789abcdef", "lane"),
            ("GET", "a/b/-/launch/1.0", "launch_cacheable"),
        ] {
            assert_eq!(parse(method, path).unwrap().2, label);
        }
        for (method, path) in [
            ("GET", "a/b/-/missing"),
            ("GET", "a/b/-/deltas"),
            ("POST", "a/b/-/packs/b3:00"),
            ("PUT", "a/b/-/packs/zz"),
            ("GET", "A/b/-/tags"),
            ("GET", "a/../b/-/tags"),
            ("GET", "a%2Fb/-/tags"),
            ("GET", "a/b/-/tags/"),
            ("GET", "a/b/-/manifests/"),
            ("GET", "a/b/-/manifests/.x"),
            ("GET", "a/b/-/"),
            ("GET", "a/b"),
            ("GET", "/-/tags"),
            ("TRACE", "a/b/-/tags"),
            ("PUT", "a/b/-/states/01234567"),
            ("GET", "a/b/-/states/0123456"),
            ("GET", "a/b/-/states/"),
            ("POST", "a/b/-/states"),
            ("GET", "a/b/-/pins/1.0"),
            ("PUT", "a/b/-/pins"),
            ("POST", "a/b/-/lanes/0123"),
            ("GET", "a/b/-/lanes/x"),
            ("PUT", "a/b/-/launch/1.0"),
        ] {
            assert!(parse(method, path).is_err(), "{method} {path}");
        }
    }
}
