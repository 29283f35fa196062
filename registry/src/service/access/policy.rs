//! May this caller do that? A pure function of names: nothing else is looked up, so an answer cannot tell what is there.
//!
//! A grant allows or denies, and **a denial wins**, whoever else is allowed. Besides grants a user has all rights in the
//! namespace of the same name and over the own states; an administrator has all rights everywhere. A key never has more
//! rights than its scopes, and, if it is a user's, than that user; a key of a namespace has what its scopes say within the
//! namespace. What is granted to `anonymous` everyone has, since everyone can leave the credentials away.

use std::collections::HashMap;
use std::sync::Arc;

use super::rights::{PUBLIC_STATES, Right, Rights, Scope, Subject, Target, states_of_user};

/// What is known of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) is_admin: bool,
    pub(crate) is_disabled: bool,
    pub(crate) generation: i64,
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) prefix: String,
    pub(crate) secret_hash: [u8; 32],
    pub(crate) owner: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) is_login: bool,
    pub(crate) scopes: Vec<Scope>,
    /// Milliseconds since 1970.
    pub(crate) expires_at: Option<i64>,
}

/// A grant to some subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) target: Target,
    pub(crate) is_deny: bool,
    pub(crate) rights: Rights,
}

/// Who sends a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Anyone, on a server that asks no one who they are.
    Open,
    /// Someone without credentials.
    Anonymous,
    /// A user, by password, login or token.
    User(String),
    /// A key.
    Robot(Arc<Key>),
}

/// A caller: who it is, and what its token limits it to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) who: Who,
    /// What its token was issued for; `None` if it is not limited.
    pub(crate) token: Option<Vec<Scope>>,
    /// The namespace of the states that clients keep under this credential (docs/http-api.md).
    pub(crate) states: Option<String>,
    /// The key that it showed, itself or by a token: what ends with the key.
    pub(crate) key: Option<Arc<Key>>,
}

impl Caller {
    pub(crate) fn new(who: Who) -> Self {
        Self { who, token: None, states: None, key: None }
    }

    /// As audit logs name it.
    pub(crate) fn shown(&self) -> String {
        match &self.who {
            Who::Open => "open".into(),
            Who::Anonymous => "anonymous".into(),
            Who::User(name) => format!("user:{name}"),
            Who::Robot(key) => format!("robot:{}", key.name),
        }
    }

    /// Whether its token was issued for this, too.
    pub(crate) fn token_covers(&self, what: &Target, right: Right) -> bool {
        self.token.as_ref().is_none_or(|scopes| scopes.iter().any(|scope| scope.target.contains(what) && scope.rights.allows(right)))
    }

    fn has_states(&self, what: &Target) -> bool {
        self.states.is_some() && what.own_namespace() == self.states.as_deref()
    }
}

/// Everything that decides who may do what.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy {
    pub(crate) accounts: HashMap<String, Account>,
    /// By the hash of their secret.
    pub(crate) keys: HashMap<[u8; 32], Arc<Key>>,
    pub(crate) grants: HashMap<Subject, Vec<Grant>>,
    /// Whether everyone may read all that is not private.
    pub(crate) anonymous_read: bool,
}

impl Policy {
    /// Whether the caller has this right on all of `what`, by who it is and by its token.
    pub(crate) fn allows(&self, caller: &Caller, what: &Target, right: Right) -> bool {
        caller.token_covers(what, right) && self.entitles(caller, what, right)
    }

    /// The same, whatever its token was issued for.
    pub(crate) fn entitles(&self, caller: &Caller, what: &Target, right: Right) -> bool {
        match &caller.who {
            Who::Open => true,
            _ if *what == Target::Catalog => right == Right::Pull && self.reads_anything(caller),
            Who::Anonymous => self.granted(&[Subject::Anonymous], what, right) && !self.denied(&[Subject::Anonymous], what, right),
            Who::User(name) => self.user(name, caller, what, right),
            Who::Robot(key) => self.robot(key, caller, what, right),
        }
    }

    /// Whether the caller manages users, keys and settings.
    pub(crate) fn is_server_admin(&self, caller: &Caller) -> bool {
        match &caller.who {
            Who::Open => true,
            Who::User(name) => caller.token.is_none() && self.account(name).is_some_and(|account| account.is_admin),
            Who::Anonymous | Who::Robot(_) => false,
        }
    }

    /// Whether the caller may read something, so that a list is worth showing.
    pub(crate) fn reads_anything(&self, caller: &Caller) -> bool {
        match caller.who {
            Who::Anonymous => {
                let grants = self.grants.get(&Subject::Anonymous).into_iter().flatten();
                self.anonymous_read || grants.into_iter().any(|grant| !grant.is_deny && grant.rights.allows(Right::Pull))
            }
            _ => true,
        }
    }

    /// An account that may log in.
    pub(crate) fn account(&self, name: &str) -> Option<&Account> {
        self.accounts.get(name).filter(|account| !account.is_disabled)
    }

    /// The key with this hash, unless it has expired or its owner may not log in.
    pub(crate) fn key(&self, secret_hash: &[u8; 32], now_ms: i64) -> Option<&Arc<Key>> {
        self.keys.get(secret_hash).filter(|key| self.is_alive(key, now_ms))
    }

    /// The key with this name and prefix, under the same conditions.
    pub(crate) fn key_named(&self, name: &str, prefix: &str, now_ms: i64) -> Option<&Arc<Key>> {
        self.keys.values().find(|key| key.name == name && key.prefix == prefix && self.is_alive(key, now_ms))
    }

    fn is_alive(&self, key: &Key, now_ms: i64) -> bool {
        key.expires_at.is_none_or(|at| now_ms < at) && key.owner.as_ref().is_none_or(|owner| self.account(owner).is_some())
    }

    fn user(&self, name: &str, caller: &Caller, what: &Target, right: Right) -> bool {
        let Some(account) = self.account(name) else { return false };
        let user = Subject::User(name.to_owned());
        let is_own = what.own_namespace().is_some_and(|namespace| namespace == name || namespace == states_of_user(name)) || caller.has_states(what);
        let allowed = account.is_admin || is_own || shares_states(what, right) || self.granted(&[user.clone(), Subject::Authenticated], what, right);
        allowed && !self.denied(&[user, Subject::Authenticated], what, right)
    }

    fn robot(&self, key: &Key, caller: &Caller, what: &Target, right: Right) -> bool {
        let robot = Subject::Robot(key.name.clone());
        // States of its own: for whoever may write at all.
        let has_states = caller.has_states(what) && right != Right::Admin && key.scopes.iter().any(|scope| scope.rights.allows(Right::Push));
        let in_scope = key.scopes.iter().any(|scope| scope.target.contains(what) && scope.rights.allows(right));
        // A user's key goes nowhere where the user may not go, whatever is granted to others.
        let bound = || match (&key.owner, &key.namespace) {
            (Some(owner), _) => self.user(owner, caller, what, right),
            (None, Some(namespace)) if what.own_namespace() == Some(namespace) => true,
            (None, None) if !what.is_private() => true,
            (None, _) => self.granted(&[robot.clone(), Subject::Authenticated], what, right),
        };
        let allowed = has_states || in_scope && bound();
        allowed && !self.denied(&[robot, Subject::Authenticated], what, right)
    }

    fn granted(&self, subjects: &[Subject], what: &Target, right: Right) -> bool {
        let of = |subject: &Subject| self.grants.get(subject).into_iter().flatten();
        let subjects = subjects.iter().filter(|subject| **subject != Subject::Anonymous).chain([&Subject::Anonymous]);
        self.anonymous_read && right == Right::Pull && Target::All.grants(what)
            || subjects.flat_map(of).any(|grant| !grant.is_deny && grant.target.grants(what) && grant.rights.allows(right))
    }

    fn denied(&self, subjects: &[Subject], what: &Target, right: Right) -> bool {
        let of = |subject: &Subject| self.grants.get(subject).into_iter().flatten();
        subjects.iter().flat_map(of).any(|grant| grant.is_deny && grant.target.overlaps(what) && grant.rights.has(right))
    }
}

/// States that were saved as public are for all who can log in.
fn shares_states(what: &Target, right: Right) -> bool {
    what.own_namespace() == Some(PUBLIC_STATES) && matches!(right, Right::Pull | Right::Push)
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
