//! `turbo commit`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use client_store::Store;
use client_store::store::ImageOrigin;
use client_store::transfer::pull;
use layer_format::Digest;
use layer_format::manifest::{Dependency, EnvVar, ImageManifest, LayerManifest, Manifest, Scripts, StartupFile, StateImage, StateManifest};
use layer_format::reference::{ImageReference, Revision};

use crate::app::App;
use crate::containers::Locked;
use crate::control::client::{Reached, reach};
use crate::exit::{Exit, UsageError};
use crate::progress::options;
use crate::states::{self, level};
use crate::{environment, images, startup};

/// Make an image of a container: its images, and what was written, as one.
///
/// The container's newest state is what counts; it must not be running. Mounts, --using images and no-sync paths are not part of
/// it. Variables and isolation that the container remembers become the image's.
#[derive(Debug, clap::Args)]
pub struct Commit {
    /// Name, or first digits of the id.
    container: String,
    /// Name of the image.
    image: ImageReference,
    /// Replace an image of that name.
    #[arg(long)]
    overwrite: bool,
    /// Only what was written: the container's images become dependencies, stacked below when the image is used.
    #[arg(long)]
    no_base: bool,
    /// Variable that the image sets.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// File of NAME=VALUE lines, applied before --env.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Program and arguments that the image starts.
    #[arg(long, value_name = "COMMAND")]
    startup_file: Option<String>,
    /// Program and arguments of a group of startup files.
    #[arg(long, value_name = "NAME=COMMAND")]
    trigger: Vec<String>,
    /// Directory in which the image's program starts: an absolute path.
    #[arg(long, value_name = "PATH")]
    working_dir: Option<String>,
    /// Title, description and the like.
    #[arg(long, value_name = "KEY=VALUE")]
    meta: Vec<String>,
}

/// An image of the container, as it is in the local store.
struct Base {
    image: StateImage,
    reference: ImageReference,
    manifest: ImageManifest,
}

/// What the options say, parsed.
struct Stated {
    environment: Vec<(String, String)>,
    startup_file: Option<Vec<String>>,
    triggers: Vec<(String, Vec<String>)>,
    meta: BTreeMap<String, String>,
}

impl Commit {
    /// Commits it.
    pub fn run(self, app: &App) -> Result<Exit> {
        let stated = self.parse()?;
        let (store, containers) = (app.store()?, app.containers());
        if !self.overwrite && store.image_get(&self.image)?.is_some() {
            bail!("there is an image {} already; say --overwrite to let the name mean the new one", self.image);
        }
        let container = containers.get(&self.container)?;
        let mut locked: Box<Locked> = match reach(&containers, &container)? {
            Reached::Stopped(locked) => locked,
            Reached::Running(_) => bail!("{} is running; `turbo stop {}` ends it, then commit", container.shown(), container.name),
        };
        let _hold = store.hold()?;
        let id = states::current(&store, &mut locked)?;
        let state = store.state_get(&id)?.context("the state that is to be committed is not here any more")?.manifest;
        let bases = state.images.iter().map(|image| self.base(app, &store, image)).collect::<Result<Vec<Base>>>()?;
        let mut layers = Vec::new();
        if !self.no_base {
            layers.extend(strict_layer(&store, &state, &bases)?);
            layers.extend(bases.iter().flat_map(|base| &base.manifest.layers));
        }
        layers.push(written_layer(&store, &state, &stated, self.no_base)?);
        let manifest = self.manifest(&state, &bases, &stated, layers)?;
        let bytes = manifest.encode().context("the image is not valid")?;
        let digest = store.image_put(&self.image, &bytes, ImageOrigin::Imported)?;
        let value = serde_json::json!({"image": self.image, "digest": digest, "state": id, "container": locked.container.id, "layers": manifest.layers.len()});
        app.output.result(&value, |out| writeln!(out, "{} {}", self.image, digest.short()))?;
        Ok(Exit::Success)
    }

    fn parse(&self) -> Result<Stated> {
        if matches!(self.image.revision, Revision::Digest(_) | Revision::Prefix(_)) {
            bail!(UsageError(format!("`{}`: an image is committed under a name and a release", self.image)));
        }
        let pair = |text: &str, option: &str| match text.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => bail!(UsageError(format!("`{text}`: {option} has the form NAME=VALUE"))),
        };
        let mut environment = Vec::new();
        for file in &self.env_file {
            environment.extend(environment::read_file(file)?);
        }
        for text in &self.env {
            environment.push(environment::parse_assignment(text)?);
        }
        let triggers = self.trigger.iter().map(|text| {
            let (name, command) = pair(text, "--trigger")?;
            Ok((name, startup::split(&command)?))
        });
        if self.working_dir.as_ref().is_some_and(|path| !path.starts_with('/')) {
            bail!(UsageError("--working-dir is an absolute path".into()));
        }
        Ok(Stated {
            environment,
            startup_file: self.startup_file.as_deref().map(startup::split).transpose()?,
            triggers: triggers.collect::<Result<_>>()?,
            meta: self.meta.iter().map(|text| pair(text, "--meta")).collect::<Result<_>>()?,
        })
    }

    /// An image of the state. One whose data becomes the new image's own must be here as a whole: what is missing is fetched.
    fn base(&self, app: &App, store: &Store, image: &StateImage) -> Result<Base> {
        let reference: ImageReference = image.reference.parse()?;
        let by_digest = ImageReference { repository: reference.repository.clone(), revision: Revision::Digest(image.digest) };
        let is_here = store.image_get(&by_digest)?.is_some() && (self.no_base || store.image_is_complete(&image.digest)?);
        if !is_here {
            let registry = app.registry()?;
            let pulled = app.block_on(pull(store, &registry, &by_digest, &options("fetching the image")))?;
            pulled.with_context(|| {
                format!("{reference} is not here as a whole, and could not be fetched; `turbo pull {reference}` first, or commit with --no-base")
            })?;
        }
        let manifest = images::find(store, &by_digest)?.manifest;
        Ok(Base { image: image.clone(), reference, manifest })
    }

    fn manifest(&self, state: &StateManifest, bases: &[Base], stated: &Stated, layers: Vec<Digest>) -> Result<ImageManifest> {
        let architecture = bases.iter().map(|base| &base.manifest.architecture).find(|architecture| *architecture != "any");
        let mut image = ImageManifest::new(architecture.map_or("any", String::as_str), layers);
        // The image that decides what is started, also says how.
        let named = || bases.iter().filter(|base| !base.image.dependency);
        let entry = named().find(|base| !base.manifest.startup_files.is_empty()).or_else(|| named().next());
        image.startup_files = startup_files(state, bases, stated);
        image.working_directory = self
            .working_dir
            .clone()
            .or_else(|| state.settings.working_directory.clone())
            .or_else(|| entry.and_then(|entry| entry.manifest.working_directory.clone()));
        image.metadata = entry.map(|entry| entry.manifest.metadata.clone()).unwrap_or_default();
        if self.no_base {
            image.dependencies = named().map(Base::as_dependency).collect();
        } else {
            let names: Vec<String> = bases.iter().map(|base| format!("{}@{}", base.reference.repository, base.image.digest)).collect();
            image.metadata.insert("bases".into(), names.join(" "));
            for requirement in bases.iter().flat_map(|base| &base.manifest.requirements) {
                if !image.requirements.contains(requirement) {
                    image.requirements.push(requirement.clone());
                }
            }
            // As they ran: shutdown scripts in the opposite order of the stack.
            image.scripts = Scripts {
                startup: bases.iter().flat_map(|base| base.manifest.scripts.startup.clone()).collect(),
                shutdown: bases.iter().rev().flat_map(|base| base.manifest.scripts.shutdown.clone()).collect(),
            };
            if image.scripts != Scripts::default() {
                image.requires = vec!["scripts".into()];
            }
        }
        image.metadata.extend(stated.meta.clone());
        Ok(image)
    }
}

impl Base {
    fn as_dependency(&self) -> Dependency {
        let reference = match self.reference.revision {
            Revision::Digest(_) | Revision::Prefix(_) => self.reference.repository.to_string(),
            _ => self.reference.to_string(),
        };
        Dependency { reference, releases: None, digest: Some(self.image.digest) }
    }
}

/// The default group: what was given, else what the container remembers, else the entry image's. Other groups: each of the
/// first image that has it, unless one of that name was given.
fn startup_files(state: &StateManifest, bases: &[Base], stated: &Stated) -> Vec<StartupFile> {
    let own = stated.startup_file.clone().or_else(|| Some(state.settings.startup_file.clone()).filter(|command| !command.is_empty()));
    let of_bases = || bases.iter().filter(|base| !base.image.dependency).map(|base| &base.manifest);
    let mut files: Vec<StartupFile> = match own {
        Some(command) => vec![StartupFile { command, trigger: None }],
        None => of_bases().find(|image| image.startup(None).next().is_some()).map(|image| image.startup(None).cloned().collect()).unwrap_or_default(),
    };
    for (name, command) in &stated.triggers {
        files.push(StartupFile { command: command.clone(), trigger: Some(name.clone()) });
    }
    for image in of_bases() {
        let known: Vec<Option<String>> = files.iter().map(|file| file.trigger.clone()).collect();
        files.extend(image.startup_files.iter().filter(|file| file.trigger.is_some() && !known.contains(&file.trigger)).cloned());
    }
    files
}

/// What was written, with the variables that the container remembers and that were given.
fn written_layer(store: &Store, state: &StateManifest, stated: &Stated, with_level: bool) -> Result<Digest> {
    let sandbox = images::layer(store, &state.sandbox)?;
    let mut variables = state.settings.environment.clone();
    variables.extend(stated.environment.iter().cloned());
    let environment = variables.into_iter().map(|(name, value)| EnvVar { name, value, merge: Default::default() });
    let mut layer = LayerManifest { environment: environment.collect(), ..sandbox };
    if with_level && let Some(mode) = level::of(state.settings.isolation.as_deref())? {
        layer.isolation.push(layer_format::manifest::IsolationRule { path: "/".into(), mode });
    }
    images::put_layer(store, &layer)
}

/// A layer below all others that has no files and states what `--isolate` made stricter: of two layers the first wins.
fn strict_layer(store: &Store, state: &StateManifest, bases: &[Base]) -> Result<Option<Digest>> {
    let Some(level) = level::of(state.settings.isolation.as_deref())? else { return Ok(None) };
    let layers = bases.iter().flat_map(|base| &base.manifest.layers).map(|digest| images::layer(store, digest)).collect::<Result<Vec<_>>>()?;
    let rules = level::stricter(level, layers.iter().flat_map(|layer| &layer.isolation));
    let (root, entries) = images::put_empty_tree(store)?;
    let layer = LayerManifest { isolation: rules, ..LayerManifest::new(root, entries, 0) };
    images::put_layer(store, &layer).map(Some)
}
