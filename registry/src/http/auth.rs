//! Tokens: the flow of container tools (`docs/oci.md`), by GET and by the OAuth 2 form that `docker login` and `turbo` send.

use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use layer_format::reference::Repository;
use serde::Serialize;

use super::access::{Refusal, Visit, credentials};
use super::body::PacedBody;
use super::error::ApiError;
use crate::app::Shared;
use crate::service::access::login::{Credentials, LoginError};
use crate::service::access::policy::{Caller, Who};
use crate::service::access::rights::{Right, Rights, Scope, Target};
use crate::service::access::secret::is_secret;
use crate::time_text;

/// Longest form, in bytes.
const MAX_FORM_LEN: usize = 64 << 10;
/// Scopes of one token.
const MAX_SCOPES: usize = 64;
/// A scope of ours: all that the caller may do.
const EVERYTHING: &str = "*";

#[derive(Serialize)]
struct TokenAnswer {
    token: String,
    /// The same: who reads which is a matter of taste.
    access_token: String,
    expires_in: u64,
    issued_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
}

/// The parameters of a request for a token.
#[derive(Debug, Default)]
struct Asked {
    service: Option<String>,
    scopes: Vec<String>,
    /// Whether a login is to be kept.
    offline: bool,
    grant_type: Option<String>,
    username: Option<String>,
    password: Option<String>,
    refresh_token: Option<String>,
    token: Option<String>,
}

impl Asked {
    fn parse(form: &[u8]) -> Self {
        let mut asked = Self::default();
        for (name, value) in url::form_urlencoded::parse(form) {
            let value = value.into_owned();
            match &*name {
                "service" => asked.service = Some(value),
                "scope" => asked.scopes.extend(value.split(' ').filter(|part| !part.is_empty()).map(str::to_owned)),
                "offline_token" => asked.offline |= value == "true",
                "access_type" => asked.offline |= value == "offline",
                "grant_type" => asked.grant_type = Some(value),
                "username" => asked.username = Some(value),
                "password" => asked.password = Some(value),
                "refresh_token" => asked.refresh_token = Some(value),
                "token" => asked.token = Some(value),
                _ => {}
            }
        }
        asked
    }
}

/// `repository:tools/app:pull,push`, or nothing if it is about something that is not here.
fn scope(text: &str) -> Option<Scope> {
    let (kind, rest) = text.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    match kind.split('(').next()? {
        "repository" => {
            let right = |action: &str| match action {
                "*" => Rights::ALL.iter().collect::<Vec<_>>(),
                action => action.parse::<Right>().into_iter().collect(),
            };
            let rights = actions.split(',').flat_map(right).collect();
            Some(Scope { target: Target::Repository(name.parse::<Repository>().ok()?), rights })
        }
        "registry" if name == "catalog" => Some(Scope { target: Target::Catalog, rights: [Right::Pull].into_iter().collect() }),
        _ => None,
    }
}

/// A token for whoever asks with name and password, or with a key, in the header `authorization`; or without, for what everyone may do.
#[utoipa::path(get, path = "/auth/token", params(("service" = Option<String>, Query), ("scope" = Option<String>, Query), ("offline_token" = Option<bool>, Query)), responses((status = 200, content_type = "application/json"), (status = 401, description = "wrong credentials, or none where some are needed"), (status = 429, description = "too many failed")))]
pub(crate) async fn get_token(
    State(app): State<Shared>,
    Extension(visit): Extension<Arc<Visit>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let asked = Asked::parse(query.unwrap_or_default().as_bytes());
    answer(&app, &visit, &credentials(&headers), &asked).await
}

/// The same by a form: `grant_type` `password` or `refresh_token`.
#[utoipa::path(post, path = "/auth/token", request_body(content_type = "application/x-www-form-urlencoded"), responses((status = 200, content_type = "application/json"), (status = 400, description = "not such a form"), (status = 401, description = "wrong credentials"), (status = 429, description = "too many failed")))]
pub(crate) async fn post_token(State(app): State<Shared>, Extension(visit): Extension<Arc<Visit>>, request: Request) -> Result<Response, ApiError> {
    let (headers, asked) = form(&app, request).await?;
    let credentials = match asked.grant_type.as_deref() {
        Some("password") => Credentials::Basic(asked.username.clone().unwrap_or_default(), asked.password.clone().unwrap_or_default()),
        Some("refresh_token") => Credentials::Bearer(asked.refresh_token.clone().unwrap_or_default()),
        None => credentials(&headers),
        Some(_) => return Err(ApiError::request_invalid("grant_type is password or refresh_token")),
    };
    answer(&app, &visit, &credentials, &asked).await
}

/// Ends the login whose secret (`refresh_token`) is in the form's `token`. Answers the same whether there was one.
#[utoipa::path(post, path = "/auth/revoke", request_body(content_type = "application/x-www-form-urlencoded"), responses((status = 200, description = "there is no such login any more")))]
pub(crate) async fn revoke(State(app): State<Shared>, Extension(visit): Extension<Arc<Visit>>, request: Request) -> Result<Response, ApiError> {
    let (_, asked) = form(&app, request).await?;
    if let Some(token) = &asked.token {
        app.access.logout(&visit.snapshot, token, &visit.actor()).await?;
    }
    Ok(StatusCode::OK.into_response())
}

async fn form(app: &Shared, request: Request) -> Result<(HeaderMap, Asked), ApiError> {
    let (parts, body): (_, Body) = request.into_parts();
    let bytes = PacedBody::new(app, &parts.headers, body, MAX_FORM_LEN).collect().await?;
    Ok((parts.headers, Asked::parse(&bytes)))
}

async fn answer(app: &Shared, visit: &Visit, credentials: &Credentials, asked: &Asked) -> Result<Response, ApiError> {
    let realm = || "Basic realm=\"turbo-registry\"".to_owned();
    if asked.service.as_deref().is_some_and(|service| service != "turbo-registry") {
        return Err(ApiError::request_invalid("service is turbo-registry, as in the header www-authenticate"));
    }
    if asked.scopes.len() > MAX_SCOPES {
        return Err(ApiError::request_invalid(format!("a token has at most {MAX_SCOPES} scopes")));
    }
    let identified = app.access.identify(credentials, visit.address).await;
    let (snapshot, caller) = identified.map_err(|error| ApiError::from(Refusal::Login(error, realm())))?;
    // A token that gave another one would live for ever.
    if caller.who != Who::Open && matches!(credentials, Credentials::Bearer(text) if !is_secret(text)) {
        return Err(Refusal::Challenge(realm()).into());
    }
    let is_nobody = caller.who == Who::Anonymous;
    if is_nobody && !snapshot.policy.reads_anything(&caller) {
        return Err(Refusal::Challenge(realm()).into());
    }
    // Where nobody is asked anything, a token is not looked at, either.
    let caller = if caller.who == Who::Open { Caller::new(Who::Anonymous) } else { caller };
    let scopes: Vec<Scope> = asked.scopes.iter().filter_map(|text| scope(text)).collect();
    let everything = asked.scopes.iter().any(|text| text == EVERYTHING);
    let issued = app.access.issue(&snapshot, &caller, (!everything).then_some(&scopes[..])).await;
    let issued = issued.map_err(|error: LoginError| ApiError::from(Refusal::Login(error, realm())))?;
    // Only a password is exchanged for something that lasts.
    let refresh_token = match (&caller.who, &caller.key) {
        (Who::User(name), None) if asked.offline && caller.token.is_none() => {
            let mut actor = visit.actor();
            actor.who = caller.shown();
            Some(app.access.login_create(name, &actor).await?)
        }
        _ => None,
    };
    let body = TokenAnswer {
        access_token: issued.token.clone(),
        token: issued.token,
        expires_in: issued.life.as_secs(),
        issued_at: time_text(issued.issued_s * 1000),
        refresh_token,
    };
    let mut response = Json(body).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_of_container_tools() {
        let shown = |text: &str| scope(text).map(|scope| format!("{}={}", scope.target, scope.rights));
        assert_eq!(shown("repository:tools/app:pull,push").as_deref(), Some("tools/app=pull,push"));
        assert_eq!(shown("repository:app:pull").as_deref(), Some("library/app=pull"));
        assert_eq!(shown("repository(plugin):a/b:*").as_deref(), Some("a/b=pull,push,delete,admin"));
        assert_eq!(shown("repository:a/b:fly").as_deref(), Some("a/b="));
        assert_eq!(shown("registry:catalog:*").as_deref(), Some("@catalog=pull"));
        for text in ["", "repository", "repository:a", "repository:../x:pull", "repository:*:pull", "plan:x:y"] {
            assert_eq!(shown(text), None, "{text}");
        }
    }
}
