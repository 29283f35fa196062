//! `turbo import`.

pub mod condition;
mod deb;
mod finish;
mod oci;
mod stated;

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use chunker::{ImportAgain, ImportOptions, ImportedAgain};
use client_store::Store;
use layer_format::manifest::Mode;
use layer_format::reference::ImageReference;
use layer_format::{Digest, LayerPath};

use crate::app::App;
use crate::exit::{Exit, UsageError};
use crate::progress::Bar;
use crate::sink::StoreSink;
use finish::{Details, finish};
use stated::Options;

/// Make an image from a directory, an archive or packages.
#[derive(Debug, clap::Subcommand)]
pub enum Import {
    /// Import a directory.
    Dir(Source),
    /// Import a tar archive: plain, gzip or zstd; `-` reads a pipe.
    Tar(Source),
    /// Import an image of container tools: an OCI layout folder, or an OCI archive.
    Oci(oci::Oci),
    /// Import what `docker save` or `podman save` wrote.
    Docker(oci::Oci),
    /// Import Debian packages: .deb files, or names that apt knows.
    Deb(deb::Deb),
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
    /// Leave this path of the source out; may be given more than once.
    #[arg(long, value_name = "PATH")]
    exclude: Vec<String>,
    /// Read every file of a directory. Otherwise files that have not changed since they were last imported from there, by device,
    /// inode, size and both times of change, are not read.
    #[arg(long)]
    verify_content: bool,
    #[command(flatten)]
    content: Content,
    #[command(flatten)]
    options: Options,
}

/// How content is taken in.
#[derive(Debug, clap::Args)]
pub struct Content {
    /// Owner of every file, in place of the source's.
    #[arg(long, value_name = "UID:GID")]
    owner: Option<String>,
    /// Level of zstd.
    #[arg(long, default_value_t = 3, value_name = "LEVEL", value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// Worker threads; 0 for one for each core.
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    threads: usize,
    /// Compress what is new against this image. By default it is the newest one of the same name.
    #[arg(long, value_name = "IMAGE", conflicts_with = "no_delta")]
    delta_from: Option<ImageReference>,
    /// Do not compress what is new against an earlier image.
    #[arg(long)]
    no_delta: bool,
}

impl Content {
    /// Roots of the trees that an image of this name is compressed against.
    fn earlier(&self, store: &Store, name: &ImageReference) -> Result<Vec<Digest>> {
        let image = match &self.delta_from {
            _ if self.no_delta => None,
            Some(image) => Some(store.image_get(image)?.with_context(|| format!("{image} is not in the local store: `turbo images` lists what is"))?),
            None => store.newest_image(&name.repository)?,
        };
        let roots = image.map(|image| store.roots_of(&image)).transpose();
        match roots {
            Ok(roots) => Ok(roots.unwrap_or_default()),
            // Nobody asked for it.
            Err(_) if self.delta_from.is_none() => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    fn options(&self) -> Result<ImportOptions> {
        let owner = match self.owner.as_deref().map(|text| text.split_once(':').map(|(uid, gid)| (uid.parse(), gid.parse()))) {
            None => None,
            Some(Some((Ok(uid), Ok(gid)))) => Some((uid, gid)),
            Some(_) => bail!(UsageError("--owner is UID:GID, two numbers".into())),
        };
        Ok(ImportOptions { zstd_level: self.level, threads: self.threads, owner, ..ImportOptions::default() })
    }
}

impl Import {
    /// Imports.
    pub fn run(self, app: &App) -> Result<Exit> {
        match self {
            Self::Dir(source) => source.run(app, false),
            Self::Tar(source) => source.run(app, true),
            Self::Oci(oci) => oci.run(app, oci::Form::Oci),
            Self::Docker(oci) => oci.run(app, oci::Form::Docker),
            Self::Deb(deb) => deb.run(app),
        }
    }
}

impl Source {
    fn run(self, app: &App, is_tar: bool) -> Result<Exit> {
        let stated = self.options.stated(&self.name)?;
        let options = self.import_options()?;
        let store = app.store()?;
        let sink = StoreSink::new(&store)?.compress_against(self.content.earlier(&store, &self.name)?);
        let bar = Bar::spinner("importing");
        let imported = if is_tar {
            let reader: Box<dyn Read + Send> = match self.source.to_str() {
                Some("-") => Box::new(std::io::stdin()),
                _ => Box::new(std::fs::File::open(&self.source).with_context(|| format!("opening {}", self.source.display()))?),
            };
            chunker::import_tar(reader, &options, &sink, &bar).map(|imported| (imported, Details::default())).map_err(anyhow::Error::from)
        } else {
            let folder = store.imports_folder()?;
            let again = ImportAgain { folder: &folder, reads_all: self.verify_content };
            let done = chunker::import_directory_again(&self.source, &options, &again, &sink, &bar);
            done.map(|ImportedAgain { imported, files_read }| (imported, Details { files_read: Some(files_read), ..Details::default() }))
                .map_err(anyhow::Error::from)
        };
        drop(bar);
        let (imported, details) = imported.with_context(|| format!("{} was not imported", self.source.display()))?;
        finish(app, &self.name, imported, stated, details)
    }

    fn import_options(&self) -> Result<ImportOptions> {
        if !self.at.starts_with('/') {
            bail!(UsageError(format!("`{}`: --at is an absolute path", self.at)));
        }
        let path = |text: &str| LayerPath::from_absolute(text.as_bytes()).map_err(|error| UsageError(format!("`{text}`: {error}")));
        let exclude = self.exclude.iter().map(|text| path(text)).collect::<Result<_, _>>()?;
        Ok(ImportOptions { at: path(&self.at)?, exclude, ..self.content.options()? })
    }
}

/// Parses an isolation mode as users write it.
pub fn parse_mode(text: &str) -> Result<Mode> {
    text.parse().map_err(|_| UsageError(format!("`{text}` is not an isolation mode: full, write-copy, merge or hide")).into())
}
