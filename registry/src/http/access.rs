//! Who sends a request, and whether it may do what it asks for: in front of every handler.
//!
//! [`guard`] is the outermost of our own layers: it knows each area of paths, denies all others, finds out who the caller is, and
//! leaves a [`Visit`] with the request. What a path below a repository means is in the two tables (`routes.rs`,
//! `oci/routes.rs`), each of which names the right that an action needs and asks [`Visit::may`] before its handler runs.
//!
//! Rights depend on names alone, and are decided before anything is looked up. Who may not even read gets the answer for what
//! is not there; who is nobody yet is asked to log in, whether it is there or not.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{Extensions, HeaderMap, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use layer_format::reference::Repository;

use super::edge::RequestId;
use super::error::ApiError;
use super::traces::Peer;
use crate::app::Shared;
use crate::db::DbError;
use crate::service::access::Snapshot;
use crate::service::access::audit::{Actor, Outcome, entry};
use crate::service::access::login::{Credentials, LoginError};
use crate::service::access::policy::{Caller, Who};
use crate::service::access::rights::{Right, Target};
use crate::service::launches;

/// Who asks, and what decides about it.
#[derive(Debug)]
pub(crate) struct Visit {
    pub(crate) caller: Caller,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) address: IpAddr,
    request: String,
    /// Where tokens are given.
    realm: String,
    /// Whether deletes are possible at all.
    deletes: bool,
}

/// Why a request is not answered.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Credentials are needed, or others: with the value of `www-authenticate`.
    Challenge(String),
    /// They are wrong: the same, and why.
    Login(LoginError, String),
    /// Not for this caller, who may read it.
    Denied,
    /// As if it were not there.
    Unknown,
    /// Not here.
    DeletesOff,
}

impl Visit {
    /// Whether the caller may do this. A refusal that is more than a question for credentials is noted.
    pub(crate) fn may(&self, app: &Shared, repository: &Repository, right: Right, action: &str, path: &str) -> Result<(), Refusal> {
        let target = Target::Repository(repository.clone());
        let refused = match self.decide(&target, right) {
            Ok(()) if right == Right::Delete && !self.deletes => Refusal::DeletesOff,
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        if matches!(refused, Refusal::Denied | Refusal::Unknown | Refusal::DeletesOff) {
            app.access.audit.refusal(entry(&self.actor(), action, path, Outcome::Refused, None));
        }
        Err(refused)
    }

    /// The same, without a note.
    pub(crate) fn decide(&self, target: &Target, right: Right) -> Result<(), Refusal> {
        let policy = &self.snapshot.policy;
        if policy.allows(&self.caller, target, right) {
            return Ok(());
        }
        if policy.entitles(&self.caller, target, right) {
            // Its token was issued for something else.
            return Err(Refusal::Challenge(self.challenge(Some((target, right)), Some("insufficient_scope"))));
        }
        match self.caller.who {
            Who::Anonymous => Err(Refusal::Challenge(self.challenge(Some((target, right)), None))),
            _ if right != Right::Pull && policy.entitles(&self.caller, target, Right::Pull) => Err(Refusal::Denied),
            _ => Err(Refusal::Unknown),
        }
    }

    /// Whether the caller has this right, as it is now.
    pub(crate) fn allows(&self, target: &Target, right: Right) -> bool {
        self.snapshot.policy.allows(&self.caller, target, right)
    }

    /// Whether all objects of the namespace are the caller's to read, and not only those of one repository.
    pub(crate) fn reads_namespace(&self, repository: &Repository) -> bool {
        self.allows(&Target::namespace(repository.namespace()), Right::Pull)
    }

    /// Whether a list may show the repository.
    pub(crate) fn lists(&self, name: &str) -> bool {
        let Ok(repository) = name.parse::<Repository>() else { return false };
        let target = Target::Repository(repository);
        let covered = self.caller.token_covers(&Target::Catalog, Right::Pull) || self.caller.token_covers(&target, Right::Pull);
        covered && self.snapshot.policy.entitles(&self.caller, &target, Right::Pull)
    }

    /// Whether the caller manages users, keys and settings; else why not.
    pub(crate) fn manages(&self) -> Result<(), Refusal> {
        match (self.snapshot.policy.is_server_admin(&self.caller), &self.caller.who) {
            (true, _) => Ok(()),
            (false, Who::Anonymous) => Err(Refusal::Challenge(self.challenge(None, None))),
            (false, _) => Err(Refusal::Denied),
        }
    }

    /// For audit entries.
    pub(crate) fn actor(&self) -> Actor {
        Actor { who: self.caller.shown(), address: Some(self.address), request: Some(self.request.clone()) }
    }

    /// Who asks, and from where: for whoever reads what was deleted by whom.
    pub(crate) fn told(&self) -> String {
        format!("{} at {}", self.caller.shown(), self.address)
    }

    /// By what parts of a launch are known as the same caller's.
    pub(crate) fn credential(&self, headers: &HeaderMap) -> launches::Credential {
        match self.caller.who {
            // Nobody is asked who they are: then it is what they say.
            Who::Open | Who::Anonymous => *blake3::hash(headers.get(header::AUTHORIZATION).map_or(&[], HeaderValue::as_bytes)).as_bytes(),
            // Not the token: another one may be in use by now.
            _ => *blake3::hash(self.caller.shown().as_bytes()).as_bytes(),
        }
    }

    /// The value of `www-authenticate` (the bearer token flow that container tools use).
    pub(crate) fn challenge(&self, scope: Option<(&Target, Right)>, error: Option<&str>) -> String {
        let mut value = format!("Bearer realm=\"{}\",service=\"turbo-registry\"", self.realm);
        match scope {
            Some((Target::Repository(repository), Right::Pull)) => value.push_str(&format!(",scope=\"repository:{}:pull\"", repository.as_str())),
            Some((Target::Repository(repository), Right::Delete)) => value.push_str(&format!(",scope=\"repository:{}:pull,delete\"", repository.as_str())),
            Some((Target::Repository(repository), _)) => value.push_str(&format!(",scope=\"repository:{}:pull,push\"", repository.as_str())),
            Some((Target::Catalog, _)) => value.push_str(",scope=\"registry:catalog:*\""),
            _ => {}
        }
        if let Some(error) = error {
            value.push_str(&format!(",error=\"{error}\""));
        }
        value
    }
}

/// What is below a path. A path that is in none of them is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Area {
    /// For everyone, and tells nothing about content.
    Open,
    /// Gives tokens: looks at credentials itself.
    Tokens,
    /// For whoever has the right to pull `@metrics`.
    Metrics,
    /// Its table or its handlers decide.
    Decided,
}

/// The table of areas.
fn area(path: &str) -> Option<Area> {
    Some(match path {
        "/healthz" | "/readyz" | "/openapi.json" | "/v1/capabilities" => Area::Open,
        "/auth/token" | "/auth/revoke" => Area::Tokens,
        "/metrics" => Area::Metrics,
        "/v1/repositories" | "/v1/whoami" | "/v1/users" | "/v1/keys" | "/v1/grants" | "/v1/audit" | "/v2" | "/v2/" => Area::Decided,
        _ => {
            let decided = ["/v1/repositories/", "/v1/users/", "/v1/keys/", "/v2/"];
            return decided.iter().any(|prefix| path.starts_with(prefix)).then_some(Area::Decided);
        }
    })
}

/// The middleware.
pub(crate) async fn guard(State(app): State<Shared>, mut request: Request, next: Next) -> Response {
    let Some(area) = area(request.uri().path()) else { return ApiError::route_unknown().into_response() };
    if area == Area::Open {
        return next.run(request).await;
    }
    let visit = match visit(&app, Arrival::of(&app, &request), area).await {
        Ok(visit) => visit,
        Err(refused) => return refused,
    };
    let is_private = !visit.snapshot.is_open && visit.caller.who != Who::Anonymous;
    request.extensions_mut().insert(Arc::new(visit));
    let mut response = next.run(request).await;
    if is_private {
        keep_private(response.headers_mut());
    }
    response
}

/// What a request says of where it comes from.
struct Arrival {
    address: IpAddr,
    credentials: Credentials,
    request: String,
    realm: String,
}

impl Arrival {
    fn of(app: &Shared, request: &Request) -> Self {
        let (headers, extensions) = (request.headers(), request.extensions());
        Self {
            address: address(extensions, headers),
            credentials: credentials(headers),
            request: extensions.get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default(),
            realm: realm(app, extensions, headers, request.uri()),
        }
    }
}

async fn visit(app: &Shared, arrival: Arrival, area: Area) -> Result<Visit, Response> {
    let Arrival { address, credentials, request, realm } = arrival;
    let snapshot = app.access.snapshot().await.map_err(|error: DbError| ApiError::from(error).into_response())?;
    let mut visit = Visit { caller: Caller::new(Who::Anonymous), snapshot, address, request, realm, deletes: app.config.allow_delete };
    if area == Area::Tokens {
        return Ok(visit);
    }
    match app.access.identify(&credentials, address).await {
        Ok((snapshot, caller)) => {
            visit.snapshot = snapshot;
            visit.caller = caller;
        }
        Err(error) => {
            let challenge = visit.challenge(None, Some("invalid_token"));
            return Err(ApiError::from(Refusal::Login(error, challenge)).into_response());
        }
    }
    if area == Area::Metrics
        && let Err(refused) = visit.decide(&Target::Metrics, Right::Pull)
    {
        return Err(ApiError::from(refused).into_response());
    }
    Ok(visit)
}

/// What a request brings along.
pub(crate) fn credentials(headers: &HeaderMap) -> Credentials {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = all.next() else { return Credentials::None };
    // Several would be read differently by different parts of a chain of proxies.
    let read = || {
        let (scheme, rest) = value.to_str().ok()?.trim().split_once(' ')?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Credentials::Bearer(rest.to_owned()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
        let (name, password) = decoded.split_once(':')?;
        Some(Credentials::Basic(name.to_owned(), password.to_owned()))
    };
    match all.next() {
        None => read().unwrap_or(Credentials::Unreadable),
        Some(_) => Credentials::Unreadable,
    }
}

/// Who sent a request: the other end of the connection; if that is a proxy on this machine, whom it names.
pub(crate) fn address(extensions: &Extensions, headers: &HeaderMap) -> IpAddr {
    let peer = extensions.get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.0);
    let named = || headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?.rsplit(',').next()?.trim().parse().ok();
    match peer.is_loopback() {
        true => named().unwrap_or(peer),
        false => peer,
    }
}

/// Where tokens are given: below the URL by which the client called the server, unless one is configured.
fn realm(app: &Shared, extensions: &Extensions, headers: &HeaderMap, uri: &Uri) -> String {
    if let Some(url) = &app.config.public_url {
        return format!("{url}/auth/token");
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let is_host = |host: &&str| !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte));
    let host = uri.authority().map(|authority| authority.as_str()).or_else(|| text("host")).filter(is_host).unwrap_or("localhost");
    let is_proxied = extensions.get::<Peer>().is_some_and(|peer| peer.0.is_loopback());
    let scheme = match text("x-forwarded-proto").filter(|_| is_proxied) {
        Some("https") => "https",
        _ if app.tls.is_some() => "https",
        _ => "http",
    };
    format!("{scheme}://{host}/auth/token")
}

/// What only some may read must not be kept by caches between for others.
fn keep_private(headers: &mut HeaderMap) {
    if let Some(value) = headers.get(header::CACHE_CONTROL).and_then(|value| value.to_str().ok())
        && value.contains("public")
        && let Ok(value) = HeaderValue::try_from(value.replace("public", "private"))
    {
        headers.insert(header::CACHE_CONTROL, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_or_refused() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::try_from(*value).unwrap());
            }
            credentials(&headers)
        };
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert_eq!(of(&[]), Credentials::None);
        assert_eq!(of(&[&basic("alice:a:b")]), Credentials::Basic("alice".into(), "a:b".into()));
        assert_eq!(of(&["bearer  x.y.z "]), Credentials::Bearer("x.y.z".into()));
        for value in ["", "Basic", "Basic !!!", "Negotiate abc", "Bearer", &basic("alice"), &format!("Basic {}", STANDARD.encode([0xff, b':']))] {
            assert_eq!(of(&[value]), Credentials::Unreadable, "{value}");
        }
        assert_eq!(of(&["Bearer a", "Bearer b"]), Credentials::Unreadable);
    }

    #[test]
    fn paths_outside_the_table_are_denied() {
        for path in ["/", "/v1", "/v1/", "/v1/nothing", "/v1/usersx", "/v3/", "/auth", "/auth/token/", "/metrics/", "/healthz/x", "/v1/repositoriesx/a"] {
            assert_eq!(area(path), None, "{path}");
        }
        assert_eq!(area("/v2/a/tags/list"), Some(Area::Decided));
    }

    #[test]
    fn nothing_private_is_kept_by_caches() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
        keep_private(&mut headers);
        assert_eq!(headers[header::CACHE_CONTROL], "private, max-age=31536000, immutable");
    }
}
