//! `turbo export`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use layer_format::Digest;
use layer_format::reference::ImageReference;

use crate::app::App;
use crate::exit::Exit;
use crate::images;
use crate::output::{bytes, note};
use crate::progress::Bar;
use crate::sink::StoreSource;

/// Write an image's files to a tar archive, its layers merged.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// The image.
    image: ImageReference,
    /// The archive: compressed if it ends in .gz, .tgz or .zst; `-` writes plain tar to stdout.
    file: PathBuf,
    /// Replace the file if it exists.
    #[arg(long)]
    overwrite: bool,
}

impl Export {
    /// Writes beside the file and renames at the end: a file of that name is always whole.
    pub fn run(self, app: &App) -> Result<Exit> {
        let store = app.store()?;
        let _hold = store.hold()?;
        let image = images::find(&store, &self.image)?;
        let roots = image.manifest.layers.iter().map(|digest| images::layer(&store, digest).map(|layer| layer.root)).collect::<Result<Vec<Digest>>>()?;
        let bar = Bar::spinner("exporting");
        let source = StoreSource(&store);
        if self.file.as_os_str() == "-" {
            let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
            chunker::export_tar(&roots, &source, &mut out, &bar).with_context(|| format!("{} was not exported", self.image))?;
            out.flush().context("writing to stdout")?;
            return Ok(Exit::Success);
        }
        if self.file.exists() && !self.overwrite {
            bail!("{} exists; say --overwrite to replace it", self.file.display());
        }
        let name = self.file.file_name().with_context(|| format!("{} is not a file's name", self.file.display()))?;
        let temporary = self.file.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
        let exported = write(&temporary, &self.file, |out| Ok(chunker::export_tar(&roots, &source, out, &bar)?));
        let exported = match exported.and_then(|exported| Ok(std::fs::rename(&temporary, &self.file).map(|()| exported)?)) {
            Ok(exported) => exported,
            Err(error) => {
                let _ = std::fs::remove_file(&temporary);
                return Err(error.context(format!("{} was not exported to {}", self.image, self.file.display())));
            }
        };
        drop(bar);
        for skipped in &exported.skipped {
            note(format!("left out: {}: {}", skipped.path, skipped.reason));
        }
        let result = serde_json::json!({"image": self.image, "file": self.file, "entries": exported.entries, "bytes": exported.bytes});
        app.output.result(&result, |out| writeln!(out, "{}: {} entries, {}", self.file.display(), exported.entries, bytes(exported.bytes)))?;
        Ok(Exit::Success)
    }
}

/// Calls `fill` with a writer to `temporary`, compressing as the name of `file` says, and makes it durable.
fn write<T>(temporary: &Path, file: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<T> {
    let target = File::create(temporary).with_context(|| format!("writing {}", temporary.display()))?;
    let mut out = BufWriter::with_capacity(1 << 20, target);
    let extension = file.extension().unwrap_or_default().to_string_lossy().into_owned();
    let result = match extension.as_str() {
        "zst" => {
            let mut encoder = zstd::stream::write::Encoder::new(&mut out, 3)?;
            let result = fill(&mut encoder)?;
            encoder.finish()?;
            result
        }
        "gz" | "tgz" => {
            let mut encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::default());
            let result = fill(&mut encoder)?;
            encoder.finish()?;
            result
        }
        _ => fill(&mut out)?,
    };
    let target = out.into_inner().map_err(|error| error.into_error())?;
    target.sync_all()?;
    Ok(result)
}
