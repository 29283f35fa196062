//! `turbo pull --checkout`: an image's files as a plain directory.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use client_store::Store;
use layer_format::Digest;
use layer_format::reference::ImageReference;

use crate::app::App;
use crate::exit::{Exit, UsageError};
use crate::images;
use crate::output::{bytes, note};
use crate::progress::Bar;
use crate::sink::StoreSource;

/// Notes of one kind that are shown: of a whole system's files there may be thousands.
const MAX_NOTES: usize = 20;

/// Whether the image's files are wanted as a plain directory, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckoutOptions {
    /// Then make DIR a plain directory with the image's files, its layers merged. A DIR of an earlier checkout is replaced at once,
    /// and only what differs is written; what else was put there is lost.
    #[arg(long, value_name = "DIR")]
    checkout: Option<PathBuf>,
    /// With --checkout: replace DIR also if no checkout has made it. All that is in it is removed.
    #[arg(long, requires = "checkout")]
    overwrite: bool,
    /// With --checkout: ask no registry; all of the image has to be here.
    #[arg(long, requires = "checkout")]
    offline: bool,
}

impl CheckoutOptions {
    /// Checks what the parser cannot.
    pub fn check(&self, images: &[ImageReference]) -> Result<()> {
        if self.checkout.is_some() && images.len() != 1 {
            bail!(UsageError("--checkout is for one image".into()));
        }
        Ok(())
    }

    /// Whether a directory is wanted.
    pub fn is_wanted(&self) -> bool {
        self.checkout.is_some()
    }

    /// Whether it is to be made of what is here.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// Makes the directory of the first image, which is here.
    pub fn run(&self, app: &App, store: &Store, images: &[ImageReference]) -> Result<Exit> {
        let (Some(target), Some(name)) = (&self.checkout, images.first()) else { return Ok(Exit::Success) };
        let _hold = store.hold()?;
        let image = images::find(store, name)?;
        let layers = image.manifest.layers.iter().map(|digest| images::layer(store, digest).map(|layer| layer.root)).collect::<Result<Vec<Digest>>>()?;
        let folder = store.checkouts_folder()?;
        let options = chunker::CheckoutOptions { folder: &folder, overwrite: self.overwrite, threads: 0 };
        let bar = Bar::spinner("checking out");
        let done = chunker::checkout(&layers, &StoreSource(store), target, &options, &bar);
        drop(bar);
        let done = done.with_context(|| format!("{name} was not checked out to {}", target.display()))?;
        let skipped: Vec<String> = done.skipped.iter().map(|skipped| format!("{}: {}", skipped.path, skipped.reason)).collect();
        skipped.iter().take(MAX_NOTES).for_each(|line| note(format!("left out: {line}")));
        if let Some(more) = skipped.len().checked_sub(MAX_NOTES).filter(|more| *more > 0) {
            note(format!("left out: {more} more; --format json lists all"));
        }
        let result = serde_json::json!({"image": name, "digest": image.stored.digest, "folder": target, "entries": done.entries, "bytes": done.bytes,
            "written_files": done.written_files, "written_bytes": done.written_bytes, "kept_files": done.kept_files, "skipped": skipped});
        app.output.result(&result, |out| {
            writeln!(out, "{name} {} in {}", image.stored.digest.short(), target.display())?;
            writeln!(
                out,
                "{} entries, {}; written: {} files, {}; kept: {} files",
                done.entries,
                bytes(done.bytes),
                done.written_files,
                bytes(done.written_bytes),
                done.kept_files
            )
        })?;
        Ok(Exit::Success)
    }
}
