//! From credentials to a caller, and from a caller to a token.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::audit::{Actor, Outcome, entry};
use super::password::PasswordError;
use super::policy::{Caller, Key, Who};
use super::rights::{Rights, Scope, Target, is_name};
use super::token::{Claims, Issued, SIGNS_FOR, TokenError, current, new_key, sign, verify};
use super::{Access, Snapshot, secret};
use crate::db::access_version::access_version_grow;
use crate::db::account::account_password;
use crate::db::audit_entry::audit_insert;
use crate::db::robot_key::{RobotKeyRow, robot_key_delete, robot_key_expire, robot_key_insert, robot_key_trim_logins};
use crate::db::signing_key::{signing_key_delete_before, signing_key_insert, signing_key_list};
use crate::db::{DbError, commit, now_ms};

/// How long a password that was right is not hashed again.
const REMEMBER: Duration = Duration::from_secs(60);
/// How long a login lasts.
const LOGIN_LIFE_MS: i64 = 90 * 24 * 3600 * 1000;
/// Logins of one user; the oldest end.
const MAX_LOGINS: u32 = 100;
/// The name that a key may be shown under whatever it is called.
const ANY_NAME: &str = "token";

/// What a request brings along. Not to be shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    None,
    /// A name and a password or key.
    Basic(String, String),
    /// A token or key.
    Bearer(String),
    /// Something else.
    Unreadable,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Basic(..) => "Basic(…)",
            Self::Bearer(_) => "Bearer(…)",
            Self::Unreadable => "Unreadable",
        })
    }
}

/// Why someone is not let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    /// Wrong name, password, key or token. Which one is not told.
    #[error("name and password, key or token are not right")]
    Invalid,
    /// The token was right once.
    #[error("the token has expired")]
    Expired,
    /// Too many failed.
    #[error("too many attempts failed; try again in {} s", .0.as_secs().max(1))]
    Limited(Duration),
    /// Too many at a time.
    #[error(transparent)]
    Busy(#[from] PasswordError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
}

impl From<TokenError> for LoginError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Invalid => Self::Invalid,
            TokenError::Expired => Self::Expired,
        }
    }
}

/// A password that was right.
#[derive(Debug)]
pub(super) struct Verified {
    generation: i64,
    until: Instant,
}

impl Access {
    /// Who sends these credentials, and what decides about it. Before they are refused it is looked whether something has changed:
    /// a user or key that was added a moment ago works at once.
    pub(crate) async fn identify(&self, credentials: &Credentials, address: IpAddr) -> Result<(Arc<Snapshot>, Caller), LoginError> {
        let mut snapshot = self.snapshot().await?;
        let refused = match self.authenticate(&snapshot, credentials, address).await {
            Ok(caller) => return Ok((snapshot, caller)),
            Err(error @ (LoginError::Invalid | LoginError::Expired)) => {
                let newer = self.reload().await?;
                match Arc::ptr_eq(&newer, &snapshot) {
                    true => error,
                    false => {
                        snapshot = newer;
                        match self.authenticate(&snapshot, credentials, address).await {
                            Ok(caller) => return Ok((snapshot, caller)),
                            Err(error) => error,
                        }
                    }
                }
            }
            Err(error) => error,
        };
        self.note_refusal(&snapshot, credentials, address, &refused);
        Err(refused)
    }

    fn note_refusal(&self, snapshot: &Snapshot, credentials: &Credentials, address: IpAddr, error: &LoginError) {
        if matches!(error, LoginError::Expired | LoginError::Busy(_) | LoginError::Database(_)) {
            return;
        }
        // The name is what the client says; a password typed there would be in the log, so only names of users are.
        let who = match credentials {
            Credentials::Basic(name, _) if snapshot.policy.accounts.contains_key(name) => format!("user:{name}"),
            _ => "anonymous".into(),
        };
        let actor = Actor { who, address: Some(address), request: None };
        self.audit.refusal(entry(&actor, "login", "auth", Outcome::Refused, Some(error.to_string())));
    }

    /// Who sends these credentials, by what the snapshot knows.
    async fn authenticate(&self, snapshot: &Snapshot, credentials: &Credentials, address: IpAddr) -> Result<Caller, LoginError> {
        if snapshot.is_open {
            return Ok(Caller::new(Who::Open));
        }
        match credentials {
            Credentials::None => Ok(Caller::new(Who::Anonymous)),
            Credentials::Unreadable => Err(LoginError::Invalid),
            Credentials::Basic(name, password) if secret::is_secret(password) => self.by_key(snapshot, password, Some(name)),
            Credentials::Basic(name, password) => self.by_password(snapshot, name, password, address).await,
            Credentials::Bearer(text) if secret::is_secret(text) => self.by_key(snapshot, text, None),
            Credentials::Bearer(text) => by_token(snapshot, text),
        }
    }

    fn by_key(&self, snapshot: &Snapshot, text: &str, name: Option<&String>) -> Result<Caller, LoginError> {
        let now = now_ms();
        let key = snapshot.policy.key(&secret::hash(text), now).ok_or(LoginError::Invalid)?;
        let suits = |name: &String| *name == key.name || Some(name) == key.owner.as_ref() || name == ANY_NAME;
        if !name.is_none_or(suits) {
            return Err(LoginError::Invalid);
        }
        self.audit.used(&key.name, now);
        let states = Some(secret::states_namespace(text));
        Ok(Caller { states, key: Some(Arc::clone(key)), ..Caller::new(who(key)) })
    }

    async fn by_password(&self, snapshot: &Snapshot, name: &str, password: &str, address: IpAddr) -> Result<Caller, LoginError> {
        let account = snapshot.policy.account(name);
        let remembered = blake3::Hasher::new_keyed(&self.verified_key).update(name.as_bytes()).update(&[0]).update(password.as_bytes()).finalize();
        let now = Instant::now();
        if let Some(account) = account
            && self.verified.lock().get(remembered.as_bytes()).is_some_and(|known| known.generation == account.generation && now < known.until)
        {
            return Ok(Caller::new(Who::User(name.to_owned())));
        }
        self.limiter.check(address, name, now).map_err(LoginError::Limited)?;
        // Looked up and hashed in any case, so that the time does not tell whether there is such a user.
        let kept = {
            let mut db = self.db.read().await?;
            account_password(&mut db, if is_name(name) { name } else { "" }).await?
        };
        let is_right = self.passwords.verify(password, kept).await?;
        match account.filter(|_| is_right) {
            Some(account) => {
                self.verified.lock().put(*remembered.as_bytes(), Verified { generation: account.generation, until: now + REMEMBER });
                Ok(Caller::new(Who::User(name.to_owned())))
            }
            None => {
                self.limiter.fail(address, name, now);
                Err(LoginError::Invalid)
            }
        }
    }

    /// A token for the caller, limited to what it asks for and may; `asked` is `None` for everything.
    pub(crate) async fn issue(&self, snapshot: &Snapshot, caller: &Caller, asked: Option<&[Scope]>) -> Result<Issued, LoginError> {
        let now = now_ms();
        let mut claims = Claims::new(caller.shown(), now / 1000, self.token_life);
        if let Who::User(name) = &caller.who {
            claims.generation = Some(snapshot.policy.account(name).ok_or(LoginError::Invalid)?.generation);
        }
        claims.key = caller.key.as_ref().map(|key| (key.name.clone(), key.prefix.clone()));
        claims.access = asked.map(|scopes| {
            let entitled = |scope: &Scope| {
                let rights: Rights = scope.rights.iter().filter(|right| snapshot.policy.allows(caller, &scope.target, *right)).collect();
                Scope { target: scope.target.clone(), rights }
            };
            scopes.iter().map(entitled).filter(|scope| !scope.rights.is_empty()).collect()
        });
        // A token of a limited token is not wider.
        if claims.access.is_none() {
            claims.access = caller.token.clone();
        }
        let signed = match current(&snapshot.signing, now) {
            Some(key) => sign(key, &claims)?,
            None => sign(&self.rotate(false).await?, &claims)?,
        };
        Ok(Issued { token: signed, life: self.token_life, issued_s: now / 1000 })
    }

    /// Makes a new key to sign with, unless another server just did, and returns the one that signs now. With `end_all` the
    /// old ones are forgotten, and with them all tokens that are about.
    pub(crate) async fn rotate(&self, end_all: bool) -> Result<crate::db::signing_key::SigningKeyRow, DbError> {
        let key = rotate(&self.db, end_all).await?;
        self.reload().await?;
        Ok(key)
    }

    /// Keeps a login: a key that is as good as the user's password until it expires. Returns its secret.
    pub(crate) async fn login_create(&self, name: &str, actor: &Actor) -> Result<String, DbError> {
        let (secret, now) = (secret::generate(), now_ms());
        let key = RobotKeyRow {
            name: format!("login-{:016x}", rand::random::<u64>()),
            prefix: secret::shown(&secret).to_owned(),
            secret_hash: secret::hash(&secret),
            owner: Some(name.to_owned()),
            namespace: None,
            is_login: true,
            scopes: serde_json::to_string(&[Scope { target: Target::All, rights: Rights::ALL }]).unwrap_or_default(),
            created_by: actor.who.clone(),
            created_at: now,
            expires_at: Some(now + LOGIN_LIFE_MS),
            last_used_at: None,
        };
        let mut transaction = self.db.begin().await?;
        // First: changes of rights follow each other.
        access_version_grow(&mut transaction).await?;
        robot_key_expire(&mut transaction, now).await?;
        robot_key_trim_logins(&mut transaction, name, MAX_LOGINS - 1).await?;
        robot_key_insert(&mut transaction, &key).await?;
        audit_insert(&mut transaction, &[entry(actor, "login", &format!("key/{}", key.name), Outcome::Done, None)]).await?;
        commit(transaction).await?;
        self.reload().await?;
        Ok(secret)
    }

    /// Ends a login. Says whether there was one with this secret.
    pub(crate) async fn logout(&self, snapshot: &Snapshot, secret: &str, actor: &Actor) -> Result<bool, DbError> {
        let Some(key) = snapshot.policy.key(&secret::hash(secret), now_ms()).filter(|key| key.is_login) else { return Ok(false) };
        let mut transaction = self.db.begin().await?;
        access_version_grow(&mut transaction).await?;
        let deleted = robot_key_delete(&mut transaction, &key.name).await?;
        let actor = Actor { who: format!("user:{}", key.owner.as_deref().unwrap_or_default()), ..actor.clone() };
        audit_insert(&mut transaction, &[entry(&actor, "logout", &format!("key/{}", key.name), Outcome::Done, None)]).await?;
        commit(transaction).await?;
        self.reload().await?;
        Ok(deleted)
    }
}

/// Who shows this key.
fn who(key: &Arc<Key>) -> Who {
    match &key.owner {
        Some(owner) if key.is_login => Who::User(owner.clone()),
        _ => Who::Robot(Arc::clone(key)),
    }
}

fn by_token(snapshot: &Snapshot, text: &str) -> Result<Caller, LoginError> {
    let now = now_ms();
    let claims = verify(&snapshot.signing, text, now / 1000)?;
    let key = match &claims.key {
        // Gone, expired or of someone who may not log in any more: then its tokens are nothing, too.
        Some((name, prefix)) => Some(Arc::clone(snapshot.policy.key_named(name, prefix, now).ok_or(LoginError::Expired)?)),
        None => None,
    };
    let who = match (claims.sub.split_once(':'), &key) {
        (None, None) if claims.sub == "anonymous" => Who::Anonymous,
        (Some(("user", name)), _) => {
            let account = snapshot.policy.account(name).ok_or(LoginError::Expired)?;
            let is_of_key = key.as_ref().is_none_or(|key| key.is_login && key.owner.as_deref() == Some(name));
            if claims.generation != Some(account.generation) || !is_of_key {
                return Err(LoginError::Expired);
            }
            Who::User(name.to_owned())
        }
        (Some(("robot", name)), Some(key)) if key.name == name && !key.is_login => Who::Robot(Arc::clone(key)),
        _ => return Err(LoginError::Invalid),
    };
    Ok(Caller { who, token: claims.access, states: Some(secret::states_namespace(text)), key })
}

/// See [`Access::rotate`].
pub(crate) async fn rotate(db: &crate::db::Db, end_all: bool) -> Result<crate::db::signing_key::SigningKeyRow, DbError> {
    let now = now_ms();
    let mut transaction = db.begin().await?;
    // First, so that two servers do not both make one.
    access_version_grow(&mut transaction).await?;
    let keys = signing_key_list(&mut transaction).await?;
    if !end_all && let Some(key) = current(&keys, now) {
        return Ok(key.clone());
    }
    // Those that could have signed a token that still lives are kept.
    let before = if end_all { i64::MAX } else { now - 2 * SIGNS_FOR.as_millis() as i64 };
    signing_key_delete_before(&mut transaction, before).await?;
    let key = new_key(now);
    signing_key_insert(&mut transaction, &key).await?;
    commit(transaction).await?;
    Ok(key)
}
