//! `turbo diff`.

use std::path::{Component, PathBuf};

use anyhow::{Result, bail};
use serde_json::json;

use crate::app::App;
use crate::changes::{self, Below};
use crate::commands::launch_options::remembered;
use crate::exit::{Exit, UsageError};
use crate::isolation;
use crate::stack::Stack;

/// List what a container's programs changed in files: A added, C changed, D deleted.
///
/// Folders with a change in them are listed as changed. What was written to the host, in mounts and merged folders, is no
/// change of the container.
#[derive(Debug, clap::Args)]
pub struct Diff {
    /// Name, or first digits of the id.
    container: String,
    /// Only this path, and what is below it.
    #[arg(long, value_name = "PATH")]
    path: Option<PathBuf>,
    /// Never use the network.
    #[arg(long)]
    offline: bool,
}

impl Diff {
    /// Lists them by path.
    pub fn run(self, app: &App) -> Result<Exit> {
        if self.path.as_ref().is_some_and(|path| !path.is_absolute() || path.components().any(|part| part == Component::ParentDir)) {
            bail!(UsageError("--path is an absolute path in the container, without `..`".into()));
        }
        let containers = app.containers();
        let container = containers.get(&self.container)?;
        let folder = containers.folder(&container);
        let store = app.store()?;
        let mut launch = remembered(&container)?;
        launch.offline = self.offline;
        launch.background = false;
        launch.policy = client_store::Policy::OnDemand;
        let stack = Stack::start(app, &store, &launch.request(&container.stack))?;
        let isolation::Composed { rules, .. } = isolation::rules(&stack, &launch.level, app.settings.allow_merge)?;
        let below = Below::new(stack.layers(), &rules, &[app.settings.home.join("containers")]);
        let mut changes = changes::all(&folder.join("sandbox/upper"), &below)?;
        if let Some(path) = &self.path {
            changes.retain(|(changed, _)| changed.starts_with(path));
        }
        let values: Vec<_> = changes.iter().map(|(path, change)| json!({"change": change.letter(), "path": path.to_string_lossy()})).collect();
        app.output.result(&values, |out| {
            use std::os::unix::ffi::OsStrExt;
            changes.iter().try_for_each(|(path, change)| {
                out.write_all(change.letter().as_bytes())?;
                out.write_all(b" ")?;
                out.write_all(path.as_os_str().as_bytes())?;
                out.write_all(b"\n")
            })
        })?;
        Ok(Exit::Success)
    }
}
