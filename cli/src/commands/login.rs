//! `turbo login`.

use std::io::{BufRead, IsTerminal, Read, Write};

use anyhow::{Context, Result, bail};
use client_store::OriginError;
use client_store::remote::{Registry, RegistryOptions};

use crate::app::App;
use crate::config::{self, Settings};
use crate::credentials::{Credential, Credentials};
use crate::exit::{Exit, UsageError};
use crate::output::note;

/// Longest name, password or key, in bytes.
const MAX_INPUT: u64 = 4096;

/// A login lasts 90 days; the password is not kept. TURBO_TOKEN, if it is set, wins over logins.
#[derive(Debug, clap::Args)]
pub struct Login {
    /// The registry [default: the configured one]. The first one becomes the configured one.
    url: Option<String>,
    /// The user; asked for if it is not said.
    #[arg(long, short, value_name = "NAME")]
    username: Option<String>,
    /// Read the password from standard input.
    #[arg(long)]
    password_stdin: bool,
    /// Read a key from standard input, and use it in place of name and password.
    #[arg(long, conflicts_with_all = ["username", "password_stdin"])]
    key_stdin: bool,
    /// Only say who is logged in.
    #[arg(long, conflicts_with_all = ["username", "password_stdin", "key_stdin"])]
    show: bool,
}

impl Login {
    /// Logs in.
    pub fn run(self, app: &App) -> Result<Exit> {
        let hub = match &self.url {
            Some(url) => config::check_hub(url)?,
            None => app.settings.hub.clone(),
        };
        let path = Settings::credentials_file()?;
        let mut kept = Credentials::read(&path)?;
        if self.show {
            return show(app, &hub, &kept);
        }
        if std::env::var_os("TURBO_TOKEN").is_some_and(|token| !token.is_empty()) {
            note("TURBO_TOKEN is set, and is used in place of this login");
        }
        let credential = match self.key_stdin {
            true => self.key(app, &hub)?,
            false => self.password(app, &hub)?,
        };
        let Some(credential) = credential else {
            app.output
                .result(&serde_json::json!({"hub": hub, "name": null}), |out| writeln!(out, "{hub} asks no one who they are: there is nothing to log in to"))?;
            return Ok(Exit::Success);
        };
        let name = credential.name().to_owned();
        kept.put(&hub, credential);
        kept.write(&path)?;
        if !app.settings.hub_configured && hub != app.settings.hub {
            let file = config::File { hub: Some(hub.clone()), ..config::read(&app.settings.config)? };
            config::write(&app.settings.config, &file)?;
            note(format_args!("{hub} is the configured registry now; `turbo config --hub URL` sets another"));
        }
        app.output.result(&serde_json::json!({"hub": hub, "name": name}), |out| writeln!(out, "logged in to {hub} as {name}"))?;
        Ok(Exit::Success)
    }

    fn password(&self, app: &App, hub: &str) -> Result<Option<Credential>> {
        let name = match &self.username {
            Some(name) => name.clone(),
            None if std::io::stdin().is_terminal() && !self.password_stdin => ask_name()?,
            None => bail!(UsageError("say who logs in with --username NAME".into())),
        };
        let password = match self.password_stdin {
            true => read_input("the password")?,
            false if std::io::stdin().is_terminal() => {
                rpassword::prompt_password(format!("password of {name}: ")).context("the password cannot be asked for")?
            }
            false => bail!(UsageError("there is no terminal to ask for the password on: pass it to --password-stdin".into())),
        };
        let registry = registry(app, hub, None)?;
        let secret = app.block_on(registry.log_in(&name, &password))?.map_err(|error| wrong(error, hub))?;
        Ok(secret.map(|secret| Credential::Login { name, secret }))
    }

    fn key(&self, app: &App, hub: &str) -> Result<Option<Credential>> {
        let secret = read_input("the key")?;
        let registry = registry(app, hub, Some(secret.clone()))?;
        let known = app.block_on(registry.whoami())?.map_err(|error| wrong(error, hub))?;
        Ok(known.name.map(|name| Credential::Key { name, secret }))
    }
}

/// A registry that is asked with this token, or without any.
pub(super) fn registry(app: &App, hub: &str, token: Option<String>) -> Result<Registry> {
    let options = RegistryOptions { token, ca_file: app.settings.ca_file.clone(), ..RegistryOptions::default() };
    Registry::new(hub, options).with_context(|| format!("the registry {hub} cannot be used"))
}

fn wrong(error: OriginError, hub: &str) -> anyhow::Error {
    match error {
        OriginError::Refused { status: 401, .. } => anyhow::anyhow!("{hub} does not know this name and password, or this key"),
        OriginError::NotFound { .. } => anyhow::anyhow!("{hub} has no logins: is it a Turbo registry of this version?"),
        error => anyhow::Error::new(error).context(format!("could not log in to {hub}")),
    }
}

fn show(app: &App, hub: &str, kept: &Credentials) -> Result<Exit> {
    let name = kept.get(hub).map(Credential::name);
    app.output.result(&serde_json::json!({"hub": hub, "name": name}), |out| match name {
        Some(name) => writeln!(out, "logged in to {hub} as {name}"),
        None => writeln!(out, "not logged in to {hub}"),
    })?;
    Ok(Exit::Success)
}

fn ask_name() -> Result<String> {
    let mut error = std::io::stderr();
    let _ = write!(error, "user: ").and_then(|()| error.flush());
    let mut line = String::new();
    std::io::stdin().lock().take(MAX_INPUT).read_line(&mut line).context("the name cannot be read")?;
    Ok(line.trim().to_owned())
}

/// The first line of standard input.
fn read_input(what: &str) -> Result<String> {
    let mut text = String::new();
    std::io::stdin().lock().take(MAX_INPUT).read_to_string(&mut text).with_context(|| format!("{what} cannot be read from standard input"))?;
    match text.lines().next().filter(|line| !line.is_empty()) {
        Some(line) => Ok(line.to_owned()),
        None => bail!("{what} on standard input is empty"),
    }
}
