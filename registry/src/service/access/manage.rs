//! Changes of users, keys and grants: each in one transaction with its audit entry, and with the count that makes servers read
//! them again. Whether the caller may make a change is decided before ([`Manager`] at the API; whoever runs programs on the
//! server may make all).

use super::audit::{Actor, Outcome, entry};
use super::password::PasswordError;
use super::rights::{ParseAccessError, Rights, Scope, Subject, Target, is_name, is_reserved};
use super::{password, secret};
use crate::db::access_grant::{GrantRow, access_grant_delete, access_grant_delete_of, access_grant_list, access_grant_put};
use crate::db::access_version::access_version_grow;
use crate::db::account::{AccountRow, account_delete, account_get, account_insert, account_list, account_other_admins, account_set, account_set_password};
use crate::db::audit_entry::audit_insert;
use crate::db::namespace::namespace_find;
use crate::db::robot_key::{RobotKeyRow, robot_key_delete, robot_key_delete_logins, robot_key_insert, robot_key_list};
use crate::db::{Connection, Db, DbError, Transaction, commit, now_ms};

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManageError {
    /// No such user.
    #[error("there is no user `{0}`")]
    UserUnknown(String),
    /// The name is taken.
    #[error("there is a user `{0}` already")]
    UserExists(String),
    /// It cannot be a name.
    #[error("`{0}` cannot be the name of a user or key: it has 1 to 64 of a-z, 0-9 and single separators . _ - between them, and is not reserved")]
    NameInvalid(String),
    /// The namespace of that name is somebody else's work.
    #[error(
        "the namespace `{0}` holds something already, and a user of that name would own all of it: choose another name, or say that the user takes the namespace over"
    )]
    NamespaceTaken(String),
    /// Nobody would be left who can change it back.
    #[error("`{0}` is the last administrator who can log in: make another one first")]
    LastAdministrator(String),
    /// No such key.
    #[error("there is no key `{0}`")]
    KeyUnknown(String),
    /// The name is taken.
    #[error("there is a key `{0}` already")]
    KeyExists(String),
    /// It would never be good for anything.
    #[error("a key needs at least one scope, such as tools/*=pull")]
    NoScope,
    /// No such grant.
    #[error("there is no such grant")]
    GrantUnknown,
    /// It grants nothing.
    #[error("a grant names at least one right")]
    NoRights,
    /// A word that is none.
    #[error(transparent)]
    Word(#[from] ParseAccessError),
    /// The password cannot be one, or could not be hashed.
    #[error("{0}")]
    Password(String),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
}

impl From<PasswordError> for ManageError {
    fn from(error: PasswordError) -> Self {
        Self::Password(error.to_string())
    }
}

/// A user to add.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewUser<'a> {
    pub(crate) name: &'a str,
    /// Of [`password::hash`].
    pub(crate) password_hash: &'a str,
    pub(crate) is_admin: bool,
    /// Whether it may own a namespace in which there is something already.
    pub(crate) takes_namespace: bool,
}

/// A key to make.
#[derive(Clone, Debug)]
pub(crate) struct NewKey {
    pub(crate) name: String,
    pub(crate) owner: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) scopes: Vec<Scope>,
    /// Milliseconds since 1970.
    pub(crate) expires_at: Option<i64>,
}

/// What is granted or denied to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewGrant {
    pub(crate) subject: Subject,
    pub(crate) target: Target,
    pub(crate) is_deny: bool,
    pub(crate) rights: Rights,
}

impl NewGrant {
    fn shown(&self) -> String {
        format!("{} {} to {}", if self.is_deny { "deny" } else { "allow" }, self.rights, self.subject)
    }
}

/// Makes changes in the name of an actor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manager<'a> {
    pub(crate) db: &'a Db,
    pub(crate) actor: &'a Actor,
}

impl Manager<'_> {
    /// Begins a change. Counting it first locks its row: changes follow each other, so that what one has read (who else is an
    /// administrator, say) still holds when it commits.
    async fn begin(&self) -> Result<Transaction, DbError> {
        let mut transaction = self.db.begin().await?;
        access_version_grow(&mut transaction).await?;
        Ok(transaction)
    }

    async fn note(&self, db: &mut Connection, action: &str, target: &str, detail: Option<String>) -> Result<(), DbError> {
        audit_insert(db, &[entry(self.actor, action, target, Outcome::Done, detail)]).await
    }

    /// Adds a user. The first one is an administrator, or nobody could manage the server.
    pub(crate) async fn user_add(&self, user: NewUser<'_>) -> Result<AccountRow, ManageError> {
        if !is_name(user.name) || is_reserved(user.name) {
            return Err(ManageError::NameInvalid(user.name.to_owned()));
        }
        let mut transaction = self.begin().await?;
        if !user.takes_namespace && namespace_find(&mut transaction, user.name).await?.is_some() {
            return Err(ManageError::NamespaceTaken(user.name.to_owned()));
        }
        let is_admin = user.is_admin || account_list(&mut transaction).await?.is_empty();
        if !account_insert(&mut transaction, user.name, user.password_hash, is_admin).await? {
            return Err(ManageError::UserExists(user.name.to_owned()));
        }
        let row = account_get(&mut transaction, user.name).await?.ok_or_else(|| ManageError::UserUnknown(user.name.to_owned()))?;
        self.note(&mut transaction, "user_add", &format!("user/{}", user.name), is_admin.then(|| "administrator".into())).await?;
        commit(transaction).await?;
        Ok(row)
    }

    /// Sets a password. Tokens and logins that were got with the one before end; keys stay.
    pub(crate) async fn user_password(&self, name: &str, password_hash: &str) -> Result<(), ManageError> {
        let mut transaction = self.begin().await?;
        if !account_set_password(&mut transaction, name, password_hash).await? {
            return Err(ManageError::UserUnknown(name.to_owned()));
        }
        robot_key_delete_logins(&mut transaction, name).await?;
        self.note(&mut transaction, "user_password", &format!("user/{name}"), None).await?;
        Ok(commit(transaction).await?)
    }

    /// Makes a user an administrator or not, and enables or disables it; what is `None` stays.
    pub(crate) async fn user_set(&self, name: &str, is_admin: Option<bool>, is_disabled: Option<bool>) -> Result<AccountRow, ManageError> {
        let unknown = || ManageError::UserUnknown(name.to_owned());
        let mut transaction = self.begin().await?;
        let row = account_get(&mut transaction, name).await?.ok_or_else(unknown)?;
        let (is_admin, is_disabled) = (is_admin.unwrap_or(row.is_admin), is_disabled.unwrap_or(row.is_disabled));
        if (!is_admin || is_disabled) && is_last_admin(&mut transaction, &row).await? {
            return Err(ManageError::LastAdministrator(name.to_owned()));
        }
        account_set(&mut transaction, name, is_admin, is_disabled).await?;
        let row = account_get(&mut transaction, name).await?.ok_or_else(unknown)?;
        let detail = format!("admin: {is_admin}, disabled: {is_disabled}");
        self.note(&mut transaction, "user_set", &format!("user/{name}"), Some(detail)).await?;
        commit(transaction).await?;
        Ok(row)
    }

    /// Removes a user, with its keys and with what was granted to it. What it pushed stays.
    pub(crate) async fn user_remove(&self, name: &str) -> Result<(), ManageError> {
        let mut transaction = self.begin().await?;
        let row = account_get(&mut transaction, name).await?.ok_or_else(|| ManageError::UserUnknown(name.to_owned()))?;
        if is_last_admin(&mut transaction, &row).await? {
            return Err(ManageError::LastAdministrator(name.to_owned()));
        }
        let keys = robot_key_list(&mut transaction).await?;
        for key in keys.iter().filter(|key| key.owner.as_deref() == Some(name)) {
            access_grant_delete_of(&mut transaction, &Subject::Robot(key.name.clone()).to_string()).await?;
            robot_key_delete(&mut transaction, &key.name).await?;
        }
        access_grant_delete_of(&mut transaction, &Subject::User(name.to_owned()).to_string()).await?;
        account_delete(&mut transaction, name).await?;
        self.note(&mut transaction, "user_remove", &format!("user/{name}"), None).await?;
        Ok(commit(transaction).await?)
    }

    /// All users.
    pub(crate) async fn users(&self) -> Result<Vec<AccountRow>, ManageError> {
        Ok(account_list(&mut self.db.read().await?).await?)
    }

    /// Makes a key. Returns its row, and its secret, which is kept nowhere.
    pub(crate) async fn key_create(&self, new: NewKey) -> Result<(RobotKeyRow, String), ManageError> {
        let is_login = new.name.starts_with("login-");
        if !is_name(&new.name) || is_reserved(&new.name) || is_login {
            return Err(ManageError::NameInvalid(new.name));
        }
        if new.namespace.as_deref().is_some_and(|namespace| !is_name(namespace)) {
            return Err(ManageError::NameInvalid(new.namespace.unwrap_or_default()));
        }
        if new.scopes.is_empty() || new.scopes.iter().any(|scope| scope.rights.is_empty()) {
            return Err(ManageError::NoScope);
        }
        let secret = secret::generate();
        let scopes =
            serde_json::to_string(&new.scopes).map_err(|error| DbError::Failed { doing: "encode scopes", source: sqlx::Error::Encode(error.into()) })?;
        let key = RobotKeyRow {
            name: new.name,
            prefix: secret::shown(&secret).to_owned(),
            secret_hash: secret::hash(&secret),
            owner: new.owner,
            namespace: new.namespace,
            is_login: false,
            scopes,
            created_by: self.actor.who.clone(),
            created_at: now_ms(),
            expires_at: new.expires_at,
            last_used_at: None,
        };
        let mut transaction = self.begin().await?;
        if let Some(owner) = &key.owner
            && account_get(&mut transaction, owner).await?.is_none()
        {
            return Err(ManageError::UserUnknown(owner.clone()));
        }
        if !robot_key_insert(&mut transaction, &key).await? {
            return Err(ManageError::KeyExists(key.name));
        }
        self.note(&mut transaction, "key_create", &format!("key/{}", key.name), Some(format!("{} {}", key.prefix, key.scopes))).await?;
        commit(transaction).await?;
        Ok((key, secret))
    }

    /// Revokes a key, with what was granted to it.
    pub(crate) async fn key_revoke(&self, name: &str) -> Result<(), ManageError> {
        let mut transaction = self.begin().await?;
        if !robot_key_delete(&mut transaction, name).await? {
            return Err(ManageError::KeyUnknown(name.to_owned()));
        }
        access_grant_delete_of(&mut transaction, &Subject::Robot(name.to_owned()).to_string()).await?;
        self.note(&mut transaction, "key_revoke", &format!("key/{name}"), None).await?;
        Ok(commit(transaction).await?)
    }

    /// All keys.
    pub(crate) async fn keys(&self) -> Result<Vec<RobotKeyRow>, ManageError> {
        Ok(robot_key_list(&mut self.db.read().await?).await?)
    }

    /// Grants or denies rights, in place of those that the same grant had.
    pub(crate) async fn grant_put(&self, grant: &NewGrant) -> Result<(), ManageError> {
        if grant.rights.is_empty() {
            return Err(ManageError::NoRights);
        }
        let row = GrantRow { subject: grant.subject.to_string(), target: grant.target.to_string(), is_deny: grant.is_deny, rights: grant.rights.bits() };
        let mut transaction = self.begin().await?;
        match &grant.subject {
            Subject::User(name) if account_get(&mut transaction, name).await?.is_none() => return Err(ManageError::UserUnknown(name.clone())),
            Subject::Robot(name) if !robot_key_list(&mut transaction).await?.iter().any(|key| key.name == *name) => {
                return Err(ManageError::KeyUnknown(name.clone()));
            }
            _ => {}
        }
        access_grant_put(&mut transaction, &row, &self.actor.who).await?;
        self.note(&mut transaction, "grant", &row.target, Some(grant.shown())).await?;
        Ok(commit(transaction).await?)
    }

    /// Takes a grant back.
    pub(crate) async fn grant_remove(&self, subject: &Subject, target: &Target, is_deny: bool) -> Result<(), ManageError> {
        let mut transaction = self.begin().await?;
        if !access_grant_delete(&mut transaction, &subject.to_string(), &target.to_string(), is_deny).await? {
            return Err(ManageError::GrantUnknown);
        }
        let detail = format!("{} of {subject}", if is_deny { "denial" } else { "grant" });
        self.note(&mut transaction, "revoke", &target.to_string(), Some(detail)).await?;
        Ok(commit(transaction).await?)
    }

    /// All grants that can be read.
    pub(crate) async fn grants(&self) -> Result<Vec<NewGrant>, ManageError> {
        let rows = access_grant_list(&mut self.db.read().await?).await?;
        let parse = |row: GrantRow| {
            Some(NewGrant { subject: row.subject.parse().ok()?, target: row.target.parse().ok()?, is_deny: row.is_deny, rights: Rights::from_bits(row.rights) })
        };
        Ok(rows.into_iter().filter_map(parse).collect())
    }
}

/// Whether no one else could manage the server.
async fn is_last_admin(db: &mut Connection, row: &AccountRow) -> Result<bool, DbError> {
    Ok(row.is_admin && !row.is_disabled && account_other_admins(db, &row.name).await? == 0)
}

/// The hash to keep of a password, on this thread.
pub(crate) fn hash_password(text: &str) -> Result<String, ManageError> {
    Ok(password::hash(text)?)
}
