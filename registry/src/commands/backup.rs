//! `turbo-registry backup`: a copy of the data folder, taken while the server runs.
//!
//! Packs never change, but come, and go when they are compacted; the database's copy is of one moment. So packs are copied before
//! the database (what is compacted away meanwhile is there already) and once more after it (what came meanwhile), and the result
//! is checked: each pack that the database's copy knows is there, with its length. Only then does the copy take the place of the one
//! before, and what neither needs is removed. A backup that is interrupted leaves the one before it whole.
//!
//! Into the same folder again, only new packs are copied. The folder has the layout of a data folder: to restore is to copy it, or
//! to start a server on it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use registry::Options;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, Row};

/// How often packs are copied again if some are missing then.
const ATTEMPTS: u32 = 3;

/// What to copy, and where to.
#[derive(Debug, clap::Args)]
pub(crate) struct Backup {
    /// The server's configuration file
    #[arg(long, env = "TURBO_REGISTRY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder for the copy, on another disk; what it holds of an earlier backup is not copied again
    target: PathBuf,
    #[command(flatten)]
    options: Options,
}

impl Backup {
    /// Copies, checks, and prints what was done.
    ///
    /// # Errors
    /// If anything cannot be read or written, or a pack is missing in the storage.
    pub(crate) fn run(self) -> Result<()> {
        let options = match &self.config {
            Some(path) => self.options.or(Options::from_file(path)?),
            None => self.options,
        };
        let config = options.into_config()?;
        let database = database(config.database_url.as_deref(), &config.data)?;
        let storage = storage(config.storage_url.as_deref(), &config.data)?;
        ensure!(database.exists(), "there is no database {}: start the server once", database.display());
        let target = std::path::absolute(&self.target).with_context(|| format!("{} is no path", self.target.display()))?;
        ensure!(
            storage.as_deref().is_none_or(|storage| !storage.starts_with(&target) && !target.starts_with(storage)),
            "a backup cannot lie in the folder that it is of: choose another for {}",
            target.display()
        );
        create(&target)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("could not start")?;
        runtime.block_on(copy(&database, storage.as_deref(), &target))
    }
}

/// The database's file.
fn database(url: Option<&str>, data: &Path) -> Result<PathBuf> {
    match url {
        None => Ok(data.join("registry.db")),
        Some(url) if url.starts_with("sqlite:") => {
            Ok(SqliteConnectOptions::from_str(url).with_context(|| format!("{url} is no database URL"))?.get_filename().to_owned())
        }
        Some(_) => bail!("this copies SQLite alone: back up PostgreSQL with pg_dump, or by its own archive of the log, and the bucket by its versions"),
    }
}

/// The folder of the packs; `None` if they are in a bucket, which has its own ways.
fn storage(url: Option<&str>, data: &Path) -> Result<Option<PathBuf>> {
    match url {
        None => Ok(Some(data.join("storage"))),
        Some(url) if url.starts_with("file://") => Ok(Some(PathBuf::from(url.trim_start_matches("file://")))),
        Some(_) => Ok(None),
    }
}

async fn copy(database: &Path, storage: Option<&Path>, target: &Path) -> Result<()> {
    let packs = target.join("storage");
    let (fresh, kept) = (target.join("registry.db.new"), target.join("registry.db"));
    let mut copied = Copied::default();
    if let Some(storage) = storage {
        copied.all(storage, &packs)?;
    }
    remove_if_there(&fresh)?;
    let mut connection = open(database).await?;
    let path = fresh.to_str().context("the folder's name is not text")?;
    sqlx::query("VACUUM INTO ?").bind(path).execute(&mut connection).await.with_context(|| format!("could not copy {} to {path}", database.display()))?;
    connection.close().await.context("could not close the database")?;
    sync(&fresh)?;

    let mut missing = Vec::new();
    if let Some(storage) = storage {
        for _ in 0..ATTEMPTS {
            copied.all(storage, &packs)?;
            missing = lacks(&fresh, &packs).await?;
            if missing.is_empty() {
                break;
            }
        }
    }
    fs::rename(&fresh, &kept).with_context(|| format!("could not put {} into place", kept.display()))?;
    // Of a copy that was started on: it belongs to the database that was replaced.
    for ending in ["-wal", "-shm"] {
        remove_if_there(&target.join(format!("registry.db{ending}")))?;
    }
    sync(target)?;
    let removed = if storage.is_some() { copied.remove_others(&packs, &known(&kept).await?)? } else { 0 };
    println!(
        "{}: {} files with {} bytes copied, {removed} that nothing needs removed{}",
        target.display(),
        copied.files,
        copied.bytes,
        if storage.is_none() { "; packs are in a bucket, whose versions keep them" } else { "" }
    );
    if let Some(first) = missing.first() {
        bail!("the storage lacks {} packs that the database knows, {first} among them: see `turbo-registry scrub`", missing.len());
    }
    Ok(())
}

async fn open(path: &Path) -> Result<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(false).busy_timeout(std::time::Duration::from_secs(30));
    options.connect().await.with_context(|| format!("could not open {}", path.display()))
}

/// Keys and lengths of the packs in use that a copy of the database knows.
async fn packs(database: &Path) -> Result<Vec<(String, u64)>> {
    let mut connection = open(database).await?;
    let rows = sqlx::query("SELECT COALESCE(name, digest) AS name, size_bytes FROM pack WHERE retired_at IS NULL")
        .fetch_all(&mut connection)
        .await
        .context("could not list the packs of the copy")?;
    connection.close().await.context("could not close the copy")?;
    let one = |row: &sqlx::sqlite::SqliteRow| -> Result<(String, u64)> {
        let name: Vec<u8> = row.try_get("name").context("a pack has no name")?;
        let len: i64 = row.try_get("size_bytes").context("a pack has no length")?;
        let hex: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
        let start = hex.get(..2).context("a pack has no name")?;
        Ok((format!("packs/{start}/{hex}"), u64::try_from(len).context("a pack has no length")?))
    };
    rows.iter().map(one).collect()
}

async fn known(database: &Path) -> Result<BTreeSet<PathBuf>> {
    Ok(packs(database).await?.into_iter().map(|(key, _)| PathBuf::from(key)).collect())
}

async fn lacks(database: &Path, folder: &Path) -> Result<Vec<String>> {
    let is_there = |key: &str, len: u64| fs::metadata(folder.join(key)).is_ok_and(|metadata| metadata.len() == len);
    Ok(packs(database).await?.into_iter().filter(|(key, len)| !is_there(key, *len)).map(|(key, _)| key).collect())
}

/// What was copied, and what the storage had at any time.
#[derive(Debug, Default)]
struct Copied {
    files: u64,
    bytes: u64,
    seen: BTreeSet<PathBuf>,
}

impl Copied {
    /// Copies what is not there yet.
    fn all(&mut self, from: &Path, to: &Path) -> Result<()> {
        create(to)?;
        for (relative, len) in list(from)? {
            self.seen.insert(relative.clone());
            let (source, place) = (from.join(&relative), to.join(&relative));
            if fs::metadata(&place).is_ok_and(|metadata| metadata.len() == len) {
                continue;
            }
            let folder = place.parent().context("a file has a folder")?;
            create(folder)?;
            let partial = folder.join(".partial");
            match fs::copy(&source, &partial) {
                Ok(copied) => self.bytes += copied,
                // Compacted away since it was listed.
                Err(_) if !source.exists() => continue,
                Err(error) => return Err(error).with_context(|| format!("could not copy {} to {}", source.display(), partial.display())),
            }
            sync(&partial)?;
            fs::rename(&partial, &place).with_context(|| format!("could not put {} into place", place.display()))?;
            sync(folder)?;
            self.files += 1;
        }
        Ok(())
    }

    /// Removes what the storage did not have at any time, and the database does not know.
    fn remove_others(&self, folder: &Path, known: &BTreeSet<PathBuf>) -> Result<u64> {
        let mut removed = 0;
        for (relative, _) in list(folder)? {
            if !self.seen.contains(&relative) && !known.contains(&relative) {
                remove_if_there(&folder.join(&relative))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Files below a storage's folder, with their lengths, but uploads in progress and the lock.
fn list(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let path = folder.join(&relative);
        for entry in fs::read_dir(&path).with_context(|| format!("could not list {}", path.display()))? {
            let entry = entry.with_context(|| format!("could not list {}", path.display()))?;
            let relative = relative.join(entry.file_name());
            if relative == Path::new("tmp") || relative == Path::new("lock") || relative.file_name().is_some_and(|name| name == ".partial") {
                continue;
            }
            // A file may go while the folder is listed.
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => pending.push(relative),
                Ok(metadata) => found.push((relative, metadata.len())),
                Err(_) => {}
            }
        }
    }
    Ok(found)
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| format!("could not remove {}", path.display())),
        _ => Ok(()),
    }
}

fn sync(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|file| file.sync_all()).with_context(|| format!("could not bring {} to the disk", path.display()))
}
