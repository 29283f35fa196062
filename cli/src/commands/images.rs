//! `turbo images`.

use anyhow::Result;

use crate::app::App;
use crate::containers::ago;
use crate::exit::Exit;
use crate::output::{bytes, table};

/// List images that are here.
#[derive(Debug, clap::Args)]
pub struct Images {
    /// Show whole digests.
    #[arg(long)]
    no_trunc: bool,
}

impl Images {
    /// Lists them, newest first: a row for each name.
    pub fn run(self, app: &App) -> Result<Exit> {
        let images = app.store()?.images()?;
        let rows: Vec<_> = images.iter().flat_map(|image| image.names.iter().map(move |name| (name, image))).collect();
        let json: Vec<_> = rows
            .iter()
            .map(|(name, image)| {
                serde_json::json!({"name": name, "digest": image.digest, "bytes": image.bytes, "complete": image.complete, "origin": image.origin,
                    "created_s": image.created_s, "on_registry": image.on_registry, "pinned": image.pinned})
            })
            .collect();
        app.output.result(&json, |out| {
            let cells: Vec<Vec<String>> = rows
                .iter()
                .map(|(name, image)| {
                    let digest = if self.no_trunc { image.digest.to_string() } else { image.digest.short() };
                    let here = if image.complete { "all" } else { "in part" };
                    vec![name.to_string(), digest, image.bytes.map_or("?".into(), bytes), here.into(), ago(image.created_s)]
                })
                .collect();
            table(out, &["IMAGE", "DIGEST", "SIZE", "HERE", "SINCE"], &cells)
        })?;
        Ok(Exit::Success)
    }
}
