//! `turbo run` and `turbo try`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use layer_format::reference::ImageReference;

use crate::app::App;
use crate::containers::Locked;
use crate::exit::{Exit, UsageError};
use crate::launch::{self, Launch};
use crate::output::note;
use crate::{detach, environment};

/// Start the container of an image, creating it if absent.
#[derive(Debug, clap::Args)]
pub struct Run {
    #[command(flatten)]
    options: Options,
    /// Name of the container: the same name and images continue with what was written before [default: the image's name].
    #[arg(short, long)]
    name: Option<String>,
    /// Delete the container at the end.
    #[arg(long)]
    temp: bool,
}

/// Start an image in a container that is deleted at the end.
#[derive(Debug, clap::Args)]
pub struct Try {
    #[command(flatten)]
    options: Options,
}

/// What both have.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Images, separated by commas; later ones lie on top.
    #[arg(value_name = "IMAGE[,IMAGE...]", value_parser = parse_images)]
    images: Images,
    /// Arguments of the application.
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
    /// Variable that the application gets; NAME alone passes the host's value.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// File of NAME=VALUE lines, applied before --env.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory in the container [default: the image's, else the current one].
    #[arg(short, long, value_name = "PATH")]
    working_dir: Option<PathBuf>,
    /// How much of the host is visible: full (nothing), write-copy (all, never written), merge (all, and written), with
    /// +merge-user for the user's documents. Never weakens what an image states. Remembered by the container.
    #[arg(short, long, value_name = "LEVEL")]
    isolate: Option<String>,
    /// Show a folder of the host as it is, read and write.
    #[arg(long, value_name = "SOURCE[=TARGET]")]
    mount: Vec<String>,
    /// Program and arguments to start in place of the image's.
    #[arg(long, value_name = "COMMAND")]
    startup_file: Option<String>,
    /// The same, and remembered by the container.
    #[arg(long, value_name = "COMMAND", conflicts_with = "startup_file")]
    set_startup_file: Option<String>,
    /// Images that lie on top for this run alone, separated by commas.
    #[arg(long, value_name = "IMAGE[,IMAGE...]", value_parser = parse_images)]
    using: Vec<Images>,
    /// Start the images' startup files of this group.
    #[arg(long, conflicts_with_all = ["startup_file", "set_startup_file"])]
    trigger: Option<String>,
    /// Run in the background, and print the container's id.
    #[arg(short, long)]
    detach: bool,
    /// Be user 0 inside.
    #[arg(long)]
    admin: bool,
    /// Write what the run cost to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Write the first touches of the run to this file; of several images those of the one that starts.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Ask the registry for a newer revision, even if one is here.
    #[arg(long, conflicts_with = "offline")]
    pull: bool,
    /// Never use the network.
    #[arg(long)]
    offline: bool,
    /// Do not use what was learned from earlier runs: fetch what is asked for, and a little beside it.
    #[arg(long)]
    no_model: bool,
    /// Bytes that the kernel may read ahead in a file; each is fetched if it is not here.
    #[arg(long, value_name = "BYTES", default_value_t = launch::DEFAULT_READAHEAD, hide = true)]
    readahead: u32,
}

/// A list of references, at least one.
#[derive(Clone, Debug)]
pub struct Images(pub Vec<ImageReference>);

/// Parses what `run`, `try` and `pull` take.
pub fn parse_images(text: &str) -> Result<Images, layer_format::reference::ParseReferenceError> {
    ImageReference::parse_list(text).map(Images)
}

impl Run {
    /// Runs to the end of the application.
    pub fn run(self, app: &App, launcher: vm::Launcher) -> Result<Exit> {
        self.options.run(app, launcher, self.name, self.temp)
    }
}

impl Try {
    /// Runs to the end of the application.
    pub fn run(self, app: &App, launcher: vm::Launcher) -> Result<Exit> {
        self.options.run(app, launcher, None, true)
    }
}

impl Options {
    fn run(self, app: &App, launcher: vm::Launcher, name: Option<String>, temporary: bool) -> Result<Exit> {
        let launch = self.launch()?;
        if let Some(background) = app.take_background() {
            let container = background.container(&app.containers())?;
            return launch.run(app, launcher, container, Some(background));
        }
        let container = self.container(app, name, temporary)?;
        if self.detach {
            drop(launcher);
            return detach::start(app, container);
        }
        launch.run(app, launcher, container, None)
    }

    fn launch(&self) -> Result<Launch> {
        let mut env = Vec::new();
        for file in &self.env_file {
            env.extend(environment::read_file(file)?);
        }
        for text in &self.env {
            env.push(environment::parse_assignment(text)?);
        }
        let level = self.isolate.as_deref().map(str::parse).transpose()?.unwrap_or_default();
        let mounts = self.mount.iter().map(|text| {
            let (source, target) = text.split_once('=').map_or((text.as_str(), None), |(source, target)| (source, Some(target)));
            if source.is_empty() || target.is_some_and(|target| !target.starts_with('/')) {
                bail!(UsageError(format!("`{text}`: --mount is SOURCE or SOURCE=TARGET, and TARGET is absolute")));
            }
            Ok(vm::BindMount { source: std::path::absolute(source)?, target: target.map(PathBuf::from) })
        });
        Ok(Launch {
            images: self.images.0.clone(),
            using: self.using.iter().flat_map(|images| images.0.clone()).collect(),
            args: self.args.clone(),
            env,
            working_dir: self.working_dir.clone(),
            level,
            mounts: mounts.collect::<Result<_>>()?,
            startup_file: self.startup_file.clone(),
            set_startup_file: self.set_startup_file.clone(),
            trigger: self.trigger.clone(),
            admin: self.admin,
            stats: self.stats.as_deref().map(std::path::absolute).transpose()?,
            trace: self.trace.as_deref().map(std::path::absolute).transpose()?,
            pull: self.pull,
            offline: self.offline,
            predict: !self.no_model,
            readahead: self.readahead,
        })
    }

    /// The container to run in, locked: the one of this name and these images, or a new one.
    fn container(&self, app: &App, name: Option<String>, temporary: bool) -> Result<Locked> {
        let containers = app.containers();
        let images: Vec<String> = self.images.0.iter().map(ToString::to_string).collect();
        // Held until the name is taken: two launches at once must not make two containers of one name.
        let _names = containers.lock_names()?;
        let explicit = name.is_some();
        let name = name.unwrap_or_else(|| self.default_name());
        if !temporary && let Some(found) = containers.list()?.into_iter().find(|container| container.name == name) {
            let same = found.images == images;
            match containers.lock(&found)? {
                Some(locked) if same => return Ok(locked),
                Some(_) if explicit => {
                    bail!("the container {} has other images ({}); choose another --name, or `turbo rm` it", found.shown(), found.images.join(","))
                }
                None if explicit => bail!("{} is running; choose another --name", found.shown()),
                _ => {}
            }
            let fresh = (2..).map(|n| format!("{name}-{n}"));
            let taken: Vec<_> = containers.list()?;
            for candidate in fresh {
                match taken.iter().find(|container| container.name == candidate) {
                    None => {
                        note(format!("{} is in use or has other images; this is {candidate}", found.shown()));
                        return containers.create(&candidate, images, false);
                    }
                    Some(other) if other.images == images => {
                        if let Some(locked) = containers.lock(other)? {
                            return Ok(locked);
                        }
                    }
                    Some(_) => {}
                }
            }
        }
        if explicit && containers.list()?.iter().any(|container| container.name == name) {
            bail!("there is a container `{name}` already; choose another --name, or `turbo rm` it");
        }
        containers.create(&name, images, temporary)
    }

    /// The name of the first image's repository, without its namespace.
    fn default_name(&self) -> String {
        let first = &self.images.0[0].repository;
        first.as_str().rsplit('/').next().unwrap_or_default().to_owned()
    }
}
