//! What an operator does with database and storage directly, also while servers run on them: collect, scrub, reconcile, bring
//! back what was deleted.

use std::sync::Arc;

use layer_format::reference::Repository;
use serde::Serialize;

use crate::app::StartError;
use crate::config::Config;
use crate::db::Db;
use crate::db::trash::trash_list;
use crate::service::gc::{Collector, GcOptions, GcReport, ReconcileOptions, ReconcileReport, ScrubOptions, ScrubReport};
use crate::service::trash::{Deleted, undelete};

/// Why something could not be done; with all causes in its text.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MaintenanceError(String);

impl MaintenanceError {
    fn of(error: &dyn std::error::Error) -> Self {
        Self(crate::chain(error))
    }
}

/// Something that was deleted and can be brought back.
#[derive(Clone, Debug, Serialize)]
pub struct TrashEntry {
    /// Its number.
    pub id: i64,
    /// The repository.
    pub repository: String,
    /// `image`, `release`, `state`, `oci-manifest`, `oci-tag` or `oci-blob`.
    pub kind: String,
    /// Its digest, or the release or tag.
    pub name: String,
    /// Milliseconds since 1970.
    pub deleted_at: i64,
    /// Until when it can be brought back at least, in milliseconds since 1970.
    pub kept_until: i64,
    /// Who deleted it.
    pub deleted_by: String,
}

/// Something that was brought back.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// As in [`TrashEntry`].
    pub kind: String,
    /// As in [`TrashEntry`].
    pub name: String,
}

/// Most entries of a list of what was deleted.
const MAX_LISTED: u32 = 10_000;

/// Database and storage of a registry, without its server.
#[derive(Debug)]
pub struct Maintenance {
    db: Db,
    collector: Collector,
}

impl Maintenance {
    /// Opens both, beside servers that use them.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn open(config: &Config) -> Result<Self, StartError> {
        std::fs::create_dir_all(&config.data).map_err(|source| StartError::Data { path: config.data.clone(), source })?;
        let storage = crate::app::open_storage(config, crate::app::Beside::Servers)?;
        let db = Db::open(config.database_url.as_deref(), &config.data.join("registry.db"), config.database_connections).await?;
        let collector = Collector::new(db.clone(), Arc::clone(&storage), config.data.clone(), config.gc);
        Ok(Self { db, collector })
    }

    /// Collects garbage in all namespaces, or in one.
    ///
    /// # Errors
    /// If database or storage fail. What was done is done, and the next collection goes on.
    pub async fn gc(&self, namespace: Option<&str>, options: GcOptions) -> Result<Vec<GcReport>, MaintenanceError> {
        self.collector.run(namespace, options).await.map_err(|error| MaintenanceError::of(&error))
    }

    /// Verifies every byte of every pack.
    ///
    /// # Errors
    /// If database or storage fail. Damage is no error: the report names it.
    pub async fn scrub(&self, options: &ScrubOptions) -> Result<ScrubReport, MaintenanceError> {
        self.collector.scrub(options).await.map_err(|error| MaintenanceError::of(&error))
    }

    /// Compares storage and database.
    ///
    /// # Errors
    /// If one of them fails.
    pub async fn reconcile(&self, options: &ReconcileOptions) -> Result<ReconcileReport, MaintenanceError> {
        self.collector.reconcile(options).await.map_err(|error| MaintenanceError::of(&error))
    }

    /// What was deleted and can be brought back, newest first.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn trash(&self, repository: Option<&Repository>) -> Result<Vec<TrashEntry>, MaintenanceError> {
        let window = crate::service::lease::ms(self.collector.settings.undo_window);
        let rows = async {
            let mut db = self.db.read().await?;
            trash_list(&mut db, repository.map(Repository::as_str), MAX_LISTED).await
        };
        let rows = rows.await.map_err(|error| MaintenanceError::of(&error))?;
        let entry = |row: crate::db::trash::TrashRow| TrashEntry {
            id: row.id,
            repository: row.repository,
            kind: row.kind,
            name: row.name,
            deleted_at: row.deleted_at,
            kept_until: row.deleted_at.saturating_add(window),
            deleted_by: row.deleted_by,
        };
        Ok(rows.into_iter().map(entry).collect())
    }

    /// Brings back what was deleted under this number.
    ///
    /// # Errors
    /// If nothing was, or what it needs is gone.
    pub async fn undelete_number(&self, id: i64) -> Result<Vec<Restored>, MaintenanceError> {
        self.undelete(&Deleted::Number(id)).await
    }

    /// Brings back the newest of this name: a digest, release or tag of a repository.
    ///
    /// # Errors
    /// If nothing was, or what it needs is gone.
    pub async fn undelete_name(&self, repository: &Repository, name: &str) -> Result<Vec<Restored>, MaintenanceError> {
        self.undelete(&Deleted::Name(repository.clone(), name.to_owned())).await
    }

    async fn undelete(&self, wanted: &Deleted) -> Result<Vec<Restored>, MaintenanceError> {
        let restored = undelete(&self.db, wanted).await.map_err(|error| MaintenanceError::of(&error))?;
        Ok(restored.into_iter().map(|(kind, name)| Restored { kind, name }).collect())
    }

    /// Closes the database.
    pub async fn close(self) {
        self.db.close().await;
    }
}
