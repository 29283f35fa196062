//! Users, keys, grants and the audit log as JSON (`docs/http-api.md`). Each handler decides whether the caller may, about the
//! very thing that is named: an administrator of one namespace manages nothing in another.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, body::Body};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::access::{Refusal, Visit};
use super::body::PacedBody;
use super::error::ApiError;
use crate::app::Shared;
use crate::db::account::AccountRow;
use crate::db::audit_entry::{AuditRow, audit_list};
use crate::db::now_ms;
use crate::db::robot_key::RobotKeyRow;
use crate::service::access::audit::{Actor, Outcome, entry};
use crate::service::access::login::Credentials;
use crate::service::access::manage::{ManageError, Manager, NewGrant, NewKey, NewUser};
use crate::service::access::policy::Who;
use crate::service::access::rights::{Right, Rights, Scope, Subject, Target};
use crate::service::access::setup;
use crate::time_text;

/// Longest body, in bytes.
const MAX_BODY_LEN: usize = 64 << 10;
/// Audit entries of one answer.
const MAX_ENTRIES: u32 = 1000;

async fn body<T: DeserializeOwned>(app: &Shared, request: Request) -> Result<T, ApiError> {
    let (parts, body): (_, Body) = request.into_parts();
    let bytes = PacedBody::new(app, &parts.headers, body, MAX_BODY_LEN).collect().await?;
    serde_json::from_slice(&bytes).map_err(ApiError::body_invalid)
}

/// What a request changes, if the caller may.
struct Change<'a> {
    app: &'a Shared,
    actor: Actor,
}

impl<'a> Change<'a> {
    fn new(app: &'a Shared, visit: &Visit) -> Self {
        Self { app, actor: visit.actor() }
    }

    fn manager(&self) -> Manager<'_> {
        Manager { db: &self.app.db, actor: &self.actor }
    }

    /// Makes the change hold at once for this server.
    async fn done<T: Serialize>(&self, status: StatusCode, answer: T) -> Result<Response, ApiError> {
        self.app.access.reload().await?;
        Ok((status, Json(answer)).into_response())
    }
}

/// Notes that a change was refused, and says so.
fn refuse(app: &Shared, visit: &Visit, action: &str, target: &str, refused: Refusal) -> ApiError {
    app.access.audit.refusal(entry(&visit.actor(), action, target, Outcome::Refused, None));
    refused.into()
}

fn server_admin(app: &Shared, visit: &Visit, action: &str, target: &str) -> Result<(), ApiError> {
    visit.manages().map_err(|refused| refuse(app, visit, action, target, refused))
}

#[derive(Serialize)]
struct Whoami {
    /// `user:NAME`, `robot:NAME`, `anonymous` or `open`.
    who: String,
    name: Option<String>,
    admin: bool,
}

/// Who the registry takes the caller for.
#[utoipa::path(get, path = "/v1/whoami", responses((status = 200, content_type = "application/json"), (status = 401, description = "wrong credentials")))]
pub(crate) async fn whoami(Extension(visit): Extension<Arc<Visit>>) -> Response {
    let name = match &visit.caller.who {
        Who::User(name) => Some(name.clone()),
        Who::Robot(key) => Some(key.name.clone()),
        Who::Open | Who::Anonymous => None,
    };
    Json(Whoami { who: visit.caller.shown(), name, admin: visit.manages().is_ok() }).into_response()
}

#[derive(Serialize)]
struct User {
    name: String,
    admin: bool,
    disabled: bool,
    created_at: String,
}

impl From<AccountRow> for User {
    fn from(row: AccountRow) -> Self {
        Self { name: row.name, admin: row.is_admin, disabled: row.is_disabled, created_at: time_text(row.created_at) }
    }
}

/// All users. For administrators.
#[utoipa::path(get, path = "/v1/users", responses((status = 200, content_type = "application/json"), (status = 403, description = "not an administrator")))]
pub(crate) async fn users(State(app): State<Shared>, Extension(visit): Extension<Arc<Visit>>) -> Result<Response, ApiError> {
    server_admin(&app, &visit, "user_list", "user")?;
    let rows = Change::new(&app, &visit).manager().users().await?;
    let users: Vec<User> = rows.into_iter().map(User::from).collect();
    Ok(Json(serde_json::json!({ "users": users })).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserChange {
    password: Option<String>,
    admin: Option<bool>,
    disabled: Option<bool>,
    #[serde(default)]
    take_namespace: bool,
}

/// Adds a user, or changes one: what is left out stays. For administrators.
#[utoipa::path(put, path = "/v1/users/{name}", request_body(content_type = "application/json"), responses((status = 200, description = "changed"), (status = 201, description = "added"), (status = 400, description = "name or password cannot be used"), (status = 409, description = "the namespace is taken, or it is the last administrator")))]
pub(crate) async fn user_put(
    State(app): State<Shared>,
    Extension(visit): Extension<Arc<Visit>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    server_admin(&app, &visit, "user_put", &format!("user/{name}"))?;
    let wanted: UserChange = body(&app, request).await?;
    let change = Change::new(&app, &visit);
    let hash = match &wanted.password {
        Some(password) => Some(app.access.passwords.hash(password).await.map_err(ManageError::from)?),
        None => None,
    };
    let exists = app.access.reload().await?.policy.accounts.contains_key(&name);
    match (exists, hash) {
        (false, None) => Err(ApiError::body_invalid("a new user needs a `password`")),
        (false, Some(hash)) => {
            let user = NewUser { name: &name, password_hash: &hash, is_admin: wanted.admin.unwrap_or(false), takes_namespace: wanted.take_namespace };
            let row = change.manager().user_add(user).await?;
            change.done(StatusCode::CREATED, User::from(row)).await
        }
        (true, hash) => {
            // First what can be refused.
            let row = change.manager().user_set(&name, wanted.admin, wanted.disabled).await?;
            if let Some(hash) = hash {
                change.manager().user_password(&name, &hash).await?;
                forget_first_password(&app, &name);
            }
            change.done(StatusCode::OK, User::from(row)).await
        }
    }
}

fn forget_first_password(app: &Shared, name: &str) {
    if name == setup::FIRST_ADMIN {
        setup::forget(&app.config.data);
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PasswordChange {
    current: String,
    password: String,
}

/// Sets the caller's own password. Its tokens and logins end; keys stay.
#[utoipa::path(put, path = "/v1/users/{name}/password", request_body(content_type = "application/json"), responses((status = 200, description = "changed"), (status = 401, description = "the current password is wrong"), (status = 403, description = "somebody else's")))]
pub(crate) async fn user_password(
    State(app): State<Shared>,
    Extension(visit): Extension<Arc<Visit>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    if visit.caller.who != Who::User(name.clone()) || visit.caller.token.is_some() {
        let refused = if visit.caller.who == Who::Anonymous { Refusal::Challenge(visit.challenge(None, None)) } else { Refusal::Denied };
        return Err(refuse(&app, &visit, "user_password", &format!("user/{name}"), refused));
    }
    let wanted: PasswordChange = body(&app, request).await?;
    let current = Credentials::Basic(name.clone(), wanted.current);
    let known = app.access.identify(&current, visit.address).await;
    let (_, known) = known.map_err(|error| Refusal::Login(error, visit.challenge(None, None)))?;
    // A key is no password, even if it is as good as one.
    if known.key.is_some() {
        return Err(refuse(&app, &visit, "user_password", &format!("user/{name}"), Refusal::Denied));
    }
    let hash = app.access.passwords.hash(&wanted.password).await.map_err(ManageError::from)?;
    let change = Change::new(&app, &visit);
    change.manager().user_password(&name, &hash).await?;
    forget_first_password(&app, &name);
    change.done(StatusCode::OK, serde_json::json!({})).await
}

/// Removes a user, with its keys and rights. What it pushed stays. For administrators.
#[utoipa::path(delete, path = "/v1/users/{name}", responses((status = 200, description = "removed"), (status = 404, description = "unknown"), (status = 409, description = "the last administrator")))]
pub(crate) async fn user_delete(State(app): State<Shared>, Extension(visit): Extension<Arc<Visit>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    server_admin(&app, &visit, "user_remove", &format!("user/{name}"))?;
    let change = Change::new(&app, &visit);
    change.manager().user_remove(&name).await?;
    change.done(StatusCode::OK, serde_json::json!({})).await
}

/// A key, without its secret.
#[derive(Serialize)]
struct KeyInfo {
    name: String,
    prefix: String,
    owner: Option<String>,
    namespace: Option<String>,
    login: bool,
    scopes: serde_json::Value,
    created_by: String,
    created_at: String,
    expires_at: Option<String>,
    last_used_at: Option<String>,
}

impl From<RobotKeyRow> for KeyInfo {
    fn from(row: RobotKeyRow) -> Self {
        Self {
            name: row.name,
            prefix: row.prefix,
            owner: row.owner,
            namespace: row.namespace,
            login: row.is_login,
            scopes: serde_json::from_str(&row.scopes).unwrap_or_default(),
            created_by: row.created_by,
            created_at: time_text(row.created_at),
            expires_at: row.expires_at.map(time_text),
            last_used_at: row.last_used_at.map(time_text),
        }
    }
}

/// Whether the caller manages keys of this owner, or of this namespace.
fn manages_keys(visit: &Visit, owner: Option<&str>, namespace: Option<&str>) -> bool {
    let is_own = |owner: &str| visit.caller.token.is_none() && matches!(&visit.caller.who, Who::User(name) if name == owner);
    let is_user = matches!(visit.caller.who, Who::User(_));
    visit.manages().is_ok()
        || owner.is_some_and(is_own)
        || owner.is_none() && is_user && namespace.is_some_and(|namespace| visit.allows(&Target::namespace(namespace), Right::Admin))
}

/// The keys that the caller manages: its own, those of its namespaces, or all.
#[utoipa::path(get, path = "/v1/keys", responses((status = 200, content_type = "application/json")))]
pub(crate) async fn keys(State(app): State<Shared>, Extension(visit): Extension<Arc<Visit>>) -> Result<Response, ApiError> {
    if visit.caller.who == Who::Anonymous {
        return Err(Refusal::Challenge(visit.challenge(None, None)).into());
    }
    let rows = Change::new(&app, &visit).manager().keys().await?;
    let managed = rows.into_iter().filter(|row| manages_keys(&visit, row.owner.as_deref(), row.namespace.as_deref()));
    let keys: Vec<KeyInfo> = managed.map(KeyInfo::from).collect();
    Ok(Json(serde_json::json!({ "keys": keys })).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyWanted {
    name: String,
    owner: Option<String>,
    namespace: Option<String>,
    scopes: Vec<Scope>,
    expires_in_s: Option<u64>,
}

/// Makes a key: of the caller, unless `owner` or `namespace` say otherwise. Its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/v1/keys", request_body(content_type = "application/json"), responses((status = 201, content_type = "application/json"), (status = 403, description = "not for this owner or namespace"), (status = 409, description = "the name is taken")))]
pub(crate) async fn key_create(State(app): State<Shared>, Extension(visit): Extension<Arc<Visit>>, request: Request) -> Result<Response, ApiError> {
    if visit.caller.who == Who::Anonymous {
        return Err(Refusal::Challenge(visit.challenge(None, None)).into());
    }
    let wanted: KeyWanted = body(&app, request).await?;
    if wanted.owner.is_some() && wanted.namespace.is_some() {
        return Err(ApiError::body_invalid("a key has an `owner` or a `namespace`, not both"));
    }
    let owner = match (&wanted.owner, &wanted.namespace, &visit.caller.who) {
        (None, None, Who::User(name)) => Some(name.clone()),
        (owner, _, _) => owner.clone(),
    };
    if !manages_keys(&visit, owner.as_deref(), wanted.namespace.as_deref()) {
        return Err(refuse(&app, &visit, "key_create", &format!("key/{}", wanted.name), Refusal::Denied));
    }
    let life_ms = wanted.expires_in_s.map(|seconds| i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX));
    let expires_at = life_ms.map(|life| now_ms().saturating_add(life));
    let new = NewKey { name: wanted.name, owner, namespace: wanted.namespace, scopes: wanted.scopes, expires_at };
    let change = Change::new(&app, &visit);
    let (row, secret) = change.manager().key_create(new).await?;
    let mut answer = serde_json::to_value(KeyInfo::from(row)).map_err(|error| ApiError::internal(&error))?;
    answer["secret"] = secret.into();
    change.done(StatusCode::CREATED, answer).await
}

/// Revokes a key. At once on this server, within a second on others.
#[utoipa::path(delete, path = "/v1/keys/{name}", responses((status = 200, description = "revoked"), (status = 404, description = "unknown, or not the caller's to revoke")))]
pub(crate) async fn key_delete(State(app): State<Shared>, Extension(visit): Extension<Arc<Visit>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    if visit.caller.who == Who::Anonymous {
        return Err(Refusal::Challenge(visit.challenge(None, None)).into());
    }
    let change = Change::new(&app, &visit);
    let found = change.manager().keys().await?.into_iter().find(|row| row.name == name);
    // Somebody else's key answers like none.
    if !found.is_some_and(|row| manages_keys(&visit, row.owner.as_deref(), row.namespace.as_deref())) {
        app.access.audit.refusal(entry(&visit.actor(), "key_revoke", &format!("key/{name}"), Outcome::Refused, None));
        return Err(ManageError::KeyUnknown(name).into());
    }
    change.manager().key_revoke(&name).await?;
    change.done(StatusCode::OK, serde_json::json!({})).await
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantBody {
    subject: Subject,
    target: Target,
    rights: Rights,
    #[serde(default)]
    deny: bool,
}

/// Whether the caller may grant rights on this: a user, that is, and not a key or a token of some scopes, which a grant would outlive.
fn grants_on(visit: &Visit, target: &Target) -> bool {
    let is_user = visit.caller.token.is_none() && visit.caller.key.is_none() && matches!(visit.caller.who, Who::User(_));
    visit.manages().is_ok() || is_user && visit.allows(target, Right::Admin)
}

/// Grants on what the caller administers.
#[utoipa::path(get, path = "/v1/grants", responses((status = 200, content_type = "application/json")))]
pub(crate) async fn grants(State(app): State<Shared>, Extension(visit): Extension<Arc<Visit>>) -> Result<Response, ApiError> {
    if visit.caller.who == Who::Anonymous {
        return Err(Refusal::Challenge(visit.challenge(None, None)).into());
    }
    let all = Change::new(&app, &visit).manager().grants().await?;
    let shown = all.into_iter().filter(|grant| grants_on(&visit, &grant.target));
    let grants: Vec<GrantBody> =
        shown.map(|grant| GrantBody { subject: grant.subject, target: grant.target, rights: grant.rights, deny: grant.is_deny }).collect();
    Ok(Json(serde_json::json!({ "grants": grants })).into_response())
}

/// Grants rights on what the caller administers, or denies them, in place of those that this grant had.
#[utoipa::path(put, path = "/v1/grants", request_body(content_type = "application/json"), responses((status = 200, description = "holds"), (status = 403, description = "not the caller's to grant"), (status = 404, description = "there is no such user or key")))]
pub(crate) async fn grant_put(State(app): State<Shared>, Extension(visit): Extension<Arc<Visit>>, request: Request) -> Result<Response, ApiError> {
    if visit.caller.who == Who::Anonymous {
        return Err(Refusal::Challenge(visit.challenge(None, None)).into());
    }
    let wanted: GrantBody = body(&app, request).await?;
    if !grants_on(&visit, &wanted.target) {
        return Err(refuse(&app, &visit, "grant", &wanted.target.to_string(), Refusal::Denied));
    }
    let change = Change::new(&app, &visit);
    let grant = NewGrant { subject: wanted.subject.clone(), target: wanted.target.clone(), is_deny: wanted.deny, rights: wanted.rights };
    change.manager().grant_put(&grant).await?;
    change.done(StatusCode::OK, wanted).await
}

/// Which grant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GrantName {
    subject: Subject,
    target: Target,
    #[serde(default)]
    deny: bool,
}

/// Takes a grant back, or a denial with `deny=true`.
#[utoipa::path(delete, path = "/v1/grants", params(("subject" = String, Query), ("target" = String, Query), ("deny" = Option<bool>, Query)), responses((status = 200, description = "gone"), (status = 403, description = "not the caller's to take back"), (status = 404, description = "there is none")))]
pub(crate) async fn grant_delete(
    State(app): State<Shared>,
    Extension(visit): Extension<Arc<Visit>>,
    name: Result<Query<GrantName>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(name) = name.map_err(|error| ApiError::request_invalid(error.body_text()))?;
    if visit.caller.who == Who::Anonymous {
        return Err(Refusal::Challenge(visit.challenge(None, None)).into());
    }
    if !grants_on(&visit, &name.target) {
        return Err(refuse(&app, &visit, "revoke", &name.target.to_string(), Refusal::Denied));
    }
    let change = Change::new(&app, &visit);
    change.manager().grant_remove(&name.subject, &name.target, name.deny).await?;
    change.done(StatusCode::OK, serde_json::json!({})).await
}

/// Which entries.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditPage {
    /// The id of the last one seen.
    after: Option<String>,
    /// Milliseconds since 1970.
    since: Option<i64>,
    limit: Option<u32>,
}

#[derive(Serialize)]
struct AuditInfo {
    id: String,
    at: String,
    who: String,
    action: String,
    target: String,
    outcome: String,
    detail: Option<String>,
    address: Option<String>,
    request: Option<String>,
}

impl From<AuditRow> for AuditInfo {
    fn from(row: AuditRow) -> Self {
        Self {
            id: row.id,
            at: time_text(row.at),
            who: row.who,
            action: row.action,
            target: row.target,
            outcome: row.outcome,
            detail: row.detail,
            address: row.address,
            request: row.request,
        }
    }
}

/// The audit log, oldest entry first. For administrators.
#[utoipa::path(get, path = "/v1/audit", params(("after" = Option<String>, Query), ("since" = Option<i64>, Query), ("limit" = Option<u32>, Query)), responses((status = 200, content_type = "application/json"), (status = 403, description = "not an administrator")))]
pub(crate) async fn audit(
    State(app): State<Shared>,
    Extension(visit): Extension<Arc<Visit>>,
    page: Result<Query<AuditPage>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    server_admin(&app, &visit, "audit_list", "audit")?;
    let Query(page) = page.map_err(|error| ApiError::request_invalid(error.body_text()))?;
    let after = page.after.unwrap_or_else(|| AuditRow::first_id(page.since.unwrap_or(0)));
    let limit = page.limit.unwrap_or(MAX_ENTRIES).clamp(1, MAX_ENTRIES);
    let rows = audit_list(&mut app.db.read().await?, &after, limit).await?;
    let entries: Vec<AuditInfo> = rows.into_iter().map(AuditInfo::from).collect();
    Ok(Json(serde_json::json!({ "entries": entries })).into_response())
}
