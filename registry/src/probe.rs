//! Whether a server with these settings would find its database and its storage. Nothing is created, migrated or locked, so
//! that it can be asked beside a server that runs.

use std::path::Path;

use crate::blob_storage::{BlobStorage, RemoteStorage, StorageError};
use crate::config::{Config, redacted};
use crate::db::{Db, DbError};

/// Why database or storage would not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The database.
    #[error("the database {url} cannot be used")]
    Database {
        /// Its URL, without secrets.
        url: String,
        /// Why.
        source: DbError,
    },
    /// The storage.
    #[error("the storage {url} cannot be used")]
    Storage {
        /// Its URL, without secrets.
        url: String,
        /// Why.
        source: StorageError,
    },
}

/// Looks for database and storage. Gives a line about each.
///
/// # Errors
/// [`ProbeError`]: the first that cannot be used.
pub async fn probe(config: &Config) -> Result<[String; 2], ProbeError> {
    let file = config.data.join("registry.db");
    let url = config.database_url.as_deref().map_or_else(|| format!("sqlite:{}", file.display()), redacted);
    let found = Db::probe(config.database_url.as_deref(), &file).await.map_err(|source| ProbeError::Database { url: url.clone(), source })?;
    let database = format!("database {url}: {found}");
    let folder = config.data.join("storage");
    let url = config.storage_url.as_deref().map_or_else(|| format!("file://{}", folder.display()), redacted);
    let found = storage(config, &folder).await.map_err(|source| ProbeError::Storage { url: url.clone(), source })?;
    Ok([database, format!("storage {url}: {found}")])
}

async fn storage(config: &Config, default: &Path) -> Result<&'static str, StorageError> {
    let Some(text) = &config.storage_url else { return folder(default) };
    let invalid = |source: Box<dyn std::error::Error + Send + Sync>| StorageError::Url { url: redacted(text), source };
    let url = url::Url::parse(text).map_err(|error| invalid(error.into()))?;
    if url.scheme() == "file" {
        return folder(&url.to_file_path().map_err(|()| invalid("it is not an absolute path of this machine".into()))?);
    }
    RemoteStorage::open(&url, &config.s3)?.check().await?;
    Ok("answers")
}

fn folder(path: &Path) -> Result<&'static str, StorageError> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok("is there"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok("will be created"),
        Ok(_) => Err(StorageError::Io { doing: "use", path: path.into(), source: std::io::ErrorKind::NotADirectory.into() }),
        Err(source) => Err(StorageError::Io { doing: "look at", path: path.into(), source }),
    }
}
