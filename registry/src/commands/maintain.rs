//! The operator's commands of `turbo-registry`. Data on stdout, all else on stderr; exit code 3: done, and there are problems.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use layer_format::reference::Repository;
use registry::{GcOptions, GcReport, Maintenance, Options, ReconcileOptions, ReconcileReport, ScrubOptions, ScrubReport};
use serde::Serialize;

/// Version of what `--format json` writes.
const JSON_VERSION: u32 = 1;
/// Done, and there are problems.
const PROBLEMS: u8 = 3;

/// Where the registry's data is.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// TOML file with options as keys, as for `serve`
    #[arg(long, env = "TURBO_REGISTRY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder for the database and packs [default: turbo-registry in the XDG data folder]
    #[arg(long, env = "TURBO_REGISTRY_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Database, as for `serve`
    #[arg(long, env = "TURBO_REGISTRY_DATABASE_URL", value_name = "URL")]
    database_url: Option<String>,
    /// Where packs are kept, as for `serve`
    #[arg(long, env = "TURBO_REGISTRY_STORAGE_URL", value_name = "URL")]
    storage_url: Option<String>,
    /// How long nothing must have led to an object before it is removed, as for `serve`
    #[arg(long, env = "TURBO_REGISTRY_GC_DELAY_SECONDS", value_name = "SECONDS")]
    gc_delay_seconds: Option<u64>,
    /// How long what was deleted can be brought back, as for `serve`
    #[arg(long, env = "TURBO_REGISTRY_UNDO_WINDOW_SECONDS", value_name = "SECONDS")]
    undo_window_seconds: Option<u64>,
    /// Form of the answer
    #[arg(long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    format: Format,
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One JSON value
    Json,
}

impl Place {
    fn options(&self) -> anyhow::Result<Options> {
        let said = Options {
            data: self.data.clone(),
            database_url: self.database_url.clone(),
            storage_url: self.storage_url.clone(),
            gc_delay_seconds: self.gc_delay_seconds,
            undo_window_seconds: self.undo_window_seconds,
            ..Options::default()
        };
        Ok(match &self.config {
            Some(path) => said.or(Options::from_file(path)?),
            None => said,
        })
    }

    async fn open(&self, change: impl FnOnce(&mut registry::Config)) -> anyhow::Result<Maintenance> {
        let mut config = self.options()?.into_config()?;
        change(&mut config);
        Maintenance::open(&config).await.context("could not open the registry's data")
    }

    fn write(&self, name: &'static str, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        match self.format {
            Format::Text => print!("{}", text()),
            Format::Json => println!("{}", serde_json::json!({ "version": JSON_VERSION, name: serde_json::to_value(value)? })),
        }
        Ok(())
    }
}

/// Remove what nothing needs any more. Servers may run meanwhile
#[derive(Debug, clap::Args)]
pub(crate) struct Gc {
    #[command(flatten)]
    place: Place,
    /// Change nothing; tell what would be done
    #[arg(long)]
    dry_run: bool,
    /// Only this namespace
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// List each object that nothing leads to, and why it is removed or not yet
    #[arg(long)]
    objects: bool,
    /// List each pack, and what becomes of it
    #[arg(long)]
    packs: bool,
    /// Rest after work, in parts of the time that it took; 0 works without rest
    #[arg(long, value_name = "PARTS", default_value_t = 0.25)]
    rest: f64,
}

/// Verify every byte that is stored, tell which images damage hits, and mend what can be mended
#[derive(Debug, clap::Args)]
pub(crate) struct Scrub {
    #[command(flatten)]
    place: Place,
    /// Mend nothing; only tell
    #[arg(long)]
    dry_run: bool,
    /// Only this namespace
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Most bytes that are read a second
    #[arg(long, value_name = "BYTES")]
    max_rate: Option<u64>,
    /// Leave out packs that were verified within this many hours: to go on with a scrub that was cut
    #[arg(long, value_name = "HOURS", default_value_t = 0)]
    skip_verified_within: u64,
}

/// Compare storage and database, both ways
#[derive(Debug, clap::Args)]
pub(crate) struct Reconcile {
    #[command(flatten)]
    place: Place,
    /// Repair: packs that nothing knows of go to the folder undo/, objects whose pack is gone leave the index
    #[arg(long)]
    repair: bool,
    /// Packs that nothing knows of become packs of this namespace instead
    #[arg(long, value_name = "NAMESPACE", requires = "repair")]
    adopt: Option<String>,
}

/// List what was deleted and can be brought back
#[derive(Debug, clap::Args)]
pub(crate) struct Trash {
    #[command(flatten)]
    place: Place,
    /// Only of this repository
    repository: Option<Repository>,
}

/// Bring back what was deleted
#[derive(Debug, clap::Args)]
pub(crate) struct Undelete {
    #[command(flatten)]
    place: Place,
    /// Its number in the list of `turbo-registry trash`, or its repository
    what: String,
    /// Its digest, release or tag; the newest of that name
    name: Option<String>,
}

fn done(problems: bool) -> ExitCode {
    if problems { ExitCode::from(PROBLEMS) } else { ExitCode::SUCCESS }
}

impl Gc {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let rest = self.rest;
        let registry = self.place.open(|config| config.gc.rest = rest.clamp(0.0, 100.0)).await?;
        let options = GcOptions { dry_run: self.dry_run, list_objects: self.objects, list_packs: self.packs };
        let reports = registry.gc(self.namespace.as_deref(), options).await;
        registry.close().await;
        let reports = reports?;
        if let Some(name) = self.namespace.as_ref().filter(|_| reports.is_empty()) {
            anyhow::bail!("there is no namespace {name}");
        }
        self.place.write("namespaces", &reports, || reports.iter().map(|report| gc_text(report, self.dry_run)).collect())?;
        Ok(done(reports.iter().any(|report| report.held_back.is_some())))
    }
}

fn gc_text(report: &GcReport, dry_run: bool) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let name = &report.namespace;
    let _ = match &report.held_back {
        Some(why) => writeln!(out, "{name}: held back: {why}"),
        None => Ok(()),
    };
    let verb = if dry_run { "would be removed" } else { "removed" };
    let _ = writeln!(
        out,
        "{name}: {} of {} objects are needed; {} new candidates, {} waiting, {} needed again; {} objects {verb} ({} bytes)",
        report.reached,
        report.objects,
        report.candidates_new,
        report.candidates_waiting,
        report.candidates_back,
        report.objects_removed,
        report.object_bytes_removed
    );
    let _ = writeln!(
        out,
        "{name}: {} packs rewritten into {}, {} retired, {} removed ({} bytes); {} deleted things and {} unused blobs ended",
        report.packs_rewritten, report.packs_made, report.packs_retired, report.packs_removed, report.bytes_freed, report.purged, report.blobs_removed
    );
    for reason in &report.reasons {
        let since = reason.since.map_or_else(String::new, |since| format!(" since {since}"));
        let _ = writeln!(out, "{name}: object {} {}{since} ({} bytes)", reason.digest, reason.reason, reason.bytes);
    }
    for pack in &report.packs {
        let _ = writeln!(
            out,
            "{name}: pack {} {}: {} of {} objects found, {} live ({} bytes)",
            pack.name, pack.fate, pack.found, pack.objects, pack.live, pack.bytes
        );
    }
    out
}

impl Scrub {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let registry = self.place.open(|_| ()).await?;
        let options = ScrubOptions {
            namespace: self.namespace.clone(),
            dry_run: self.dry_run,
            max_bytes_per_second: self.max_rate,
            skip_verified_within: Duration::from_secs(self.skip_verified_within.saturating_mul(3600)),
        };
        let report = registry.scrub(&options).await;
        registry.close().await;
        let report = report?;
        self.place.write("scrub", &report, || scrub_text(&report))?;
        Ok(done(!report.damaged.is_empty()))
    }
}

fn mended_text(objects: &registry::Mended, is_mended: bool) -> String {
    let (lost, healed) = (objects.quarantined.len(), objects.healed.len());
    let mut out = match is_mended {
        true => format!("  {healed} objects found in other packs; {lost} lost: push an image that needs them to heal\n"),
        false => format!("  {healed} objects are in other packs, too; {lost} are lost; nothing was changed\n"),
    };
    objects.needed_by.iter().for_each(|image| out.push_str(&format!("  needed by {image}\n")));
    out
}

fn scrub_text(report: &ScrubReport) -> String {
    let mut out = format!("{} packs, {} objects, {} bytes verified; {} packs left out\n", report.packs, report.objects, report.bytes, report.skipped);
    for pack in &report.damaged {
        out.push_str(&format!("{}: pack {} is damaged: {}\n{}", pack.namespace, pack.name, pack.what, mended_text(&pack.objects, pack.is_mended)));
    }
    out
}

impl Reconcile {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let registry = self.place.open(|_| ()).await?;
        let report = registry.reconcile(&ReconcileOptions { repair: self.repair, adopt: self.adopt.clone() }).await;
        registry.close().await;
        let report = report?;
        self.place.write("reconcile", &report, || reconcile_text(&report))?;
        Ok(done(!report.orphans.is_empty() || !report.lost.is_empty()))
    }
}

fn reconcile_text(report: &ReconcileReport) -> String {
    let mut out = format!("{} packs agree; {} are too young to judge\n", report.packs, report.young);
    for orphan in &report.orphans {
        out.push_str(&format!("pack {} ({} bytes), which nothing knows of: {}\n", orphan.name, orphan.bytes, orphan.fate));
    }
    for pack in &report.lost {
        out.push_str(&format!("{}: pack {} ({} bytes) is gone\n{}", pack.namespace, pack.name, pack.bytes, mended_text(&pack.objects, pack.is_mended)));
    }
    out
}

impl Trash {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let registry = self.place.open(|_| ()).await?;
        let entries = registry.trash(self.repository.as_ref()).await;
        registry.close().await;
        let entries = entries?;
        self.place.write("trash", &entries, || {
            entries
                .iter()
                .map(|entry| {
                    format!("{}\t{}\t{}\t{}\tdeleted at {} by {}\n", entry.id, entry.repository, entry.kind, entry.name, entry.deleted_at, entry.deleted_by)
                })
                .collect()
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Undelete {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let registry = self.place.open(|_| ()).await?;
        let restored = match (&self.name, self.what.parse::<i64>()) {
            (None, Ok(id)) => registry.undelete_number(id).await,
            (None, Err(_)) => anyhow::bail!("give a number of `turbo-registry trash`, or a repository and a digest, release or tag"),
            (Some(name), _) => {
                let repository: Repository = self.what.parse().with_context(|| format!("{} is no repository", self.what))?;
                registry.undelete_name(&repository, name).await
            }
        };
        registry.close().await;
        let restored = restored?;
        self.place.write("restored", &restored, || restored.iter().map(|item| format!("{} {}\n", item.kind, item.name)).collect())?;
        Ok(ExitCode::SUCCESS)
    }
}
