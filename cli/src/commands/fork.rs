//! `turbo fork`.

use std::os::fd::AsFd;

use anyhow::{Context, Result};

use crate::app::App;
use crate::commands::launch_options::{Images, parse_images};
use crate::commands::run::parse_name;
use crate::containers::{Container, Locked};
use crate::control::client::{Client, Reached, reach};
use crate::control::{Frozen, Op};
use crate::copy::{Copier, Kind, open_folder};
use crate::exit::Exit;
use crate::output::note;

/// Copy a container: what was written, settings and states.
///
/// Of a container that runs, all processes stand still while files are copied; the copy is as after a power cut.
#[derive(Debug, clap::Args)]
pub struct Fork {
    /// Name, or first digits of the id.
    container: String,
    /// Name of the copy [default: the same with a number].
    #[arg(value_parser = parse_name)]
    name: Option<String>,
    /// Images of the copy, in place of all of the original's.
    #[arg(long, value_name = "IMAGE[,IMAGE...]", value_parser = parse_images)]
    images: Option<Images>,
}

/// What keeps the original as it is while it is copied.
#[allow(dead_code, reason = "they are kept to be dropped")]
enum Still {
    Locked(Box<Locked>),
    Held(Client),
}

impl Fork {
    /// Copies it, and prints the copy's id.
    pub fn run(self, app: &App) -> Result<Exit> {
        let containers = app.containers();
        let original = containers.get(&self.container)?;
        let (still, original) = match reach(&containers, &original)? {
            Reached::Stopped(locked) => {
                let container = locked.container.clone();
                (Still::Locked(locked), container)
            }
            Reached::Running(mut client) => {
                let _: Frozen = client.ask(Op::Hold).with_context(|| format!("stopping the processes of {}", original.shown()))?;
                // What runs may differ from its newest state.
                (Still::Held(client), Container { dirty: true, ..original })
            }
        };
        let names = containers.lock_names()?;
        let name = match &self.name {
            Some(name) if containers.list()?.iter().any(|container| container.name == *name) => {
                anyhow::bail!("there is a container `{name}` already; choose another name, or `turbo rm` it")
            }
            Some(name) => name.clone(),
            None => containers.free_name(&original.name)?,
        };
        let images = self.images.as_ref().map(|images| images.0.iter().map(ToString::to_string).collect());
        let mut copy = containers.create(&name, images.clone().unwrap_or_else(|| original.images.clone()), false)?;
        drop(names);
        inherit(&mut copy.container, &original, images.is_some());
        let copied = sandbox(&containers.folder(&original), &copy).and_then(|skipped| copy.save().map(|()| skipped));
        drop(still);
        let skipped = match copied {
            Ok(skipped) => skipped,
            Err(error) => {
                let _ = copy.remove();
                return Err(error.context(format!("copying {}", original.shown())));
            }
        };
        skipped.iter().for_each(note);
        let container = &copy.container;
        app.output
            .result(&serde_json::json!({"container": container.id, "name": container.name, "skipped": skipped}), |out| writeln!(out, "{}", container.id))?;
        Ok(Exit::Success)
    }
}

/// What the copy has of the original besides files.
fn inherit(copy: &mut Container, original: &Container, other_images: bool) {
    copy.settings.clone_from(&original.settings);
    copy.mounts.clone_from(&original.mounts);
    copy.admin = original.admin;
    copy.exit_code = original.exit_code;
    copy.started_s = original.started_s;
    // A state is about images as well.
    copy.dirty = original.dirty || other_images;
    if !other_images {
        copy.stack.clone_from(&original.stack);
        copy.states.clone_from(&original.states);
        copy.command.clone_from(&original.command);
    }
}

/// Copies the sandbox, but for what belongs to a mount. What could not be copied is told.
fn sandbox(original: &std::path::Path, copy: &Locked) -> Result<Vec<String>> {
    let source = open_folder(&original.join("sandbox"))?;
    let mut copier = Copier::new(Kind::Sandbox, open_folder(&copy.folder.join("sandbox"))?).leave_out(&["work", "mnt"]);
    copier.copy_content(source.as_fd())?;
    Ok(copier.into_skipped())
}
