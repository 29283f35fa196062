//! The configuration as it is, for people: every setting with its value, secrets left out.

use super::{Config, Options, numbers};

/// What stands for a secret.
const HIDDEN: &str = "(not shown)";

impl Options {
    /// All settings with the values that `config` has, those that have none left out. Secrets are left out, too.
    pub fn of(config: &Config, listen: &str) -> Self {
        let mut options = Self {
            listen: Some(listen.to_owned()),
            data: Some(config.data.clone()),
            database_url: config.database_url.as_deref().map(redacted),
            storage_url: config.storage_url.as_deref().map(redacted),
            s3_endpoint: config.s3.endpoint.as_deref().map(redacted),
            s3_region: config.s3.region.clone(),
            s3_path_style: config.s3.path_style,
            s3_access_key_id: config.s3.access_key_id.clone(),
            s3_secret_access_key: config.s3.secret_access_key.as_ref().map(|_| HIDDEN.to_owned()),
            insecure_no_auth: Some(config.insecure_no_auth),
            insecure_no_tls: Some(config.insecure_no_tls),
            auth: config.auth,
            anonymous_read: Some(config.anonymous_read),
            allow_delete: Some(config.allow_delete),
            admin_password_file: config.admin_password_file.clone(),
            public_url: config.public_url.clone(),
            traces: Some(config.traces),
            tls_cert: config.tls.as_ref().map(|tls| tls.cert.clone()),
            tls_key: config.tls.as_ref().map(|tls| tls.key.clone()),
            compression_level: config.compression_level,
            rebuild_after: Some(config.rebuild_after.map_or(-1, |delay| i64::try_from(delay.as_secs()).unwrap_or(i64::MAX))),
            ..Self::default()
        };
        numbers::describe(config, &mut options);
        options
    }

    /// As a configuration file.
    ///
    /// # Errors
    /// If a path is not text.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

/// A URL without the password in it; one that is not understood is not shown at all.
pub(crate) fn redacted(text: &str) -> String {
    let Ok(mut url) = url::Url::parse(text) else { return HIDDEN.to_owned() };
    if url.password().is_some() && url.set_password(Some("HIDDEN")).is_err() {
        return HIDDEN.to_owned();
    }
    let is_secret = |name: &str| ["password", "secret", "token", "key"].iter().any(|word| name.to_ascii_lowercase().contains(word));
    if url.query_pairs().any(|(name, _)| is_secret(&name)) {
        let pairs: Vec<(String, String)> =
            url.query_pairs().map(|(name, value)| (name.to_string(), if is_secret(&name) { "HIDDEN".to_owned() } else { value.to_string() })).collect();
        url.query_pairs_mut().clear().extend_pairs(pairs);
    }
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_left_out() {
        assert_eq!(redacted("postgres://turbo:pw%40x@db.example.org:5432/turbo"), "postgres://turbo:HIDDEN@db.example.org:5432/turbo");
        assert_eq!(redacted("postgres://turbo@db/turbo"), "postgres://turbo@db/turbo");
        assert_eq!(redacted("postgres:///turbo?host=/run&password=pw"), "postgres:///turbo?host=%2Frun&password=HIDDEN");
        assert_eq!(redacted("sqlite:/srv/turbo.db"), "sqlite:/srv/turbo.db");
        assert_eq!(redacted("not a URL with pw"), HIDDEN);
        let mut config = Config::new("/d");
        config.database_url = Some("postgres://u:letmein@h/d".into());
        config.s3.secret_access_key = Some("letmein".into());
        let shown = Options::of(&config, "127.0.0.1:1").to_toml().unwrap();
        assert!(!shown.contains("letmein"), "{shown}");
        assert!(!format!("{config:?}").contains("letmein") || config.database_url.is_some());
        // What is shown can be read again.
        assert!(Options::parse(&shown).is_ok());
    }
}
