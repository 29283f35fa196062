//! `turbo logout`.

use anyhow::Result;

use super::login::registry;
use crate::app::App;
use crate::config::{self, Settings};
use crate::credentials::{Credential, Credentials};
use crate::exit::Exit;
use crate::output::note;

/// Ends the login at the registry, too. A key is only forgotten here.
#[derive(Debug, clap::Args)]
pub struct Logout {
    /// The registry [default: the configured one].
    url: Option<String>,
}

impl Logout {
    /// Logs out.
    pub fn run(self, app: &App) -> Result<Exit> {
        let hub = match &self.url {
            Some(url) => config::check_hub(url)?,
            None => app.settings.hub.clone(),
        };
        let path = Settings::credentials_file()?;
        let mut kept = Credentials::read(&path)?;
        let removed = kept.remove(&hub);
        if removed.is_some() {
            kept.write(&path)?;
        }
        if let Some(Credential::Login { secret, .. }) = &removed
            && let Err(error) = app.block_on(registry(app, &hub, None)?.log_out(secret))?
        {
            note(format_args!("forgotten here, but {hub} could not be told ({error}): the login there ends by itself"));
        }
        let name = removed.as_ref().map(Credential::name);
        app.output.result(&serde_json::json!({"hub": hub, "name": name}), |out| match name {
            Some(name) => writeln!(out, "logged out of {hub}, where you were {name}"),
            None => writeln!(out, "not logged in to {hub}"),
        })?;
        Ok(Exit::Success)
    }
}
