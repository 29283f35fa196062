//! `turbo version`.

use anyhow::Result;

use crate::app::App;
use crate::exit::Exit;

/// Show the version, and what this machine can do.
#[derive(Debug, clap::Args)]
pub struct Version {}

impl Version {
    /// Tries what a run needs.
    pub fn run(self, app: &App) -> Result<Exit> {
        let version = env!("CARGO_PKG_VERSION");
        let checks = vm::probe(&app.settings.home.join("containers"));
        let json: Vec<_> = checks.iter().map(|check| serde_json::json!({"name": check.name, "ok": check.ok, "remedy": check.remedy})).collect();
        app.output.result(&serde_json::json!({"version": version, "checks": json}), |out| {
            writeln!(out, "turbo {version}")?;
            for check in &checks {
                match &check.remedy {
                    None => writeln!(out, "  {:18} ok", check.name)?,
                    Some(remedy) => writeln!(out, "  {:18} missing: {remedy}", check.name)?,
                }
            }
            Ok(())
        })?;
        Ok(Exit::Success)
    }
}
