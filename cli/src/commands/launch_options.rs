//! Options of a launch, which `run`, `new`, `try` and `start` share: what each means, and whether the container remembers it.
//!
//! Remembered: variables, isolation, mounts, `--admin` and `--set-startup-file`. All else is for one launch.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use client_store::Policy;
use layer_format::reference::ImageReference;

use crate::commands::sync_options::SyncOptions;
use crate::containers::Container;
use crate::environment;
use crate::exit::UsageError;
use crate::isolation::Level;
use crate::launch::{self, Launch};
use crate::startup;

/// Options of a launch.
#[derive(Debug, clap::Args)]
pub struct LaunchOptions {
    /// Arguments of the application.
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
    /// Variable that the application gets; NAME alone passes the host's value. The container remembers it.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// File of NAME=VALUE lines, applied before --env.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory in the container [default: the image's, else the current one].
    #[arg(short, long, value_name = "PATH")]
    working_dir: Option<PathBuf>,
    /// How much of the host is visible: full (nothing), write-copy (all, never written), merge (all, and written), with
    /// +merge-user for the user's documents. Never weakens what an image states. The container remembers it.
    #[arg(short, long, value_name = "LEVEL")]
    isolate: Option<Level>,
    /// Show a folder of the host as it is, read and write. The container remembers all of a launch, in place of earlier ones; an empty one clears them.
    #[arg(long, value_name = "SOURCE[=TARGET]")]
    mount: Vec<String>,
    /// Program and arguments to start in place of the image's.
    #[arg(long, value_name = "COMMAND")]
    startup_file: Option<String>,
    /// Program and arguments to start in place of the image's, from now on; an empty one gives back the image's.
    #[arg(long, value_name = "COMMAND", conflicts_with = "startup_file")]
    set_startup_file: Option<String>,
    /// Images that lie on top for this launch alone, separated by commas.
    #[arg(long, value_name = "IMAGE[,IMAGE...]", value_parser = parse_images)]
    using: Vec<Images>,
    /// Start the images' startup files of this group.
    #[arg(long, conflicts_with_all = ["startup_file", "set_startup_file"])]
    trigger: Option<String>,
    /// Run in the background, and print the container's id.
    #[arg(short, long, conflicts_with = "attach")]
    pub detach: bool,
    /// Connect this terminal: the default.
    #[arg(short, long)]
    attach: bool,
    /// Be user 0 inside. The container remembers it.
    #[arg(long)]
    admin: bool,
    /// Write what the run cost to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Write a recording of the run to this file: first touches, waits, requests; of several images the touches of the one
    /// that starts. See `turbo trace`.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Ask the registry for a newer revision, even if one is here.
    #[arg(long, conflicts_with = "offline")]
    pull: bool,
    /// Never use the network.
    #[arg(long)]
    offline: bool,
    /// Do not use what was learned from earlier runs: what is fetched ahead is guessed from the image alone.
    #[arg(long)]
    no_model: bool,
    /// Do not send the trace of this run to the registry: nothing is learned from it. (`turbo config --traces=false` for all.)
    #[arg(long)]
    no_trace_upload: bool,
    /// What is recorded of first touches: to measure what recording costs.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t, hide = true)]
    record: Recorded,
    /// Fetch ahead nothing but more of a file that is read: the measure for all else.
    #[arg(long, hide = true)]
    on_demand: bool,
    /// Do not bring the rest of the images here while the application needs nothing.
    #[arg(long)]
    no_background: bool,
    #[command(flatten)]
    sync: SyncOptions,
    /// Bytes that the kernel may read ahead in a file; each is fetched if it is not here.
    #[arg(long, value_name = "BYTES", default_value_t = launch::DEFAULT_READAHEAD, hide = true)]
    readahead: u32,
}

/// What a run records of first touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Recorded {
    /// Nothing: nothing is predicted or learned either.
    Nothing,
    /// All.
    #[default]
    Touches,
}

/// A list of references, at least one.
#[derive(Clone, Debug)]
pub struct Images(pub Vec<ImageReference>);

/// Parses what `run`, `new`, `try` and `pull` take.
pub fn parse_images(text: &str) -> Result<Images, layer_format::reference::ParseReferenceError> {
    ImageReference::parse_list(text).map(Images)
}

/// Options that make sense, so far as that can be told without a container.
#[derive(Debug)]
pub struct Checked {
    options: LaunchOptions,
    env: Vec<(String, String)>,
    mounts: Option<Vec<(PathBuf, Option<PathBuf>)>>,
    startup_file: Option<Vec<String>>,
    set_startup_file: Option<Vec<String>>,
}

impl LaunchOptions {
    /// Whether the network must not be used.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// Checks all of it.
    pub fn check(self) -> Result<Checked> {
        let mut env = Vec::new();
        for file in &self.env_file {
            env.extend(environment::read_file(file)?);
        }
        for text in &self.env {
            env.push(environment::parse_assignment(text)?);
        }
        let startup_file = self.startup_file.as_deref().map(startup::split).transpose()?;
        let mounts: Vec<_> = self.mount.iter().filter(|text| !text.is_empty()).map(|text| mount(text)).collect::<Result<_>>()?;
        let set_startup_file = self.set_startup_file.as_deref().map(|text| if text.is_empty() { Ok(Vec::new()) } else { startup::split(text) });
        Ok(Checked { env, startup_file, mounts: (!self.mount.is_empty()).then_some(mounts), set_startup_file: set_startup_file.transpose()?, options: self })
    }
}

impl Checked {
    /// Whether to return at once.
    pub fn detach(&self) -> bool {
        self.options.detach
    }

    /// Changes what the container remembers.
    pub fn remember(&self, container: &mut Container) -> Result<()> {
        let settings = &mut container.settings;
        settings.environment.extend(self.env.iter().cloned());
        if let Some(isolate) = &self.options.isolate {
            settings.isolation = Some(isolate.to_string());
        }
        if let Some(startup_file) = &self.set_startup_file {
            settings.startup_file.clone_from(startup_file);
        }
        if let Some(mounts) = &self.mounts {
            container.mounts.clone_from(mounts);
        }
        container.admin |= self.options.admin;
        Ok(())
    }

    /// The launch of this container with these images, as the container remembers it and the options say.
    pub fn launch(&self, container: &mut Container) -> Result<Launch> {
        self.remember(container)?;
        let options = &self.options;
        let mut launch = remembered(container)?;
        if self.startup_file.is_some() || options.trigger.is_some() {
            launch.startup_file.clone_from(&self.startup_file);
        }
        launch.using = options.using.iter().flat_map(|images| images.0.clone()).collect();
        launch.given = self.given();
        launch.args.clone_from(&options.args);
        launch.working_dir = options.working_dir.clone().or(launch.working_dir);
        launch.trigger.clone_from(&options.trigger);
        launch.stats = options.stats.as_deref().map(std::path::absolute).transpose()?;
        launch.trace = options.trace.as_deref().map(std::path::absolute).transpose()?;
        launch.pull = options.pull;
        launch.offline = options.offline;
        launch.policy = match (options.on_demand, options.no_model) {
            (true, _) => Policy::OnDemand,
            (false, true) => Policy::Guessed,
            (false, false) => Policy::Predicted,
        };
        launch.record = options.record == Recorded::Touches;
        launch.background = !options.no_background;
        launch.readahead = options.readahead;
        launch.upload_traces = !options.no_trace_upload;
        launch.share = options.sync.share();
        Ok(launch)
    }

    /// Options given that only the start of a container heeds.
    fn given(&self) -> Vec<&'static str> {
        let options = &self.options;
        let all = [
            ("--using", !options.using.is_empty()),
            ("--isolate", options.isolate.is_some()),
            ("--mount", !options.mount.is_empty()),
            ("--set-startup-file", options.set_startup_file.is_some()),
            ("--admin", options.admin),
            ("--stats", options.stats.is_some()),
            ("--trace", options.trace.is_some()),
            ("--pull", options.pull),
            ("--no-trace-upload", options.no_trace_upload),
            ("--enable-sync", options.sync.enable_sync),
        ];
        all.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }
}

/// The launch of a container as it remembers it, without any option.
pub fn remembered(container: &Container) -> Result<Launch> {
    let settings = &container.settings;
    let images = container.images.iter().map(|image| image.parse::<ImageReference>());
    let images = images.collect::<Result<Vec<_>, _>>().map_err(|error| anyhow::anyhow!("the container {} is damaged: {error}", container.shown()))?;
    let startup_file = (!settings.startup_file.is_empty()).then(|| settings.startup_file.clone());
    let level = settings.isolation.as_deref().map(str::parse).transpose().context("the container remembers an --isolate that makes no sense")?;
    Ok(Launch {
        images,
        using: Vec::new(),
        args: Vec::new(),
        env: settings.environment.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        working_dir: settings.working_directory.as_ref().map(PathBuf::from),
        level: level.unwrap_or_default(),
        mounts: container.mounts.iter().cloned().map(|(source, target)| vm::BindMount { source, target }).collect(),
        startup_file: startup_file.clone(),
        saved_startup_file: startup_file,
        trigger: None,
        admin: container.admin,
        stats: None,
        trace: None,
        pull: false,
        offline: false,
        record: true,
        timeline: None,
        policy: Policy::Predicted,
        background: true,
        readahead: launch::DEFAULT_READAHEAD,
        upload_traces: true,
        share: None,
        given: Vec::new(),
    })
}

/// What one `--mount` says: the source absolute.
fn mount(text: &str) -> Result<(PathBuf, Option<PathBuf>)> {
    let (source, target) = text.split_once('=').map_or((text, None), |(source, target)| (source, Some(target)));
    if source.is_empty() || target.is_some_and(|target| !target.starts_with('/')) {
        bail!(UsageError(format!("`{text}`: --mount is SOURCE or SOURCE=TARGET, and TARGET is absolute")));
    }
    Ok((std::path::absolute(source)?, target.map(PathBuf::from)))
}
