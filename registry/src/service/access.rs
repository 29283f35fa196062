//! Who may do what: accounts, keys, grants, and the one place that decides.
//!
//! | file | does |
//! |---|---|
//! | `rights` | the words: rights, targets, subjects, scopes |
//! | `policy` | decides: a pure function of accounts, keys and grants |
//! | `password` | argon2id, bounded |
//! | `secret` | secrets of keys |
//! | `token` | signed tokens |
//! | `limiter` | how often logins may fail |
//! | `login` | from credentials to a caller, and tokens |
//! | `manage` | changes of users, keys and grants |
//! | `setup` | the first administrator |
//! | `audit` | what was changed and refused |
//!
//! Accounts, keys and grants are few: all of them are kept in memory, and read again when the database counts a change. Each
//! request is decided by a [`Snapshot`] that is at most [`FRESH`] old: so long a right that was taken away may still work,
//! on this server and on others. A database that does not answer lets no one in.

pub(crate) mod audit;
pub(crate) mod limiter;
pub(crate) mod login;
pub(crate) mod manage;
pub(crate) mod password;
pub(crate) mod policy;
pub(crate) mod rights;
pub(crate) mod secret;
pub(crate) mod setup;
mod token;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use self::audit::Audit;
use self::limiter::Limiter;
use self::login::Verified;
use self::password::Passwords;
use self::policy::{Account, Grant, Key, Policy};
use self::rights::{Rights, Scope, Subject, Target};
use crate::config::Config;
use crate::db::access_grant::{GrantRow, access_grant_list};
use crate::db::access_version::access_version_get;
use crate::db::account::account_list;
use crate::db::robot_key::{RobotKeyRow, robot_key_list};
use crate::db::signing_key::{SigningKeyRow, signing_key_list};
use crate::db::{Db, DbError};

/// How old a snapshot may be that a request is decided by.
const FRESH: Duration = Duration::from_secs(1);
/// Passwords that are remembered as right, by a keyed hash.
const VERIFIED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Accounts, keys and grants at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) policy: Policy,
    /// Newest first.
    signing: Vec<SigningKeyRow>,
    /// Whether everyone may do everything.
    pub(crate) is_open: bool,
}

#[derive(Debug, Default)]
struct Loaded {
    snapshot: Option<Arc<Snapshot>>,
    version: i64,
    checked: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Access {
    db: Db,
    /// Everyone may do everything, whatever there is.
    is_off: bool,
    /// Credentials are asked for even if nobody could have any.
    is_forced: bool,
    anonymous_read: bool,
    token_life: Duration,
    /// Whether only this machine can reach the server.
    is_loopback: AtomicBool,
    loaded: Mutex<Loaded>,
    /// Held by whoever looks for changes.
    loading: tokio::sync::Mutex<()>,
    pub(crate) passwords: Passwords,
    limiter: Limiter,
    verified: Mutex<LruCache<[u8; 32], Verified>>,
    /// Under which passwords are hashed in `verified`: of this process alone.
    verified_key: [u8; 32],
    pub(crate) audit: Audit,
}

impl Access {
    pub(crate) fn new(db: Db, config: &Config) -> Self {
        Self {
            audit: Audit::start(db.clone(), config.audit_days),
            db,
            is_off: config.insecure_no_auth,
            is_forced: config.auth == Some(true),
            anonymous_read: config.anonymous_read,
            token_life: config.token_life,
            is_loopback: AtomicBool::new(false),
            loaded: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            passwords: Passwords::default(),
            limiter: Limiter::new(config.limits.logins),
            verified: Mutex::new(LruCache::new(VERIFIED)),
            verified_key: rand::random(),
        }
    }

    /// Says whether only this machine can reach the server: then it is open as long as there is no user.
    pub(crate) fn set_loopback(&self, is_loopback: bool) {
        self.is_loopback.store(is_loopback, Ordering::Relaxed);
        *self.loaded.lock() = Loaded::default();
    }

    /// What requests are decided by now.
    pub(crate) async fn snapshot(&self) -> Result<Arc<Snapshot>, DbError> {
        if let Some(snapshot) = self.fresh() {
            return Ok(snapshot);
        }
        let _loading = self.loading.lock().await;
        match self.fresh() {
            Some(snapshot) => Ok(snapshot),
            None => self.load().await,
        }
    }

    /// The same, with what was changed just now.
    pub(crate) async fn reload(&self) -> Result<Arc<Snapshot>, DbError> {
        let _loading = self.loading.lock().await;
        self.load().await
    }

    fn fresh(&self) -> Option<Arc<Snapshot>> {
        let loaded = self.loaded.lock();
        loaded.snapshot.clone().filter(|_| self.is_off || loaded.checked.is_some_and(|checked| checked.elapsed() < FRESH))
    }

    async fn load(&self) -> Result<Arc<Snapshot>, DbError> {
        let began = Instant::now();
        if self.is_off {
            let snapshot = Arc::new(Snapshot { is_open: true, ..Snapshot::default() });
            self.loaded.lock().snapshot = Some(Arc::clone(&snapshot));
            return Ok(snapshot);
        }
        // The count first: a change in between is then seen again.
        let mut db = self.db.read().await?;
        let version = access_version_get(&mut db).await?;
        {
            let mut loaded = self.loaded.lock();
            if let Some(snapshot) = loaded.snapshot.clone()
                && loaded.version == version
            {
                loaded.checked = Some(began);
                return Ok(snapshot);
            }
        }
        let accounts = account_list(&mut db).await?;
        let keys = robot_key_list(&mut db).await?;
        let grants = access_grant_list(&mut db).await?;
        let signing = signing_key_list(&mut db).await?;
        let mut policy = Policy { anonymous_read: self.anonymous_read, ..Policy::default() };
        for row in accounts {
            policy.accounts.insert(row.name, Account { is_admin: row.is_admin, is_disabled: row.is_disabled, generation: row.generation });
        }
        for row in keys {
            policy.keys.insert(row.secret_hash, Arc::new(key(row)));
        }
        for (subject, grant) in grants.into_iter().filter_map(grant) {
            policy.grants.entry(subject).or_default().push(grant);
        }
        let nobody = policy.accounts.is_empty() && policy.keys.is_empty();
        let is_open = nobody && !self.is_forced && self.is_loopback.load(Ordering::Relaxed);
        let snapshot = Arc::new(Snapshot { policy, signing, is_open });
        *self.loaded.lock() = Loaded { snapshot: Some(Arc::clone(&snapshot)), version, checked: Some(began) };
        Ok(snapshot)
    }

    /// Writes what is left of the audit log.
    pub(crate) async fn close(&self) {
        self.audit.close().await;
    }
}

fn key(row: RobotKeyRow) -> Key {
    // What cannot be read allows nothing.
    let scopes: Vec<Scope> = serde_json::from_str(&row.scopes).unwrap_or_else(|error| {
        tracing::error!(%error, "the scopes of key {} cannot be read: it may do nothing", row.name);
        Vec::new()
    });
    Key {
        name: row.name,
        prefix: row.prefix,
        secret_hash: row.secret_hash,
        owner: row.owner,
        namespace: row.namespace,
        is_login: row.is_login,
        scopes,
        expires_at: row.expires_at,
    }
}

fn grant(row: GrantRow) -> Option<(Subject, Grant)> {
    let rights = Rights::from_bits(row.rights);
    match (row.subject.parse(), row.target.parse::<Target>()) {
        (Ok(subject), Ok(target)) => Some((subject, Grant { target, is_deny: row.is_deny, rights })),
        // A denial that cannot be read must not turn into a permission: it is one for everything.
        (Ok(subject), Err(_)) if row.is_deny => Some((subject, Grant { target: Target::All, is_deny: true, rights })),
        _ => {
            tracing::error!("a grant to {} on {} cannot be read and has no effect", row.subject, row.target);
            None
        }
    }
}
