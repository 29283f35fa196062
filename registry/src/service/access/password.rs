//! Passwords: argon2id with the parameters of OWASP's cheat sheet (19 MiB, 2 passes, 1 lane), off the threads that serve, and
//! only some at a time, since each takes memory and a core.
//!
//! A name that does not exist costs the same work as one that does, so that it cannot be told by the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;

/// Fewest characters of a password.
pub(crate) const MIN_LEN: usize = 8;
/// Most bytes of a password: more would only cost time.
pub(crate) const MAX_LEN: usize = 1024;
/// Passwords that may wait to be checked; more are told to come again.
const MAX_WAITING: usize = 64;
/// A hash with the same parameters that no password has.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Why a password was neither accepted nor refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PasswordError {
    /// Too many at a time.
    #[error("too many passwords are being checked; try again")]
    Busy,
    /// It cannot be one.
    #[error("a password has at least {MIN_LEN} characters, and at most {MAX_LEN} bytes")]
    Unsuitable,
    /// Hashing failed.
    #[error("a password could not be hashed")]
    Failed,
}

/// Whether the text can be a password.
pub(crate) fn check(password: &str) -> Result<(), PasswordError> {
    let suitable = password.chars().count() >= MIN_LEN && password.len() <= MAX_LEN;
    if suitable { Ok(()) } else { Err(PasswordError::Unsuitable) }
}

/// The hash to keep of a password. Takes tens of milliseconds.
pub(crate) fn hash(password: &str) -> Result<String, PasswordError> {
    check(password)?;
    let hash = Argon2::default().hash_password(password.as_bytes()).map_err(|_| PasswordError::Failed)?;
    Ok(hash.to_string())
}

fn verify(password: &str, hash: &str) -> bool {
    PasswordHash::new(hash).is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
}

/// Checks passwords, some at a time.
#[derive(Debug)]
pub(crate) struct Passwords {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    runs: Arc<AtomicU64>,
}

impl Default for Passwords {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { turns: Arc::new(Semaphore::new(cores.div_ceil(2))), waiting: AtomicUsize::new(0), runs: Arc::default() }
    }
}

impl Passwords {
    /// Whether the password is the one with this hash; `None` if there is no such account, which takes as long.
    pub(crate) async fn verify(&self, password: &str, hash: Option<String>) -> Result<bool, PasswordError> {
        // Cheap to refuse, and told by nothing but the password itself.
        if password.is_empty() || password.len() > MAX_LEN {
            return Ok(false);
        }
        let password = password.to_owned();
        self.work(move || {
            let matches = verify(&password, hash.as_deref().unwrap_or(NOBODY));
            matches && hash.is_some()
        })
        .await
    }

    /// The hash to keep of a password.
    pub(crate) async fn hash(&self, password: &str) -> Result<String, PasswordError> {
        check(password)?;
        let password = password.to_owned();
        self.work(move || hash(&password)).await?
    }

    /// How often it hashed.
    pub(crate) fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, PasswordError> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if waiting >= MAX_WAITING {
            return Err(PasswordError::Busy);
        }
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| PasswordError::Busy)?;
        let runs = Arc::clone(&self.runs);
        let done = tokio::task::spawn_blocking(move || {
            // Held while it works, also if nobody waits for it any more.
            let _turn = turn;
            runs.fetch_add(1, Ordering::Relaxed);
            work()
        });
        done.await.map_err(|_| PasswordError::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_tells_its_password_and_no_other() {
        let kept = hash("correct horse").unwrap();
        assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{kept}");
        assert!(verify("correct horse", &kept) && !verify("correct horsf", &kept) && !verify("", &kept));
        assert_ne!(kept, hash("correct horse").unwrap(), "salted");
        assert_eq!(hash("short").unwrap_err(), PasswordError::Unsuitable);
        assert!(!verify("anything", "not a hash"));
    }

    #[test]
    fn the_hash_of_nobody_costs_as_much_as_anyones() {
        let (nobody, somebody) = (PasswordHash::new(NOBODY).unwrap(), hash("correct horse").unwrap());
        let somebody = PasswordHash::new(&somebody).unwrap();
        assert_eq!((nobody.algorithm, nobody.version, &nobody.params), (somebody.algorithm, somebody.version, &somebody.params));
        assert_eq!(nobody.hash.map(|hash| hash.len()), somebody.hash.map(|hash| hash.len()));
    }

    #[tokio::test]
    async fn who_does_not_exist_costs_one_run_like_everyone() {
        let passwords = Passwords::default();
        let kept = passwords.hash("correct horse").await.unwrap();
        assert_eq!(passwords.runs(), 1);
        for (hash, expected) in [(Some(kept.clone()), true), (None, false)] {
            let before = passwords.runs();
            assert_eq!(passwords.verify("correct horse", hash).await.unwrap(), expected);
            assert_eq!(passwords.runs(), before + 1);
        }
        assert!(!passwords.verify("wrong horse", Some(kept)).await.unwrap());
        assert!(!passwords.verify(&"x".repeat(MAX_LEN + 1), None).await.unwrap());
    }

    #[tokio::test]
    async fn a_crowd_is_turned_away() {
        let passwords = Arc::new(Passwords::default());
        let all = (0..MAX_WAITING + 20).map(|_| {
            let passwords = Arc::clone(&passwords);
            async move { passwords.verify("whatever", None).await }
        });
        let answers = futures::future::join_all(all).await;
        assert!(answers.iter().filter(|answer| **answer == Err(PasswordError::Busy)).count() >= 20);
        assert_eq!(passwords.waiting.load(Ordering::Relaxed), 0);
    }
}
