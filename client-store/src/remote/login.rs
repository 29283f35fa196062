//! Logging in, and the tokens that a login is good for: each lives some minutes, and is renewed before it ends, so that
//! an application that runs for days never waits for a refusal.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::StatusCode;
use serde::Deserialize;

use super::Registry;
use super::http::authorised;
use crate::origin::OriginError;

/// Life of a token whose registry does not say.
const DEFAULT_LIFE_S: u64 = 60;
/// Content type of a form.
const FORM: &str = "application/x-www-form-urlencoded";

/// A login in use.
pub(super) struct Login {
    /// What tokens are got for.
    secret: String,
    token: Mutex<Option<Renewed>>,
    /// Held while a token is got, so that many requests get one.
    renewing: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Renewed {
    token: String,
    /// When another one should be got.
    stale_at: Instant,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

impl Login {
    pub(super) fn new(secret: String) -> Self {
        Self { secret, token: Mutex::new(None), renewing: tokio::sync::Mutex::new(()) }
    }

    /// The token, unless it is nearly over or was refused.
    fn fresh(&self, refused: Option<&str>) -> Option<String> {
        let token = self.token.lock();
        token.as_ref().filter(|token| Instant::now() < token.stale_at && Some(token.token.as_str()) != refused).map(|token| token.token.clone())
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    expires_in: Option<u64>,
    refresh_token: Option<String>,
}

/// Whom a registry takes the caller for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Whoami {
    /// `user:NAME`, `robot:NAME`, `anonymous`, or `open` where nobody is asked.
    pub who: String,
    /// The name alone.
    pub name: Option<String>,
    /// Whether it manages the registry.
    pub admin: bool,
}

impl Registry {
    /// Exchanges name and password for a secret that lasts: [`super::RegistryOptions::login`]. `None` if the registry asks no
    /// one who they are.
    ///
    /// # Errors
    /// [`OriginError::Refused`] with status 401 if they are wrong; [`OriginError::Busy`] after too many attempts.
    pub async fn log_in(&self, name: &str, password: &str) -> Result<Option<String>, OriginError> {
        let form = form(&[("grant_type", "password"), ("access_type", "offline"), ("username", name), ("password", password)]);
        let answer = self.ask_token(form).await?;
        Ok(answer.refresh_token)
    }

    /// Ends a login at the registry.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn log_out(&self, secret: &str) -> Result<(), OriginError> {
        let request = self.inner.client.post(format!("{}/auth/revoke", self.inner.url)).header("content-type", FORM).body(form(&[("token", secret)]));
        let answer = self.in_time(request.send()).await?.map_err(|error| self.network(&error))?;
        self.check(answer, || "the login".to_owned()).await.map(drop)
    }

    /// Whom the registry takes this client for.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn whoami(&self) -> Result<Whoami, OriginError> {
        let request = self.inner.client.get(format!("{}/v1/whoami", self.inner.url));
        let answer = self.send(request, || "this registry's logins".to_owned()).await?;
        self.json(answer).await
    }

    /// What requests are authorised with now.
    pub(super) async fn token(&self) -> Result<Option<String>, OriginError> {
        match &self.inner.login {
            None => Ok(self.inner.access.token()),
            Some(login) => self.token_of(login, None).await.map(Some),
        }
    }

    /// Another token than the one that was refused with this status, if there is one.
    pub(super) async fn renewed(&self, status: StatusCode, refused: Option<&str>) -> Result<Option<String>, OriginError> {
        match &self.inner.login {
            None => Ok(self.inner.access.renewed(refused)),
            // A token of a login that is good lacks no right that another one would have.
            Some(_) if status != StatusCode::UNAUTHORIZED => Ok(None),
            Some(login) => self.token_of(login, refused).await.map(Some),
        }
    }

    async fn token_of(&self, login: &Login, refused: Option<&str>) -> Result<String, OriginError> {
        if let Some(token) = login.fresh(refused) {
            return Ok(token);
        }
        let _renewing = login.renewing.lock().await;
        if let Some(token) = login.fresh(refused) {
            return Ok(token);
        }
        let asked = Instant::now();
        let answer = self.ask_token(form(&[("grant_type", "refresh_token"), ("refresh_token", &login.secret)])).await?;
        // Some time before it ends: a request takes a while to get there.
        let life = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFE_S));
        let stale_at = asked + life * 4 / 5;
        *login.token.lock() = Some(Renewed { token: answer.access_token.clone(), stale_at });
        Ok(answer.access_token)
    }

    async fn ask_token(&self, body: String) -> Result<TokenAnswer, OriginError> {
        let request = self.inner.client.post(format!("{}/auth/token", self.inner.url)).header("content-type", FORM);
        let body = format!("{body}&client_id=turbo&service=turbo-registry&scope=*");
        let answer = self.in_time(authorised(request, None).body(body).send()).await?.map_err(|error| self.network(&error))?;
        let answer = self.check(answer, || "this registry's logins".to_owned()).await?;
        self.json(answer).await
    }
}

/// Pairs as a form.
fn form(pairs: &[(&str, &str)]) -> String {
    let escape = |text: &str| -> String {
        text.bytes()
            .map(|byte| match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
                byte => format!("%{byte:02X}"),
            })
            .collect()
    };
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
    pairs.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_escape_what_has_a_meaning_there() {
        assert_eq!(form(&[("a", "x&y=z+ é%"), ("b", "trk_0-1.2")]), "a=x%26y%3Dz%2B%20%C3%A9%25&b=trk_0-1.2");
    }

    #[test]
    fn a_token_is_used_until_it_is_nearly_over_or_refused() {
        let login = Login::new("secret".into());
        assert_eq!(login.fresh(None), None);
        *login.token.lock() = Some(Renewed { token: "t".into(), stale_at: Instant::now() + Duration::from_secs(60) });
        assert_eq!(login.fresh(None).as_deref(), Some("t"));
        assert_eq!(login.fresh(Some("t")), None);
        *login.token.lock() = Some(Renewed { token: "t".into(), stale_at: Instant::now() });
        assert_eq!(login.fresh(None), None);
    }
}
