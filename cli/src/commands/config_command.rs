//! `turbo config`.

use anyhow::{Context, Result};

use crate::app::App;
use crate::config;
use crate::exit::Exit;

/// Without options: show what holds. With options: write them to the configuration file.
#[derive(Debug, clap::Args)]
pub struct Config {
    /// Take the value of this key out of the configuration file; may be given more than once.
    #[arg(long, value_name = "KEY", value_parser = ["hub", "home", "cache-size", "wait", "ca-file", "cached-launch", "traces", "metered", "background", "allow-merge"])]
    unset: Vec<String>,
    /// Write the settings given as options (--hub, --cache-size, ...) without asking whether the registry answers.
    #[arg(long)]
    no_verify: bool,
}

impl Config {
    /// Shows or changes the configuration.
    pub fn run(self, app: &App, given: &config::Options) -> Result<Exit> {
        let settings = &app.settings;
        let mut file = config::read(&settings.config)?;
        let before = file.clone();
        // Only what was typed is written; a variable that happens to be set is not.
        // An option in front of the command applies to this call alone.
        let typed =
            |name: &str| std::env::args().skip_while(|arg| arg != "config").any(|arg| arg == format!("--{name}") || arg.starts_with(&format!("--{name}=")));
        if typed("hub") && given.hub.is_some() {
            file.hub = Some(settings.hub.clone());
            if !self.no_verify {
                app.block_on(app.registry()?.capabilities())?
                    .with_context(|| format!("{} was not configured; say --no-verify to do so all the same", settings.hub))?;
            }
        }
        if typed("home") {
            file.home = Some(settings.home.clone());
        }
        if typed("cache-size") {
            file.cache_size = given.cache_size;
        }
        if typed("wait") {
            file.wait = given.wait;
        }
        if typed("ca-file") {
            file.ca_file = settings.ca_file.clone();
        }
        if typed("cached-launch") {
            file.cached_launch = given.cached_launch;
        }
        if typed("traces") {
            file.traces = given.traces;
        }
        if typed("metered") {
            file.metered = given.metered;
        }
        if typed("background") {
            file.background = given.background;
        }
        if typed("allow-merge") {
            file.allow_merge = given.allow_merge;
        }
        for key in &self.unset {
            match key.as_str() {
                "hub" => file.hub = None,
                "home" => file.home = None,
                "cache-size" => file.cache_size = None,
                "wait" => file.wait = None,
                "ca-file" => file.ca_file = None,
                "cached-launch" => file.cached_launch = None,
                "traces" => file.traces = None,
                "metered" => file.metered = None,
                "background" => file.background = None,
                _ => file.allow_merge = None,
            }
        }
        if file != before {
            config::write(&settings.config, &file)?;
        }
        app.output.result(&serde_json::json!({"settings": settings, "file": file}), |out| {
            writeln!(out, "hub          {}", settings.hub)?;
            writeln!(out, "home         {}", settings.home.display())?;
            writeln!(out, "cache-size   {}", if settings.cache_size == 0 { "no limit".into() } else { crate::output::bytes(settings.cache_size) })?;
            writeln!(out, "wait         {} s", settings.wait)?;
            if let Some(ca_file) = &settings.ca_file {
                writeln!(out, "ca-file      {}", ca_file.display())?;
            }
            writeln!(out, "cached-launch {}", settings.cached_launch)?;
            writeln!(out, "traces        {}", settings.traces)?;
            writeln!(out, "metered      {}", settings.metered)?;
            writeln!(out, "background   {}", settings.background)?;
            writeln!(out, "allow-merge  {}", settings.allow_merge)?;
            writeln!(out, "config file  {}{}", settings.config.display(), if settings.config.exists() { "" } else { " (does not exist)" })
        })?;
        Ok(Exit::Success)
    }
}
