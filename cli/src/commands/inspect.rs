//! `turbo inspect`.

use std::collections::BTreeMap;

use anyhow::Result;
use layer_format::Digest;
use layer_format::manifest::{ImageManifest, LayerManifest, Mode};
use serde::Serialize;

use crate::app::App;
use crate::commands::launch_options::{Images, parse_images};
use crate::exit::Exit;
use crate::images;
use crate::output::bytes;

/// Show what images consist of; of several, what holds when they are stacked in this order.
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// Images, separated by commas.
    #[arg(value_name = "IMAGE[,IMAGE...]", value_parser = parse_images)]
    images: Images,
    /// List all files as well.
    #[arg(long)]
    files: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    name: String,
    digest: Digest,
    manifest: ImageManifest,
    layers: Vec<Layer>,
}

#[derive(Debug, Serialize)]
struct Layer {
    digest: Digest,
    #[serde(flatten)]
    manifest: LayerManifest,
}

/// A mode that holds for a path, and who stated others in vain.
#[derive(Debug, Serialize)]
struct Effective {
    path: String,
    mode: Mode,
    stated_by: String,
    overridden: Vec<String>,
}

impl Inspect {
    /// Prints manifests, layers and effective modes.
    pub fn run(self, app: &App) -> Result<Exit> {
        let store = app.store()?;
        let mut reports = Vec::new();
        for reference in &self.images.0 {
            let image = images::find(&store, reference)?;
            let layers = image.manifest.layers.iter().map(|digest| Ok(Layer { digest: *digest, manifest: images::layer(&store, digest)? }));
            reports.push(Report { name: reference.to_string(), digest: image.stored.digest, layers: layers.collect::<Result<_>>()?, manifest: image.manifest });
        }
        let isolation = effective(&reports);
        let mut files = Vec::new();
        if self.files {
            for layer in reports.iter().flat_map(|report| &report.layers) {
                images::entries(&store, layer.manifest.root, |entry| {
                    files.push((images::kind_letter(&entry.kind), entry.meta.mode, entry.len(), entry.path));
                    Ok(())
                })?;
            }
        }
        let listing: Vec<_> =
            files.iter().map(|(kind, mode, len, path)| serde_json::json!({"kind": kind, "mode": mode, "len": len, "path": path.to_string()})).collect();
        // One image is an object; several are a list below `images`.
        let mut value = match &reports[..] {
            [one] => serde_json::to_value(one)?,
            several => serde_json::json!({"images": several}),
        };
        value["isolation"] = serde_json::to_value(&isolation)?;
        if self.files {
            value["files"] = listing.into();
        }
        app.output.result(&value, |out| {
            for report in &reports {
                writeln!(out, "{}  {}", report.name, report.digest)?;
                writeln!(out, "  architecture  {}", report.manifest.architecture)?;
                for file in &report.manifest.startup_files {
                    let trigger = file.trigger.as_ref().map_or(String::new(), |name| format!(" (trigger {name})"));
                    writeln!(out, "  startup file  {}{trigger}", shell_words::join(&file.command))?;
                }
                if let Some(folder) = &report.manifest.working_directory {
                    writeln!(out, "  working dir   {folder}")?;
                }
                for (name, text) in &report.manifest.metadata {
                    writeln!(out, "  {name:13} {text}")?;
                }
                for layer in &report.layers {
                    writeln!(out, "  layer         {}: {} entries, {}", layer.digest.short(), layer.manifest.entries, bytes(layer.manifest.bytes))?;
                    for var in &layer.manifest.environment {
                        writeln!(out, "    variable    {}={}", var.name, var.value)?;
                    }
                }
            }
            for rule in &isolation {
                writeln!(out, "isolation  {} {} (from {})", rule.path, rule.mode, rule.stated_by)?;
                for other in &rule.overridden {
                    writeln!(out, "           not {other}")?;
                }
            }
            files.iter().try_for_each(|(kind, mode, len, path)| writeln!(out, "{kind}{mode:04o} {len:>12} {path}"))
        })?;
        Ok(Exit::Success)
    }
}

/// The first image that states a mode for a path wins; later ones that say otherwise are listed.
fn effective(reports: &[Report]) -> Vec<Effective> {
    let mut found: BTreeMap<&str, Effective> = BTreeMap::new();
    for report in reports {
        for rule in report.layers.iter().flat_map(|layer| &layer.manifest.isolation) {
            match found.get_mut(rule.path.as_str()) {
                None => {
                    found.insert(&rule.path, Effective { path: rule.path.clone(), mode: rule.mode, stated_by: report.name.clone(), overridden: vec![] });
                }
                Some(first) if first.mode != rule.mode => first.overridden.push(format!("{} (from {})", rule.mode, report.name)),
                Some(_) => {}
            }
        }
    }
    found.into_values().collect()
}
