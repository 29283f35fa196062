//! `turbo import`.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use chunker::{ImportOptions, Imported};
use client_store::store::ImageOrigin;
use layer_format::manifest::{EnvVar, ImageManifest, IsolationRule, LayerManifest, Manifest, Mode, StartupFile};
use layer_format::reference::{ImageReference, Revision};
use layer_format::{Digest, LayerPath};
use serde::Serialize;

use crate::app::App;
use crate::exit::{Exit, UsageError};
use crate::images::{is_root_filesystem, put_layer};
use crate::output::{bytes, note};
use crate::progress::Bar;
use crate::sink::StoreSink;
use crate::{environment, startup};

/// Make an image from a directory or an archive.
#[derive(Debug, clap::Subcommand)]
pub enum Import {
    /// Import a directory.
    Dir(Source),
    /// Import a tar archive: plain, gzip or zstd; `-` reads a pipe.
    Tar(Source),
}

/// What to import, and what the image states.
#[derive(Debug, clap::Args)]
pub struct Source {
    /// The directory or archive; `-` reads an archive from a pipe.
    source: PathBuf,
    /// Name of the image: [NAMESPACE/]NAME[:RELEASE].
    #[arg(short, long, value_name = "IMAGE")]
    name: ImageReference,
    /// Folder of the image in which the content is placed.
    #[arg(long, value_name = "PATH", default_value = "/")]
    at: String,
    /// Program and arguments that a launch starts, as a shell would read them; again for further ones of a trigger.
    #[arg(long, value_name = "COMMAND")]
    startup_file: Option<String>,
    /// A startup file that runs when `turbo run --trigger NAME` asks for it.
    #[arg(long, value_name = "NAME=COMMAND")]
    trigger: Vec<String>,
    /// Variable that the application gets; lists of folders such as PATH are put in front of the host's.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// How much of the host a folder shows: full, write-copy, merge or hide. A whole root filesystem states `/=full`.
    #[arg(long, value_name = "PATH=MODE")]
    isolate: Vec<String>,
    /// Working directory of the application.
    #[arg(short, long, value_name = "PATH")]
    working_dir: Option<String>,
    /// Title, description, publisher and the like.
    #[arg(long, value_name = "NAME=VALUE")]
    meta: Vec<String>,
    /// Processor architecture, as `uname -m` names it, or `any` [default: this machine's].
    #[arg(long)]
    architecture: Option<String>,
    /// Owner of every file, in place of the source's.
    #[arg(long, value_name = "UID:GID")]
    owner: Option<String>,
    /// Level of zstd.
    #[arg(long, default_value_t = 3, value_name = "LEVEL", value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// Worker threads; 0 for one for each core.
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    threads: usize,
    /// Leave this path of the source out; may be given more than once.
    #[arg(long, value_name = "PATH")]
    exclude: Vec<String>,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Done {
    image: String,
    digest: Digest,
    entries: u64,
    bytes: u64,
    new_objects: u64,
    new_bytes: u64,
    stored_bytes: u64,
    skipped: Vec<String>,
}

impl Import {
    /// Imports.
    pub fn run(self, app: &App) -> Result<Exit> {
        let (source, is_tar) = match self {
            Self::Dir(source) => (source, false),
            Self::Tar(source) => (source, true),
        };
        let stated = source.stated()?;
        let options = source.options()?;
        let store = app.store()?;
        let sink = StoreSink::new(&store)?;
        let bar = Bar::spinner("importing");
        let imported = if is_tar {
            let reader: Box<dyn Read + Send> = match source.source.to_str() {
                Some("-") => Box::new(std::io::stdin()),
                _ => Box::new(std::fs::File::open(&source.source).with_context(|| format!("opening {}", source.source.display()))?),
            };
            chunker::import_tar(reader, &options, &sink, &bar).map_err(anyhow::Error::from)
        } else {
            chunker::import_directory(&source.source, &options, &sink, &bar).map_err(anyhow::Error::from)
        };
        drop(bar);
        let imported = imported.with_context(|| format!("{} was not imported", source.source.display()))?;
        source.finish(app, imported, stated)
    }
}

/// What the image states besides files.
struct Stated {
    startup_files: Vec<StartupFile>,
    environment: Vec<EnvVar>,
    isolation: Vec<IsolationRule>,
}

impl Stated {
    fn layer(&self, imported: &Imported) -> LayerManifest {
        let mut layer = LayerManifest::new(imported.root, imported.entries, imported.bytes);
        layer.environment = self.environment.clone();
        layer.isolation = self.isolation.clone();
        layer
    }
}

impl Source {
    fn options(&self) -> Result<ImportOptions> {
        if !self.at.starts_with('/') {
            bail!(UsageError(format!("`{}`: --at is an absolute path", self.at)));
        }
        let path = |text: &str| LayerPath::from_absolute(text.as_bytes()).map_err(|error| UsageError(format!("`{text}`: {error}")));
        let owner = match self.owner.as_deref().map(|text| text.split_once(':').map(|(uid, gid)| (uid.parse(), gid.parse()))) {
            None => None,
            Some(Some((Ok(uid), Ok(gid)))) => Some((uid, gid)),
            Some(_) => bail!(UsageError("--owner is UID:GID, two numbers".into())),
        };
        let exclude = self.exclude.iter().map(|text| path(text)).collect::<Result<_, _>>()?;
        Ok(ImportOptions { at: path(&self.at)?, zstd_level: self.level, threads: self.threads, owner, exclude, ..ImportOptions::default() })
    }

    fn stated(&self) -> Result<Stated> {
        if matches!(self.name.revision, Revision::Digest(_) | Revision::Prefix(_)) {
            bail!(UsageError(format!("`{}` names a digest; a new image is named [NAMESPACE/]NAME[:RELEASE]", self.name)));
        }
        let mut startup_files = Vec::new();
        if let Some(text) = &self.startup_file {
            startup_files.push(StartupFile { command: startup::split(text)?, trigger: None });
        }
        for text in &self.trigger {
            let (name, command) = pair(text, "--trigger is NAME=COMMAND")?;
            startup_files.push(StartupFile { command: startup::split(command)?, trigger: Some(name.into()) });
        }
        let environment =
            self.env.iter().map(|text| environment::parse_assignment(text).map(|(name, value)| EnvVar { name, value, merge: Default::default() }));
        let isolation = self.isolate.iter().map(|text| {
            let (path, mode) = pair(text, "--isolate is PATH=MODE, such as /=full")?;
            Ok(IsolationRule { path: path.into(), mode: parse_mode(mode)? })
        });
        let stated = Stated { startup_files, environment: environment.collect::<Result<_>>()?, isolation: isolation.collect::<Result<_>>()? };
        // What is wrong is said before the work, not after it.
        self.image(&stated, Digest::of(b""))?.encode().map_err(|error| UsageError(error.to_string()))?;
        stated.layer(&Imported::default()).encode().map_err(|error| UsageError(error.to_string()))?;
        Ok(stated)
    }

    fn image(&self, stated: &Stated, layer: Digest) -> Result<ImageManifest> {
        let architecture = self.architecture.clone().unwrap_or_else(|| std::env::consts::ARCH.into());
        let mut image = ImageManifest::new(architecture, vec![layer]);
        image.startup_files = stated.startup_files.clone();
        image.working_directory = self.working_dir.clone();
        for text in &self.meta {
            let (name, value) = pair(text, "--meta is NAME=VALUE")?;
            image.metadata.insert(name.into(), value.into());
        }
        Ok(image)
    }

    fn finish(self, app: &App, imported: Imported, stated: Stated) -> Result<Exit> {
        let store = app.store()?;
        let mut layer = stated.layer(&imported);
        if !layer.isolation.iter().any(|rule| rule.path == "/") && is_root_filesystem(&store, imported.root)? {
            note("this is a whole root filesystem: the host is hidden (--isolate /=full)");
            layer.isolation.push(IsolationRule { path: "/".into(), mode: Mode::Full });
        }
        let manifest = self.image(&stated, put_layer(&store, &layer)?)?.encode()?;
        let digest = store.image_put(&self.name, &manifest, ImageOrigin::Imported)?;
        let skipped: Vec<String> = imported.skipped.iter().map(|skipped| format!("{}: {}", skipped.path, skipped.reason)).collect();
        for line in &skipped {
            note(format!("left out: {line}"));
        }
        let Imported { entries, bytes: size, new_objects, new_bytes, stored_bytes, .. } = imported;
        let done = Done { image: self.name.to_string(), digest, entries, bytes: size, new_objects, new_bytes, stored_bytes, skipped };
        app.output.result(&done, |out| {
            writeln!(out, "{} {}", done.image, digest.short())?;
            writeln!(out, "{entries} entries, {}; new: {} in {new_objects} objects, {} stored", bytes(size), bytes(new_bytes), bytes(stored_bytes))
        })?;
        Ok(Exit::Success)
    }
}

fn pair<'a>(text: &'a str, usage: &str) -> Result<(&'a str, &'a str)> {
    text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| UsageError(format!("`{text}`: {usage}")).into())
}

/// Parses an isolation mode as users write it.
pub fn parse_mode(text: &str) -> Result<Mode> {
    Ok(match text {
        "full" => Mode::Full,
        "write-copy" | "writecopy" | "cow" => Mode::WriteCopy,
        "merge" => Mode::Merge,
        "hide" => Mode::Hide,
        _ => bail!(UsageError(format!("`{text}` is not an isolation mode: full, write-copy, merge or hide"))),
    })
}
