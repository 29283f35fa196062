//! `turbo import oci` and `turbo import docker`: an image of container tools, from a layout folder or an archive, layer by layer.

mod layout;
mod source;

use std::io::{self, Read};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use chunker::Imported;
use layer_format::manifest::{ImageManifest, LayerManifest, MAX_LAYERS};
use layer_format::oci::{Algorithm, OciDigest, oci_architecture};
use layer_format::reference::ImageReference;
use sha2::{Digest as _, Sha256, Sha512};

use super::Content;
use super::finish::{Details, complete};
use super::stated::{Options, Stated};
use crate::app::App;
use crate::exit::{Exit, UsageError};
use crate::progress::Bar;
use crate::sink::StoreSink;
use layout::Layout;
use source::Source;

/// Import an image of container tools.
///
/// Each of its layers becomes a layer. What its configuration states (entry point, arguments, variables, working directory) is
/// what the image states, unless options say otherwise; the host is hidden.
#[derive(Debug, clap::Args)]
pub struct Oci {
    /// A layout folder or an archive, plain or compressed with gzip or zstd; `-` reads an archive from a pipe.
    source: PathBuf,
    /// Name of the image: [NAMESPACE/]NAME[:RELEASE].
    #[arg(short, long, value_name = "IMAGE")]
    name: ImageReference,
    /// Which image of the source, if it has several: the name that it has there.
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    #[command(flatten)]
    content: Content,
    #[command(flatten)]
    options: Options,
}

/// Which form is looked for first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `index.json` and blobs by digest.
    Oci,
    /// `manifest.json` of `docker save`.
    Docker,
}

impl Oci {
    /// Imports.
    pub(super) fn run(self, app: &App, form: Form) -> Result<Exit> {
        let stated = self.options.stated(&self.name)?;
        let options = chunker::ImportOptions { oci_whiteouts: true, ..self.content.options()? };
        let shown = self.source.display().to_string();
        let source = Source::open(&self.source).with_context(|| format!("opening {shown}"))?;
        let architecture = if stated.architecture_given { stated.image.architecture.clone() } else { std::env::consts::ARCH.to_owned() };
        let layout =
            Layout::find(&source, form, self.image.as_deref(), oci_architecture(&architecture)).with_context(|| format!("{shown} was not imported"))?;
        if layout.layers.is_empty() {
            bail!("{shown} was not imported: the image has no layers");
        }
        if layout.layers.len() > MAX_LAYERS {
            bail!(UsageError(format!("{shown} has {} layers, more than the allowed {MAX_LAYERS}: export it as one with `docker export`", layout.layers.len())));
        }
        let store = app.store()?;
        let sink = StoreSink::new(&store)?.compress_against(self.content.earlier(&store, &self.name)?);
        let bar = Bar::spinner("importing");
        let (mut trees, mut total) = (Vec::new(), Imported::default());
        for layer in &layout.layers {
            let context = || format!("layer {} of {shown} was not imported", layer.name);
            let mut reader = Verified::new(source.stream(&layer.name).with_context(context)?, layer.digest.clone());
            let imported = chunker::import_tar(&mut reader, &options, &sink, &bar).with_context(context)?;
            reader.finish().with_context(context)?;
            trees.push((imported.root, imported.entries, imported.bytes));
            add(&mut total, imported);
        }
        drop((bar, sink));
        let (image, layers) = layout.config.stated(&trees, &layout.origin);
        let (image, layers) = overrule(image, layers, stated);
        complete(app, &self.name, image, layers, total, Details::default())
    }
}

fn add(total: &mut Imported, layer: Imported) {
    total.root = layer.root;
    total.entries += layer.entries;
    total.files += layer.files;
    total.bytes += layer.bytes;
    total.new_objects += layer.new_objects;
    total.new_bytes += layer.new_bytes;
    total.stored_bytes += layer.stored_bytes;
    total.skipped.extend(layer.skipped);
}

/// What the command line says beats what the configuration says.
fn overrule(mut image: ImageManifest, mut layers: Vec<LayerManifest>, stated: Stated) -> (ImageManifest, Vec<LayerManifest>) {
    let Stated { image: by_user, layer, architecture_given } = stated;
    if architecture_given {
        image.architecture = by_user.architecture;
    }
    if by_user.startup_files.iter().any(|file| file.trigger.is_none()) {
        image.startup_files.clear();
    }
    image.startup_files.extend(by_user.startup_files);
    image.working_directory = by_user.working_directory.or(image.working_directory);
    image.metadata.extend(by_user.metadata);
    (image.dependencies, image.requirements, image.scripts, image.requires) = (by_user.dependencies, by_user.requirements, by_user.scripts, by_user.requires);
    if let Some(highest) = layers.last_mut() {
        highest.environment.extend(layer.environment.iter().cloned());
    }
    if let Some(lowest) = layers.first_mut() {
        lowest.isolation.retain(|rule| !layer.isolation.iter().any(|other| other.path == rule.path));
        lowest.isolation.extend(layer.isolation);
        lowest.environment_isolation = layer.environment_isolation;
        (lowest.files, lowest.attributes, lowest.condition) = (layer.files, layer.attributes, layer.condition);
        *lowest = lowest.clone().with_features();
    }
    (image, layers)
}

/// A reader that computes the digest of what it passes on.
struct Verified<R> {
    inner: R,
    wanted: Option<OciDigest>,
    hash: Hash,
}

enum Hash {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl<R: Read> Verified<R> {
    fn new(inner: R, wanted: Option<OciDigest>) -> Self {
        let hash = match wanted.as_ref().map(OciDigest::algorithm) {
            Some(Algorithm::Sha512) => Hash::Sha512(Sha512::new()),
            _ => Hash::Sha256(Sha256::new()),
        };
        Self { inner, wanted, hash }
    }

    /// Reads what is left, and compares.
    fn finish(mut self) -> Result<()> {
        io::copy(&mut self, &mut io::sink())?;
        let got = match self.hash {
            Hash::Sha256(hash) => OciDigest::new(Algorithm::Sha256, &hash.finalize()),
            Hash::Sha512(hash) => OciDigest::new(Algorithm::Sha512, &hash.finalize()),
        };
        match (self.wanted, got) {
            (Some(wanted), Some(got)) if wanted != got => bail!("its digest is {got} in place of {wanted}: the source is damaged; fetch or save it again"),
            _ => Ok(()),
        }
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        match &mut self.hash {
            Hash::Sha256(hash) => hash.update(&buffer[..len]),
            Hash::Sha512(hash) => hash.update(&buffer[..len]),
        }
        Ok(len)
    }
}
